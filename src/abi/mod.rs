// SPDX-License-Identifier: GPL-2.0-only
//! The shared layouts, generated from the C headers beside this file.
//!
//! - `page.h`: the page that a guest's vCPU shares with the host scheduler
//! - `device.h`: what a guest's driver and the virtio device say to each other
//! - `handoff.h`: what a VMM and the host scheduler say to each other
//!
//! `README.md` there puts the first two into words, for whoever writes a guest.
//! The headers are the only definition; their comments carry over as documentation.

#[allow(
    non_camel_case_types,
    non_upper_case_globals,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/abi.rs"));
}

pub use bindings::*;
