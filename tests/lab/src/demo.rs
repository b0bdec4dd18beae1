//! The demonstration: how long a real-time task in a busy VM waits for its wake-up, under the
//! kernel's scheduler and under scx_pvsched, side by side in one boot.
//!
//! One guest stays up over all rounds. Each round measures every cell once, with the wake-ups at the
//! same distance from the guest's ticks, and every other round goes backwards, so that a machine that
//! slows down favours nobody. Emulated processors are slow and noisy: only ratios within one run mean
//! anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Error, Result};
use clap::Args;
use serde_json::{json, Value};

use crate::chain::{sched_ext_ops, sched_ext_state, Chain, ChainOptions, VmOptions};
use crate::demo_report::{Measurement, Report};
use crate::hog::Hog;
use crate::kernels::Kernel;
use crate::latency::{phase_of_round, Cyclictest, GuestLoad};
use crate::process;

/// From the start of load or scheduler to the measurement, for what only happens at first.
const SETTLE: Duration = Duration::from_secs(1);

/// What a step takes beyond its measurement, until the first ones have shown it.
const OVERHEAD_GUESS: Duration = Duration::from_secs(6);

/// From the failure of a measurement to the end of its guest, if that was the cause.
const STOP: Duration = Duration::from_secs(5);

/// How many guests may stop before the demonstration gives up.
const MOST_STOPS: usize = 3;

/// One column of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cell {
    /// The kernel's scheduler, and nothing on the host but the guest.
    Floor,
    /// The kernel's scheduler with busy host tasks.
    Kernel,
    /// scx_pvsched with the same host tasks.
    Pvsched,
    /// The same with a policy in user space.
    UserSpace,
}

impl Cell {
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Kernel => "kernel",
            Self::Pvsched => "pvsched",
            Self::UserSpace => "rustland",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Floor => "no host load",
            Self::Kernel => "kernel's scheduler",
            Self::Pvsched => "scx_pvsched",
            Self::UserSpace => "policy in user space",
        }
    }

    /// Whether it is scx_pvsched that schedules.
    fn is_ours(self) -> bool {
        matches!(self, Self::Pvsched | Self::UserSpace)
    }
}

impl FromStr for Cell {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let cells = [Self::Floor, Self::Kernel, Self::Pvsched, Self::UserSpace];
        cells
            .into_iter()
            .find(|cell| cell.name() == name)
            .context("a cell is floor, kernel, pvsched or rustland")
    }
}

/// What to measure; the same on the machine and inside the host VM.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Rounds; each measures every cell once
    #[arg(long, default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Seconds of measuring for each cell of each round
    #[arg(long, default_value_t = 10, value_name = "S",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Cells, in the order of the first round
    #[arg(
        long,
        default_value = "floor,kernel,pvsched",
        value_delimiter = ',',
        value_name = "CELLS"
    )]
    pub cells: Vec<Cell>,
    /// Kernel of the guest: a series such as 6.12, or newest
    #[arg(long, default_value_t = Kernel::Newest, value_name = "SERIES")]
    pub guest_kernel: Kernel,
    /// Busy host tasks [default: 2 for each host CPU]
    #[arg(long, value_name = "N")]
    pub hogs: Option<usize>,
    /// More options for scx_pvsched, in one word
    #[arg(
        long,
        default_value = "",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub scheduler_args: String,
    /// Print what scx_pvsched's statistics counted in each of its cells
    #[arg(long)]
    pub keep_stats: bool,
}

impl Options {
    /// The command line that says the same.
    pub fn arguments(&self) -> Vec<String> {
        let cells: Vec<_> = self.cells.iter().map(|cell| cell.name()).collect();
        let mut arguments = vec![
            format!("--rounds={}", self.rounds),
            format!("--seconds={}", self.seconds),
            format!("--cells={}", cells.join(",")),
            format!("--guest-kernel={}", self.guest_kernel),
            format!("--scheduler-args={}", self.scheduler_args),
        ];
        arguments.extend(self.hogs.map(|hogs| format!("--hogs={hogs}")));
        arguments.extend(self.keep_stats.then(|| "--keep-stats".to_owned()));
        arguments
    }

    /// About how long all of it takes without the boot of the host VM.
    pub fn estimate(&self) -> Duration {
        let steps = u32::try_from(self.cells.len())
            .unwrap_or(u32::MAX)
            .saturating_mul(self.rounds);
        (Duration::from_secs(self.seconds) + SETTLE + OVERHEAD_GUESS) * steps
    }
}

