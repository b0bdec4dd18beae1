//! What the BPF programs and maps of a process cost, by the kernel's own count: it is in the
//! information on the files by which the process holds them.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{ensure, Context, Result};

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

/// Of all programs of some processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Programs {
    pub run_time_ns: u64,
    pub runs: u64,
}

impl Programs {
    pub fn of(pids: &[u32]) -> Result<Self> {
        let programs = Self::in_files(&files(pids)?);
        programs.with_context(|| format!("no process of {pids:?} has a BPF program"))
    }

    fn in_files(files: &[String]) -> Option<Self> {
        // One may be held twice.
        let programs: BTreeMap<u64, Self> = files
            .iter()
            .filter_map(|file| {
                let programs = Self {
                    run_time_ns: number(file, "run_time_ns:")?,
                    runs: number(file, "run_cnt:")?,
                };
                Some((number(file, "prog_id:")?, programs))
            })
            .collect();
        let sum = |sum: Self, one: &Self| Self {
            run_time_ns: sum.run_time_ns + one.run_time_ns,
            runs: sum.runs + one.runs,
        };
        (!programs.is_empty()).then(|| programs.values().fold(Self::default(), sum))
    }

    pub fn since(&self, before: &Self) -> Self {
        Self {
            run_time_ns: self.run_time_ns.saturating_sub(before.run_time_ns),
            runs: self.runs.saturating_sub(before.runs),
        }
    }
}

/// Bytes of the kernel's memory that the maps of some processes take.
pub fn map_bytes(pids: &[u32]) -> Result<u64> {
    let bytes = bytes_of_maps(&files(pids)?);
    ensure!(bytes > 0, "no process of {pids:?} has a BPF map");
    Ok(bytes)
}

fn bytes_of_maps(files: &[String]) -> u64 {
    let maps: BTreeMap<u64, u64> = files
        .iter()
        .filter_map(|file| Some((number(file, "map_id:")?, number(file, "memlock:")?)))
        .collect();
    maps.values().sum()
}

/// The kernel's information on each open file of some processes.
fn files(pids: &[u32]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for pid in pids {
        let folder = format!("/proc/{pid}/fdinfo");
        let files = fs::read_dir(&folder).context(folder)?;
        // One that is closed in this moment is none.
        let read = |file: fs::DirEntry| fs::read_to_string(file.path()).ok();
        all.extend(files.flatten().filter_map(read));
    }
    Ok(all)
}

fn number(file: &str, name: &str) -> Option<u64> {
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Vec<String> {
        [
            "pos:\t0\nflags:\t02\n",
            "prog_type:\t26\nmemlock:\t4096\nprog_id:\t7\nrun_time_ns:\t100\nrun_cnt:\t3\n",
            "prog_type:\t26\nmemlock:\t4096\nprog_id:\t7\nrun_time_ns:\t100\nrun_cnt:\t3\n",
            "prog_type:\t27\nmemlock:\t4096\nprog_id:\t8\nrun_time_ns:\t20\nrun_cnt:\t1\n",
            "map_type:\t2\nmemlock:\t8192\nmap_id:\t3\n",
            "map_type:\t2\nmemlock:\t100\nmap_id:\t4\n",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    #[test]
    fn a_program_counts_once_however_often_it_is_held() {
        let programs = Programs::in_files(&files()).unwrap();
        assert_eq!((programs.run_time_ns, programs.runs), (120, 4));
        assert_eq!(Programs::in_files(&files()[..1]), None);
    }

    #[test]
    fn programs_are_no_maps() {
        assert_eq!(bytes_of_maps(&files()), 8292);
    }

    #[test]
    fn this_process_has_none() {
        let this = [std::process::id()];
        assert!(Programs::of(&this).is_err());
        assert!(map_bytes(&this).is_err());
    }
}
