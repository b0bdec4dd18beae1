//! Host tasks, what is done to them, CPUs that come and go, and the scheduler's configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use nix::errno::Errno;
use nix::sched::{sched_setaffinity, CpuSet};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use super::action::{Action, Cpus, Grants, Policy};
use super::pool::{Pool, Sort, Task};
use super::{Hand, Outcome};
use crate::daemon::Daemon;
use crate::process;

/// Milliseconds that host tasks are busy, and sleep.
const LIGHT: (u64, u64) = (2, 18);
const HEAVY: (u64, u64) = (15, 35);

/// As many of either. Together they want less than a CPU: whatever their nice values make of them,
/// something is left for guests that boot.
const TASKS: usize = 2;

/// A burst takes seconds; one that has not ended after this has a task that does not run.
const HACKBENCH_LIMIT: u32 = 120;

/// Of tasks that are real-time ones for a while.
const PRIORITY: &str = "10";

/// Above those. Whatever a vCPU does at [`PRIORITY`], this ends it.
const ABOVE: &str = "20";

const CPU1: &str = "/sys/devices/system/cpu/cpu1/online";

/// Busy tasks that come and go, and bursts of others.
pub struct Tasks<'a> {
    pool: &'a Pool,
    tasks: Vec<(Daemon, Sort)>,
}

impl<'a> Tasks<'a> {
    pub fn start(pool: &'a Pool) -> Result<Self> {
        let mut tasks = Vec::new();
        for sort in [Sort::Light, Sort::Heavy].repeat(TASKS) {
            tasks.push((start(pool, sort)?, sort));
        }
        Ok(Self { pool, tasks })
    }
}

fn start(pool: &Pool, sort: Sort) -> Result<Daemon> {
    let (busy, idle) = if sort == Sort::Light { LIGHT } else { HEAVY };
    let words = ["burn".to_owned(), busy.to_string(), idle.to_string()];
    let daemon = Daemon::start("burn", "pvsched-lab", words)?;
    let pid = daemon.pid();
    pool.add([Task {
        pid,
        tid: pid,
        sort,
    }]);
    Ok(daemon)
}

impl Hand for Tasks<'_> {
    fn act(&mut self, action: Action) -> Result<Outcome> {
        match action {
            Action::Replace { whom } => {
                let number = whom as usize % self.tasks.len();
                let (daemon, sort) = &mut self.tasks[number];
                self.pool.remove(daemon.pid());
                daemon.kill9()?;
                *daemon = start(self.pool, *sort)?;
            }
            Action::Hackbench { groups, loops } => {
                let status = Command::new("timeout")
                    .args(["-s", "KILL", &HACKBENCH_LIMIT.to_string(), "hackbench"])
                    .args(["-g", &groups.to_string(), "-l", &loops.to_string()])
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .status()
                    .context("cannot start timeout")?;
                ensure!(
                    status.success(),
                    "hackbench ended with {status}; its limit is {HACKBENCH_LIMIT} s"
                );
            }
            other => bail!("{other:?} is not for host tasks"),
        }
        Ok(Outcome::Done)
    }

    fn end(&mut self) -> Result<()> {
        for (daemon, _) in &self.tasks {
            self.pool.remove(daemon.pid());
        }
        self.tasks.clear();
        Ok(())
    }
}

/// Changes of policy, nice value and affinity.
pub struct Policies<'a>(pub &'a Pool);

impl Hand for Policies<'_> {
    fn act(&mut self, action: Action) -> Result<Outcome> {
        let any = |_: &Task| true;
        match action {
            Action::SetPolicy { whom, policy } => match policy {
                // Kernels before 7.0 leave no time for sched_ext's tasks beside one that is busy.
                Policy::Fifo | Policy::RoundRobin => self.0.with(
                    whom,
                    |task| matches!(task.sort, Sort::Light | Sort::Vcpu),
                    |task| task.outcome(real_time(task, policy)),
                ),
                policy => self
                    .0
                    .with(whom, any, |task| task.outcome(set_policy(task, policy))),
            },
            Action::SetNice { whom, nice } => self
                .0
                .with(whom, any, |task| task.outcome(set_nice(task, nice))),
            Action::SetAffinity { whom, cpus } => self.0.with(whom, any, |task| allow(task, cpus)),
            other => bail!("{other:?} changes no policy"),
        }
    }
}

fn flag(policy: Policy) -> &'static str {
    match policy {
        Policy::Other => "--other",
        Policy::Batch => "--batch",
        Policy::Idle => "--idle",
        Policy::Fifo => "--fifo",
        Policy::RoundRobin => "--rr",
    }
}

