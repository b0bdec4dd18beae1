//! Scheduling policies, nice values and CPUs of single threads.

use std::mem::MaybeUninit;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;

/// What a thread may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// An ordinary task.
    Other,
    /// SCHED_FIFO with a priority of 1 to 99.
    Fifo(i32),
}

/// Gives a thread another policy; 0 is the calling one.
///
/// # Errors
/// When the thread has gone, or this process may not.
pub fn set_policy(tid: u32, policy: Policy) -> Result<()> {
    let (policy_number, priority) = match policy {
        Policy::Other => (libc::SCHED_OTHER, 0),
        Policy::Fifo(priority) => (libc::SCHED_FIFO, priority),
    };
    // SAFETY: all bytes zero are a value of this struct of integers.
    let mut param: libc::sched_param = unsafe { MaybeUninit::zeroed().assume_init() };
    param.sched_priority = priority;
    let tid = i32::try_from(tid)?;
    // SAFETY: `param` lives until the call has returned, which writes nothing.
    let result = unsafe { libc::sched_setscheduler(tid, policy_number, &raw const param) };
    Errno::result(result).with_context(|| format!("cannot make thread {tid} {policy:?}"))?;
    Ok(())
}

/// Sets the nice value of the calling thread.
///
/// # Errors
/// When this process may not.
pub fn set_nice(nice: i32) -> Result<()> {
    // SAFETY: takes and writes no memory; Linux has nice values of threads, and 0 is the caller.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    Errno::result(result).with_context(|| format!("cannot set a nice value of {nice}"))?;
    Ok(())
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// When there is no such CPU, or this thread may not run there.
pub fn bind(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only)
        .with_context(|| format!("cannot keep a thread on CPU {cpu}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_made_what_it_is() {
        set_policy(0, Policy::Other).unwrap();
        assert!(set_policy(u32::MAX, Policy::Other).is_err());
    }

    #[test]
    fn nice_is_of_one_thread() {
        std::thread::spawn(|| {
            set_nice(3).unwrap();
            assert_eq!(nice(), "3");
        })
        .join()
        .unwrap();
        assert_eq!(nice(), "0");
    }

    fn nice() -> String {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        // The 19th of proc_pid_stat(5), of which the first two are before the parenthesis' end.
        fields.split_whitespace().nth(16).unwrap().to_owned()
    }
}
