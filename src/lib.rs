// SPDX-License-Identifier: GPL-2.0-only
//! The library of scx_pvsched.
//!
//! - [`abi`]: the layouts shared with guests and VMMs
//! - [`handoff`]: the socket between a VMM and the host scheduler; client and server
//! - [`device`] (feature `device`): the virtio device, and its vhost-user back-end
//! - [`policy`] (feature `policy`): who runs next, where and for how long, as a trait; policies on it,
//!   and their arithmetic, as compiled for BPF too
//! - [`simulator`] (feature `policy`): runs a policy in virtual time, and says what it keeps
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
#[cfg(feature = "policy")]
pub mod simulator;
