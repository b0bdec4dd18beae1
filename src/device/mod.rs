// SPDX-License-Identifier: GPL-2.0-only
//! The virtio device.
//!
//! - [`logic`]: what the device answers to its driver: bytes in, bytes and an action out
//! - [`handover`]: keeps the host scheduler informed of what the driver has set
//! - [`vcpus`]: finds the thread of each vCPU by asking QEMU
//! - [`backend`]: both of them behind vhost-user, for a VMM in another process
//!
//! A VMM written in Rust that has virtio devices of its own needs only the first two. It gives
//! each request of the control queue to the logic, passes the action on, and implements
//! [`handover::Machine`] by its guest memory, its vCPU threads and its event queue:
//!
//! ```
//! use std::fs::File;
//! use std::io;
//! use std::path::Path;
//! use std::sync::Arc;
//! use scx_pvsched::device::handover::{Handover, Machine};
//! use scx_pvsched::device::logic::{Device, Guest, Reply};
//! use scx_pvsched::handoff::{Region, VmName, DEFAULT_SOCKET};
//!
//! struct Pvsched {
//!     device: Device,
//!     handover: Handover,
//! }
//!
//! impl Pvsched {
//!     fn new(
//!         machine: Arc<dyn Machine>,
//!         name: VmName,
//!         memory: Vec<(Region, Arc<File>)>,
//!     ) -> io::Result<Self> {
//!         let handover = Handover::start(Path::new(DEFAULT_SOCKET), name, machine)?;
//!         handover.set_memory(memory);
//!         Ok(Self { device: Device::new(1024), handover })
//!     }
//!
//!     /// One request of the control queue; the reply goes into the chain's writable part.
//!     fn control(&mut self, request: &[u8], guest: &dyn Guest) -> Reply {
//!         let (reply, action) = self.device.handle(request, guest);
//!         match action.map_or(Ok(()), |action| self.handover.act(action)) {
//!             Ok(()) => reply,
//!             Err(_) => Reply::host_failed(),
//!         }
//!     }
//!
//!     /// The guest has reset the device.
//!     fn reset(&mut self) {
//!         self.device.reset();
//!         self.handover.reset();
//!     }
//! }
//! ```

pub mod backend;
mod exit_event;
pub mod handover;
pub mod logic;
pub mod vcpus;
