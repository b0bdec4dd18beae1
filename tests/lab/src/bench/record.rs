//! What has been measured so far, as it lies in `report.json`, so that an interrupted run can go on.

use std::fs;
use std::path::Path;

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::contender::OURS;
use super::growth::Point;
use super::measure::{Metric, Outcome};
use crate::latency::Histogram;

/// One number of one measure under one contender in one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// From 1 on.
    pub round: u32,
    pub contender: String,
    pub measure: String,
    pub metric: String,
    pub value: f64,
}

/// The distribution behind some of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub round: u32,
    pub contender: String,
    pub measure: String,
    /// Microseconds, to about 3 %, and how often.
    pub counts: Vec<(u64, u64)>,
}

/// A contender that did not start, no longer scheduled after a measure, or did not end; or a measure
/// that came to nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    pub round: u32,
    pub contender: String,
    pub measure: Option<String>,
    /// From 1 on; each is tried twice.
    pub attempt: u32,
    /// Whether it no longer scheduled then.
    pub ejected: bool,
    pub reason: String,
}

impl Failure {
    /// Whether scx_pvsched itself failed, and not a guest beside it.
    pub fn is_ours(&self) -> bool {
        self.contender == OURS && self.ejected
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "round {}, {}", self.round, self.contender)?;
        if let Some(measure) = &self.measure {
            write!(f, ", {measure}")?;
        }
        write!(f, ", attempt {}", self.attempt)?;
        if self.ejected {
            write!(f, ", ejected")?;
        }
        write!(f, ": {}", in_short(&self.reason))
    }
}

/// What something is about, and its cause: the two ends of a long story.
fn in_short(reason: &str) -> String {
    const END: usize = 120;
    let first = reason.lines().next().unwrap_or_default();
    let rest = reason.get(first.len()..).unwrap_or_default();
    let from = rest.char_indices().rev().nth(END).map_or(0, |(at, _)| at);
    match rest[from..].lines().next_back() {
        Some(last) if !last.is_empty() => format!("{first} … {last}"),
        _ => first.to_owned(),
    }
}

/// A metric and whose it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricOf {
    pub measure: String,
    #[serde(flatten)]
    pub metric: Metric,
}

/// Everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// What was compared, where and how; results of two setups do not go together.
    pub setup: Value,
    /// Rounds in which everything was measured.
    pub rounds_done: u32,
    /// Guests that stopped and were booted again.
    #[serde(default)]
    pub guest_stops: u32,
    pub metrics: Vec<MetricOf>,
    pub samples: Vec<Sample>,
    pub latencies: Vec<Latency>,
    pub failures: Vec<Failure>,
    #[serde(default)]
    pub growth: Vec<Point>,
}

impl Record {
    pub fn new(setup: Value) -> Self {
        Self {
            setup,
            ..Self::default()
        }
    }

    /// The finished rounds of an earlier run of the same setup. What the last one of them did beyond is
    /// forgotten: it was another boot, with which nothing can be compared.
    ///
    /// # Errors
    /// When there is none, or it measured something else.
    pub fn resume(path: &Path, setup: &Value) -> Result<Self> {
        let mut record = Self::read(path)?;
        for (key, value) in setup.as_object().into_iter().flatten() {
            ensure!(
                record.setup[key] == *value,
                "{} has another \"{key}\": {} instead of {value}; leave out --resume to begin anew",
                path.display(),
                record.setup[key]
            );
        }
        let done = record.rounds_done;
        record.samples.retain(|sample| sample.round <= done);
        record.latencies.retain(|latency| latency.round <= done);
        record.failures.retain(|failure| failure.round <= done);
        Ok(record)
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("there is no report at {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
    }

    pub fn add(&mut self, round: u32, contender: &str, measure: &str, outcome: Outcome) {
        for (metric, value) in outcome.results {
            self.samples.push(Sample {
                round,
                contender: contender.to_owned(),
                measure: measure.to_owned(),
                metric: metric.name.to_string(),
                value,
            });
            let metric = MetricOf {
                measure: measure.to_owned(),
                metric,
            };
            if !self.metrics.contains(&metric) {
                self.metrics.push(metric);
            }
        }
        if let Some(latency) = outcome.latency {
            self.latencies.push(Latency {
                round,
                contender: contender.to_owned(),
                measure: measure.to_owned(),
                counts: latency.coarse().counts().collect(),
            });
        }
    }

    /// Of all rounds.
    pub fn pooled(&self, measure: &str, contender: &str) -> Histogram {
        let mut pooled = Histogram::default();
        let of = |latency: &&Latency| latency.measure == measure && latency.contender == contender;
        for latency in self.latencies.iter().filter(of) {
            pooled.add(&latency.counts.iter().copied().collect());
        }
        pooled
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::measure::P99;
    use super::*;

    fn record(rounds: u32) -> Record {
        let mut record = Record::new(json!({"kernel": "6.18", "quick": false}));
        for round in 1..=rounds {
            let mut latency = Histogram::default();
            latency.record(Duration::from_micros(1000));
            let outcome = Outcome {
                results: vec![(P99, 1000.0)],
                latency: Some(latency),
            };
            record.add(round, "kernel", "wakeup", outcome);
        }
        record
    }

    fn written(record: &Record) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), serde_json::to_string(record).unwrap()).unwrap();
        file
    }

    #[test]
    fn finished_rounds_are_kept_and_begun_ones_forgotten() {
        let mut record = record(3);
        record.rounds_done = 2;
        let file = written(&record);
        let resumed = Record::resume(file.path(), &record.setup).unwrap();
        assert_eq!(resumed.samples, record.samples[..2]);
        assert_eq!(resumed.latencies.len(), 2);
        assert_eq!(resumed.metrics, record.metrics);
    }

    #[test]
    fn another_setup_is_not_gone_on_with() {
        let record = record(1);
        let file = written(&record);
        let setup = json!({"kernel": "7.3", "quick": false});
        let error = Record::resume(file.path(), &setup).unwrap_err();
        assert!(error.to_string().contains("\"kernel\""), "{error}");
        assert!(Record::resume(Path::new("/nowhere"), &setup).is_err());
    }

    #[test]
    fn a_long_story_is_told_by_its_ends() {
        assert_eq!(in_short("it failed"), "it failed");
        assert_eq!(
            in_short("it failed:\nlog\nlog: because"),
            "it failed: … log: because"
        );
        let long = format!("it failed\n{}: because", "x".repeat(1000));
        let told = in_short(&long);
        assert!(told.len() < 200 && told.ends_with("x: because"), "{told}");
    }

    #[test]
    fn a_metric_is_kept_once() {
        assert_eq!(record(3).metrics.len(), 1);
    }

    #[test]
    fn rounds_are_pooled() {
        assert_eq!(record(3).pooled("wakeup", "kernel").samples(), 3);
        assert_eq!(record(3).pooled("wakeup", "chrt").samples(), 0);
    }
}