fn set_policy(task: Task, policy: Policy) -> Result<()> {
    let tid = task.tid.to_string();
    process::output(Command::new("chrt").args([flag(policy), "--pid", "0", &tid])).map(drop)
}

/// A task that mostly sleeps stays what it has become. A vCPU, which may be busy, does not.
fn real_time(task: Task, policy: Policy) -> Result<()> {
    let (tid, flag) = (task.tid.to_string(), flag(policy));
    if task.sort == Sort::Light {
        return process::output(Command::new("chrt").args([flag, "--pid", PRIORITY, &tid]))
            .map(drop);
    }
    let script =
        format!("chrt {flag} --pid {PRIORITY} {tid} && sleep 0.2; chrt --other --pid 0 {tid}");
    process::output(Command::new("chrt").args(["--fifo", ABOVE, "sh", "-c", &script])).map(drop)
}

fn set_nice(task: Task, nice: i32) -> Result<()> {
    let words = ["-n", &nice.to_string(), "-p", &task.tid.to_string()];
    process::output(Command::new("renice").args(words)).map(drop)
}

fn allow(task: Task, cpus: Cpus) -> Result<Outcome> {
    let mut set = CpuSet::new();
    for cpu in match cpus {
        Cpus::Zero => 0..1,
        Cpus::One => 1..2,
        Cpus::Both => 0..2,
    } {
        set.set(cpu)?;
    }
    match sched_setaffinity(Pid::from_raw(i32::try_from(task.tid)?), &set) {
        Ok(()) => Ok(Outcome::Done),
        // None of them is online, or in the task's cpuset.
        Err(Errno::EINVAL | Errno::ESRCH) => Ok(Outcome::Refused),
        Err(error) => Err(error).context("sched_setaffinity"),
    }
}

/// Makes an ordinary task of it again, which can run anywhere.
pub fn calm(task: Task) -> Result<()> {
    task.outcome(set_policy(task, Policy::Other))?;
    task.outcome(set_nice(task, 0))?;
    allow(task, Cpus::Both).map(drop)
}

/// CPU 1 goes and comes back.
pub struct HotPlug;

impl HotPlug {
    fn set(online: &str) -> Result<Outcome> {
        match fs::write(CPU1, online) {
            Ok(()) => Ok(Outcome::Done),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => Ok(Outcome::Refused),
            Err(error) => Err(error).with_context(|| format!("cannot write {online} to {CPU1}")),
        }
    }
}

impl Hand for HotPlug {
    fn act(&mut self, action: Action) -> Result<Outcome> {
        match action {
            Action::Offline => Self::set("0"),
            Action::Online => Self::set("1"),
            other => bail!("{other:?} is not for CPUs"),
        }
    }

    fn end(&mut self) -> Result<()> {
        for _ in 0..50 {
            if fs::read_to_string(CPU1)?.trim() == "1" {
                return Ok(());
            }
            Self::set("1")?;
            thread::sleep(Duration::from_millis(100));
        }
        bail!("CPU 1 does not come back")
    }
}

/// Changes the configuration and has it read again.
pub struct Operator {
    config: PathBuf,
    scheduler: u32,
}

impl Operator {
    pub fn new(config: &Path, scheduler: u32) -> Self {
        Self {
            config: config.to_owned(),
            scheduler,
        }
    }

    pub fn write(config: &Path, grants: Grants) -> Result<()> {
        let text = match grants {
            Grants::Defaults => "[default]\n",
            Grants::NormalOnly => "[default]\nclass = \"normal\"\nplacement = false\n",
            Grants::SmallBudgets => {
                "[default]\ntask_budget_us = 5000\nirq_budget_us = 1000\nnice = [-5, 10]\n"
            }
            Grants::ByName => "[[vm]]\nname = \"steady-0*\"\nclass = \"rt\"\ngroups = \"none\"\n",
            Grants::Broken => "[default]\nclass = \"highest\"\n",
        };
        fs::write(config, text).with_context(|| config.display().to_string())
    }
}

impl Hand for Operator {
    fn act(&mut self, action: Action) -> Result<Outcome> {
        let Action::Reload(grants) = action else {
            bail!("{action:?} is not for an operator");
        };
        Self::write(&self.config, grants)?;
        let pid = Pid::from_raw(i32::try_from(self.scheduler)?);
        kill(pid, Signal::SIGHUP).context("cannot have the configuration read again")?;
        Ok(Outcome::Done)
    }
}
