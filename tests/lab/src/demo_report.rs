//! What the demonstration found: the answer in a sentence, a table, and JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{json, Map, Value};

use crate::demo::Cell;
use crate::latency::Histogram;

/// One cell in one round.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub latency: Histogram,
    /// Units of work per second of all busy host tasks.
    pub host_rate: f64,
    /// CPU time per second of all busy host tasks.
    pub host_cpus: f64,
    /// CPU time per second of all vCPUs.
    pub vcpu_cpus: f64,
    /// The scheduler's statistics before and after.
    pub stats: Option<(Value, Value)>,
}

impl Measurement {
    /// What the scheduler counted meanwhile, as text; `None` where it did not run.
    pub fn statistics(&self) -> Option<String> {
        let (before, after) = self.stats.as_ref()?;
        Some(describe(&delta(before, after)))
    }
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = &self.latency;
        write!(
            f,
            "p50 {} p90 {} p99 {} max {} us; CPUs: vCPUs {:.2}, host tasks {:.2}",
            latency.p50(),
            latency.p90(),
            latency.p99(),
            latency.max(),
            self.vcpu_cpus,
            self.host_cpus
        )
    }
}

/// The quantiles that are reported; the last is the maximum.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

/// The quantile of the sentence.
const HEADLINE: (&str, f64) = ("p99", 0.99);

/// Below this factor, in either direction, a difference is not worth a claim.
const NOTABLE: f64 = 1.1;

/// All rounds of a cell.
struct Summary<'a> {
    rounds: &'a [Measurement],
    pooled: Histogram,
}

impl<'a> Summary<'a> {
    fn new(rounds: &'a [Measurement]) -> Self {
        let mut pooled = Histogram::default();
        for round in rounds {
            pooled.add(&round.latency);
        }
        Self { rounds, pooled }
    }

    /// Of the rounds' own quantiles: the smallest, the median and the largest.
    fn spread(&self, share: f64) -> (u64, u64, u64) {
        let mut each: Vec<_> = self
            .rounds
            .iter()
            .map(|m| m.latency.quantile(share))
            .collect();
        each.sort_unstable();
        let at = |index: usize| each.get(index).copied().unwrap_or_default();
        (at(0), at(each.len() / 2), at(each.len().saturating_sub(1)))
    }

    fn median(&self, of: impl Fn(&Measurement) -> f64) -> f64 {
        let mut each: Vec<_> = self.rounds.iter().map(of).collect();
        each.sort_unstable_by(f64::total_cmp);
        each.get(each.len() / 2).copied().unwrap_or_default()
    }

    fn json(&self) -> Value {
        let quantiles = |of: &dyn Fn(f64) -> Value| -> Value {
            let named = QUANTILES
                .iter()
                .map(|(name, share)| ((*name).to_owned(), of(*share)));
            Value::Object(named.collect())
        };
        let histogram: Map<_, _> = self
            .pooled
            .counts()
            .map(|(us, count)| (us.to_string(), json!(count)))
            .collect();
        let rounds: Vec<_> = self
            .rounds
            .iter()
            .map(|m| {
                json!({
                    "latency_us": quantiles(&|share| json!(m.latency.quantile(share))),
                    "samples": m.latency.samples(),
                    "host_work_per_second": m.host_rate,
                    "host_tasks_cpus": m.host_cpus,
                    "vcpus_cpus": m.vcpu_cpus,
                    "statistics": m.stats.as_ref().map(|(before, after)| delta(before, after)),
                })
            })
            .collect();
        json!({
            "pooled": {
                "latency_us": quantiles(&|share| json!(self.pooled.quantile(share))),
                "samples": self.pooled.samples(),
                "histogram_us": histogram,
            },
            "over_rounds": quantiles(&|share| {
                let (min, median, max) = self.spread(share);
                json!({ "min": min, "median": median, "max": max })
            }),
            "median_host_work_per_second": self.median(|m| m.host_rate),
            "median_host_tasks_cpus": self.median(|m| m.host_cpus),
            "median_vcpus_cpus": self.median(|m| m.vcpu_cpus),
            "rounds": rounds,
        })
    }
}

/// Everything that was measured, and where.
pub struct Report<'a> {
    environment: Value,
    cells: BTreeMap<Cell, Summary<'a>>,
}

impl<'a> Report<'a> {
    pub fn new(environment: Value, measured: &'a BTreeMap<Cell, Vec<Measurement>>) -> Self {
        let cells = measured
            .iter()
            .map(|(cell, rounds)| (*cell, Summary::new(rounds)));
        Self {
            environment,
            cells: cells.collect(),
        }
    }

    /// How much of the kernel's scheduler's throughput the host tasks kept.
    fn throughput_kept(&self) -> Option<f64> {
        let rate = |cell| Some(self.cells.get(&cell)?.median(|m| m.host_rate));
        let kernel = rate(Cell::Kernel).filter(|rate| *rate > 0.0)?;
        Some(rate(Cell::Pvsched)? / kernel)
    }

