// SPDX-License-Identifier: GPL-2.0-only
//! `--partial`: which threads are ours. The kernel hands a scheduler that does not replace its own one
//! only those whose policy is `SCHED_EXT`, so that vCPU threads are given it, and get back what they
//! had when the scheduler ends.
//!
//! All ordinary tasks of the host come before `SCHED_EXT`, whatever their weight. A thread that gets no
//! turn for long because of that is left to the kernel's own scheduler again, where it has its share;
//! the kernel would else take it for forgotten after half a minute, and end the scheduler.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use libbpf_rs::MapHandle;
use log::{debug, info, warn};
use nix::time::{clock_gettime, ClockId};

use super::registry::lookup_task;
use crate::handoff::thread;

/// include/uapi/linux/sched.h.
const SCHED_EXT: libc::c_int = 7;
/// The first PID namespace's inode in nsfs; `PID_NS_INIT_INO` of include/uapi/linux/nsfs.h.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;
/// How long a thread may wait for a CPU before it is left to the kernel's scheduler. A tenth of what the
/// kernel's watchdog allows.
const STARVED: Duration = Duration::from_secs(3);
/// How often the threads are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A thread with its policy as it was, with the flag `SCHED_RESET_ON_FORK` if it had that.
#[derive(Debug)]
struct Thread {
    pidfd: OwnedFd,
    before: libc::c_int,
}

/// The threads that were given `SCHED_EXT`; they get back their policies when this is dropped.
pub struct Roster {
    tasks: MapHandle,
    threads: BTreeMap<u32, Thread>,
    looked: Instant,
    switched: u64,
    handed_back: u64,
}

impl Roster {
    /// For threads that `tasks`, the map of that name in `bpf/state.bpf.h`, says are vCPUs.
    ///
    /// # Errors
    /// When this process is in a PID namespace of its own, where thread ids are not the kernel's.
    pub fn new(tasks: MapHandle) -> Result<Self> {
        let namespace = std::fs::metadata("/proc/self/ns/pid").context("cannot read /proc")?;
        ensure!(
            namespace.ino() == FIRST_PID_NAMESPACE,
            "--partial names threads as the kernel does, which it cannot in a container with PIDs \
             of its own; run it on the host"
        );
        Ok(Self {
            tasks,
            threads: BTreeMap::new(),
            looked: Instant::now(),
            switched: 0,
            handed_back: 0,
        })
    }

    /// Gives `SCHED_EXT` to a thread that has turned out to be a vCPU. One that somebody gave a
    /// real-time or the idle policy keeps it.
    pub fn take(&mut self, tid: u32) {
        if let Err(error) = self.try_take(tid) {
            // Threads end at any time.
            debug!("thread {tid} stays with the kernel's scheduler: {error:#}");
        }
    }

    fn try_take(&mut self, tid: u32) -> Result<()> {
        let pidfd = thread::open(tid)?;
        let task = lookup_task(&self.tasks, pidfd.as_raw_fd())?;
        ensure!(
            task.is_some_and(|task| task.is_vcpu != 0),
            "it is no vCPU any more"
        );
        let before = policy(tid)?;
        if !is_ordinary(before) {
            if before & !libc::SCHED_RESET_ON_FORK != SCHED_EXT {
                info!("vCPU thread {tid} keeps its policy ({before}) and the kernel's scheduler");
            }
            return Ok(());
        }
        set_policy(tid, SCHED_EXT | before & libc::SCHED_RESET_ON_FORK)?;
        self.switched += 1;
        self.threads.insert(tid, Thread { pidfd, before });
        Ok(())
    }

    /// Forgets threads that are gone, and leaves those to the kernel that starve. To be called often;
    /// it looks once a second.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn look(&mut self) -> Result<()> {
        if self.looked.elapsed() < LOOK {
            return Ok(());
        }
        self.looked = Instant::now();
        let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
        let (mut gone, mut starved) = (Vec::new(), Vec::new());
        for (tid, thread) in &self.threads {
            match lookup_task(&self.tasks, thread.pidfd.as_raw_fd())? {
                None => gone.push(*tid),
                Some(task) if has_starved(task.wants_since, now) => starved.push(*tid),
                Some(_) => {}
            }
        }
        for tid in gone {
            self.threads.remove(&tid);
        }
        for tid in starved {
            if let Some(thread) = self.threads.remove(&tid) {
                warn!(
                    "vCPU thread {tid} has waited for {STARVED:?} while other work of the host ran, \
                     and is left to the kernel's scheduler; see --partial in the README"
                );
                self.handed_back += 1;
                thread.restore(tid);
            }
        }
        Ok(())
    }

    /// Threads that were given the policy, in all.
    #[must_use]
    pub fn switched(&self) -> u64 {
        self.switched
    }

    /// Threads of those that starved.
    #[must_use]
    pub fn handed_back(&self) -> u64 {
        self.handed_back
    }
}

