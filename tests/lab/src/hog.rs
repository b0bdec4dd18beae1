//! Busy host tasks whose progress is a number.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::{clock_gettime, ClockId};

use crate::priority::set_nice;

/// Rounds of arithmetic in a unit of work: well below a millisecond even on emulated processors,
/// so that counting whole units is exact enough and asking for the CPU time costs little.
const ROUNDS: u64 = 20_000;

#[derive(Debug, Default)]
struct Counter {
    units: AtomicU64,
    cpu_ns: AtomicU64,
}

/// Threads that compute without end, as ordinary tasks; they stop when this is dropped.
#[derive(Debug)]
pub struct Hog {
    stop: Arc<AtomicBool>,
    counters: Vec<Arc<Counter>>,
    threads: Vec<JoinHandle<()>>,
}

/// What hogs have done up to a moment.
#[derive(Clone, Debug)]
pub struct Progress {
    at: Instant,
    /// Of each thread: units of work, and CPU time.
    threads: Vec<(u64, Duration)>,
}

/// What hogs did between two moments.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    pub elapsed: Duration,
    /// Of each thread: units of work, and CPU time.
    pub threads: Vec<(u64, Duration)>,
}

impl Hog {
    /// Starts `n` busy threads.
    pub fn start(n: usize) -> Result<Self> {
        Self::start_nice(&vec![0; n])
    }

    /// Starts a busy thread for each of these nice values, which are at least the caller's.
    pub fn start_nice(nice: &[i32]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut hog = Self {
            stop,
            counters: Vec::new(),
            threads: Vec::new(),
        };
        for (number, nice) in nice.iter().copied().enumerate() {
            let (stop, counter) = (Arc::clone(&hog.stop), Arc::new(Counter::default()));
            hog.counters.push(Arc::clone(&counter));
            let thread = thread::Builder::new().name(format!("hog-{number}"));
            hog.threads.push(thread.spawn(move || {
                // More of it is always permitted.
                let _ = (nice != 0).then(|| set_nice(nice));
                run(&stop, &counter);
            })?);
        }
        Ok(hog)
    }

    /// What they have done so far.
    pub fn progress(&self) -> Progress {
        let read = |counter: &Arc<Counter>| {
            let cpu = Duration::from_nanos(counter.cpu_ns.load(Ordering::Relaxed));
            (counter.units.load(Ordering::Relaxed), cpu)
        };
        Progress {
            at: Instant::now(),
            threads: self.counters.iter().map(read).collect(),
        }
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread of plain arithmetic does not panic.
            let _ = thread.join();
        }
    }
}

impl Progress {
    /// What was done since `before`.
    pub fn since(&self, before: &Self) -> Work {
        let delta = |(now, before): (&(u64, Duration), &(u64, Duration))| {
            (
                now.0.saturating_sub(before.0),
                now.1.saturating_sub(before.1),
            )
        };
        Work {
            elapsed: self.at.duration_since(before.at),
            threads: self
                .threads
                .iter()
                .zip(&before.threads)
                .map(delta)
                .collect(),
        }
    }
}

impl Work {
    /// Units of work per second, of all threads.
    #[allow(clippy::cast_precision_loss)]
    pub fn rate(&self) -> f64 {
        let units: u64 = self.threads.iter().map(|(units, _)| units).sum();
        units as f64 / self.elapsed.as_secs_f64()
    }

    /// CPU time of all threads per second.
    pub fn cpus(&self) -> f64 {
        let cpu: Duration = self.threads.iter().map(|(_, cpu)| *cpu).sum();
        cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }
}

/// A unit of work: arithmetic that goes on from `state`.
pub fn unit(mut state: u64) -> u64 {
    for _ in 0..ROUNDS {
        // Opaque to the compiler, lest it compute the end of the loop at once.
        state = std::hint::black_box(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1),
        );
    }
    state
}

fn run(stop: &AtomicBool, counter: &Counter) {
    let mut state = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        state = unit(state);
        counter.units.fetch_add(1, Ordering::Relaxed);
        if let Ok(time) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) {
            let cpu = u64::try_from(Duration::from(time).as_nanos()).unwrap_or(u64::MAX);
            counter.cpu_ns.store(cpu, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_threads_do_work_and_use_cpu_time() {
        let hog = Hog::start(2).unwrap();
        let before = hog.progress();
        thread::sleep(Duration::from_millis(300));
        let work = hog.progress().since(&before);
        assert!(work.rate() > 0.0 && work.cpus() > 0.0, "{work:?}");
        assert_eq!(work.threads.len(), 2);
    }

    #[test]
    fn work_is_what_came_between_two_moments() {
        let at = Instant::now();
        let second = Duration::from_secs(1);
        let before = Progress {
            at,
            threads: vec![(5, second)],
        };
        let now = Progress {
            at: at + 2 * second,
            threads: vec![(25, 2 * second)],
        };
        let work = now.since(&before);
        assert!((work.rate() - 10.0).abs() < 1e-9 && (work.cpus() - 0.5).abs() < 1e-9);
    }
}
