//! What it costs a guest to publish: how long a switch from one task to another takes, how often guest
//! mode is left, and memory.

use std::time::Duration;

use anyhow::{Context, Result};

use super::decision::{kib, memory_of, MIB};
use super::measure::{Better, Metric, Outcome, Scene};
use crate::chain::Vm;

const DURATION: Duration = Duration::from_secs(4);
const MARGIN: Duration = Duration::from_secs(60);

/// From the agent's start to the measurement, for what only happens at first.
const SETTLE: Duration = Duration::from_secs(1);

/// A byte to and fro is two switches where both ends share a CPU.
const SWITCHES: f64 = 2.0;

const WITH: Metric = Metric::new("guest's switch, with agent", "us", Better::Lower);
const WITHOUT: Metric = Metric::new("guest's switch, without", "us", Better::Lower);
pub const COST: Metric = Metric::new("guest's switch, times", "", Better::Lower);
const EXITS_WITH: Metric = Metric::new("exits, with agent", "/s", Better::Lower);
const EXITS_WITHOUT: Metric = Metric::new("exits, without", "/s", Better::Lower);
const DEVICE: Metric = Metric::new("memory of the device", "MiB", Better::Lower);
const AGENT: Metric = Metric::new("memory of the agent", "MiB", Better::Lower);

/// In a guest, for a while.
#[derive(Clone, Copy, Debug)]
struct Piped {
    switch_us: f64,
    exits_per_second: f64,
}

impl Piped {
    #[allow(clippy::cast_precision_loss)]
    fn measure(vm: &Vm, duration: Duration) -> Result<Self> {
        let before = vm.guest.kvm_statistic("exits")?;
        let start = std::time::Instant::now();
        let command = format!(
            "exec taskset -c 1 pvsched-lab round-trips {}",
            duration.as_millis()
        );
        let text = vm.guest.exec(&command, duration + MARGIN)?.ok()?;
        let exits = vm.guest.kvm_statistic("exits")?.saturating_sub(before);
        let rate: f64 = text
            .trim()
            .parse()
            .with_context(|| format!("the guest said {text:?}"))?;
        Ok(Self {
            switch_us: 1e6 / rate / SWITCHES,
            exits_per_second: exits as f64 / start.elapsed().as_secs_f64(),
        })
    }
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let duration = scene.scale.duration(DURATION);
    let vm = scene.stage.cooperating()?;
    // Before and after, so that a machine that slows down favours neither.
    let first = Piped::measure(vm, duration)?;
    let agent = vm
        .guest
        .exec("cat /proc/$(pidof pvsched-guest)/status", MARGIN)?
        .ok()?;
    vm.stop_agent()?;
    std::thread::sleep(SETTLE);
    let without = Piped::measure(vm, duration);
    vm.start_agent()?;
    std::thread::sleep(SETTLE);
    let (without, second) = (without?, Piped::measure(vm, duration)?);
    let with = f64::midpoint(first.switch_us, second.switch_us);
    let exits = f64::midpoint(first.exits_per_second, second.exits_per_second);
    #[allow(clippy::cast_precision_loss)]
    let mib = |bytes: u64| bytes as f64 / MIB;
    let agent = kib(&agent, "VmRSS:").context("the agent does not say its memory")?;
    Ok(vec![
        (WITH, with),
        (WITHOUT, without.switch_us),
        (COST, with / without.switch_us),
        (EXITS_WITH, exits),
        (EXITS_WITHOUT, without.exits_per_second),
        (DEVICE, mib(memory_of(vm.device.pid())?)),
        (AGENT, mib(agent * 1024)),
    ]
    .into())
}
