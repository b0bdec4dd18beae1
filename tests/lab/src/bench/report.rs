//! What the benchmark found: a table of medians, what failed, and JSON with every sample.

use std::fmt;

use serde_json::{json, Map, Value};

use super::contender::{BASE, OURS};
use super::load::{Better, Metric};

/// One number of one load under one scheduler in one round.
#[derive(Clone, Debug)]
pub struct Sample {
    pub round: u32,
    pub scheduler: &'static str,
    pub load: &'static str,
    pub metric: Metric,
    pub value: f64,
}

/// A scheduler that did not start, no longer scheduled after a load, or did not end.
#[derive(Clone, Debug)]
pub struct Failure {
    pub round: u32,
    pub scheduler: &'static str,
    pub load: Option<&'static str>,
    pub reason: String,
}

impl Failure {
    pub fn is_ours(&self) -> bool {
        self.scheduler == OURS
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}, {}", self.round, self.scheduler)?;
        if let Some(load) = self.load {
            write!(f, ", {load}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// The middle of some numbers, or the mean of the two in the middle; `None` of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], upper)
    } else {
        upper
    })
}

/// How many times as good ours is as another's number: above 1 is better, whichever direction
/// the numbers have. A latency of less than a unit counts as one.
fn times_as_good(better: Better, ours: f64, other: f64) -> f64 {
    match better {
        Better::Higher => ours / other,
        Better::Lower => other.max(f64::MIN_POSITIVE) / ours.max(f64::MIN_POSITIVE),
    }
}

/// Ours against one other scheduler: the ratios of the rounds in which both were measured.
#[derive(Clone, Debug, PartialEq)]
struct Comparison {
    other: &'static str,
    median: f64,
    least: f64,
    most: f64,
    rounds: usize,
}

/// All samples of one metric of one load.
struct Row<'a> {
    load: &'static str,
    metric: Metric,
    samples: Vec<&'a Sample>,
}

impl Row<'_> {
    fn of<'a>(&'a self, scheduler: &'a str) -> impl Iterator<Item = &'a Sample> + 'a {
        let all = self.samples.iter().copied();
        all.filter(move |sample| sample.scheduler == scheduler)
    }

    fn median(&self, scheduler: &str) -> Option<f64> {
        median(self.of(scheduler).map(|sample| sample.value))
    }

    fn compare(&self, other: &'static str) -> Option<Comparison> {
        let ratios: Vec<f64> = self
            .of(OURS)
            .filter_map(|ours| {
                let theirs = self.of(other).find(|theirs| theirs.round == ours.round)?;
                Some(times_as_good(self.metric.better, ours.value, theirs.value))
            })
            .collect();
        Some(Comparison {
            other,
            median: median(ratios.iter().copied())?,
            least: ratios.iter().copied().min_by(f64::total_cmp)?,
            most: ratios.iter().copied().max_by(f64::total_cmp)?,
            rounds: ratios.len(),
        })
    }

    /// Against each of the others.
    fn comparisons(&self, schedulers: &[&'static str]) -> Vec<Comparison> {
        let others = schedulers.iter().filter(|scheduler| **scheduler != OURS);
        others.filter_map(|other| self.compare(other)).collect()
    }

    /// Against the best of the others, which is the one that ours compares least well with. Judged
    /// by medians: the best in each round would be the one that noise favoured there.
    fn against_best(&self, schedulers: &[&'static str]) -> Option<Comparison> {
        let all = self.comparisons(schedulers).into_iter();
        let others = all.filter(|comparison| comparison.other != BASE);
        others.min_by(|a, b| a.median.total_cmp(&b.median))
    }

    fn is_short(&self, comparison: &Comparison) -> bool {
        self.metric
            .floor
            .is_some_and(|floor| comparison.median < floor)
    }

    fn json(&self, schedulers: &[&'static str]) -> Value {
        let medians: Map<_, _> = schedulers
            .iter()
            .map(|scheduler| ((*scheduler).to_owned(), json!(self.median(scheduler))))
            .collect();
        let relative: Map<_, _> = self
            .comparisons(schedulers)
            .into_iter()
            .map(|c| {
                let value = json!({
                    "median": c.median, "min": c.least, "max": c.most, "rounds": c.rounds,
                });
                (c.other.to_owned(), value)
            })
            .collect();
        let best = self.against_best(schedulers);
        json!({
            "load": self.load,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "better": match self.metric.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            },
            "medians": medians,
            "times_as_good_as": relative,
            "best_of_others": best.as_ref().map(|c| c.other),
            "floor": self.metric.floor,
            "below_floor": best.as_ref().map(|c| self.is_short(c)),
        })
    }
}

/// Everything that was measured, and where.
pub struct Report<'a> {
    environment: Value,
    schedulers: Vec<&'static str>,
    rows: Vec<Row<'a>>,
    samples: &'a [Sample],
    failures: &'a [Failure],
}

