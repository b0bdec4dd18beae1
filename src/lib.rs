// SPDX-License-Identifier: GPL-2.0-only
//! The library of scx_pvsched.
//!
//! - [`abi`]: the layouts shared with guests and VMMs
//! - [`handoff`]: the socket between a VMM and the host scheduler; client and server
//! - [`device`] (feature `device`): the virtio device, and its vhost-user back-end
//! - [`policy`] (feature `policy`): its arithmetic, as compiled for BPF too, and homes of groups
//! - [`scheduler`] (feature `scheduler`): loads and steers the sched_ext scheduler
//!
//! A VMM that only wants to speak to the scheduler builds this crate without default features.

pub mod abi;
#[cfg(feature = "device")]
pub mod device;
pub mod handoff;
#[cfg(feature = "policy")]
pub mod policy;
#[cfg(feature = "scheduler")]
pub mod scheduler;
