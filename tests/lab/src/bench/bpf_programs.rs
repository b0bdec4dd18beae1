//! What the BPF programs and maps of a process cost, by the kernel's own count.

use std::fs;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use serde_json::Value;

use crate::process;

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// While this lives, the kernel counts each program's runs and how long they took. Reading the clock
/// twice for each run costs time itself, so nothing else is measured meanwhile.
pub struct Counting(());

impl Counting {
    pub fn start() -> Result<Self> {
        fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self(()))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Where it could be turned on it can be turned off.
        let _ = fs::write(SWITCH, "0");
    }
}

/// Of all programs of a process together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    pub run_time_ns: u64,
    pub runs: u64,
}

impl Programs {
    pub fn of(pid: u32) -> Result<Self> {
        Self::parse(&list("prog")?, pid)
    }

    fn parse(list: &str, pid: u32) -> Result<Self> {
        let mut all = Self::default();
        let mut found = false;
        for program in held_by(list, pid)? {
            found = true;
            // Absent as long as they are 0.
            all.run_time_ns += program["run_time_ns"].as_u64().unwrap_or_default();
            all.runs += program["run_cnt"].as_u64().unwrap_or_default();
        }
        ensure!(found, "process {pid} has no BPF program");
        Ok(all)
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            run_time_ns: self.run_time_ns.saturating_sub(before.run_time_ns),
            runs: self.runs.saturating_sub(before.runs),
        }
    }
}

/// Bytes of the kernel's memory that the maps of a process take.
pub fn map_bytes(pid: u32) -> Result<u64> {
    sum_of_maps(&list("map")?, pid)
}

fn sum_of_maps(list: &str, pid: u32) -> Result<u64> {
    let maps = held_by(list, pid)?;
    Ok(maps
        .iter()
        .filter_map(|map| map["bytes_memlock"].as_u64())
        .sum())
}

fn list(what: &str) -> Result<String> {
    process::text(Command::new("bpftool").args(["--json", what, "show"]))
}

fn held_by(list: &str, pid: u32) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_json::from_str(list).context("bpftool's JSON")?;
    let holds = |object: &Value| {
        let holders = object["pids"].as_array().into_iter().flatten();
        holders
            .filter_map(|holder| holder["pid"].as_u64())
            .any(|holder| holder == u64::from(pid))
    };
    Ok(all.into_iter().filter(holds).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"[{"id":1,"run_time_ns":10,"run_cnt":2,"pids":[{"pid":7,"comm":"a"}]},
        {"id":2,"run_time_ns":5,"run_cnt":1,"pids":[{"pid":8,"comm":"b"}]},
        {"id":3,"pids":[{"pid":7,"comm":"a"},{"pid":8,"comm":"b"}],"bytes_memlock":4096},
        {"id":4,"run_time_ns":99,"run_cnt":9}]"#;

    #[test]
    fn only_what_the_process_holds_counts() {
        let programs = Programs::parse(LIST, 7).unwrap();
        assert_eq!((programs.run_time_ns, programs.runs), (10, 2));
        assert!(Programs::parse(LIST, 9).is_err());
        assert_eq!(sum_of_maps(LIST, 8).unwrap(), 4096);
    }
}
