//! Threads that wake workers, which compute and report back: what a server does with its
//! requests, as schbench has it. How long a worker waits from its wake-up until it runs is the
//! scheduler's part in a request's latency.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{anyhow, Result};

use super::measure::{Results, Scale, MAX, P50, P99, RATE};
use crate::hog;
use crate::latency::Histogram;

/// What to run.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// Threads that wake workers. Two, so that their own wake-ups compete, too.
    messengers: usize,
    /// Workers of each. As many as CPUs: together twice as many as can run, so that the one woken
    /// finds all CPUs busy as a rule, and the tail tells how long it has to wait for one.
    workers: usize,
    /// Work of a request, in units of a hog's: about a millisecond of an emulated processor, as
    /// much as the shortest slice, so that some requests are cut in two by the end of one.
    units: u32,
    duration: Duration,
}

const DURATION: Duration = Duration::from_secs(4);

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// From a wake-up to the worker running.
    latency: Histogram,
    pub requests: u64,
    elapsed: Duration,
}

pub fn load(scale: &Scale) -> Result<Outcome> {
    run(Setup {
        messengers: 2,
        workers: scale.cpus,
        units: 20,
        duration: scale.duration(DURATION),
    })
}

pub fn measure(scale: &Scale) -> Result<Results> {
    let outcome = load(scale)?;
    #[allow(clippy::cast_precision_loss)]
    let value = |number: u64| number as f64;
    Ok(vec![
        (
            RATE,
            value(outcome.requests) / outcome.elapsed.as_secs_f64(),
        ),
        (P50, value(outcome.latency.p50())),
        (P99, value(outcome.latency.p99())),
        (MAX, value(outcome.latency.max())),
    ])
}

/// Where a worker is woken.
#[derive(Debug, Default)]
struct Slot {
    thread: OnceLock<Thread>,
    /// Nanoseconds since the start at which it was woken; 0 not yet.
    woken: AtomicU64,
}

/// The clock of all threads; never 0.
fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos())
        .unwrap_or(u64::MAX)
        .max(1)
}

/// Wakes each worker that asks for it, until all have gone.
fn wake(requests: &Receiver<usize>, slots: &[Slot], start: Instant) {
    for worker in requests {
        let slot = &slots[worker];
        slot.woken.store(nanoseconds(start), Ordering::Release);
        if let Some(thread) = slot.thread.get() {
            thread.unpark();
        }
    }
}

/// Asks to be woken, waits for that, computes, and again; gives how long each wake-up took.
fn work(
    setup: &Setup,
    number: usize,
    slot: &Slot,
    requests: &Sender<usize>,
    start: Instant,
    stop: &AtomicBool,
) -> Histogram {
    let mut latency = Histogram::default();
    let mut state = 1;
    slot.thread.get_or_init(thread::current);
    while !stop.load(Ordering::Relaxed) && requests.send(number).is_ok() {
        let woken = loop {
            match slot.woken.swap(0, Ordering::Acquire) {
                0 => thread::park(),
                woken => break woken,
            }
        };
        latency.record(Duration::from_nanos(
            nanoseconds(start).saturating_sub(woken),
        ));
        for _ in 0..setup.units {
            state = hog::unit(state);
        }
    }
    latency
}

fn run(setup: Setup) -> Result<Outcome> {
    let start = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let mut messengers: Vec<JoinHandle<()>> = Vec::new();
    let mut workers: Vec<JoinHandle<Histogram>> = Vec::new();
    for _ in 0..setup.messengers {
        let slots: Vec<_> = (0..setup.workers).map(|_| Slot::default()).collect();
        let slots: Arc<[Slot]> = slots.into();
        let (sender, receiver) = mpsc::channel();
        for number in 0..setup.workers {
            let (slots, sender, stop) = (Arc::clone(&slots), sender.clone(), Arc::clone(&stop));
            let worker = thread::Builder::new().name(format!("worker-{number}"));
            workers.push(
                worker
                    .spawn(move || work(&setup, number, &slots[number], &sender, start, &stop))?,
            );
        }
        let messenger = thread::Builder::new().name("messenger".to_owned());
        messengers.push(messenger.spawn(move || wake(&receiver, &slots, start))?);
    }
    thread::sleep(setup.duration);
    stop.store(true, Ordering::Relaxed);
    let mut latency = Histogram::default();
    for worker in workers {
        latency.add(&worker.join().map_err(|_| anyhow!("a worker panicked"))?);
    }
    let elapsed = start.elapsed();
    for messenger in messengers {
        messenger
            .join()
            .map_err(|_| anyhow!("a messenger panicked"))?;
    }
    Ok(Outcome {
        requests: latency.samples(),
        latency,
        elapsed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(units: u32) -> Outcome {
        run(Setup {
            messengers: 2,
            workers: 2,
            units,
            duration: Duration::from_millis(300),
        })
        .unwrap()
    }

    #[test]
    fn every_worker_is_woken_and_all_threads_end() {
        let outcome = small(1);
        // Each of the four at least once; no wake-up can have taken longer than all.
        assert!(outcome.requests >= 4, "{outcome:?}");
        assert!(outcome.elapsed >= Duration::from_millis(300));
        let longest = Duration::from_micros(outcome.latency.max());
        assert!(longest <= outcome.elapsed, "{outcome:?}");
    }

    #[test]
    fn requests_with_more_work_are_fewer() {
        // A hundred times the work leaves a wide margin for a machine that has other things to do.
        let (light, heavy) = (small(1), small(100));
        assert!(
            light.requests > heavy.requests,
            "{} {}",
            light.requests,
            heavy.requests
        );
    }
}
