// SPDX-License-Identifier: GPL-2.0-only
//! Work that must not wait for those whom it schedules.

use std::io;

/// Gives the calling thread the lowest real-time priority: what schedules others must not wait for
/// them, and the host's own real-time tasks come before it. Threads that it starts have the same: the
/// kernel lets go of the scheduler when the last thread of a killed process has ended, and one that it
/// would have to schedule could not.
///
/// # Errors
/// When the kernel refuses it, for instance for a cgroup without real-time bandwidth.
pub fn enter() -> io::Result<()> {
    set(libc::SCHED_FIFO, &libc::sched_param { sched_priority: 1 })
}

/// A real-time priority of the thread that asked for it, until it is dropped.
#[derive(Debug)]
pub struct Urgent {
    policy: i32,
    parameters: libc::sched_param,
}

impl Urgent {
    /// Gives the calling thread at least the priority of [`enter`].
    ///
    /// # Errors
    /// Like [`enter`].
    pub fn begin() -> io::Result<Self> {
        let mut before = Self {
            policy: 0,
            parameters: libc::sched_param { sched_priority: 0 },
        };
        // SAFETY: 0 is the calling thread.
        before.policy = checked(unsafe { libc::sched_getscheduler(0) })?;
        // SAFETY: the pointer is to a value that outlives the call.
        checked(unsafe { libc::sched_getparam(0, &raw mut before.parameters) })?;
        if before.parameters.sched_priority == 0 {
            enter()?;
        }
        Ok(before)
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // The kernel lets everybody give up a priority.
        let _ = set(self.policy, &self.parameters);
    }
}

fn set(policy: i32, parameters: &libc::sched_param) -> io::Result<()> {
    // SAFETY: the pointer is to a value that outlives the call, and the kernel only reads it.
    checked(unsafe { libc::sched_setscheduler(0, policy, parameters) }).map(drop)
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> i32 {
        // SAFETY: 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    /// Each test has a thread of its own.
    #[test]
    fn a_thread_is_urgent_until_it_is_dropped() {
        let before = policy();
        match Urgent::begin() {
            Ok(urgent) => {
                assert_eq!(policy(), libc::SCHED_FIFO);
                drop(urgent);
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
        assert_eq!(policy(), before);
    }
}
