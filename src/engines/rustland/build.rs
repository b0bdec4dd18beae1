// SPDX-License-Identifier: GPL-2.0-only
//! Has scx_rustland_core write its sources into this folder, and compiles its BPF half.

fn main() {
    let built = scx_rustland_core::RustLandBuilder::new().and_then(|mut builder| builder.build());
    if let Err(error) = built {
        panic!("scx_rustland_core must compile with clang 16 or newer (set BPF_CLANG): {error:#}");
    }
    // What it writes here is not to make it run again.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=BPF_CLANG");
}
