//! What a host kernel can do with scx_pvsched: a short look at each part, inside the host VM.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::chain::{Scheduler, Vm, VmOptions};
use crate::hog::Hog;
use crate::kernel_log::KernelLog;

/// Busy host tasks, more than the host VM has CPUs.
const HOGS: usize = 4;

/// Before shares are measured, and how long.
const SETTLE: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(4);

/// What the task that gets the least must get, of an equal share: turns on an emulated machine are
/// long, but nobody stands still.
const LEAST_SHARE: f64 = 0.6;

/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How long the guest's real-time task runs, which has to be seen.
const REAL_TIME: Duration = Duration::from_secs(20);

const LOOK: Duration = Duration::from_millis(200);

/// What was found, as far as the survey came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// From the start of the process to its scheduling, in seconds.
    pub loads_s: Option<f64>,
    /// Of busy host tasks, what the one with the least got of an equal share.
    pub least_share: Option<f64>,
    /// The guest's vCPUs that were handed over.
    pub vcpus: u64,
    /// Boosts for the guest's real-time task.
    pub boosts: u64,
    /// Which of KVM's events give hints.
    pub hints: String,
    /// What the scheduler warned of.
    pub warnings: Vec<String>,
    /// What the survey ended with if not all was as it should be.
    pub failure: Option<String>,
}

impl Findings {
    /// Loads the scheduler, lets host tasks share, boots a guest with everything, and has the guest's
    /// real-time task boosted.
    pub fn make() -> Self {
        let mut found = Self::default();
        if let Err(error) = found.look() {
            found.failure = Some(format!("{error:#}"));
        }
        found
    }

    fn look(&mut self) -> Result<()> {
        let log = KernelLog::mark()?;
        let start = Instant::now();
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        self.loads_s = Some(start.elapsed().as_secs_f64());
        let looked = self.look_with(&mut scheduler);
        self.warnings = warnings(&scheduler.log());
        looked?;
        scheduler.check()?;
        scheduler.stop()?;
        let complaints = log.complaints(&[])?;
        ensure!(
            complaints.is_empty(),
            "the kernel complained:\n{}",
            complaints.join("\n")
        );
        Ok(())
    }

    fn look_with(&mut self, scheduler: &mut Scheduler) -> Result<()> {
        let least = self.least_share.insert(least_share()?);
        ensure!(
            *least >= LEAST_SHARE,
            "a busy host task got {least:.2} of an equal share"
        );
        let vm = VmOptions::default();
        let wanted = u64::from(vm.vcpus);
        let vm = Vm::start(&vm)?;
        let handed_over = until(LIMIT, || {
            self.vcpus = scheduler.stats()?["nr_vcpus"].as_u64().unwrap_or_default();
            Ok(self.vcpus >= wanted)
        });
        handed_over.with_context(|| vm.state("not all vCPUs were handed over"))?;

        // Without anybody who wants its CPU, a vCPU has no use for a boost.
        let hogs = Hog::start(HOGS)?;
        let real_time = vm.guest.spawn(&format!(
            "exec cyclictest -q -m -p 50 -i 5000 -a 1 -t 1 -D {} >/dev/null 2>&1",
            REAL_TIME.as_secs()
        ))?;
        let boosted = until(REAL_TIME, || {
            let stats = scheduler.stats()?;
            self.boosts = boosts(&stats);
            self.hints = stats["hint_sources"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            Ok(self.boosts > 0)
        });
        boosted.with_context(|| vm.state("its real-time task was not boosted"))?;
        real_time.kill()?;
        drop(hogs);
        ensure!(!self.hints.is_empty(), "KVM gives no hints");

        vm.guest.poweroff(LIMIT)?;
        until(LIMIT, || Ok(scheduler.stats()?["nr_vms"] == 0)).context("the VM is still known")
    }
}

/// Asks until the answer is yes.
fn until(limit: Duration, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ask()? {
        if Instant::now() >= deadline {
            bail!("not within {limit:?}");
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn least_share() -> Result<f64> {
    let hogs = Hog::start(HOGS)?;
    thread::sleep(SETTLE);
    let before = hogs.progress();
    thread::sleep(MEASURED);
    let work = hogs.progress().since(&before);
    let times = work.threads.iter().map(|(_, cpu)| cpu.as_secs_f64());
    let equal = times.clone().sum::<f64>() / work.threads.len() as f64;
    Ok(times.fold(f64::INFINITY, f64::min) / equal)
}

/// Boosts for urgent tasks, of all vCPUs.
fn boosts(stats: &Value) -> u64 {
    let vms = stats["vms"].as_object().into_iter().flatten();
    vms.filter_map(|(_, vm)| vm["vcpus"].as_object())
        .flatten()
        .filter_map(|(_, vcpu)| vcpu["boosts_task"].as_u64())
        .sum()
}

/// The scheduler's warnings in its log, without their times and colours.
fn warnings(log: &str) -> Vec<String> {
    without_colours(log)
        .lines()
        .filter_map(|line| line.split_once("[WARN] ").or(line.split_once("[ERROR] ")))
        .map(|(_, text)| text.to_owned())
        .collect()
}

/// Text without a terminal's escape sequences.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let first = parts.next().unwrap_or_default();
    let rest = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
    [first].into_iter().chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn boosts_of_all_vcpus_are_counted() {
        let vcpu = |boosts: u64| json!({ "boosts_task": boosts });
        let stats = json!({ "vms": {
            "1": { "vcpus": { "0": vcpu(2), "1": vcpu(3) } },
            "2": { "vcpus": { "0": vcpu(4) } },
        } });
        assert_eq!(boosts(&stats), 9);
        assert_eq!(boosts(&json!({ "vms": {} })), 0);
    }

    #[test]
    fn warnings_are_kept_without_time_and_colour() {
        let log = "10:00:01 [INFO] scheduling 2 CPUs\n10:00:02 [WARN] no quotas\n\
                   10:00:03 \x1b[33m[WARN] \x1b[0mno weights\x1b[0m\n";
        assert_eq!(warnings(log), ["no quotas", "no weights"]);
    }
}