    /// The answer in a sentence.
    fn answer(&self) -> String {
        let (name, share) = HEADLINE;
        let headline = |cell| Some(self.cells.get(&cell)?.pooled.quantile(share));
        let (Some(kernel), Some(pvsched)) = (headline(Cell::Kernel), headline(Cell::Pvsched))
        else {
            return "Not all was measured that a comparison needs.".to_owned();
        };
        let ratio = ratio(kernel, pvsched);
        let verdict = if ratio >= NOTABLE {
            format!("scx_pvsched makes it {ratio:.1} times shorter")
        } else if ratio <= 1.0 / NOTABLE {
            format!("scx_pvsched makes it {:.1} times longer", 1.0 / ratio)
        } else {
            "scx_pvsched changes little".to_owned()
        };
        let floor = headline(Cell::Floor).map_or_else(String::new, |floor| {
            format!(", and {} without host load", ms(floor))
        });
        let kept = self.throughput_kept().map_or_else(String::new, |kept| {
            format!(
                "; host tasks keep {:.0} % of their throughput",
                kept * 100.0
            )
        });
        format!(
            "{verdict}: a real-time task in a busy guest waits {} instead of {} ({name}){floor}{kept}.",
            ms(pvsched),
            ms(kernel)
        )
    }

    pub fn json(&self) -> Value {
        let cells: Map<_, _> = self
            .cells
            .iter()
            .map(|(cell, s)| (cell.name().to_owned(), s.json()))
            .collect();
        let pooled = |cell, share| Some(self.cells.get(&cell)?.pooled.quantile(share));
        let ratios: Map<_, _> = QUANTILES
            .iter()
            .filter_map(|(name, share)| {
                let (kernel, pvsched) = (
                    pooled(Cell::Kernel, *share)?,
                    pooled(Cell::Pvsched, *share)?,
                );
                Some(((*name).to_owned(), json!(ratio(kernel, pvsched))))
            })
            .collect();
        let mut report = json!({
            "answer": self.answer(),
            "kernel_to_pvsched_latency": ratios,
            "host_throughput_kept": self.throughput_kept(),
            "cells": cells,
        });
        if let (Some(report), Some(environment)) =
            (report.as_object_mut(), self.environment.as_object())
        {
            report.extend(environment.clone());
        }
        report
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.answer())?;
        writeln!(
            f,
            "Wake-up latency in us of all rounds, and between which the rounds lay:"
        )?;
        write!(f, "{:<20}", "")?;
        for (name, _) in QUANTILES {
            write!(f, "{name:>8} {:<15}", "")?;
        }
        writeln!(f, "{:>7}  vCPUs  host tasks", "samples")?;
        let kernel_rate = self
            .cells
            .get(&Cell::Kernel)
            .map_or(0.0, |summary| summary.median(|m| m.host_rate));
        for (cell, summary) in &self.cells {
            write!(f, "{:<20}", cell.title())?;
            for (_, share) in QUANTILES {
                let (min, _, max) = summary.spread(share);
                let spread = format!("({min}-{max})");
                write!(f, "{:>8} {spread:<15}", summary.pooled.quantile(share))?;
            }
            write!(
                f,
                "{:>7}  {:>5.2}  {:>5.2}",
                summary.pooled.samples(),
                summary.median(|m| m.vcpu_cpus),
                summary.median(|m| m.host_cpus)
            )?;
            let rate = summary.median(|m| m.host_rate);
            if rate > 0.0 && kernel_rate > 0.0 {
                write!(f, " {:>4.0} %", 100.0 * rate / kernel_rate)?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "vCPUs, host tasks: CPU time per second; %: work done, the kernel's scheduler being 100."
        )
    }
}

#[allow(clippy::cast_precision_loss)]
fn ratio(numerator: u64, denominator: u64) -> f64 {
    numerator as f64 / denominator.max(1) as f64
}

