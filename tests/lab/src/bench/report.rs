//! What the benchmark found: a table of medians, what is asked and met, what failed, and JSON with
//! every sample.

use std::fmt;

use anyhow::Result;
use serde_json::{json, Map, Value};

use super::compare::{contenders, Row};
use super::contender::{BASE, OURS};
use super::growth::{exponent, Law, Point, FLAT};
use super::record::Record;
use super::targets::{self, Target};

/// A host for which it is told what it would pay, from what was measured.
const LARGE_HOST_CPUS: u32 = 256;
const LARGE_HOST_VCPUS: u32 = 4096;

/// Everything that was measured, and where.
pub struct Report<'a> {
    record: &'a Record,
    contenders: Vec<&'a str>,
    rows: Vec<Row<'a>>,
    targets: Vec<Target>,
}

impl<'a> Report<'a> {
    pub fn new(record: &'a Record) -> Self {
        Self {
            record,
            contenders: contenders(record),
            rows: Row::all(record),
            targets: targets::all(record),
        }
    }

    /// The record, with what follows from it.
    pub fn json(&self) -> Result<Value> {
        let mut report = serde_json::to_value(self.record)?;
        let results: Vec<_> = self.rows.iter().map(|row| self.row_json(row)).collect();
        report["results"] = json!(results);
        let target = |target: &Target| {
            let mut value = json!(target);
            value["met"] = json!(target.is_met());
            value
        };
        report["targets"] = self.targets.iter().map(target).collect();
        report["law"] = law_json(&self.record.growth);
        Ok(report)
    }

    fn row_json(&self, row: &Row) -> Value {
        let medians: Map<_, _> = self
            .contenders
            .iter()
            .map(|contender| ((*contender).to_owned(), json!(row.median(contender))))
            .collect();
        let relative: Map<_, _> = row
            .comparisons(&self.contenders)
            .into_iter()
            .map(|c| {
                let value = json!({
                    "median": c.median, "min": c.least, "max": c.most, "rounds": c.rounds,
                });
                (c.other, value)
            })
            .collect();
        let best = row.against_best(&self.contenders);
        json!({
            "measure": row.measure,
            "metric": row.metric.name,
            "unit": row.metric.unit,
            "better": row.metric.better,
            "medians": medians,
            "times_as_good_as": relative,
            "best_of_others": best.as_ref().map(|c| &c.other),
            "floor": row.metric.floor,
            "below_floor": best.as_ref().map(|c| row.is_short(c)),
        })
    }
}

/// Its name in reports, its unit, and how much of it there is.
type Cost = (&'static str, &'static str, fn(&Point) -> f64);

/// What grows.
pub const COSTS: &[Cost] = &[
    ("BPF per interrupt", "us", |point| point.bpf_ns / 1000.0),
    ("process per second", "us", |point| point.process_us),
    ("hint to running, p50", "us", |point| point.hint_p50_us),
    ("hint to running, p99", "us", |point| point.hint_p99_us),
    ("attaching a vCPU", "us", |point| point.attach_us),
    ("memory", "MiB", |point| point.memory_mib),
    ("BPF maps", "MiB", |point| point.maps_mib),
];

fn law_json(points: &[Point]) -> Value {
    let law: Map<_, _> = COSTS
        .iter()
        .filter_map(|(name, unit, cost)| {
            let law = Law::of(points, cost)?;
            let value = json!({
                "unit": unit,
                "constant": law.constant,
                "per_vcpu": law.slope,
                "exponent": exponent(points, cost),
                "at_4096_vcpus": law.at(LARGE_HOST_VCPUS),
            });
            Some(((*name).to_owned(), value))
        })
        .collect();
    Value::Object(law)
}

/// A number with about three digits that mean something.
pub fn short(value: f64) -> String {
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
        if !self.rows.is_empty() {
            self.table(f)?;
        }
        self.growth(f)?;
        if !self.targets.is_empty() {
            writeln!(f, "\nAsked for, by medians of the ratios within rounds:")?;
        }
        for target in &self.targets {
            writeln!(f, "{target}")?;
        }
        for failure in &self.record.failures {
            writeln!(f, "failed: {failure}")?;
        }
        Ok(())
    }
}

