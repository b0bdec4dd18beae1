// SPDX-License-Identifier: GPL-2.0-only
//! Before all that it schedules.

use std::io;

use nix::sys::mman::{mlockall, MlockAllFlags};
use nix::sys::resource::{setrlimit, Resource, RLIM_INFINITY};

/// Reads in all of the process and keeps it in memory. scx_rustland_core does the same, but when it has
/// taken over already: to read from a file system may need kernel threads that wait to be scheduled.
///
/// # Errors
/// When the kernel refuses it.
pub fn lock_memory() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
}

/// Gives the calling thread the lowest real-time priority: what schedules others must not wait for
/// them, and the host's own real-time tasks come before it. Threads that it starts have the same: the
/// kernel lets go of the scheduler when the last thread of a killed process has ended, and one that it
/// would have to schedule could not.
///
/// # Errors
/// When the kernel refuses it, for instance for a cgroup without real-time bandwidth.
pub fn enter() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a value that outlives the call, and the kernel only reads it.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
