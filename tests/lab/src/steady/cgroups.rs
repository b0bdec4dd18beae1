//! Cgroups that are made, changed and removed, and tasks that are moved between them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use nix::errno::Errno;

use super::action::{Action, Cpus, Group};
use super::pool::{Pool, Task};
use super::{Hand, Outcome};

const ROOT: &str = "/sys/fs/cgroup";
const PROCS: &str = "cgroup.procs";

/// What the cgroups in a cgroup can have.
const CONTROLLERS: &str = "+cpu +cpuset";

/// How often a cgroup is tried to be removed: processes that have left it may still count.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(100);

pub struct Cgroups<'a> {
    pool: &'a Pool,
    /// Those there are, each after the one that it is in.
    there: Vec<Group>,
}

impl<'a> Cgroups<'a> {
    pub fn new(pool: &'a Pool) -> Result<Self> {
        write(&Path::new(ROOT).join("cgroup.subtree_control"), CONTROLLERS)?;
        let there = Vec::new();
        Ok(Self { pool, there })
    }
}

fn path(group: Group) -> PathBuf {
    Path::new(ROOT).join(group.to_string())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {text} to {}", file.display()))
}

/// Takes a process back to where it came from.
pub fn to_root(pid: u32) -> Result<()> {
    write(&Path::new(ROOT).join(PROCS), &pid.to_string())
}

fn make(group: Group) -> Result<()> {
    let path = path(group);
    fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if group.scope.is_none() {
        write(&path.join("cgroup.subtree_control"), CONTROLLERS)?;
    }
    Ok(())
}

fn remove(group: Group) -> Result<()> {
    let path = path(group);
    let mut tries = 0;
    loop {
        for pid in fs::read_to_string(path.join(PROCS))?.split_whitespace() {
            match fs::write(Path::new(ROOT).join(PROCS), pid) {
                Err(error) if !is(&error, Errno::ESRCH) => {
                    return Err(error).with_context(|| format!("cannot take {pid} out of {group}"))
                }
                _ => {}
            }
        }
        tries += 1;
        match fs::remove_dir(&path) {
            Ok(()) => return Ok(()),
            Err(error) if tries == TRIES || !is(&error, Errno::EBUSY) => {
                return Err(error).with_context(|| format!("cannot remove {group}"))
            }
            Err(_) => thread::sleep(BETWEEN_TRIES),
        }
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn set_weight(group: Group, weight: u32) -> Result<Outcome> {
    let path = path(group);
    match fs::write(path.join("cpu.weight"), weight.to_string()) {
        Ok(()) => Ok(Outcome::Done),
        // One with cpu.idle has no weight.
        Err(error)
            if is(&error, Errno::EINVAL)
                && fs::read_to_string(path.join("cpu.idle"))?.trim() == "1" =>
        {
            Ok(Outcome::Refused)
        }
        Err(error) => Err(error).with_context(|| format!("cannot give {group} weight {weight}")),
    }
}

impl Hand for Cgroups<'_> {
    fn act(&mut self, action: Action) -> Result<Outcome> {
        match action {
            Action::MakeGroup(group) => {
                make(group)?;
                self.there.push(group);
            }
            Action::RemoveGroup(group) => {
                remove(group)?;
                self.there.retain(|other| *other != group);
            }
            Action::SetWeight(group, weight) => return set_weight(group, weight),
            Action::SetQuota(group, quota) => {
                let max = quota.map_or("max".to_owned(), |(quota, period)| {
                    format!("{quota} {period}")
                });
                write(&path(group).join("cpu.max"), &max)?;
            }
            Action::SetIdle(group, idle) => {
                write(&path(group).join("cpu.idle"), &u8::from(idle).to_string())?;
            }
            Action::SetCpus(group, cpus) => {
                let cpus = match cpus {
                    Cpus::Zero => "0",
                    Cpus::One => "1",
                    Cpus::Both => "0-1",
                };
                write(&path(group).join("cpuset.cpus"), cpus)?;
            }
            Action::Move { whom, to } => {
                let procs = to.map_or(PathBuf::from(ROOT), path).join(PROCS);
                let any = |_: &Task| true;
                return self.pool.with(whom, any, |task| {
                    task.outcome(write(&procs, &task.pid.to_string()))
                });
            }
            other => bail!("{other:?} is not for cgroups"),
        }
        Ok(Outcome::Done)
    }

    fn end(&mut self) -> Result<()> {
        while let Some(group) = self.there.pop() {
            remove(group)?;
        }
        Ok(())
    }
}
