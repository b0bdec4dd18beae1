//! Two VMs that share a host: one whose real-time task has to run soon, and a batch VM that never
//! sleeps.

use anyhow::Result;

use super::measure::{Better, Metric, Outcome, Scene};
use super::stage::{vcpu_times, Used, BATCH_VCPUS, VCPUS};
use super::wakeup;
use crate::hog::Hog;
use crate::latency::GuestLoad;

const BATCH_SHARE: Metric = Metric::new("batch VM", "of share", Better::Higher);

/// As many busy vCPUs of the batch VM as the other has: two for each of two CPUs in all.
pub fn two(scene: &mut Scene) -> Result<Outcome> {
    beside(scene, VCPUS)
}

/// All of its vCPUs: four for each of two CPUs.
pub fn four(scene: &mut Scene) -> Result<Outcome> {
    beside(scene, BATCH_VCPUS)
}

fn beside(scene: &mut Scene, busy: u32) -> Result<Outcome> {
    let busy = if scene.hogs() > 0 { busy } else { 0 };
    let (guest, batch) = (scene.stage.guest(scene.contender)?, scene.stage.batch()?);
    let cyclictest = wakeup::cyclictest(scene);
    let _load = GuestLoad::start(batch, 0..busy)?;
    let (used, (latency, batch_used)) = Used::during(guest, &Hog::start(0)?, || {
        let before = vcpu_times(batch)?;
        let latency = cyclictest.run(guest)?;
        let after = vcpu_times(batch)?;
        let used = after.iter().zip(&before);
        let used = used.map(|(after, before)| after.saturating_sub(*before).as_secs_f64());
        let used: Vec<f64> = used.take(usize::try_from(busy)?).collect();
        Ok((latency, used))
    })?;
    batch.check()?;
    let mut outcome = wakeup::outcome(&latency, cyclictest.interval)?;
    if busy > 0 {
        let all = Used {
            host: batch_used,
            ..used
        };
        outcome.results.push((BATCH_SHARE, all.shares().1));
    }
    Ok(outcome)
}
