// SPDX-License-Identifier: GPL-2.0-only
//! Generates Rust types from the shared C headers, and the BPF skeleton of the host scheduler.

use std::env;
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=src/abi");
    bindgen::Builder::default()
        .header("src/abi/page.h")
        .header("src/abi/handoff.h")
        .allowlist_item("pvsched_.*|PVSCHED_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate()
        .expect("the headers in src/abi compile with libclang")
        .write_to_file(out.join("abi.rs"))
        .expect("OUT_DIR is writable");
}
