// SPDX-License-Identifier: GPL-2.0-only
//! Generated code: the skeletons of the BPF objects and the types of their map values.

use std::mem::size_of;

use anyhow::{ensure, Result};

/// Skeleton of `bpf/main.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod main_skel {
    include!(concat!(env!("OUT_DIR"), "/main_skel.rs"));
}

/// Skeleton of `bpf/hints.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod hints_skel {
    include!(concat!(env!("OUT_DIR"), "/hints_skel.rs"));
}

/// Skeleton of `bpf/measure.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod measure_skel {
    include!(concat!(env!("OUT_DIR"), "/measure_skel.rs"));
}

/// Skeleton of `bpf/trace.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod trace_skel {
    include!(concat!(env!("OUT_DIR"), "/trace_skel.rs"));
}

/// Skeleton of `bpf/relay.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod relay_skel {
    include!(concat!(env!("OUT_DIR"), "/relay_skel.rs"));
}

/// Skeleton of `bpf/relay_kvm.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod relay_kvm_skel {
    include!(concat!(env!("OUT_DIR"), "/relay_kvm_skel.rs"));
}

/// Types of `bpf/intf.h`.
#[allow(
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    missing_docs
)]
pub mod intf {
    include!(concat!(env!("OUT_DIR"), "/intf.rs"));
}

/// A map value that consists of integers only, so that every byte pattern is a valid one.
///
/// # Safety
/// The implementing type is `repr(C)`, made of integers, and the type of the map's value in BPF.
pub unsafe trait MapValue: Sized + Copy {
    /// The value of an entry that was never written.
    #[must_use]
    fn zeroed() -> Self {
        // SAFETY: all bytes zero is a value, as any bytes are.
        unsafe { std::mem::zeroed() }
    }

    /// Reads a value as the kernel copied it out of a map.
    ///
    /// # Errors
    /// When `bytes` is shorter than the type.
    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        ensure!(
            bytes.len() >= size_of::<Self>(),
            "the kernel returned {} bytes for a map value of {}",
            bytes.len(),
            size_of::<Self>()
        );
        // SAFETY: the length was checked, unaligned reads are allowed, and any bytes are a value.
        Ok(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// The value as bytes for the kernel.
    fn to_bytes(&self) -> Vec<u8> {
        // SAFETY: the type is plain integers; padding is only ever passed back to the kernel from
        // values that started out zeroed or as bytes.
        unsafe {
            std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u8>(), size_of::<Self>())
        }
        .to_vec()
    }
}

// SAFETY: integers only, generated from the header that the BPF programs include.
unsafe impl MapValue for intf::pv_task {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_cpu {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_llc {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_vm {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_home {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_stats {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_waits {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_wanting {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_record {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_news_switch {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_news_vcpu {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_order {}
// SAFETY: as above.
unsafe impl MapValue for intf::pv_engine_stats {}
