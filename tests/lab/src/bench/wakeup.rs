//! How late a real-time task of a busy guest runs, and what that costs the host.

use std::time::Duration;

use anyhow::{ensure, Result};

use super::measure::{Outcome, Results, Scene, GUEST_P99, MAX, P50, P90};
use super::stage::Used;
use crate::hog::Hog;
use crate::latency::{phase_of_round, Cyclictest, Histogram};

const DURATION: Duration = Duration::from_secs(9);

/// Wake-ups that were had, without those that were skipped.
const LEAST_SAMPLES: u32 = 10;

/// The task that is measured.
pub fn cyclictest(scene: &Scene) -> Cyclictest {
    Cyclictest {
        duration: scene.scale.duration(DURATION),
        phase: Some(phase_of_round(scene.round, scene.rounds)),
        ..Cyclictest::default()
    }
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let guest = scene.stage.guest(scene.contender)?;
    let cyclictest = cyclictest(scene);
    let hogs = Hog::start(scene.hogs())?;
    let (used, latency) = Used::during(guest, &hogs, || cyclictest.run(guest))?;
    let mut outcome = outcome(&latency, cyclictest.interval)?;
    if scene.hogs() > 0 {
        outcome.results.extend(used.results());
    }
    Ok(outcome)
}

/// What the wake-ups of a guest's task say that were due once in each `interval`.
pub fn outcome(latency: &Histogram, interval: Duration) -> Result<Outcome> {
    ensure!(
        latency.samples() >= u64::from(LEAST_SAMPLES),
        "only {} wake-ups",
        latency.samples()
    );
    let latency = latency.with_skipped(interval);
    Ok(Outcome {
        results: quantiles(&latency),
        latency: Some(latency),
    })
}

#[allow(clippy::cast_precision_loss)]
fn quantiles(latency: &Histogram) -> Results {
    vec![
        (P50, latency.p50() as f64),
        (P90, latency.p90() as f64),
        (GUEST_P99, latency.p99() as f64),
        (MAX, latency.max() as f64),
    ]
}
