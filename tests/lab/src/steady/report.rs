//! What came of a mix, and whether it was as it has to be.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::guests::Counts;
use super::watch::{Held, Sample, Watch};
use super::Options;

/// What the memory of the process may be in the last quarter, of what it was in the second one. In the
/// first its allocator and the largest number of VMs are still new.
const MEMORY: f64 = 1.05;

/// And this on top, in KiB: what allocators of several threads keep differs by some pages.
const MEMORY_KIB: f64 = 256.0;

/// Of guests, how many may hang, stop or fail to start. Emulation does that to one in ten; beyond this
/// it is something else.
const FAULTS: f64 = 0.34;

/// Of guests with device and driver that came up, how many the scheduler must have been seen to serve:
/// some are killed before it is back from a restart.
const SERVED: f64 = 0.5;

/// What came of a mix.
#[derive(Clone, Debug)]
pub struct Report {
    pub(super) options: Options,
    pub(super) actions: BTreeMap<&'static str, (u32, u32)>,
    pub(super) guests: Counts,
    pub(super) watch: Watch,
    /// How often the scheduler has started again.
    pub(super) restarts: u64,
    /// What it held without a VM, before the mix and after it.
    pub(super) before: Held,
    pub(super) after: Held,
}

impl Report {
    /// What is not as it has to be.
    #[allow(clippy::cast_precision_loss)]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, what: &str| {
            if !holds {
                problems.push(what.to_owned());
            }
        };
        let (early, late) = (self.memory(1..2), self.memory(3..4));
        must(
            late > 0.0 && late <= early * MEMORY + MEMORY_KIB,
            "the memory of the process is not constant",
        );
        must(
            self.after.files <= self.before.files && self.after.threads <= self.before.threads,
            "files or threads have become more",
        );
        must(
            self.restarts <= self.changes_of_cpus(),
            "the scheduler has started again without a reason",
        );
        let (up, faults) = (self.guests.up() as f64, self.guests.faults.len() as f64);
        must(
            up > 0.0 && faults <= (FAULTS * (up + faults)).max(1.0),
            "too many guests failed",
        );
        let with_device = self.guests.with_device.len() as f64;
        must(
            self.served() as f64 >= SERVED * with_device,
            "too few of the guests with a device were served",
        );
        problems
    }

    /// Of these quarters of the mix, the memory that the process had half of the time, in KiB.
    #[allow(clippy::cast_precision_loss)]
    fn memory(&self, quarters: Range<u32>) -> f64 {
        let quarter = self.options.duration() / 4;
        let (from, to) = (quarter * quarters.start, quarter * quarters.end);
        let within = |sample: &&Sample| (from..=to).contains(&sample.at);
        let samples = self.watch.samples.iter().filter(within);
        let mut memory: Vec<_> = samples.map(|sample| sample.anonymous_kib).collect();
        memory.sort_unstable();
        memory.get(memory.len() / 2).map_or(0.0, |kib| *kib as f64)
    }

    fn changes_of_cpus(&self) -> u64 {
        let done = |name| {
            self.actions
                .get(name)
                .map_or(0, |(done, _)| u64::from(*done))
        };
        // At the end of the mix it comes back once more, if it was away.
        done("CPU off") + done("CPU on") + 1
    }

    fn served(&self) -> usize {
        let served = self.guests.with_device.iter();
        served
            .filter(|name| self.watch.served.contains(*name))
            .count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { minutes, seed } = self.options;
        let Held {
            files,
            threads,
            maps_kib,
            anonymous_kib,
        } = self.before;
        let after = self.after;
        writeln!(f, "seed {seed}, {minutes} minutes")?;
        let actions: Vec<_> = self
            .actions
            .iter()
            .map(|(name, (done, refused))| match refused {
                0 => format!("{name} {done}"),
                refused => format!("{name} {done} (and {refused} not possible)"),
            })
            .collect();
        writeln!(f, "actions: {}", actions.join(", "))?;
        writeln!(
            f,
            "guests: {} came up, {} with device and driver, of which {} were seen served; {} faults",
            self.guests.up(),
            self.guests.with_device.len(),
            self.served(),
            self.guests.faults.len()
        )?;
        for fault in &self.guests.faults {
            writeln!(f, "  {}", fault.lines().next().unwrap_or_default())?;
        }
        writeln!(
            f,
            "scheduler: started again {} times, away for {:.1?} at most; tasks overslept {:.0?} at most",
            self.restarts, self.watch.away, self.watch.overslept
        )?;
        writeln!(
            f,
            "memory: {:.0} KiB in the second quarter, {:.0} in the last one",
            self.memory(1..2),
            self.memory(3..4)
        )?;
        write!(
            f,
            "without VMs, before and after: {anonymous_kib} and {} KiB, {files} and {} files, \
             {threads} and {} threads, {maps_kib} and {} KiB of BPF maps",
            after.anonymous_kib, after.files, after.threads, after.maps_kib
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// With 100 MiB throughout but for the last quarter.
    fn report(last_kib: u64) -> Report {
        let held = Held {
            anonymous_kib: 1,
            files: 40,
            threads: 4,
            maps_kib: 1,
        };
        let sample = |second: u64| Sample {
            at: Duration::from_secs(second),
            anonymous_kib: if second > 135 { last_kib } else { 102_400 },
        };
        Report {
            options: Options {
                minutes: 3,
                seed: 5,
            },
            actions: BTreeMap::from([("CPU off", (2, 0)), ("CPU on", (2, 1))]),
            guests: Counts {
                bare: 1,
                with_device: vec!["a".to_owned(), "b".to_owned()],
                faults: vec!["c: hung\nconsole".to_owned()],
            },
            watch: Watch {
                samples: (0..180).map(sample).collect(),
                served: ["a".to_owned()].into(),
                ..Watch::default()
            },
            restarts: 5,
            before: held,
            after: held,
        }
    }

    #[test]
    fn a_steady_mix_has_no_problems() {
        let report = report(102_400);
        assert_eq!(report.problems(), [""; 0]);
        let text = report.to_string();
        for part in [
            "seed 5",
            "CPU on 2 (and 1 not possible)",
            "3 came up",
            "  c: hung\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn memory_that_grows_is_a_problem() {
        let problem = ["the memory of the process is not constant"];
        assert_eq!(report(112_640).problems(), problem);
        assert_eq!(report(0).problems(), problem);
    }

    #[test]
    fn each_other_problem_is_told() {
        let mut bad = report(102_400);
        bad.after.files += 1;
        bad.restarts += 1;
        bad.guests.faults = vec![String::new(); 4];
        bad.watch.served.clear();
        assert_eq!(bad.problems().len(), 4, "{:?}", bad.problems());
    }
}
