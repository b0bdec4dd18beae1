//! What a scheduler itself uses: its BPF programs for each switch of the host from one task to
//! another, its process, and its memory.

use std::fs;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::bpf_programs::{map_bytes, Counting, Programs};
use super::measure::{Better, Metric, Outcome, Scene};
use super::messages;

pub const BPF_PER_SWITCH: Metric = Metric::new("BPF per switch", "ns", Better::Lower);
/// Schedulers differ in how often they switch for the same work.
const BPF_PER_REQUEST: Metric = Metric::new("BPF per request", "ns", Better::Lower);
const PROCESS_PER_SWITCH: Metric = Metric::new("process per switch", "ns", Better::Lower);
const MEMORY: Metric = Metric::new("memory", "MiB", Better::Lower);
const MAPS: Metric = Metric::new("BPF maps", "MiB", Better::Lower);

pub const MIB: f64 = 1_048_576.0;

/// What has been used up to a moment.
pub struct Usage {
    programs: Programs,
    process: Duration,
    switches: u64,
}

/// What has been used between two moments.
pub struct Used {
    pub bpf_ns: f64,
    pub process_ns: f64,
    pub switches: f64,
}

impl Usage {
    /// Of these processes.
    pub fn now(pids: &[u32]) -> Result<Self> {
        let times = pids.iter().copied().map(process_time);
        Ok(Self {
            programs: Programs::of(pids)?,
            process: times.sum::<Result<_>>()?,
            switches: switches(&fs::read_to_string("/proc/stat")?)?,
        })
    }

    #[allow(clippy::cast_precision_loss)]
    pub fn since(&self, before: &Self) -> Result<Used> {
        let switches = self.switches.saturating_sub(before.switches);
        ensure!(switches > 0, "no task was switched to");
        let programs = self.programs.since(&before.programs);
        ensure!(
            programs.runs > 0,
            "none of its BPF programs ran, or the kernel does not count"
        );
        let process = self.process.saturating_sub(before.process);
        Ok(Used {
            bpf_ns: programs.run_time_ns as f64,
            process_ns: process.as_nanos() as f64,
            switches: switches as f64,
        })
    }
}

/// Switches from one task to another since boot.
fn switches(stat: &str) -> Result<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("ctxt "));
    line.and_then(|number| number.trim().parse().ok())
        .context("/proc/stat does not count switches")
}

/// CPU time of all threads of a process that still run.
fn process_time(pid: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that ends in this moment is a small part.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        let ns = text.split(' ').next().and_then(|ns| ns.parse().ok());
        sum += Duration::from_nanos(ns.unwrap_or_default());
    }
    Ok(sum)
}

/// Memory of a process in bytes; what it shares with others counts in part.
pub fn memory_of(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    kib(&text, "Pss:").map(|kib| kib * 1024).context(path)
}

/// The number of KiB in a line of a file of /proc.
pub fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let pids = scene.running.pids();
    let counting = Counting::start()?;
    let before = Usage::now(&pids)?;
    let done = messages::load(&scene.scale)?;
    let used = Usage::now(&pids)?.since(&before)?;
    drop(counting);
    ensure!(done.requests > 0, "the load did not get to do anything");
    #[allow(clippy::cast_precision_loss)]
    let (mib, requests) = (|bytes: u64| bytes as f64 / MIB, done.requests as f64);
    let memory = pids.iter().copied().map(memory_of).sum::<Result<u64>>()?;
    Ok(vec![
        (BPF_PER_SWITCH, used.bpf_ns / used.switches),
        (BPF_PER_REQUEST, used.bpf_ns / requests),
        (PROCESS_PER_SWITCH, used.process_ns / used.switches),
        (MEMORY, mib(memory)),
        (MAPS, mib(map_bytes(&pids)?)),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_read() {
        assert_eq!(switches("cpu 1 2\nctxt 1234\nbtime 5\n").unwrap(), 1234);
        assert!(switches("cpu 1 2\n").is_err());
    }

    #[test]
    fn memory_is_read() {
        let text = "00400000-7fff ---p [rollup]\nRss:  900 kB\nPss:     512 kB\n";
        assert_eq!(kib(text, "Pss:"), Some(512));
        assert_eq!(kib(text, "Swap:"), None);
        assert!(memory_of(std::process::id()).unwrap() > 0);
        assert!(process_time(std::process::id()).unwrap() > Duration::ZERO);
    }
}