impl<'a> Report<'a> {
    pub fn new(environment: Value, samples: &'a [Sample], failures: &'a [Failure]) -> Self {
        let mut schedulers: Vec<&'static str> = Vec::new();
        let mut rows: Vec<Row> = Vec::new();
        for sample in samples {
            if !schedulers.contains(&sample.scheduler) {
                schedulers.push(sample.scheduler);
            }
            let row = rows
                .iter_mut()
                .find(|row| row.load == sample.load && row.metric.name == sample.metric.name);
            match row {
                Some(row) => row.samples.push(sample),
                None => rows.push(Row {
                    load: sample.load,
                    metric: sample.metric,
                    samples: vec![sample],
                }),
            }
        }
        // Ours last, the kernel's first, as in every report.
        schedulers.sort_by_key(|name| (*name == OURS, *name == BASE, *name != "kernel", *name));
        Self {
            environment,
            schedulers,
            rows,
            samples,
            failures,
        }
    }

    pub fn json(&self) -> Value {
        let results: Vec<_> = self
            .rows
            .iter()
            .map(|row| row.json(&self.schedulers))
            .collect();
        let samples: Vec<_> = self
            .samples
            .iter()
            .map(|sample| {
                json!({
                    "round": sample.round,
                    "scheduler": sample.scheduler,
                    "load": sample.load,
                    "metric": sample.metric.name,
                    "value": sample.value,
                })
            })
            .collect();
        let failures: Vec<_> = self
            .failures
            .iter()
            .map(|failure| {
                json!({
                    "round": failure.round,
                    "scheduler": failure.scheduler,
                    "load": failure.load,
                    "reason": failure.reason,
                })
            })
            .collect();
        let mut report = json!({
            "results": results,
            "failures": failures,
            "samples": samples,
        });
        if let (Some(report), Some(environment)) =
            (report.as_object_mut(), self.environment.as_object())
        {
            report.extend(environment.clone());
        }
        report
    }
}

