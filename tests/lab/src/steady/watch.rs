//! What is watched while the mix goes on, and before and after it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;

use super::Mix;
use crate::chain::Scheduler;

/// How often is looked. Each look costs emulated CPU time.
const LOOK: Duration = Duration::from_secs(1);

/// After so many looks something is said, for whoever waits, or looks for the time of a failure.
const TOLD: usize = 60;

/// How often a canary wants to run.
const BEAT: Duration = Duration::from_millis(100);

/// A task that wants to run and does not for so long stands still. Turns last milliseconds, and there are
/// a hundred tasks at most; sched_ext itself waits for 30 s.
const STALL: Duration = Duration::from_secs(10);

/// How long the scheduler may be away when CPUs have come or gone. It loads in 2 s on an idle machine; in
/// the mix it took 10 to 20, often twice as CPUs change again meanwhile, after 5 to 50 to let KVM go.
const AWAY: Duration = Duration::from_secs(150);

/// Within this, what is still open or in use because of the last change has gone.
const SETTLE: Duration = Duration::from_secs(3);

/// Memory of the scheduler process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub at: Duration,
    /// That belongs to it alone, in KiB: what it has allocated.
    pub anonymous_kib: u64,
}

/// What has been seen.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    pub samples: Vec<Sample>,
    /// The longest that the scheduler was away.
    pub away: Duration,
    /// The longest that a canary overslept.
    pub overslept: Duration,
    /// VMs of which the scheduler knew vCPUs, by name.
    pub served: BTreeSet<String>,
    /// For how long has been watched.
    pub seen: Duration,
}

impl Watch {
    /// Watches until the mix is over.
    ///
    /// # Errors
    /// When a task stands still, or the scheduler has ended or stays away.
    pub fn until_over(&mut self, scheduler: &mut Scheduler, mix: &Mix) -> Result<()> {
        let over = AtomicBool::new(false);
        let canaries = [Canary::new("free", None), Canary::new("on CPU 0", Some(0))];
        thread::scope(|scope| {
            for canary in &canaries {
                let over = &over;
                scope.spawn(move || canary.sing(over));
            }
            let watched = self.look_until_over(scheduler, mix, &canaries);
            over.store(true, Ordering::Relaxed);
            watched
        })?;
        self.overslept = canaries
            .iter()
            .map(Canary::overslept)
            .max()
            .unwrap_or_default();
        Ok(())
    }

    fn look_until_over(
        &mut self,
        scheduler: &mut Scheduler,
        mix: &Mix,
        canaries: &[Canary],
    ) -> Result<()> {
        let start = Instant::now();
        let mut there = start;
        while mix.pause(LOOK) {
            self.seen = start.elapsed();
            for canary in canaries {
                canary.check()?;
            }
            ensure!(scheduler.is_running(), "the scheduler has ended");
            if !scheduler.is_attached() {
                self.away = self.away.max(there.elapsed());
                ensure!(
                    there.elapsed() < AWAY,
                    "the scheduler has been away for {:.0?}",
                    there.elapsed()
                );
                continue;
            }
            there = Instant::now();
            self.samples.push(Sample {
                at: self.seen,
                anonymous_kib: anonymous_kib(scheduler.pid())?,
            });
            // None while it starts again.
            if let Ok(stats) = scheduler.stats() {
                let vms = stats["vms"].as_object().into_iter().flatten();
                let served = vms
                    .filter(|(_, vm)| vm["vcpus"].as_object().is_some_and(|all| !all.is_empty()))
                    .filter_map(|(_, vm)| vm["name"].as_str().map(str::to_owned));
                self.served.extend(served);
            }
            if self.samples.len().is_multiple_of(TOLD) {
                let memory = self.samples.last().map_or(0, |sample| sample.anonymous_kib);
                eprintln!(
                    "after {:.0?}: {memory} KiB, {} VMs served so far",
                    self.seen,
                    self.served.len()
                );
            }
        }
        Ok(())
    }
}

