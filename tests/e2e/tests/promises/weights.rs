//! What a guest's ordinary work is worth to the guest, its vCPUs are worth to the host.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::channel::Job;
use pvsched_lab::guest::Guest;
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::Cyclictest;

use crate::vm::Used;

/// Until what was measured before is forgotten, and virtual times have settled.
const SETTLE: Duration = Duration::from_secs(2);
const DURATION: Duration = Duration::from_secs(8);

/// A busy task on each of both guest CPUs, started by the given words.
fn busy(guest: &Guest, by: &str) -> Result<Vec<Job>> {
    (0..2)
        .map(|cpu| {
            guest.spawn(&format!(
                "exec taskset -c {cpu} {by} sh -c 'while :; do :; done'"
            ))
        })
        .collect()
}

/// The share of two busy vCPUs beside two busy host tasks, with the guest's tasks started by each
/// of `by`.
fn shares<const N: usize>(options: ChainOptions, by: [&str; N]) -> Result<[f64; N]> {
    let mut chain = Chain::start(options)?;
    let hogs = Hog::start(2)?;
    let mut shares = [0.0; N];
    for (by, result) in by.iter().zip(&mut shares) {
        let tasks = busy(&chain.vm.guest, by)?;
        thread::sleep(SETTLE);
        let (used, ()) = Used::during(&chain.vm.guest, &hogs, || {
            thread::sleep(DURATION);
            Ok(())
        })?;
        chain.vm.guest.check()?;
        *result = used.part_of_vcpus();
        for task in &tasks {
            task.kill()?;
        }
        for task in tasks {
            task.wait(margins::COMMAND)?;
        }
        chain.scheduler()?.check()?;
    }
    println!("{by:?}: {shares:.3?} of what vCPUs and host tasks got together");
    Ok(shares)
}

#[test]
fn a_guest_of_idle_work_leaves_the_host_to_others_until_it_has_ordinary_work() -> Result<()> {
    promise(|| {
        let options = ChainOptions::default();
        let [idle, normal, again] = shares(options, ["chrt -i 0", "chrt -o 0", "chrt -i 0"])?;
        // Both times together: what the guest's own house-keeping takes comes in bursts.
        let share = f64::midpoint(idle, again);
        ensure!(
            share <= margins::IDLE_GUEST_SHARE,
            "SCHED_IDLE work took {share:.3} (at most {:.3})",
            margins::IDLE_GUEST_SHARE
        );
        let (least, most) = margins::HALF;
        ensure!(
            (least..=most).contains(&normal),
            "ordinary work got {normal:.3}, not about a half ({least} to {most})"
        );
        Ok(())
    })
}

#[test]
fn nice_values_in_a_guest_weigh_on_the_host_but_never_more_than_the_vcpu() -> Result<()> {
    promise(|| nice_values_weigh(ChainOptions::default()))
}

/// Whatever the scheduler's options.
pub fn nice_values_weigh(options: ChainOptions) -> Result<()> {
    let [nice, greedy] = shares(options, ["nice -n 5", "nice -n -10"])?;
    let (least, most) = margins::NICE_5_RATIO;
    let ratio = (1.0 - nice) / nice;
    ensure!(
        (least..=most).contains(&ratio),
        "host tasks got {ratio:.2} of what nice 5 in the guest did, not about 3"
    );
    let (least, most) = margins::HALF;
    ensure!(
        (least..=most).contains(&greedy),
        "nice -10 in the guest got {greedy:.3}, not about a half ({least} to {most})"
    );
    Ok(())
}

/// What the guest said last is that it has SCHED_IDLE work. Only a timer tells that there is more.
#[test]
fn ordinary_work_that_wakes_up_in_a_guest_of_idle_work_does_not_wait_for_idle_turns() -> Result<()>
{
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let _idle = busy(&chain.vm.guest, "chrt -i 0")?;
        let _hogs = Hog::start(4)?;
        thread::sleep(SETTLE);
        let latencies = Cyclictest {
            priority: 0,
            interval: Duration::from_millis(100),
            duration: Duration::from_secs(10),
            ..Cyclictest::default()
        }
        .run(&chain.vm.guest)?;
        chain.scheduler()?.check()?;
        println!("p50 {} p90 {} us", latencies.p50(), latencies.p90());
        ensure!(
            Duration::from_micros(latencies.p50()) <= margins::NORMAL_AGAIN,
            "half of the wake-ups took {} us and more (at most {:?})",
            latencies.p50(),
            margins::NORMAL_AGAIN
        );
        Ok(())
    })
}
