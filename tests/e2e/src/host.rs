//! What the host's kernel shows of schedulers, threads and processes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;

pub use pvsched_lab::guest::kvm_statistic;

/// What sched_ext is doing: `disabled` when the kernel's own scheduler has all tasks.
pub fn scheduler_state() -> Result<String> {
    word(Path::new("/sys/kernel/sched_ext/state"))
}

/// The name of the sched_ext scheduler that runs.
pub fn scheduler_name() -> Result<String> {
    word(Path::new("/sys/kernel/sched_ext/root/ops"))
}

/// Ensures that the scheduler has been asked about every task that may not migrate. Each other one was given
/// the next turn and 20 ms by the kernel, as often happens to vCPUs: a thread that runs a BPF program may
/// not migrate meanwhile.
pub fn ensure_all_were_asked_about() -> Result<()> {
    let unasked = event("SCX_EV_ENQ_SKIP_MIGRATION_DISABLED")?;
    ensure!(unasked == 0, "the kernel itself queued {unasked} tasks");
    Ok(())
}

/// How often something has happened since the scheduler began, by the name in `struct scx_event_stats` of
/// the kernel.
fn event(name: &str) -> Result<u64> {
    let path = "/sys/kernel/sched_ext/root/events";
    let text = fs::read_to_string(path).context(path)?;
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let count = lines
        .filter(|(of, _)| *of == name)
        .find_map(|(_, count)| count.trim().parse().ok());
    count.with_context(|| format!("{name} in {path}"))
}

/// CPU time that a thread has used.
pub fn cpu_time(pid: u32, tid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task/{tid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let used = text.split(' ').next().and_then(|used| used.parse().ok());
    Ok(Duration::from_nanos(used.context(path)?))
}

/// How often a thread lost its CPU while it would have gone on.
pub fn turns_cut_short(pid: u32, tid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
    count
        .and_then(|count| count.trim().parse().ok())
        .with_context(|| format!("no involuntary switches in {path}"))
}

/// The CPU that a thread runs on, or ran on last.
pub fn last_cpu(pid: u32, tid: u32) -> Result<u32> {
    stat(pid, tid, 39)
}

/// The scheduling policy of a thread, as include/uapi/linux/sched.h numbers them.
pub fn policy(pid: u32, tid: u32) -> Result<u32> {
    stat(pid, tid, 41)
}

/// A field of a thread's `stat`, by its number in proc_pid_stat(5), beyond the second.
fn stat(pid: u32, tid: u32, field: usize) -> Result<u32> {
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The second is a name in parentheses that may hold anything.
    let value = text
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(field - 3))
        .and_then(|value| value.parse().ok());
    value.context(path)
}

/// Lets a thread run on these CPUs only.
pub fn allow(tid: u32, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(i32::try_from(tid)?), &set).context("sched_setaffinity")
}

/// The number of files that a process has open.
pub fn open_files(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path).context(path)?.count())
}

fn word(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}
