//! How much else the machine did while the host VM ran: with its CPUs taken away at random, what the
//! VM measures means little.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{getrusage, UsageWho};
use serde_json::{json, Value};

/// CPUs that others used on average, above which a report is told to be worth little. The kernel's
/// own work and a person's shell are well below.
const NOTABLE: f64 = 0.15;

/// In which /proc/stat counts: the kernel's USER_HZ, the same on all x86-64 machines.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time since boot of all, and since the start of the processes that this one has waited for.
#[derive(Clone, Copy, Debug)]
struct Used {
    at: Instant,
    all: Duration,
    ours: Duration,
}

/// From one moment on.
pub struct Watch(Used);

impl Watch {
    /// # Errors
    /// When the machine does not tell.
    pub fn start() -> Result<Self> {
        Ok(Self(Used::now()?))
    }

    /// Adds to a report how many CPUs others used since, and warns if those are many. To be called
    /// when the host VM has gone.
    ///
    /// # Errors
    /// When the machine does not tell, or the report is none.
    pub fn add_others(&self, report: &Path) -> Result<()> {
        let others = Used::now()?.others_since(&self.0);
        if others > NOTABLE {
            eprintln!(
                "bench: other work used {others:.1} CPUs of this machine meanwhile; the numbers are worth little"
            );
        }
        let text = fs::read_to_string(report)?;
        let mut value: Value = serde_json::from_str(&text)?;
        value["machine"]["cpus_used_by_others"] = json!(others);
        fs::write(report, serde_json::to_string_pretty(&value)? + "\n")?;
        Ok(())
    }
}

impl Used {
    fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let children = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        let (user, system) = (children.user_time(), children.system_time());
        let us = u64::try_from(user.tv_sec() + system.tv_sec())? * 1_000_000
            + u64::try_from(user.tv_usec() + system.tv_usec())?;
        Ok(Self {
            at: Instant::now(),
            all: busy(&stat).context("/proc/stat has no line for all CPUs")?,
            ours: Duration::from_micros(us),
        })
    }

    /// CPUs, on average.
    fn others_since(&self, before: &Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        let ours = self.ours.saturating_sub(before.ours);
        let elapsed = self.at.duration_since(before.at).as_secs_f64();
        all.saturating_sub(ours).as_secs_f64() / elapsed.max(f64::MIN_POSITIVE)
    }
}

/// What /proc/stat counts as work: user, nice, system and both kinds of interrupts, without idle,
/// waiting for disks, and what a hypervisor took. Guests' time is in user's.
fn busy(stat: &str) -> Option<Duration> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let ticks: u64 = [0, 1, 2, 5, 6]
        .into_iter()
        .map(|index| numbers.get(index).copied())
        .sum::<Option<_>>()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_time_are_no_work() {
        let stat = "cpu  100 20 30 100000 500 40 10 7000 90 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy(stat), Some(Duration::from_secs(2)));
        assert_eq!(busy("cpu  1 2 3\n"), None);
        assert_eq!(busy("intr 1\n"), None);
    }

    #[test]
    fn our_own_work_is_not_that_of_others() {
        let at = Instant::now();
        let second = Duration::from_secs(1);
        let before = Used {
            at,
            all: 5 * second,
            ours: second,
        };
        let now = Used {
            at: at + 10 * second,
            all: 30 * second,
            ours: 21 * second,
        };
        assert!((now.others_since(&before) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn this_machine_tells() {
        let watch = Watch::start().unwrap();
        assert!(Used::now().unwrap().others_since(&watch.0) >= 0.0);
    }
}
