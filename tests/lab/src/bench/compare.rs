//! Ours against others, within rounds.

use super::contender::{FLOOR, KERNEL, OURS};
use super::measure::{Better, Metric};
use super::options::is_rival;
use super::record::{Record, Sample};

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

/// Beyond this a ratio only tells that one of the two is next to nothing.
const MOST_TIMES: f64 = 1000.0;

/// How many times as good ours is as another's number: above 1 is better, whichever direction
/// the numbers have, and at most [`MOST_TIMES`]. Of two that are 0 neither is better.
fn times_as_good(better: Better, ours: f64, other: f64) -> f64 {
    let [ours, other] = [ours, other].map(|value| value.max(f64::MIN_POSITIVE));
    let times = match better {
        Better::Higher => ours / other,
        Better::Lower => other / ours,
    };
    times.clamp(1.0 / MOST_TIMES, MOST_TIMES)
}

/// Ours against one other contender: the ratios of the rounds in which both were measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    pub other: String,
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub rounds: usize,
}

/// All samples of one metric of one measure.
pub struct Row<'a> {
    pub measure: &'a str,
    pub metric: &'a Metric,
    samples: Vec<&'a Sample>,
}

impl<'a> Row<'a> {
    /// One for each metric of a record; measures and their metrics in the order in which they came.
    pub fn all(record: &'a Record) -> Vec<Self> {
        let row = |of: &'a super::record::MetricOf| Self {
            measure: &of.measure,
            metric: &of.metric,
            samples: record
                .samples
                .iter()
                .filter(|s| s.measure == of.measure && s.metric == of.metric.name)
                .collect(),
        };
        let mut rows: Vec<_> = record.metrics.iter().map(row).collect();
        let first = |measure: &str| record.metrics.iter().position(|of| of.measure == measure);
        rows.sort_by_key(|row| first(row.measure));
        rows
    }

    /// The one of this name.
    pub fn find<'b>(rows: &'b [Self], measure: &str, metric: &str) -> Option<&'b Self> {
        rows.iter()
            .find(|row| row.measure == measure && row.metric.name == metric)
    }

    fn of<'b>(&'b self, contender: &'b str) -> impl Iterator<Item = &'a Sample> + 'b {
        let all = self.samples.iter().copied();
        all.filter(move |sample| sample.contender == contender)
    }

    pub fn median(&self, contender: &str) -> Option<f64> {
        median(self.of(contender).map(|sample| sample.value))
    }

    pub fn compare(&self, other: &str) -> Option<Comparison> {
        self.compare_two(OURS, other)
    }

    /// How many times as good `one` is as `other`.
    pub fn compare_two(&self, one: &str, other: &str) -> Option<Comparison> {
        let ratios: Vec<f64> = self
            .of(one)
            .filter_map(|ours| {
                let theirs = self.of(other).find(|theirs| theirs.round == ours.round)?;
                Some(times_as_good(self.metric.better, ours.value, theirs.value))
            })
            .collect();
        Some(Comparison {
            other: other.to_owned(),
            median: median(ratios.iter().copied())?,
            least: ratios.iter().copied().min_by(f64::total_cmp)?,
            most: ratios.iter().copied().max_by(f64::total_cmp)?,
            rounds: ratios.len(),
        })
    }

    /// Against each of the others.
    pub fn comparisons(&self, contenders: &[&str]) -> Vec<Comparison> {
        let others = contenders.iter().filter(|contender| **contender != OURS);
        others.filter_map(|other| self.compare(other)).collect()
    }

    /// Against the best of the rivals, which is the one that ours compares least well with. Judged
    /// by medians: the best in each round would be the one that noise favoured there.
    pub fn against_best(&self, contenders: &[&str]) -> Option<Comparison> {
        let all = self.comparisons(contenders).into_iter();
        let others = all.filter(|comparison| is_rival(&comparison.other));
        others.min_by(|a, b| a.median.total_cmp(&b.median))
    }

    pub fn is_short(&self, comparison: &Comparison) -> bool {
        self.metric
            .floor
            .is_some_and(|floor| comparison.median < floor)
    }
}