impl Report<'_> {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metric = |row: &Row| match &*row.metric.unit {
            "" => row.metric.name.to_string(),
            unit => format!("{}, {unit}", row.metric.name),
        };
        let widest = self.rows.iter().map(|row| metric(row).len()).max();
        let width = widest.unwrap_or_default() + 1;
        write!(f, "{:<17}{:<width$}", "measure", "metric")?;
        for contender in &self.contenders {
            write!(f, "{contender:>13}")?;
        }
        write!(f, "   relative  rounds       best of others")?;
        if self.contenders.contains(&BASE) {
            write!(f, "  to {BASE}")?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{:<17}{:<width$}", row.measure, metric(row))?;
            for contender in &self.contenders {
                let median = row.median(contender).map_or_else(|| "-".to_owned(), short);
                write!(f, "{median:>13}")?;
            }
            if let Some(best) = row.against_best(&self.contenders) {
                let mark = if row.is_short(&best) { "!" } else { " " };
                let range = format!("{}-{}", short(best.least), short(best.most));
                let other = &best.other;
                let median = short(best.median);
                write!(f, "   {median:>6} {mark}  {range:<12} {other:<14}")?;
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
            "Medians of the rounds. relative: how many times as good as the best of the other schedulers {OURS}\n\
             is, by the median of the ratios within rounds; rounds: the least and the greatest of them. !: below\n\
             what is asked for, which is 0.95 in throughput, 1 in tail latency of the host's tasks, and more in\n\
             what guests are to gain."
        )
    }

    fn growth(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let points = &self.record.growth;
        if points.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nGrowth:")?;
        write!(f, "{:<26}", "VMs x vCPUs")?;
        for point in points {
            let each = point.vcpus / point.vms.max(1);
            write!(f, "{:>9}", format!("{}x{each}", point.vms))?;
        }
        writeln!(f, "   exponent")?;
        for (name, unit, cost) in COSTS {
            write!(f, "{:<26}", format!("{name}, {unit}"))?;
            for point in points {
                write!(f, "{:>9}", short(cost(point)))?;
            }
            let exponent = exponent(points, cost);
            let exponent = exponent.map_or_else(|| "-".to_owned(), |e| format!("{e:.2}"));
            writeln!(f, "   {exponent:>8}")?;
        }
        let told = COSTS.iter().filter_map(|(name, unit, cost)| {
            let at = Law::of(points, cost)?.at(LARGE_HOST_VCPUS);
            Some(format!("{name} {} {unit}", short(at)))
        });
        writeln!(
            f,
            "By these, a host with {LARGE_HOST_CPUS} CPUs and {LARGE_HOST_VCPUS} vCPUs would pay: {}. What has an \
             exponent of up to {FLAT} is taken not to grow, the rest to grow by a straight line; this host's \
             ticks are in it, but not those of more CPUs.",
            told.collect::<Vec<_>>().join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::record;
    use super::super::contender::KERNEL;
    use super::super::measure::{P99, TIME};
    use super::super::record::Failure;
    use super::*;

    #[test]
    fn who_failed_is_told_and_samples_are_kept() {
        let mut record = record(&TIME, &[(KERNEL, &[1.0]), (OURS, &[1.0])]);
        record.failures.push(Failure {
            round: 1,
            contender: "scx_bpfland".to_owned(),
            measure: Some("load".to_owned()),
            attempt: 1,
            ejected: true,
            reason: "no longer schedules".to_owned(),
        });
        let report = Report::new(&record);
        let text = report.to_string();
        assert!(
            text.contains(
                "failed: round 1, scx_bpfland, load, attempt 1, ejected: no longer schedules"
            ),
            "{text}"
        );
        let json = report.json().unwrap();
        assert_eq!(json["failures"][0]["contender"], "scx_bpfland");
        assert_eq!(json["samples"].as_array().unwrap().len(), 2);
        // What is written can be gone on with.
        let again: Record = serde_json::from_value(json).unwrap();
        assert_eq!(again.samples, record.samples);
        assert_eq!(again.failures, record.failures);
    }

    #[test]
    fn what_falls_short_is_marked() {
        let record = record(&P99, &[(KERNEL, &[100.0]), (OURS, &[110.0])]);
        let text = Report::new(&record).to_string();
        assert!(text.contains("0.91 !"), "{text}");
        let json = Report::new(&record).json().unwrap();
        assert_eq!(json["results"][0]["below_floor"], true);
    }

    #[test]
    fn a_law_needs_two_points() {
        let mut record = record(&TIME, &[(OURS, &[1.0])]);
        let point = |vcpus: u32| Point {
            vms: 1,
            vcpus,
            memory_mib: 10.0 + f64::from(vcpus),
            ..Point::default()
        };
        record.growth = vec![point(2)];
        assert_eq!(Report::new(&record).json().unwrap()["law"], json!({}));
        record.growth = vec![point(2), point(100)];
        let report = Report::new(&record);
        let memory = report.json().unwrap()["law"]["memory"].take();
        let told = memory["at_4096_vcpus"].as_f64().unwrap();
        assert!((told - 4106.0).abs() < 1e-6, "{memory}");
        assert!(report.to_string().contains("memory 4106 MiB"), "{report}");
    }
}
