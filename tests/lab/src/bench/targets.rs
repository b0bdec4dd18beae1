//! What is asked of scx_pvsched, and what was measured: each a ratio within one run.

use serde::Serialize;

use super::agent;
use super::compare::{contenders, Row};
use super::contender::{CHRT, ENGINE, FLOOR, OURS};
use super::decision::BPF_PER_SWITCH;
use super::growth;
use super::measure::{GUEST_P99, HOST_SHARE, P90};
use super::options::{is_rival, RUSTLAND};
use super::record::Record;

/// A contender whose busy host tasks get less than this of their share has no fairness to compare with.
const FAIR: f64 = 0.9;

/// One thing that is asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    pub claim: &'static str,
    /// Whom it compares with.
    pub with: String,
    pub asked: f64,
    /// Whether that is the least or the most.
    pub at_least: bool,
    pub measured: f64,
}

impl Target {
    pub fn is_met(&self) -> bool {
        if self.at_least {
            self.measured >= self.asked
        } else {
            self.measured <= self.asked
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bound = if self.at_least { "at least" } else { "at most" };
        let verdict = if self.is_met() { "met" } else { "MISSED" };
        write!(
            f,
            "{verdict:<7} {:<52} {:>8.2}  ({bound} {}, {})",
            self.claim, self.measured, self.asked, self.with
        )
    }
}

/// Those for which everything was measured.
pub fn all(record: &Record) -> Vec<Target> {
    let rows = Row::all(record);
    let names = contenders(record);
    // Where it was not measured, nobody is known to be unfair.
    let share = Row::find(&rows, "wakeup", &HOST_SHARE.name);
    let is_fair = |name: &str| {
        share
            .and_then(|row| row.median(name))
            .is_none_or(|got| got >= FAIR)
    };
    let fair: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| is_rival(name) && is_fair(name))
        .collect();
    let best = |measure: &str, metric: &str| {
        let row = Row::find(&rows, measure, metric)?;
        let comparisons = row.comparisons(&fair).into_iter();
        let least = comparisons.min_by(|a, b| a.median.total_cmp(&b.median))?;
        Some((
            format!("{}, the best of the fair", least.other),
            least.median,
        ))
    };
    let ours = |measure: &str, metric: &str| {
        let median = Row::find(&rows, measure, metric)?.median(OURS)?;
        Some((OURS.to_owned(), median))
    };
    let as_good = |measure: &str, metric: &str, one: &str, other: &str| {
        let comparison = Row::find(&rows, measure, metric)?.compare_two(one, other)?;
        Some((other.to_owned(), comparison.median))
    };
    // As a cost: how many times as much ours is.
    let times = |measure: &str, metric: &str, other: &str| {
        let (other, median) = as_good(measure, metric, OURS, other)?;
        Some((other, 1.0 / median))
    };
    let growth = || {
        let exponent = growth::exponent(&record.growth, |point| point.bpf_ns)?;
        let most = record.growth.iter().map(|point| point.vcpus).max()?;
        Some((format!("up to {most} vCPUs"), exponent))
    };
    let at_least = |claim, asked, found: Option<(String, f64)>| {
        found.map(|(with, measured)| Target {
            claim,
            with,
            asked,
            at_least: true,
            measured,
        })
    };
    let at_most = |claim, asked, found| {
        at_least(claim, asked, found).map(|target| Target {
            at_least: false,
            ..target
        })
    };
    let p99 = &GUEST_P99.name;
    [
        at_least(
            "guest wake-up p99: times as short",
            8.0,
            best("wakeup", p99),
        ),
        at_most(
            "guest wake-up p99: of that of an idle host",
            1.5,
            times("wakeup", p99, FLOOR),
        ),
        at_most(
            "guest wake-up p99: of that with chrt -f",
            1.0,
            times("wakeup", p99, CHRT),
        ),
        at_least(
            "host tasks beside it: of their share",
            0.97,
            ours("wakeup", &HOST_SHARE.name),
        ),
        at_most(
            "guest wake-up p90, engine in user space: of BPF's",
            2.0,
            as_good("wakeup", &P90.name, OURS, ENGINE),
        ),
        at_least(
            "guest wake-up p90, engine in user space: as short",
            3.0,
            as_good("wakeup", &P90.name, ENGINE, RUSTLAND),
        ),
        at_least(
            "audio: times as few missed deadlines",
            10.0,
            best("audio", "missed"),
        ),
        at_least(
            "audio of 256 frames: times as few missed deadlines",
            10.0,
            best("audio-256", "missed"),
        ),
        at_least(
            "memcached p99: times as short",
            3.0,
            best("requests", "answer p99"),
        ),
        at_most(
            "BPF time per switch: of scx_bpfland's",
            1.1,
            times("decision", &BPF_PER_SWITCH.name, "scx_bpfland"),
        ),
        at_most(
            "a guest's switch with agent: of that without",
            1.03,
            ours("agent", &agent::COST.name),
        ),
        at_most(
            "BPF time per interrupt: exponent of its growth",
            growth::FLAT,
            growth(),
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::contender::KERNEL;
    use super::super::measure::Outcome;
    use super::*;

    fn record(of: &[(&str, f64, f64)]) -> Record {
        let mut record = Record::new(json!({}));
        for (contender, p99, host) in of {
            let results = vec![(GUEST_P99, *p99), (HOST_SHARE, *host)];
            record.add(1, contender, "wakeup", Outcome::from(results));
        }
        record
    }

    fn find<'a>(targets: &'a [Target], claim: &str) -> &'a Target {
        let found = targets.iter().find(|target| target.claim.contains(claim));
        found.unwrap()
    }

    #[test]
    fn only_those_that_are_fair_are_to_be_beaten() {
        let record = record(&[
            (FLOOR, 1000.0, 1.0),
            (KERNEL, 20000.0, 1.0),
            ("scx_greedy", 1500.0, 0.5),
            (CHRT, 1000.0, 0.1),
            (OURS, 1250.0, 0.98),
        ]);
        let targets = all(&record);
        let best = find(&targets, "times as short");
        assert!((best.measured - 16.0).abs() < 1e-9 && best.is_met());
        assert!(best.with.starts_with(KERNEL), "{best}");
        let floor = find(&targets, "idle host");
        assert!((floor.measured - 1.25).abs() < 1e-9 && floor.is_met());
        assert!(!find(&targets, "chrt").is_met());
        assert!(find(&targets, "host tasks").is_met());
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let targets = all(&record(&[(KERNEL, 20000.0, 1.0), (OURS, 1000.0, 1.0)]));
        let claims: Vec<_> = targets.iter().map(|target| target.claim).collect();
        assert_eq!(
            claims,
            [
                "guest wake-up p99: times as short",
                "host tasks beside it: of their share"
            ]
        );
    }
}
