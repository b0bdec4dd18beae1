//! Loads that are programs of others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::measure::{Results, Scale, RATE, TIME};
use crate::process;

/// The longest that a program may take: several times what it does on a slow machine, so that one
/// that is starved ends as a failure and not never.
const LIMIT_SECONDS: &str = "180";

const CGROUPS: &str = "/sys/fs/cgroup";

/// A group has 20 senders and 20 receivers: always a queue, and still many messages in a few seconds.
const HACKBENCH_GROUPS_PER_CPU: usize = 1;

/// Messages that each sender sends to each receiver of its group: about three seconds on two
/// emulated processors.
const HACKBENCH_LOOPS: u32 = 500;

const SWITCH_TIME: Duration = Duration::from_secs(3);

/// A command that is ended, as a failure, when it takes too long.
pub fn limited(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", LIMIT_SECONDS, program]);
    command
}

fn hackbench_command(scale: &Scale) -> Vec<String> {
    let groups = HACKBENCH_GROUPS_PER_CPU * scale.cpus;
    let loops = scale.count(HACKBENCH_LOOPS);
    vec![
        "hackbench".to_owned(),
        format!("--groups={groups}"),
        format!("--loops={loops}"),
    ]
}

pub fn hackbench(scale: &Scale) -> Result<Results> {
    let words = hackbench_command(scale);
    let output = process::text(limited("env").args(words))?;
    Ok(vec![(TIME, hackbench_time(&output)?)])
}

pub fn hackbench_in_cgroup(scale: &Scale) -> Result<Results> {
    let cgroup = Cgroup::new("bench")?;
    let output = process::text(
        limited("sh")
            .args(["-c", "echo $$ >\"$1\" && shift && exec \"$@\"", "enter"])
            .arg(cgroup.0.join("cgroup.procs"))
            .args(hackbench_command(scale)),
    )?;
    Ok(vec![(TIME, hackbench_time(&output)?)])
}

fn hackbench_time(output: &str) -> Result<f64> {
    output
        .lines()
        .find_map(|line| line.strip_prefix("Time: ")?.trim().parse().ok())
        .with_context(|| format!("hackbench did not say how long it took: {output}"))
}

pub fn switch(scale: &Scale) -> Result<Results> {
    let folder = tempfile::tempdir()?;
    let metrics = folder.path().join("metrics");
    let seconds = scale.duration(SWITCH_TIME).as_secs().max(1);
    process::output(
        limited("stress-ng")
            .args(["--quiet", "--switch"])
            .arg(scale.cpus.to_string())
            .arg(format!("--timeout={seconds}s"))
            .arg("--metrics")
            .arg("--yaml")
            .arg(&metrics)
            .current_dir(folder.path()),
    )?;
    let text = fs::read_to_string(&metrics).context("stress-ng left no metrics")?;
    Ok(vec![(RATE, stress_ng_rate(&text)?)])
}

/// Operations per second of real time, of the only stressor.
fn stress_ng_rate(metrics: &str) -> Result<f64> {
    metrics
        .lines()
        .find_map(|line| {
            let line = line.trim();
            let value = line.strip_prefix("bogo-ops-per-second-real-time:")?;
            value.trim().parse().ok()
        })
        .with_context(|| format!("stress-ng's metrics have no rate: {metrics}"))
}

/// Makes the cpu controller work in the root's children. It stays so: with it, every task's
/// scheduling is a little different, so it is not to change between loads.
pub fn let_cgroups_have_weights() -> Result<()> {
    let path = Path::new(CGROUPS).join("cgroup.subtree_control");
    fs::write(&path, "+cpu").with_context(|| path.display().to_string())
}

/// A cgroup, which goes when this is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Result<Self> {
        let path = Path::new(CGROUPS).join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes leave it only when they are reaped.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hackbenchs_time_is_read() {
        let output = "Running in process mode with 2 groups\nTime: 1.234\n";
        assert!((hackbench_time(output).unwrap() - 1.234).abs() < 1e-9);
        assert!(hackbench_time("SERVER: out of files\n").is_err());
    }

    #[test]
    fn stress_ngs_rate_is_that_of_real_time() {
        let metrics = "metrics:\n    - stressor: switch\n      bogo-ops: 300\n      \
                       bogo-ops-per-second-usr-sys-time: 200.000000\n      \
                       bogo-ops-per-second-real-time: 100.500000\n";
        assert!((stress_ng_rate(metrics).unwrap() - 100.5).abs() < 1e-9);
        assert!(stress_ng_rate("metrics:\n").is_err());
    }
}
