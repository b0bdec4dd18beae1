// SPDX-License-Identifier: GPL-2.0-only
//! The handoff socket: how a VM's memory and vCPU threads reach the host scheduler.
//!
//! - [`client`]: what a VMM calls
//! - [`server`]: what the scheduler runs, over the [`server::Registry`] that it implements
//! - [`wire`]: the messages as validated types, and as bytes
//! - `socket`, `thread`, `memory`: packets with descriptors, pidfds, and guest memory
//! - `listen`, `closer`: the socket's file, and closing descriptors without waiting
//!
//! `src/abi/handoff.h` defines the protocol.

pub(crate) mod bytes;
pub mod client;
mod closer;
mod listen;
mod memory;
pub mod server;
mod socket;
#[cfg(test)]
pub(crate) mod tests;
pub mod thread;
pub mod wire;

pub use wire::{ErrorCode, Protocol, ProtocolName, Region, VmName};

use crate::abi;

/// Where the scheduler listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = match abi::PVSCHED_HANDOFF_SOCKET.split_last() {
    Some((0, path)) => match std::str::from_utf8(path) {
        Ok(path) => path,
        Err(_) => panic!("PVSCHED_HANDOFF_SOCKET is ASCII"),
    },
    _ => panic!("PVSCHED_HANDOFF_SOCKET is a C string"),
};
