// SPDX-License-Identifier: GPL-2.0-only
//! The driver's uapi header, `guest/driver/pvsched_uapi.h`, in Rust.

#[allow(
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
}

pub use bindings::*;
