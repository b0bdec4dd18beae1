//! Runs the end-to-end tests in host VMs, each test by itself.
//!
//! Nested emulation breaks now and then: a guest stops in boot, or the host VM's kernel takes a
//! fault that no program of ours is near, also when no scheduler of ours is loaded. So a test that fails is tried again in a fresh
//! host VM, twice at most. Every try that failed is printed with what it said and counted at the
//! end, so that a fault of our own making, which would come back, cannot hide behind them.

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use crate::host_vm::{console_tail, End, HostVm, Setup};
use crate::process;
use crate::topology::Topology;

/// The longest that one test may take; the longest of them boots ten guests in a row.
const TEST_LIMIT: Duration = Duration::from_secs(600);

/// How often a test is tried at most, unless told otherwise.
pub const TRIES: u32 = 3;

/// How many lines of a failed test's output are shown.
const SHOWN_LINES: usize = 60;

/// What came of all tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    /// Tries that failed, of tests that passed in the end too.
    pub failed_tries: u32,
}

/// The names of the tests in a libtest binary that contain one of `filters`; all without filters.
///
/// # Errors
/// When the binary does not run, or has no such test.
pub fn list(binary: &Path, filters: &[String]) -> Result<Vec<String>> {
    let mut command = Command::new(binary);
    command.args(["--list", "--format", "terse"]);
    let names = parse_list(&process::text(&mut command)?, filters);
    ensure!(
        !names.is_empty(),
        "no test has one of {filters:?} in its name; see `{} --list`",
        binary.display()
    );
    Ok(names)
}

fn parse_list(text: &str, filters: &[String]) -> Vec<String> {
    let wanted = |name: &&str| filters.is_empty() || filters.iter().any(|part| name.contains(part));
    text.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(wanted)
        .map(str::to_owned)
        .collect()
}

/// The topology that a test needs, if one of the modules that it is in names it: `on_1_2_2` is one
/// socket of two cores with two threads each.
#[must_use]
pub fn topology(name: &str) -> Option<Topology> {
    name.split("::")
        .filter_map(|module| module.strip_prefix("on_"))
        .find_map(|numbers| numbers.replace('_', ",").parse().ok())
}

/// Whether a test needs time that goes by as instructions are executed: it is in a module `counted`.
#[must_use]
pub fn counted(name: &str) -> bool {
    name.split("::").any(|module| module == "counted")
}

/// How one try went.
struct Try {
    /// `Ok` when it passed, with what it measured; else what there is to show.
    outcome: Result<String, String>,
    /// The host VM may serve another test.
    vm_is_fine: bool,
}

fn attempt(vm: &mut HostVm, setup: &Setup, binary: &str, name: &str) -> Result<Try> {
    let mut output = Vec::new();
    let argv = [binary, "--exact", name, "--test-threads=1", "--nocapture"];
    let limit = TEST_LIMIT * setup.patience();
    let end = vm.run(&argv, limit, |bytes| {
        output.extend_from_slice(bytes);
        Ok(())
    })?;
    let text = String::from_utf8_lossy(&output);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
    let (why, console) = match end {
        End::Exit(0) => {
            return Ok(Try {
                outcome: Ok(measured(&text)),
                vm_is_fine: true,
            })
        }
        End::Exit(status) => (format!("status {status}"), String::new()),
        End::Timeout => (
            format!("not done after {limit:?}"),
            console_tail(&setup.console()),
        ),
        End::Hang => (
            "the host VM hung or stopped".to_owned(),
            console_tail(&setup.console()),
        ),
    };
    Ok(Try {
        outcome: Err(format!("{why}\n{shown}\n{console}")),
        vm_is_fine: false,
    })
}

