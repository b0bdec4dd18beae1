//! Wake-up latency of a real-time task in a guest, as cyclictest measures it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::channel::Job;
use crate::guest::Guest;

/// Beyond this, in microseconds, cyclictest counts a latency but does not keep it.
const KEPT_US: u64 = 300_000;

/// How much longer than its duration a measurement may take: cyclictest sets up and ends by means
/// of ordinary tasks, which get little of a contended and emulated processor.
const MARGIN: Duration = Duration::from_secs(90);

const RESULT: &str = "/tmp/cyclictest.json";

/// What to measure.
#[derive(Clone, Debug)]
pub struct Cyclictest {
    /// The guest CPU it runs on; any, unless given.
    pub cpu: Option<u32>,
    /// How many tasks do the same.
    pub tasks: u32,
    /// `SCHED_FIFO` priority; 0 for an ordinary task.
    pub priority: u32,
    /// Time from one wake-up to the next.
    pub interval: Duration,
    pub duration: Duration,
    /// How far behind a full second of the guest's monotonic clock the first wake-up lies; anywhere
    /// unless given. The guest's ticks lie on whole multiples of theirs on the same clock. A wake-up
    /// that meets one takes half as long again, so what is compared must meet as many.
    pub phase: Option<Duration>,
}

/// A phase for each round of a comparison: together they go once through the tick of a kernel with
/// CONFIG_HZ=250.
pub fn phase_of_round(round: usize, rounds: usize) -> Duration {
    let rounds = u32::try_from(rounds).unwrap_or(u32::MAX).max(1);
    Duration::from_millis(4) / rounds * u32::try_from(round).unwrap_or(0)
        + Duration::from_millis(4) / rounds / 2
}

impl Default for Cyclictest {
    fn default() -> Self {
        Self {
            cpu: Some(1),
            tasks: 1,
            priority: 90,
            interval: Duration::from_millis(10),
            duration: Duration::from_secs(10),
            phase: None,
        }
    }
}

impl Cyclictest {
    fn command(&self) -> String {
        let policy = match self.priority {
            0 => "--policy=other".to_owned(),
            priority => format!("-p {priority}"),
        };
        let phase = self.phase.map_or_else(String::new, |phase| {
            format!("--secaligned={}", phase.as_micros())
        });
        let cpu = self.cpu.map_or_else(String::new, |cpu| format!("-a {cpu}"));
        // Without -d 0 each further task would have a longer interval.
        format!(
            "rm -f {RESULT}; cyclictest -q -m {policy} {phase} -i {} {cpu} -t {} -d 0 -h {KEPT_US} -D {} \
             --histfile=/dev/null --json={RESULT} >/tmp/cyclictest.log 2>&1 || \
             {{ cat /tmp/cyclictest.log >&2; exit 1; }}; cat {RESULT}",
            self.interval.as_micros(),
            self.tasks,
            self.duration.as_secs().max(1)
        )
    }

    /// Runs to the end.
    pub fn run(&self, guest: &Guest) -> Result<Histogram> {
        let output = guest
            .exec(&self.command(), self.duration + MARGIN)?
            .ok()
            .context("cyclictest")?;
        Histogram::parse(&output)
    }
}

/// Ordinary tasks in a guest that never sleep, one on each of some CPUs. With them a vCPU never
/// halts, so that a wake-up finds it running or waiting for a processor, as in a busy VM.
pub struct GuestLoad(Vec<Job>);

impl GuestLoad {
    pub fn start(guest: &Guest, cpus: impl IntoIterator<Item = u32>) -> Result<Self> {
        let start = |cpu| {
            guest.spawn(&format!(
                "exec taskset -c {cpu} sh -c 'while :; do :; done'"
            ))
        };
        Ok(Self(cpus.into_iter().map(start).collect::<Result<_>>()?))
    }
}

impl Drop for GuestLoad {
    fn drop(&mut self) {
        for job in &self.0 {
            // Fails only for a guest that has gone, and the load with it.
            let _ = job.kill();
        }
    }
}

/// Latencies in whole microseconds, and how often each was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram(BTreeMap<u64, u64>);

impl Histogram {
    /// Adds a latency.
    pub fn record(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        *self.0.entry(us).or_default() += 1;
    }

    /// From what cyclictest writes as JSON. Samples it did not keep count as its maximum.
    pub fn parse(json: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(json).context("cyclictest's JSON")?;
        let mut all = Self::default();
        for thread in value["thread"]
            .as_object()
            .context("it has no threads")?
            .values()
        {
            all.add(&Self::of_thread(thread)?);
        }
        ensure!(all.samples() > 0, "cyclictest did not run a single cycle");
        Ok(all)
    }