/// Who has been measured: the floor and the kernel's first, ours last, as in every report.
pub fn contenders(record: &Record) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for sample in &record.samples {
        if !names.contains(&sample.contender.as_str()) {
            names.push(&sample.contender);
        }
    }
    names.sort_by_key(|name| {
        let rank = match *name {
            FLOOR => 0,
            KERNEL => 1,
            super::contender::CHRT => 2,
            super::contender::BASE => 4,
            super::contender::UNMODIFIED => 5,
            super::contender::ENGINE => 6,
            OURS => 7,
            _ => 3,
        };
        (rank, *name)
    });
    names
}

#[cfg(test)]
pub mod tests {
    use serde_json::json;

    use super::super::contender::BASE;
    use super::super::measure::{Outcome, P99, RATE, TIME};
    use super::*;

    /// A record of one measure, "load".
    pub fn record(metric: &Metric, of: &[(&str, &[f64])]) -> Record {
        let mut record = Record::new(json!({}));
        for (contender, values) in of {
            for (round, value) in (1..).zip(*values) {
                let results = vec![(metric.clone(), *value)];
                record.add(round, contender, "load", Outcome::from(results));
            }
        }
        record
    }

    fn best(record: &Record) -> (Comparison, bool) {
        let rows = Row::all(record);
        let best = rows[0].against_best(&contenders(record)).unwrap();
        let short = rows[0].is_short(&best);
        (best, short)
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
        let record = record(
            &TIME,
            &[(KERNEL, &[1.1, 3.3, 2.2]), (OURS, &[1.0, 3.0, 2.0])],
        );
        let (best, short) = best(&record);
        assert!((best.median - 1.1).abs() < 1e-9 && !short, "{best:?}");
    }

    #[test]
    fn the_best_of_the_others_is_what_counts() {
        let record = record(
            &RATE,
            &[
                (KERNEL, &[100.0, 100.0, 100.0]),
                ("scx_bpfland", &[120.0, 120.0, 120.0]),
                (OURS, &[108.0, 108.0, 108.0]),
            ],
        );
        let (best, short) = best(&record);
        assert_eq!(best.other, "scx_bpfland");
        // 0.90 of the better one, though more than the other.
        assert!(short);
    }

    #[test]
    fn bounds_and_our_own_builds_are_no_rivals() {
        let record = record(
            &TIME,
            &[
                (FLOOR, &[0.1][..]),
                ("chrt", &[0.2]),
                (KERNEL, &[1.0]),
                (BASE, &[0.5]),
                ("unmodified", &[0.4]),
                (OURS, &[1.0]),
            ],
        );
        assert_eq!(best(&record).0.other, KERNEL);
        let rows = Row::all(&record);
        assert!((rows[0].compare(BASE).unwrap().median - 0.5).abs() < 1e-9);
        assert_eq!(
            contenders(&record),
            [
                "floor",
                "kernel",
                "chrt",
                "base",
                "unmodified",
                "scx_pvsched"
            ]
        );
    }

    #[test]
    fn a_longer_tail_is_below_the_floor() {
        let record = record(&P99, &[(KERNEL, &[100.0]), (OURS, &[110.0])]);
        assert!(best(&record).1);
    }

    #[test]
    fn rounds_that_one_missed_are_not_compared() {
        let mut record = record(
            &TIME,
            &[("scx_bpfland", &[1.0, 1.0, 1.0]), (OURS, &[1.0, 2.0, 1.0])],
        );
        record
            .samples
            .retain(|sample| sample.contender == OURS || sample.round != 2);
        let (best, _) = best(&record);
        assert_eq!((best.rounds, best.least), (2, 1.0));
    }

    #[test]
    fn who_misses_nothing_is_no_better_than_another_one() {
        assert!((times_as_good(Better::Lower, 0.0, 0.0) - 1.0).abs() < 1e-9);
        assert!((times_as_good(Better::Lower, 0.0, 5.0) - 1e3).abs() < 1e-9);
        assert!((times_as_good(Better::Lower, 5.0, 0.0) - 1e-3).abs() < 1e-9);
    }
}