/// Measures everything here, in the host VM or on a machine that can itself, and leaves
/// `report.json` in `out`.
pub fn measure(options: &Options, out: &Path) -> Result<()> {
    ensure!(!options.cells.is_empty(), "there is no cell to measure");
    if let Some(ops) = sched_ext_ops() {
        bail!("the scheduler {ops} is attached; end it first");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .context("cannot handle signals")?;

    let mut demo = Demo::new(options)?;
    demo.all_rounds(&stop)?;
    let report = Report::new(demo.environment()?, &demo.measured);
    print!("{report}");
    let path = out.join("report.json");
    let text = serde_json::to_string_pretty(&report.json())?;
    fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

struct Demo<'a> {
    options: &'a Options,
    hogs: usize,
    // Before the chain, because it ends by means of the guest.
    load: GuestLoad,
    chain: Chain,
    measured: BTreeMap<Cell, Vec<Measurement>>,
    /// The cells in which a guest stopped.
    stops: Vec<Cell>,
}

/// A busy guest that publishes.
fn boot(options: &Options) -> Result<(GuestLoad, Chain)> {
    let start = Instant::now();
    eprintln!("demo: booting the guest");
    let vm = VmOptions {
        kernel: options.guest_kernel,
        ..VmOptions::default()
    };
    let chain = Chain::start(ChainOptions {
        vm,
        no_scheduler: true,
        ..ChainOptions::default()
    })?;
    eprintln!(
        "demo: guest {} up and publishing after {} s",
        chain.vm.guest.release(),
        start.elapsed().as_secs()
    );
    let load = GuestLoad::start(&chain.vm.guest, 0..VmOptions::default().vcpus)?;
    Ok((load, chain))
}

impl<'a> Demo<'a> {
    fn new(options: &'a Options) -> Result<Self> {
        let cpus = thread::available_parallelism()?.get();
        let (load, chain) = boot(options)?;
        Ok(Self {
            options,
            hogs: options.hogs.unwrap_or(2 * cpus),
            load,
            chain,
            measured: BTreeMap::new(),
            stops: Vec::new(),
        })
    }

    /// Measures a cell. Emulated guests stop now and then, under any scheduler: then once more
    /// with another guest, and a few times in all; the report tells how often.
    fn measure_again(&mut self, cell: Cell, phase: Duration) -> Result<Measurement> {
        let error = match self.measure(cell, phase) {
            Ok(measurement) => return Ok(measurement),
            Err(error) => error,
        };
        if self.stops.len() >= MOST_STOPS || !self.chain.vm.guest.stops_within(STOP) {
            return Err(error);
        }
        eprintln!("demo: the guest stopped: {error:#}");
        self.stops.push(cell);
        if cell.is_ours() {
            self.chain.scheduler()?.check()?;
            self.chain.stop_scheduler()?;
        }
        (self.load, self.chain) = boot(self.options)?;
        self.measure(cell, phase)
    }

    fn all_rounds(&mut self, stop: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        let rounds = self.options.rounds;
        let steps = rounds * u32::try_from(self.options.cells.len())?;
        let mut done = 0;
        for round in 1..=rounds {
            let mut cells = self.options.cells.clone();
            if round % 2 == 0 {
                cells.reverse();
            }
            let phase = phase_of_round(usize::try_from(round - 1)?, usize::try_from(rounds)?);
            for cell in cells {
                ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                let measurement = self
                    .measure_again(cell, phase)
                    .with_context(|| format!("round {round}, {}", cell.title()))?;
                done += 1;
                let elapsed = start.elapsed();
                let left = elapsed / done * (steps - done);
                eprintln!(
                    "demo: [{done}/{steps}, {} s, {} s left] round {round}, {}: {measurement}",
                    elapsed.as_secs(),
                    left.as_secs(),
                    cell.title()
                );
                if self.options.keep_stats {
                    if let Some(statistics) = measurement.statistics() {
                        println!("scx_pvsched's statistics, round {round}:\n{statistics}");
                    }
                }
                self.measured.entry(cell).or_default().push(measurement);
            }
        }
        Ok(())
    }

    fn measure(&mut self, cell: Cell, phase: Duration) -> Result<Measurement> {
        if cell.is_ours() {
            let mut arguments: Vec<_> = self.options.scheduler_args.split_whitespace().collect();
            if cell == Cell::UserSpace {
                arguments.extend(["--engine", "rustland"]);
            }
            self.chain.start_scheduler(&arguments)?;
        } else {
            ensure!(
                sched_ext_state() == "disabled",
                "sched_ext is {} where the kernel's scheduler is to be measured",
                sched_ext_state()
            );
        }
        let hogs = if cell == Cell::Floor { 0 } else { self.hogs };
        let hog = Hog::start(hogs)?;
        thread::sleep(SETTLE);

        let stats_before = self.stats(cell)?;
        let vcpus_before = self.vcpu_time()?;
        let before = hog.progress();
        let cyclictest = Cyclictest {
            duration: Duration::from_secs(self.options.seconds),
            phase: Some(phase),
            ..Cyclictest::default()
        };
        let latency = cyclictest.run(&self.chain.vm.guest)?;
        let work = hog.progress().since(&before);
        let vcpus = self.vcpu_time()?.saturating_sub(vcpus_before);
        let stats_after = self.stats(cell)?;
        drop(hog);

        if cell.is_ours() {
            // A scheduler that was ejected would have left its numbers to the kernel's.
            self.chain.scheduler()?.check()?;
            self.chain.stop_scheduler()?;
        }
        Ok(Measurement {
            latency,
            host_rate: work.rate(),
            host_cpus: work.cpus(),
            vcpu_cpus: vcpus.as_secs_f64() / work.elapsed.as_secs_f64(),
            stats: stats_before.zip(stats_after),
        })
    }

    fn stats(&mut self, cell: Cell) -> Result<Option<Value>> {
        cell.is_ours()
            .then(|| self.chain.scheduler()?.stats())
            .transpose()
    }

    /// CPU time of all vCPU threads so far.
    fn vcpu_time(&self) -> Result<Duration> {
        let guest = &self.chain.vm.guest;
        let mut sum = Duration::ZERO;
        for tid in guest.vcpu_threads()? {
            let path = format!("/proc/{}/task/{tid}/schedstat", guest.pid());
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            let ns = text.split(' ').next().unwrap_or_default();
            sum += Duration::from_nanos(ns.parse().with_context(|| format!("{path}: {text}"))?);
        }
        Ok(sum)
    }

    fn environment(&self) -> Result<Value> {
        let guest = &self.chain.vm.guest;
        Ok(json!({
            "versions": {
                "scx_pvsched": first_line(Command::new("scx_pvsched").arg("--version"))?,
                "vhost-device-pvsched":
                    first_line(Command::new("vhost-device-pvsched").arg("--version"))?,
                "qemu": first_line(Command::new("qemu-system-x86_64").arg("--version"))?,
            },
            "host": {
                "kernel": first_line(Command::new("uname").arg("-r"))?,
                "cpus": thread::available_parallelism()?.get(),
                "cpu_model": cpu_model(),
            },
            "guest": { "kernel": guest.release(), "vcpus": VmOptions::default().vcpus },
            "load": {
                "host_tasks": self.hogs,
                "guest_tasks": VmOptions::default().vcpus,
                "cyclictest_interval_us": 10_000,
                "cyclictest_fifo_priority": 90,
            },
            "guest_stops": self.stops.iter().map(|cell| cell.name()).collect::<Vec<_>>(),
            "rounds": self.options.rounds,
            "seconds": self.options.seconds,
            "scheduler_args": self.options.scheduler_args,
        }))
    }
}

/// What a program answers in its first line.
pub(crate) fn first_line(command: &mut Command) -> Result<String> {
    Ok(process::text(command)?
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// Adds to a report what only the machine itself knows.
pub fn add_machine(report: &Path) -> Result<()> {
    let text =
        fs::read_to_string(report).with_context(|| format!("no report at {}", report.display()))?;
    let mut value: Value = serde_json::from_str(&text)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    value["machine"] = json!({
        "kernel": release.trim_end(),
        "cpus": thread::available_parallelism()?.get(),
        "cpu_model": cpu_model(),
    });
    fs::write(report, serde_json::to_string_pretty(&value)? + "\n")?;
    Ok(())
}

/// The processors' name; an emulator's tells that it is one.
pub(crate) fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    info.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &[String]) -> Options {
        let program = "demo".to_owned();
        Cli::try_parse_from([&program].into_iter().chain(line))
            .unwrap()
            .options
    }

    #[test]
    fn a_command_line_can_be_passed_on() {
        let line = [
            "--rounds=2",
            "--cells=pvsched,kernel",
            "--hogs=3",
            "--keep-stats",
            "--scheduler-args=--slice-us 2000 -v",
        ];
        let options = parse(&line.map(str::to_owned));
        assert_eq!(options.cells, [Cell::Pvsched, Cell::Kernel]);
        let again = parse(&options.arguments());
        assert_eq!(again.arguments(), options.arguments());
        assert_eq!(again.scheduler_args, "--slice-us 2000 -v");
        assert!(again.keep_stats && again.hogs == Some(3));
    }

    #[test]
    fn a_cell_that_is_none_is_refused() {
        assert!("idle".parse::<Cell>().is_err());
    }
}
