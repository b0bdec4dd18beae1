// SPDX-License-Identifier: GPL-2.0-only
//! The memory of the process, which nobody may have to wait for.

use nix::sys::mman::{mlockall, MlockAllFlags};
use nix::sys::resource::{setrlimit, Resource, RLIM_INFINITY};

/// Reads in all of the process and keeps it in memory. scx_rustland_core does the same, but when it has
/// taken over already: to read from a file system may need kernel threads that wait to be scheduled.
///
/// # Errors
/// When the kernel refuses it.
pub fn lock() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
    mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE)
}
