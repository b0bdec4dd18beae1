//! What the host's kernel shows of schedulers, threads and processes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// What sched_ext is doing: `disabled` when the kernel's own scheduler has all tasks.
pub fn scheduler_state() -> Result<String> {
    word(Path::new("/sys/kernel/sched_ext/state"))
}

/// The name of the sched_ext scheduler that runs.
pub fn scheduler_name() -> Result<String> {
    word(Path::new("/sys/kernel/sched_ext/root/ops"))
}

/// CPU time that a thread has used.
pub fn cpu_time(pid: u32, tid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/task/{tid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let used = text.split(' ').next().and_then(|used| used.parse().ok());
    Ok(Duration::from_nanos(used.context(path)?))
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
