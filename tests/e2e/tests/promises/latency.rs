//! A real-time task in a guest runs soon although the host is busy, and the host does not pay.

use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{margins, median, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::{Cyclictest, GuestLoad, Histogram};

use crate::vm::Used;

const ROUNDS: usize = 3;

/// Long enough for 700 wake-ups, of which the 70 slowest are above the p90.
const DURATION: Duration = Duration::from_secs(7);

/// Medians over the rounds.
struct Medians {
    /// p90 in microseconds on an idle host, on a busy one under the kernel's scheduler, and under
    /// ours.
    floor: f64,
    kernel: f64,
    ours: f64,
    /// Work of the host's tasks under ours, of that under the kernel's scheduler.
    host_rate: f64,
    /// CPU time of the vCPUs, in the same way.
    vcpus: f64,
}

impl std::fmt::Display for Medians {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p90 is {:.2} of the kernel's and {:.2} of an idle host's, host tasks keep {:.2}, \
             vCPUs {:.2}",
            self.ours / self.kernel,
            self.ours / self.floor,
            self.host_rate,
            self.vcpus
        )
    }
}

/// What the scheduler replaces, and an idle host, are measured in the same boot and round: ratios
/// of measurements minutes apart, or on different machines, say nothing.
fn compare() -> Result<Medians> {
    let mut chain = Chain::start(ChainOptions {
        no_scheduler: true,
        ..ChainOptions::default()
    })?;
    // The guest is busy itself, or its vCPU would sleep and look interactive to any scheduler.
    let load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
    let mut cells = [const { (Vec::new(), Vec::new(), Vec::new()) }; 3];
    for _ in 0..ROUNDS {
        let idle = Hog::start(0)?;
        measure_into(&mut cells[0], &chain, &idle)?;
        let hogs = Hog::start(4)?;
        measure_into(&mut cells[1], &chain, &hogs)?;
        chain.start_scheduler::<&str>(&[])?;
        measure_into(&mut cells[2], &chain, &hogs)?;
        let stats = chain.scheduler()?.stats()?;
        ensure!(
            stats["hints_due"].as_u64() > Some(0),
            "never ahead of a guest's timer: {stats}"
        );
        chain.scheduler()?.check()?;
        chain.stop_scheduler()?;
    }
    drop(load);
    let [floor, kernel, ours] = cells;
    println!(
        "p90 in microseconds: idle host {:.0?}, kernel's scheduler {:.0?}, scx_pvsched {:.0?}; \
         host tasks' work per second: {:.1?}, {:.1?}; vCPUs' CPUs: {:.2?}, {:.2?}",
        floor.0, kernel.0, ours.0, kernel.1, ours.1, kernel.2, ours.2
    );
    let medians = Medians {
        floor: median(&floor.0)?,
        kernel: median(&kernel.0)?,
        ours: median(&ours.0)?,
        host_rate: median(&ours.1)? / median(&kernel.1)?,
        vcpus: median(&ours.2)? / median(&kernel.2)?,
    };
    println!("{medians}");
    Ok(medians)
}

#[test]
fn a_guests_realtime_task_wakes_up_fast_on_a_busy_host() -> Result<()> {
    promise(|| {
        let medians = compare()?;
        ensure!(
            medians.ours <= medians.kernel * margins::LATENCY_OF_KERNELS
                && medians.ours <= medians.floor * margins::LATENCY_OF_FLOOR
                && medians.host_rate >= margins::HOST_RATE,
            "{medians}; at most {:.2}, at most {:.2}, at least {:.2}",
            margins::LATENCY_OF_KERNELS,
            margins::LATENCY_OF_FLOOR,
            margins::HOST_RATE
        );
        Ok(())
    })
}

fn measure(chain: &Chain) -> Result<Histogram> {
    let cyclictest = Cyclictest {
        duration: DURATION,
        ..Cyclictest::default()
    };
    cyclictest.run(&chain.vm.guest)
}

/// Adds p90, the rate of the host's tasks, and CPU time of the vCPUs per second.
fn measure_into(
    (latencies, rates, vcpus): &mut (Vec<f64>, Vec<f64>, Vec<f64>),
    chain: &Chain,
    hogs: &Hog,
) -> Result<()> {
    let (used, measured) = Used::during(&chain.vm.guest, hogs, || measure(chain))?;
    // Of 700. cyclictest skips the periods that it oversleeps, so that the worst scheduler would
    // show the fewest long latencies.
    ensure!(
        measured.samples() >= 350,
        "only {} wake-ups within {DURATION:?}",
        measured.samples()
    );
    latencies.push(p90(&measured));
    rates.push(used.work.rate());
    vcpus.push(used.vcpus.iter().sum::<f64>() / used.work.elapsed.as_secs_f64());
    Ok(())
}

/// In microseconds.
#[allow(clippy::cast_precision_loss)]
fn p90(latencies: &Histogram) -> f64 {
    latencies.p90() as f64
}