#[allow(clippy::cast_precision_loss)]
fn ms(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

/// What was counted between two statistics: numbers and histograms as differences, the rest as it
/// is now. What is not in `before` counts from zero.
pub fn delta(before: &Value, after: &Value) -> Value {
    match after {
        Value::Number(now) => match (now.as_u64(), before.as_u64()) {
            (Some(now), Some(before)) => json!(now.saturating_sub(before)),
            _ => after.clone(),
        },
        Value::Array(now) => {
            let each = now.iter().enumerate();
            Value::Array(
                each.map(|(index, now)| delta(&before[index], now))
                    .collect(),
            )
        }
        Value::Object(now) => {
            let each = now.iter();
            Value::Object(
                each.map(|(key, now)| (key.clone(), delta(&before[key], now)))
                    .collect(),
            )
        }
        _ => after.clone(),
    }
}

/// Statistics as text: counters, then histograms as p50/p90/p99, then each VM's vCPUs.
fn describe(stats: &Value) -> String {
    let (mut counters, mut rest) = (Vec::new(), String::new());
    for (name, value) in stats.as_object().into_iter().flatten() {
        match value {
            Value::Number(number) => counters.push(format!("{name} {number}")),
            Value::Array(buckets) => {
                let buckets: Vec<_> = buckets.iter().filter_map(Value::as_u64).collect();
                let below = [0.5, 0.9, 0.99].map(|share| {
                    below_us(&buckets, share).map_or_else(|| "-".to_owned(), |us| us.to_string())
                });
                rest += &format!(
                    "  {name}: below {} us (p50/p90/p99 of {})\n",
                    below.join("/"),
                    buckets.iter().sum::<u64>()
                );
            }
            Value::Object(vms) => {
                for vm in vms.values() {
                    for (apic_id, vcpu) in vm["vcpus"].as_object().into_iter().flatten() {
                        rest +=
                            &format!("  {} {apic_id}:", vm["name"].as_str().unwrap_or_default());
                        for (name, value) in vcpu.as_object().into_iter().flatten() {
                            // A thread id's difference says nothing.
                            if name != "tid" {
                                rest += &format!(" {name} {value},");
                            }
                        }
                        rest.pop();
                        rest += "\n";
                    }
                }
            }
            _ => {}
        }
    }
    let lines: Vec<_> = counters
        .chunks(6)
        .map(|line| format!("  {}\n", line.join(", ")))
        .collect();
    lines.concat() + &rest
}

/// The bound, in microseconds, below which a share of a histogram lies that counts samples below
/// 1, 2, 4, … microseconds.
#[allow(clippy::cast_precision_loss)]
fn below_us(buckets: &[u64], share: f64) -> Option<u64> {
    let total: u64 = buckets.iter().sum();
    let mut seen = 0;
    let bucket = buckets.iter().position(|count| {
        seen += count;
        seen > 0 && seen as f64 >= share * total as f64
    })?;
    1_u64.checked_shl(u32::try_from(bucket).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(latency_us: u64, host_rate: f64) -> Measurement {
        let json = format!(
            r#"{{"thread":{{"0":{{"histogram":{{"{latency_us}":9}},"cycles":9,"max":{latency_us}}}}}}}"#
        );
        Measurement {
            latency: Histogram::parse(&json).unwrap(),
            host_rate,
            host_cpus: 1.0,
            vcpu_cpus: 1.0,
            stats: None,
        }
    }

    fn measured(kernel: &[u64], pvsched: &[u64]) -> BTreeMap<Cell, Vec<Measurement>> {
        let rounds = |us: &[u64], rate| us.iter().map(|us| measurement(*us, rate)).collect();
        [
            (Cell::Kernel, rounds(kernel, 100.0)),
            (Cell::Pvsched, rounds(pvsched, 90.0)),
        ]
        .into()
    }

    #[test]
    fn the_first_line_is_the_answer() {
        let measured = measured(&[9000, 10000, 12000], &[1000, 1000, 1000]);
        let text = Report::new(json!({}), &measured).to_string();
        let first = text.lines().next().unwrap();
        assert!(
            first.contains("12.0 times shorter") && first.contains("keep 90 %"),
            "{text}"
        );
    }

    #[test]
    fn a_worse_result_is_told_as_such() {
        let measured = measured(&[1000], &[2000]);
        let text = Report::new(json!({}), &measured).answer();
        assert!(text.contains("2.0 times longer"), "{text}");
    }

    #[test]
    fn a_missing_cell_makes_no_claim() {
        let mut measured = measured(&[1000], &[2000]);
        measured.remove(&Cell::Kernel);
        assert!(Report::new(json!({}), &measured)
            .answer()
            .starts_with("Not all"));
    }

    #[test]
    fn json_has_pooled_numbers_each_round_and_the_environment() {
        let measured = measured(&[9000, 10000, 12000], &[1000, 1000, 1000]);
        let json = Report::new(json!({ "seconds": 10 }), &measured).json();
        assert_eq!(json["seconds"], 10);
        let kernel = &json["cells"]["kernel"];
        assert_eq!(kernel["pooled"]["samples"], 27);
        assert_eq!(
            kernel["over_rounds"]["p50"],
            json!({"min": 9000, "median": 10000, "max": 12000})
        );
        assert_eq!(kernel["rounds"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn statistics_are_differences_and_histograms_quantiles() {
        let before = json!({"moved": 5, "stage": [1, 0, 0], "name": "a"});
        let after = json!({"moved": 7, "stage": [1, 9, 1], "name": "a",
                           "vms": {"1": {"name": "g", "vcpus": {"0": {"tid": 7, "boosts": 3}}}}});
        let text = describe(&delta(&before, &after));
        assert!(text.contains("moved 2"), "{text}");
        assert!(
            text.contains("stage: below 2/2/4 us (p50/p90/p99 of 10)"),
            "{text}"
        );
        assert!(text.contains("g 0: boosts 3\n"), "{text}");
    }
}
