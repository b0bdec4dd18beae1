//! Who gets how much CPU time, of what is theirs by weight.

use std::time::Duration;

use anyhow::Result;

use super::measure::{Better, Metric, Outcome, Scene, VM_SHARE};
use super::stage::Used;
use super::wakeup;
use crate::hog::Hog;

const DURATION: Duration = Duration::from_secs(9);

/// The kernel's weights of tasks of nice 0 and nice 5 (sched_prio_to_weight).
const WEIGHT_NICE_0: f64 = 1024.0;
const WEIGHT_NICE_5: f64 = 335.0;

const NICE_0: Metric = Metric::new("host, nice 0", "of share", Better::Higher);
const NICE_5: Metric = Metric::new("host, nice 5", "of share", Better::Higher);
const UNFAIR: Metric = Metric::new("furthest off", "%", Better::Lower);

/// Of the time that tasks used, each group's part by weight: `(seconds, weight)` of each task.
fn shares<const N: usize>(groups: [(&[f64], f64); N]) -> [f64; N] {
    #[allow(clippy::cast_precision_loss)]
    let weight = |(tasks, weight): (&[f64], f64)| tasks.len() as f64 * weight;
    let all: f64 = groups.iter().flat_map(|(tasks, _)| *tasks).sum();
    let weights: f64 = groups.iter().map(|group| weight(*group)).sum();
    groups.map(|group| {
        let used: f64 = group.0.iter().sum();
        used / (all * weight(group) / weights)
    })
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let guest = scene.stage.guest(scene.contender)?;
    let cpus = scene.scale.cpus;
    // One of each for each CPU, and the guest's two CPUs are busy: nobody's share is more than a CPU.
    let hogs = Hog::start_nice(&[vec![0; cpus], vec![5; cpus]].concat())?;
    let mut cyclictest = wakeup::cyclictest(scene);
    cyclictest.duration = scene.scale.duration(DURATION);
    let (used, _) = Used::during(guest, &hogs, || cyclictest.run(guest))?;
    let (nice_0, nice_5) = used.host.split_at(cpus.min(used.host.len()));
    let [vcpus, nice_0, nice_5] = shares([
        (&used.vcpus, WEIGHT_NICE_0),
        (nice_0, WEIGHT_NICE_0),
        (nice_5, WEIGHT_NICE_5),
    ]);
    let off = [vcpus, nice_0, nice_5].map(|share| 100.0 * (share - 1.0).abs());
    Ok(vec![
        (VM_SHARE, vcpus),
        (NICE_0, nice_0),
        (NICE_5, nice_5),
        (UNFAIR, off.into_iter().fold(0.0, f64::max)),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_go_by_weight() {
        let [heavy, light] = shares([(&[3.0], 3.0), (&[0.5, 0.5], 0.5)]);
        assert!((heavy - 1.0).abs() < 1e-9 && (light - 1.0).abs() < 1e-9);
        let [more, less] = shares([(&[3.0], 1.0), (&[1.0], 1.0)]);
        assert!((more - 1.5).abs() < 1e-9 && (less - 0.5).abs() < 1e-9);
    }
}