    fn of_thread(thread: &Value) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for (us, count) in thread["histogram"]
            .as_object()
            .context("it has no histogram")?
        {
            let count = count.as_u64().context("a count is no number")?;
            counts.insert(us.parse().context("a latency is no number")?, count);
        }
        let total = thread["cycles"]
            .as_u64()
            .context("it does not say how many cycles ran")?;
        let max = thread["max"]
            .as_u64()
            .context("it does not say the maximum")?;
        let kept: u64 = counts.values().sum();
        let lost = total.saturating_sub(kept);
        if lost > 0 {
            *counts.entry(max).or_default() += lost;
        }
        Ok(Self(counts))
    }

    pub fn samples(&self) -> u64 {
        self.0.values().sum()
    }

    /// The smallest latency that a share (0..=1) of the samples do not exceed; 0 without samples.
    #[allow(clippy::cast_precision_loss)]
    pub fn quantile(&self, share: f64) -> u64 {
        let wanted = share * self.samples() as f64;
        let mut seen = 0;
        for (us, count) in &self.0 {
            seen += count;
            if seen as f64 >= wanted {
                return *us;
            }
        }
        self.max()
    }

    pub fn p50(&self) -> u64 {
        self.quantile(0.5)
    }

    pub fn p90(&self) -> u64 {
        self.quantile(0.9)
    }

    pub fn p99(&self) -> u64 {
        self.quantile(0.99)
    }

    pub fn max(&self) -> u64 {
        self.0.keys().next_back().copied().unwrap_or_default()
    }

    /// Each latency seen with its count.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().map(|(us, count)| (*us, *count))
    }

    /// The same with at most 32 different latencies between one and its double, each at most a 32nd too
    /// small: what a report keeps.
    pub fn coarse(&self) -> Self {
        let round = |us: u64| {
            let shift = us.max(1).ilog2().saturating_sub(5);
            us >> shift << shift
        };
        self.counts()
            .map(|(us, count)| (round(us), count))
            .collect()
    }

    /// With the wake-ups that were due while one was late. cyclictest skips these, so that a
    /// scheduler which stalls for half of the time would show few long latencies: "coordinated
    /// omission", corrected as HdrHistogram does, by one more sample for each whole `interval`.
    pub fn with_skipped(&self, interval: Duration) -> Self {
        let interval = u64::try_from(interval.as_micros())
            .unwrap_or(u64::MAX)
            .max(1);
        self.counts()
            .flat_map(|(us, count)| {
                let skipped = us.saturating_sub(1) / interval;
                (0..=skipped).map(move |periods| (us - periods * interval, count))
            })
            .collect()
    }

    /// Adds another measurement's samples.
    pub fn add(&mut self, other: &Self) {
        for (us, count) in &other.0 {
            *self.0.entry(*us).or_default() += count;
        }
    }
}

impl FromIterator<(u64, u64)> for Histogram {
    fn from_iter<I: IntoIterator<Item = (u64, u64)>>(counts: I) -> Self {
        let mut histogram = Self::default();
        for (us, count) in counts {
            *histogram.0.entry(us).or_default() += count;
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: &[(u64, u64)]) -> Histogram {
        Histogram(counts.iter().copied().collect())
    }

    #[test]
    fn wake_ups_that_were_skipped_count() {
        let interval = Duration::from_micros(10);
        let soon = histogram(&[(0, 3), (9, 2), (10, 1)]);
        assert_eq!(soon.with_skipped(interval), soon);
        let late = histogram(&[(1, 5), (35, 2)]).with_skipped(interval);
        assert_eq!(
            late,
            histogram(&[(1, 5), (5, 2), (15, 2), (25, 2), (35, 2)])
        );
        // Half of the time nothing ran.
        let stalled = histogram(&[(1, 100), (1000, 1)]);
        assert_eq!(
            (stalled.p90(), stalled.with_skipped(interval).p90()),
            (1, 800)
        );
    }

    #[test]
    fn cyclictests_json_is_read() {
        let json =
            r#"{"thread":{"0":{"histogram":{"28":2,"1239":1},"cycles":3,"min":28,"max":1239}}}"#;
        assert_eq!(
            Histogram::parse(json).unwrap(),
            histogram(&[(28, 2), (1239, 1)])
        );
    }

    #[test]
    fn the_phases_of_all_rounds_are_spread_over_a_tick() {
        let phases: Vec<_> = (0..4).map(|round| phase_of_round(round, 4)).collect();
        assert_eq!(phases, [500, 1500, 2500, 3500].map(Duration::from_micros));
    }

    #[test]
    fn samples_beyond_the_kept_range_count_as_the_maximum() {
        let json = r#"{"thread":{"0":{"histogram":{"28":2},"cycles":4,"min":28,"max":900000}}}"#;
        assert_eq!(
            Histogram::parse(json).unwrap(),
            histogram(&[(28, 2), (900_000, 2)])
        );
    }

    #[test]
    fn the_samples_of_all_tasks_count() {
        let json = r#"{"thread":{"0":{"histogram":{"28":2},"cycles":2,"max":28},
            "1":{"histogram":{"28":1,"30":1},"cycles":2,"max":30}}}"#;
        assert_eq!(
            Histogram::parse(json).unwrap(),
            histogram(&[(28, 3), (30, 1)])
        );
    }

    #[test]
    fn a_measurement_without_samples_is_an_error() {
        let json = r#"{"thread":{"0":{"histogram":{},"cycles":0,"min":0,"max":0}}}"#;
        assert!(Histogram::parse(json).is_err());
    }

    #[test]
    fn quantiles_are_latencies_that_were_seen() {
        let histogram = histogram(&[(10, 90), (100, 9), (1000, 1)]);
        assert_eq!(
            (
                histogram.p50(),
                histogram.p90(),
                histogram.p99(),
                histogram.max()
            ),
            (10, 10, 100, 1000)
        );
    }

    #[test]
    fn a_coarse_one_has_as_many_samples_near_where_they_were() {
        let fine: Histogram = (1..=5000).map(|us| (us, 1)).collect();
        let coarse = fine.coarse();
        assert_eq!(coarse.samples(), 5000);
        assert!(coarse.counts().count() < 300);
        for share in [0.1, 0.5, 0.99, 1.0] {
            let (told, exact) = (coarse.quantile(share), fine.quantile(share));
            assert!(told <= exact && exact - told <= exact / 32 + 1, "{share}");
        }
    }

    #[test]
    fn pooling_adds_samples() {
        let mut pooled = histogram(&[(10, 1), (20, 1)]);
        pooled.add(&histogram(&[(20, 2), (30, 1)]));
        assert_eq!(pooled, histogram(&[(10, 1), (20, 3), (30, 1)]));
    }
}