impl Drop for Roster {
    fn drop(&mut self) {
        for (tid, thread) in &self.threads {
            thread.restore(*tid);
        }
    }
}

impl Thread {
    /// Gives it back its policy, unless somebody has given it another meanwhile.
    fn restore(&self, tid: u32) {
        // While the thread lives its id is not another's.
        let result = if thread::has_exited(self.pidfd.as_fd()) {
            return;
        } else {
            policy(tid).and_then(|now| match now & !libc::SCHED_RESET_ON_FORK {
                SCHED_EXT => set_policy(tid, self.before),
                _ => Ok(()),
            })
        };
        if let Err(error) = result {
            debug!("thread {tid} keeps SCHED_EXT: {error}");
        }
    }
}

/// Whether a thread of this policy may be given another: it has what every thread has, unless somebody
/// wanted it to be treated in a special way.
fn is_ordinary(policy: libc::c_int) -> bool {
    matches!(
        policy & !libc::SCHED_RESET_ON_FORK,
        libc::SCHED_OTHER | libc::SCHED_BATCH
    )
}

/// Whether a thread that has wanted a CPU since the given time of `CLOCK_MONOTONIC`, in ns, 0 for one
/// that wants none, has waited for too long.
fn has_starved(wants_since: u64, now: Duration) -> bool {
    wants_since != 0 && now.saturating_sub(Duration::from_nanos(wants_since)) > STARVED
}

/// The scheduling policy of a thread, with the flag `SCHED_RESET_ON_FORK`.
fn policy(tid: u32) -> io::Result<libc::c_int> {
    let tid = libc::pid_t::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: sched_getscheduler takes an integer.
    let policy = unsafe { libc::sched_getscheduler(tid) };
    if policy < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(policy)
}

/// Gives a thread a policy that is not a real-time one; its nice value stays.
fn set_policy(tid: u32, policy: libc::c_int) -> io::Result<()> {
    let tid = libc::pid_t::try_from(tid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are only read, during the call.
    if unsafe { libc::sched_setscheduler(tid, policy, &parameters) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_thread_that_wants_a_cpu_for_long_has_starved() {
        let now = Duration::from_secs(100);
        let since = |ago: Duration| u64::try_from((now - ago).as_nanos()).unwrap();
        assert!(!has_starved(0, now));
        assert!(!has_starved(since(STARVED), now));
        assert!(has_starved(since(STARVED + Duration::from_millis(1)), now));
        // A clock that was read before.
        assert!(!has_starved(since(Duration::ZERO) + 5, now));
    }

    #[test]
    fn only_ordinary_threads_are_switched() {
        for ours in [libc::SCHED_OTHER, libc::SCHED_BATCH] {
            assert!(is_ordinary(ours) && is_ordinary(ours | libc::SCHED_RESET_ON_FORK));
        }
        let special = [
            libc::SCHED_FIFO,
            libc::SCHED_RR,
            libc::SCHED_IDLE,
            libc::SCHED_DEADLINE,
            SCHED_EXT,
        ];
        assert!(!special.into_iter().any(is_ordinary));
    }

    #[test]
    fn a_policy_is_read_and_set() {
        let thread = std::thread::spawn(|| {
            let tid = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
            // Whatever it has from who runs the tests.
            set_policy(tid, libc::SCHED_OTHER).unwrap();
            assert_eq!(policy(tid).unwrap(), libc::SCHED_OTHER);
            set_policy(tid, libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK).unwrap();
            policy(tid).unwrap()
        });
        assert_eq!(
            thread.join().unwrap(),
            libc::SCHED_BATCH | libc::SCHED_RESET_ON_FORK
        );
    }
}
