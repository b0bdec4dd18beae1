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
    #[cfg(feature = "policy")]
    build_policy(&out);
    #[cfg(feature = "scheduler")]
    build_bpf();
}

/// Compiles the BPF objects and generates their skeletons and the types that they share with
/// the scheduler process. clang is `$BPF_CLANG`, by default `clang`.
#[cfg(feature = "scheduler")]
fn build_bpf() {
    for (source, name, interface) in [
        ("bpf/main.bpf.c", "main", Some("bpf/intf.h")),
        ("bpf/hints.bpf.c", "hints", None),
        ("bpf/measure.bpf.c", "measure", None),
        ("bpf/trace.bpf.c", "trace", None),
        ("bpf/relay.bpf.c", "relay", None),
        ("bpf/relay_kvm.bpf.c", "relay_kvm", None),
    ] {
        let built = scx_cargo::BpfBuilder::new().and_then(|mut builder| {
            builder
                .add_include_path("src")
                .add_include_path("bpf")
                .enable_skel(source, name);
            if let Some(interface) = interface {
                builder.enable_intf(interface, "intf.rs");
            }
            builder.build()
        });
        if let Err(error) = built {
            panic!("{source} must compile with clang 16 or newer (set BPF_CLANG): {error:#}");
        }
    }
    println!("cargo:rerun-if-changed=bpf");
}

/// Compiles the arithmetic of `bpf/policy.h` and `bpf/histogram.h` natively: bindgen writes a C file with a callable
/// function around each static one.
#[cfg(feature = "policy")]
fn build_policy(out: &std::path::Path) {
    let wrappers = out.join("policy.c");
    println!("cargo:rerun-if-changed=bpf");
    let headers = ["bpf/policy.h", "bpf/histogram.h"]
        .map(|header| std::fs::canonicalize(header).expect("it is in the source tree"));
    bindgen::Builder::default()
        .headers(headers.map(|header| header.to_string_lossy().into_owned()))
        .clang_arg("-Isrc")
        .allowlist_item("pv_.*|PV_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers)
        .generate()
        .expect("bpf/policy.h compiles with libclang")
        .write_to_file(out.join("policy.rs"))
        .expect("OUT_DIR is writable");
    cc::Build::new()
        .file(&wrappers)
        .include("src")
        .flags(["-include", "stdbool.h"])
        .compile("pvsched_policy");
}
