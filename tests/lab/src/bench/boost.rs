//! How long it takes from a VM's start until it gets its first boosts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Context, Result};
use serde_json::Value;

use super::measure::{Better, Metric, Outcome, Scene};
use crate::chain::{Scheduler, Vm, VmOptions};
use crate::latency::Cyclictest;

const NAME: &str = "fresh";

/// How often the scheduler is asked.
const LOOK: Duration = Duration::from_millis(100);

const HANDED_OVER: Metric = Metric::new("start to handed over", "s", Better::Lower);
const AGENT_RUNS: Metric = Metric::new("start to agent running", "s", Better::Lower);
const TASK_BOOST: Metric = Metric::new("start to first boost", "s", Better::Lower);

/// Since the VM's start.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    handed_over: Option<Duration>,
    boosted: Option<Duration>,
}

impl Moments {
    fn look(&mut self, stats: &Value, since: Duration) {
        let vms = stats["vms"].as_object().into_iter().flatten();
        for (_, vm) in vms.filter(|(_, vm)| vm["name"] == NAME) {
            let vcpus = vm["vcpus"].as_object().into_iter().flatten();
            for (_, vcpu) in vcpus {
                self.handed_over.get_or_insert(since);
                if vcpu["boosts_task"].as_u64() > Some(0) {
                    self.boosted.get_or_insert(since);
                }
            }
        }
    }
}

fn watch(scheduler: &Scheduler, start: Instant, stop: &AtomicBool) -> Result<Moments> {
    let mut moments = Moments::default();
    while !stop.load(Ordering::Relaxed) {
        moments.look(&scheduler.stats()?, start.elapsed());
        thread::sleep(LOOK);
    }
    Ok(moments)
}

/// Starts a VM with an agent, and a task of urgency in it.
fn run(options: &VmOptions, start: Instant) -> Result<Duration> {
    let vm = Vm::start(options)?;
    let runs = start.elapsed();
    let cyclictest = Cyclictest {
        duration: Duration::from_secs(1),
        ..Cyclictest::default()
    };
    cyclictest.run(&vm.guest)?;
    Ok(runs)
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let options = VmOptions {
        name: NAME.to_owned(),
        kernel: scene.stage.kernel(),
        ..VmOptions::default()
    };
    let scheduler = scene.running.pvsched()?;
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let (runs, moments) = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(scheduler, start, &stop));
        let runs = run(&options, start);
        stop.store(true, Ordering::Relaxed);
        let moments = watcher.join().map_err(|_| anyhow!("the watcher panicked"));
        Ok::<_, anyhow::Error>((runs?, moments??))
    })?;
    let handed_over = moments.handed_over.context("it was not handed over")?;
    let boosted = moments.boosted.context("it was not boosted")?;
    Ok(vec![
        (AGENT_RUNS, runs.as_secs_f64()),
        (HANDED_OVER, handed_over.as_secs_f64()),
        (TASK_BOOST, boosted.as_secs_f64()),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_moment_counts_and_other_vms_do_not() {
        let mut moments = Moments::default();
        let vms = |name: &str, boosts: u64| json!({"vms": {"1": {"name": name, "vcpus": {"0": {"boosts_task": boosts}}}}});
        let second = Duration::from_secs(1);
        moments.look(&vms("other", 3), second);
        assert!(moments.handed_over.is_none());
        moments.look(&vms(NAME, 0), 2 * second);
        moments.look(&vms(NAME, 1), 3 * second);
        moments.look(&vms(NAME, 9), 4 * second);
        assert_eq!(moments.handed_over, Some(2 * second));
        assert_eq!(moments.boosted, Some(3 * second));
    }
}
