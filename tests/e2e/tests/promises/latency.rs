//! A real-time task in a guest runs soon although the host is busy, and the host does not pay.

use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{margins, median, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::{Cyclictest, GuestLoad, Histogram};

const ROUNDS: usize = 3;

/// Long enough for 700 wake-ups, of which the 70 slowest are above the p90.
const DURATION: Duration = Duration::from_secs(7);

/// What the scheduler replaces is measured in the same boot, in alternation with it: ratios of
/// measurements minutes apart, or on different machines, say nothing.
#[test]
fn a_guests_realtime_task_wakes_up_fast_on_a_busy_host() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions {
            no_scheduler: true,
            ..ChainOptions::default()
        })?;
        // The guest is busy itself, or its vCPU would sleep and look interactive to any scheduler.
        let load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
        let mut floor = vec![p90(&measure(&chain)?)];
        let mut kernels = (Vec::new(), Vec::new());
        let mut ours = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let hogs = Hog::start(4)?;
            let (latencies, rate) = measure_with(&chain, &hogs)?;
            kernels.0.push(p90(&latencies));
            kernels.1.push(rate);
            chain.start_scheduler::<&str>(&[])?;
            let (latencies, rate) = measure_with(&chain, &hogs)?;
            // Of 700. cyclictest skips the periods that it oversleeps, so that the worst
            // scheduler would show the fewest long latencies.
            ensure!(
                latencies.samples() >= 350,
                "only {} wake-ups within {DURATION:?}",
                latencies.samples()
            );
            let stats = chain.scheduler()?.stats()?;
            ensure!(
                stats["hints_due"].as_u64() > Some(0),
                "never ahead of a guest's timer: {stats}"
            );
            chain.scheduler()?.check()?;
            chain.stop_scheduler()?;
            ours.0.push(p90(&latencies));
            ours.1.push(rate);
        }
        floor.push(p90(&measure(&chain)?));
        drop(load);

        let measured = format!(
            "p90 in microseconds: kernel's scheduler {:.0?}, scx_pvsched {:.0?}, idle host {floor:.0?}; \
             work of the host's tasks per second: {:.1?}, {:.1?}",
            kernels.0, ours.0, kernels.1, ours.1
        );
        println!("{measured}");
        let latency = median(&ours.0)?;
        let of_kernels = latency / median(&kernels.0)?;
        let of_floor = latency / median(&floor)?;
        let rate = median(&ours.1)? / median(&kernels.1)?;
        ensure!(
            of_kernels <= margins::LATENCY_OF_KERNELS
                && of_floor <= margins::LATENCY_OF_FLOOR
                && rate >= margins::HOST_RATE,
            "p90 is {of_kernels:.2} of the kernel's (at most {:.2}) and {of_floor:.2} of an idle \
             host's (at most {:.2}), host tasks keep {rate:.2} (at least {:.2}); {measured}",
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

/// Latencies, and the rate of the host's tasks meanwhile.
fn measure_with(chain: &Chain, hogs: &Hog) -> Result<(Histogram, f64)> {
    let before = hogs.progress();
    let latencies = measure(chain)?;
    Ok((latencies, hogs.progress().since(&before).rate()))
}

/// In microseconds.
#[allow(clippy::cast_precision_loss)]
fn p90(latencies: &Histogram) -> f64 {
    latencies.p90() as f64
}
