// SPDX-License-Identifier: GPL-2.0-only
//! Generated code: the skeleton of scx_rustland_core's BPF half.

include!(concat!(env!("OUT_DIR"), "/bpf_skel.rs"));
