//! What the kernel of the machine that this runs on complains about meanwhile.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{ensure, Context, Result};

/// Words with which the kernel reports that something is wrong with itself.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "general protection fault",
    "rcu: INFO",
    "detected stall",
    "detected expedited stalls",
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "Call Trace",
];

/// sched_ext says why each scheduler ended; this is the end that a scheduler chose itself.
const ORDINARY_EXIT: &str = "unregistered from user space";

static MARKS: AtomicU32 = AtomicU32::new(0);

/// A place in the kernel's log.
pub struct KernelLog {
    mark: String,
}

impl KernelLog {
    /// Marks the log's end.
    pub fn mark() -> Result<Self> {
        let number = MARKS.fetch_add(1, Ordering::Relaxed);
        let mark = format!("pvsched-lab: {} begins part {number}", std::process::id());
        fs::write("/dev/kmsg", format!("{mark}\n")).context("cannot write to the kernel's log")?;
        Ok(Self { mark })
    }

    /// Everything since the mark.
    pub fn text(&self) -> Result<String> {
        let log = Command::new("dmesg").output().context("dmesg")?;
        ensure!(log.status.success(), "dmesg failed");
        let log = String::from_utf8_lossy(&log.stdout).into_owned();
        let start = log
            .rfind(&self.mark)
            .context("the kernel has said so much that the beginning is lost")?;
        Ok(log[start..].to_owned())
    }

    /// The lines that must not be there. `expected_exits` are reasons for which sched_ext may have
    /// ended a scheduler.
    pub fn complaints(&self, expected_exits: &[&str]) -> Result<Vec<String>> {
        Ok(complaints(&self.text()?, expected_exits))
    }
}

fn complaints(log: &str, expected_exits: &[&str]) -> Vec<String> {
    let bad = |line: &str| {
        COMPLAINTS.iter().any(|words| line.contains(words)) || bad_exit(line, expected_exits)
    };
    log.lines()
        .filter(|line| bad(line))
        .map(str::to_owned)
        .collect()
}

/// `sched_ext: BPF scheduler "NAME" disabled (REASON)` with another reason than expected.
fn bad_exit(line: &str, expected: &[&str]) -> bool {
    let Some((_, reason)) = line
        .split_once("sched_ext: ")
        .and_then(|(_, exit)| exit.split_once(" disabled ("))
    else {
        return false;
    };
    !expected
        .iter()
        .chain([&ORDINARY_EXIT])
        .any(|expected| reason.starts_with(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
[  10.1] sched_ext: BPF scheduler \"pvsched\" enabled
[  12.5] WARNING: CPU: 1 PID: 77 at kernel/sched/ext.c:1
[  13.0] kvm_amd: all is well
[  14.0] sched_ext: BPF scheduler \"pvsched\" disabled (unregistered from the main kernel)
[  15.0] sched_ext: BPF scheduler \"pvsched\" disabled (unregistered from user space)
[  16.0] sched_ext: BPF scheduler \"pvsched\" disabled (runnable task stall)
";

    #[test]
    fn warnings_and_ends_that_nobody_asked_for_are_complaints() {
        let found = |expected: &[&str]| -> Vec<String> {
            let lines = complaints(LOG, expected).into_iter();
            lines.map(|line| line[3..7].to_owned()).collect()
        };
        assert_eq!(found(&[]), ["12.5", "14.0", "16.0"]);
        assert_eq!(
            found(&["unregistered from the main kernel"]),
            ["12.5", "16.0"]
        );
    }
}