/// A number with about three digits that mean something.
fn short(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<18}{:<17}", "load", "metric")?;
        for scheduler in &self.schedulers {
            write!(f, "{scheduler:>13}")?;
        }
        write!(f, "   relative  rounds       best of others")?;
        if self.schedulers.contains(&BASE) {
            write!(f, "  to {BASE}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            let metric = format!("{}, {}", row.metric.name, row.metric.unit);
            write!(f, "{:<18}{metric:<17}", row.load)?;
            for scheduler in &self.schedulers {
                let median = row.median(scheduler).map_or_else(|| "-".to_owned(), short);
                write!(f, "{median:>13}")?;
            }
            if let Some(best) = row.against_best(&self.schedulers) {
                let mark = if row.is_short(&best) { "!" } else { " " };
                let range = format!("{:.2}-{:.2}", best.least, best.most);
                let other = best.other;
                write!(f, "   {:>6.2} {mark}  {range:<12} {other:<14}", best.median)?;
            }
            if let Some(base) = row.compare(BASE) {
                write!(
                    f,
                    "  {:.2} ({:.2}-{:.2})",
                    base.median, base.least, base.most
                )?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "Medians of the rounds. relative: how many times as good as the best of the others {OURS} is, by the\n\
             median of the ratios within rounds; rounds: the least and the greatest of them. !: below what is\n\
             asked for, 0.95 in throughput and 1 in tail latency."
        )?;
        for failure in self.failures {
            writeln!(f, "failed: {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::load::{P99, RATE, TIME};
    use super::*;

    fn samples(metric: Metric, of: &[(&'static str, &[f64])]) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (scheduler, values) in of {
            for (round, value) in (1..).zip(*values) {
                samples.push(Sample {
                    round,
                    scheduler,
                    load: "load",
                    metric,
                    value: *value,
                });
            }
        }
        samples
    }

    fn result(samples: &[Sample]) -> Value {
        Report::new(json!({}), samples, &[]).json()["results"][0].clone()
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn rounds_are_compared_each_with_itself() {
        // The machine got three times slower; within each round ours is a tenth faster.
        let samples = samples(
            TIME,
            &[("kernel", &[1.1, 3.3, 2.2]), (OURS, &[1.0, 3.0, 2.0])],
        );
        let result = result(&samples);
        let ratio = result["times_as_good_as"]["kernel"]["median"]
            .as_f64()
            .unwrap();
        assert!((ratio - 1.1).abs() < 1e-9, "{result}");
        assert_eq!(result["below_floor"], false);
    }

    #[test]
    fn the_best_of_the_others_is_what_counts() {
        let samples = samples(
            RATE,
            &[
                ("kernel", &[100.0, 100.0, 100.0]),
                ("scx_bpfland", &[120.0, 120.0, 120.0]),
                (OURS, &[108.0, 108.0, 108.0]),
            ],
        );
        let result = result(&samples);
        assert_eq!(result["best_of_others"], "scx_bpfland");
        // 0.90 of the better one, though more than the other.
        assert_eq!(result["below_floor"], true);
    }

    #[test]
    fn another_build_is_compared_with_and_no_contender() {
        let all = [("kernel", &[1.0][..]), (BASE, &[0.5]), (OURS, &[1.0])];
        let samples = samples(TIME, &all);
        let result = result(&samples);
        assert_eq!(result["best_of_others"], "kernel");
        assert_eq!(result["times_as_good_as"][BASE]["median"], 0.5);
    }

    #[test]
    fn a_longer_tail_is_below_the_floor() {
        let samples = samples(P99, &[("kernel", &[100.0]), (OURS, &[110.0])]);
        assert_eq!(result(&samples)["below_floor"], true);
        let text = Report::new(json!({}), &samples, &[]).to_string();
        assert!(text.contains("0.91 !"), "{text}");
    }

    #[test]
    fn rounds_that_one_missed_are_not_compared() {
        let mut samples = samples(
            TIME,
            &[("scx_bpfland", &[1.0, 1.0, 1.0]), (OURS, &[1.0, 2.0, 1.0])],
        );
        samples.retain(|sample| sample.scheduler == OURS || sample.round != 2);
        let result = result(&samples);
        let ratios = &result["times_as_good_as"]["scx_bpfland"];
        assert_eq!(
            (&ratios["rounds"], &ratios["min"]),
            (&json!(2), &json!(1.0))
        );
    }

    #[test]
    fn who_failed_is_told_and_samples_are_kept() {
        let samples = samples(TIME, &[("kernel", &[1.0]), (OURS, &[1.0])]);
        let failures = [Failure {
            round: 1,
            scheduler: "scx_bpfland",
            load: Some("load"),
            reason: "no longer schedules".to_owned(),
        }];
        let report = Report::new(json!({ "rounds": 1 }), &samples, &failures);
        let text = report.to_string();
        assert!(
            text.contains("failed: round 1, scx_bpfland, load: no longer schedules"),
            "{text}"
        );
        let json = report.json();
        assert_eq!(json["rounds"], 1);
        assert_eq!(json["failures"][0]["scheduler"], "scx_bpfland");
        assert_eq!(json["samples"].as_array().unwrap().len(), 2);
    }
}
