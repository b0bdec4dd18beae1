//! A real-time task that a task of another CPU wakes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::latency::Histogram;
use crate::priority::{bind, set_policy, Policy};

/// Not in step with ticks, and longer than a guest's CPU waits for a physical one as a rule.
const INTERVAL: Duration = Duration::from_millis(23);

const PRIORITY: i32 = 50;

/// How long after an ordinary thread on CPU `from` has woken it a FIFO thread on CPU `to` runs. Where it has not
/// run before it is woken again, the time counts from the latter.
///
/// # Errors
/// When there are no such CPUs, or this process may not make a thread a real-time one.
pub fn measure(from: usize, to: usize, duration: Duration) -> Result<Histogram> {
    let (start, sent, over) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    // Never 0, which is nothing sent.
    let now = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX) | 1;
    let (sent, over) = (&sent, &over);
    thread::scope(|scope| {
        let sleeper = thread::Builder::new().spawn_scoped(scope, move || -> Result<Histogram> {
            bind(to)?;
            set_policy(0, Policy::Fifo(PRIORITY))?;
            let mut times = Histogram::default();
            while !over.load(Ordering::Acquire) {
                thread::park();
                let at = sent.swap(0, Ordering::AcqRel);
                if at != 0 {
                    times.record(Duration::from_nanos(now().saturating_sub(at)));
                }
            }
            Ok(times)
        });
        let sleeper = sleeper.context("cannot start a thread")?;
        let bound = bind(from);
        while bound.is_ok() && start.elapsed() < duration && !sleeper.is_finished() {
            thread::sleep(INTERVAL);
            sent.store(now(), Ordering::Release);
            sleeper.thread().unpark();
        }
        over.store(true, Ordering::Release);
        sleeper.thread().unpark();
        let times = sleeper.join().expect("nothing in that thread panics");
        bound.and(times)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wake_up_is_timed() {
        // Whoever may not make real-time threads is told so.
        match measure(0, 0, Duration::from_millis(120)) {
            Ok(times) => assert!((1..=6).contains(&times.samples()), "{times:?}"),
            Err(error) => assert!(format!("{error:#}").contains("Fifo"), "{error:#}"),
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        let error = measure(0, 1_000, Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("CPU 1000"), "{error:#}");
    }
}