/// Runs `names` of `binary`, a path that the host VM's PATH leads to, and prints each result in
/// libtest's words. A test that fails is tried again, `tries` times in all.
///
/// # Errors
/// When the lab itself fails: no host VM boots.
pub fn run(setup: &Setup, binary: &str, names: &[String], tries: u32) -> Result<Counts> {
    let mut pending: VecDeque<(&String, u32)> = names.iter().map(|name| (name, 1)).collect();
    let mut counts = Counts::default();
    let mut vm: Option<HostVm> = None;
    while let Some((name, number)) = pending.pop_front() {
        let start = Instant::now();
        // Another try is for what the host VM of the one before may have spoilt.
        let mut host = match vm.take() {
            Some(vm) if number == 1 => vm,
            _ => setup.boot().context("no host VM to test in")?,
        };
        let result = attempt(&mut host, setup, binary, name)?;
        if result.vm_is_fine {
            vm = Some(host);
        }
        let seconds = start.elapsed().as_secs();
        match result.outcome {
            Ok(measured) => {
                counts.passed += 1;
                println!("test {name} ... ok ({seconds} s, try {number}){measured}");
            }
            Err(text) => {
                counts.failed_tries += 1;
                println!("test {name}: try {number}, {seconds} s: {}", indent(&text));
                if number < tries {
                    pending.push_back((name, number + 1));
                } else {
                    counts.failed += 1;
                    println!("test {name} ... FAILED");
                }
            }
        }
    }
    println!(
        "{} tries failed of {} tests",
        counts.failed_tries,
        counts.passed + counts.failed
    );
    println!(
        "test result: {}. {} passed; {} failed; 0 ignored",
        if counts.failed == 0 { "ok" } else { "FAILED" },
        counts.passed,
        counts.failed
    );
    Ok(counts)
}

/// What a test printed beside libtest's own words, as lines of their own.
fn measured(text: &str) -> String {
    let of_libtest = |line: &&str| {
        let line = line.trim();
        line.is_empty()
            || line == "ok"
            || line.starts_with("running ")
            || line.starts_with("test result")
    };
    let lines: Vec<&str> = text.lines().filter(|line| !of_libtest(line)).collect();
    let text = lines.join("\n");
    // Without captured output the first line follows the test's name.
    let text = text
        .split_once(" ... ")
        .map_or(text.as_str(), |(_, rest)| rest);
    if text.trim().is_empty() || text.trim() == "ok" {
        return String::new();
    }
    indent(&format!("\n{text}"))
}

/// What a test printed must not be taken for the results of this run.
fn indent(text: &str) -> String {
    text.trim_end().replace('\n', "\n    | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_chosen_by_a_part_of_their_name() {
        let text = "chain::a: test\nchain::b: test\nhost::c: test\n\n3 tests, 0 benchmarks\n";
        let of = |filters: &[&str]| {
            let filters: Vec<String> = filters.iter().map(|&part| part.to_owned()).collect();
            parse_list(text, &filters)
        };
        assert_eq!(of(&["chain"]), ["chain::a", "chain::b"]);
        assert_eq!(of(&["::b", "host"]), ["chain::b", "host::c"]);
        assert_eq!(of(&[]).len(), 3);
        assert!(of(&["none"]).is_empty());
    }

    #[test]
    fn a_module_names_the_time_that_its_tests_need() {
        assert!(counted("bench::counted::a_test"));
        for other in ["bench::a_test", "bench::counted_a_test"] {
            assert!(!counted(other), "{other}");
        }
    }

    #[test]
    fn what_a_test_measured_is_kept() {
        let text =
            "\nrunning 1 test\ntest a::b ... p90 5 us\nmore\nok\n\ntest result: ok. 1 passed\n";
        assert_eq!(measured(text), "\n    | p90 5 us\n    | more");
        let silent = "\nrunning 1 test\ntest a::b ... ok\n\ntest result: ok. 1 passed\n";
        assert_eq!(measured(silent), "");
    }

    #[test]
    fn a_module_names_the_topology_that_its_tests_need() {
        let smt = Topology {
            sockets: 1,
            cores: 2,
            threads: 2,
        };
        assert_eq!(topology("placement::on_1_2_2::a_test"), Some(smt));
        for flat in ["chain::a_test", "chain::on_a_test", "on::1_2_2"] {
            assert_eq!(topology(flat), None, "{flat}");
        }
    }

    #[test]
    fn output_of_a_test_is_set_apart() {
        assert_eq!(
            indent("status 101\ntest result: FAILED\n"),
            "status 101\n    | test result: FAILED"
        );
    }
}
