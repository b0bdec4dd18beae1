//! What the promises share. Each one is a test in `tests/promises`, a file for each kind, that runs
//! as root inside the lab's host VM; `scripts/test --only NAME` runs those with NAME in theirs.
//!
//! - [`promise`]: runs a test, and looks at the kernel's log after it
//! - [`guest_pages`]: a guest's pages, written from the outside
//! - [`host`]: what the host's kernel shows: its scheduler, CPU times, files of a process
//! - [`margins`]: how far a measured value may be from the ideal one, and why

pub mod guest_pages;
pub mod host;
pub mod margins;

use std::env;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

pub use pvsched_lab::kernel_log::KernelLog;

/// Runs the body of a test, and then fails it too if the kernel has complained meanwhile.
pub fn promise(body: impl FnOnce() -> Result<()>) -> Result<()> {
    promise_with(&[], body)
}

/// As [`promise`], for a body that lets the kernel end a scheduler for the reasons given, in the
/// kernel's words.
pub fn promise_with(expected_exits: &[&str], body: impl FnOnce() -> Result<()>) -> Result<()> {
    ensure!(
        env::var("PVSCHED_LAB").is_ok_and(|place| place == "host"),
        "these tests replace the scheduler and crash things: run them in the lab, by scripts/test"
    );
    let state = host::scheduler_state()?;
    ensure!(
        state == "disabled",
        "a scheduler is left from an earlier test: {state}"
    );
    let log = KernelLog::mark()?;
    let result = body();
    let complaints = log.complaints(expected_exits)?;
    if complaints.is_empty() {
        return result;
    }
    let complained = format!("the kernel complained:\n{}", complaints.join("\n"));
    match result {
        Ok(()) => bail!(complained),
        Err(error) => Err(error.context(complained)),
    }
}

/// Asks again and again until there is an answer, and says how long that took.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        // What was asked last decides, however late this thread ran.
        let over = start.elapsed() >= limit;
        match ask() {
            Ok(Some(answer)) => return Ok((answer, start.elapsed())),
            Ok(None) => ensure!(!over, "not within {limit:?}: {what}"),
            Err(error) if over => {
                return Err(error).with_context(|| format!("not within {limit:?}: {what}"))
            }
            Err(_) => {}
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The value in the middle; of an even number, the upper of the two.
pub fn median(values: &[f64]) -> Result<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
        .get(sorted.len() / 2)
        .copied()
        .context("nothing was measured")
}