/// A task that sleeps and wakes up.
struct Canary {
    name: &'static str,
    cpu: Option<usize>,
    start: Instant,
    /// When it ran last, in milliseconds from the start, and the longest that it overslept.
    beat_ms: AtomicU64,
    overslept_ms: AtomicU64,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Canary {
    fn new(name: &'static str, cpu: Option<usize>) -> Self {
        Self {
            name,
            cpu,
            start: Instant::now(),
            beat_ms: AtomicU64::new(0),
            overslept_ms: AtomicU64::new(0),
        }
    }

    fn sing(&self, over: &AtomicBool) {
        if let Some(cpu) = self.cpu {
            let mut set = CpuSet::new();
            // CPU 0 is there on every machine.
            let _ = set
                .set(cpu)
                .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        }
        while !over.load(Ordering::Relaxed) {
            let lay_down = Instant::now();
            thread::sleep(BEAT);
            let overslept = millis(lay_down.elapsed().saturating_sub(BEAT));
            self.overslept_ms.fetch_max(overslept, Ordering::Relaxed);
            self.beat_ms
                .store(millis(self.start.elapsed()), Ordering::Relaxed);
        }
    }

    fn overslept(&self) -> Duration {
        Duration::from_millis(self.overslept_ms.load(Ordering::Relaxed))
    }

    /// Whether it runs, also when whoever asks has not run for as long.
    fn check(&self) -> Result<()> {
        let beat = Duration::from_millis(self.beat_ms.load(Ordering::Relaxed));
        let silent = self.start.elapsed().saturating_sub(beat);
        let longest = silent.max(self.overslept());
        ensure!(
            longest < STALL,
            "a task that wanted to run ({}) did not for {longest:.1?}",
            self.name
        );
        Ok(())
    }
}

/// What the scheduler process holds while there is no VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub anonymous_kib: u64,
    pub files: usize,
    pub threads: u64,
    /// Of its BPF maps, as the kernel counts them.
    pub maps_kib: u64,
}

impl Held {
    /// Waits until the scheduler is there, knows of no VM, and has everything open that it opens for none
    /// in particular.
    pub fn without_vms(scheduler: &mut Scheduler, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            let settled = scheduler.is_attached()
                && scheduler.stats().is_ok_and(|stats| {
                    stats["nr_vms"] == 0 && stats["nr_vcpus"] == 0 && stats["hint_sources"] != ""
                });
            if settled {
                break;
            }
            ensure!(scheduler.is_running(), "the scheduler has ended");
            if Instant::now() >= deadline {
                let stats = scheduler.stats()?;
                bail!("not settled within {limit:?}: {stats}");
            }
            thread::sleep(LOOK);
        }
        thread::sleep(SETTLE);
        let pid = scheduler.pid();
        let status = read(pid, "status")?;
        Ok(Self {
            anonymous_kib: anonymous_kib(pid)?,
            files: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            threads: number(&status, "Threads:").context("a process without threads")?,
            maps_kib: maps_bytes(pid)? / 1024,
        })
    }
}

fn read(pid: u32, file: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).context(path)
}

/// The number behind a name at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn anonymous_kib(pid: u32) -> Result<u64> {
    number(&read(pid, "smaps_rollup")?, "Anonymous:").context("no anonymous memory")
}

/// Of every BPF map that is open, which each has a line with its memory; one that is open twice counts
/// twice.
fn maps_bytes(pid: u32) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that has been closed meanwhile is no map that stays.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        if text.contains("map_type:") {
            all += number(&text, "memlock:").unwrap_or_default();
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_names() {
        let text = "Rss:     100 kB\nAnonymous:        7 kB\nmemlock:\t4096\n";
        assert_eq!(number(text, "Anonymous:"), Some(7));
        assert_eq!(number(text, "memlock:"), Some(4096));
        assert_eq!(number(text, "Threads:"), None);
    }

    #[test]
    fn a_canary_that_is_silent_is_noticed() {
        let mut canary = Canary::new("free", None);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| canary.sing(&over));
            thread::sleep(Duration::from_millis(500));
            over.store(true, Ordering::Relaxed);
        });
        canary.check().unwrap();
        canary.start -= STALL;
        assert!(canary.check().unwrap_err().to_string().contains("(free)"));
        // It has run again, but what was is not forgotten.
        canary.beat_ms = AtomicU64::new(millis(canary.start.elapsed()));
        canary.check().unwrap();
        canary.overslept_ms = AtomicU64::new(millis(STALL));
        assert!(canary.check().is_err());
    }

    #[test]
    fn the_memory_of_a_process_is_known() {
        assert!(anonymous_kib(std::process::id()).unwrap() > 0);
        assert_eq!(maps_bytes(std::process::id()).unwrap(), 0);
    }
}
