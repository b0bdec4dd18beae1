// SPDX-License-Identifier: GPL-2.0-only
//! Compiles the guest's BPF programs, and generates Rust types from the driver's uapi header and
//! callable wrappers for the arithmetic that the programs are made of.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{anyhow, Context, Result};
use libbpf_cargo::SkeletonBuilder;

const ABI: &str = "../../src/abi";
const BPF: &str = "../bpf";
const DRIVER: &str = "../driver";

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    for dir in [ABI, BPF, DRIVER] {
        println!("cargo:rerun-if-changed={dir}");
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    compile_program(&out)?;
    compile_scheduler()?;
    generate_uapi(&out)?;
    generate_arithmetic(&out)
}

/// BPF needs a clang that knows the instruction set v3 and CO-RE well: 16 or newer.
fn find_clang() -> Result<String> {
    if let Ok(clang) = env::var("CLANG") {
        return Ok(clang);
    }
    let versioned = (16..=25).rev().map(|version| format!("clang-{version}"));
    std::iter::once("clang".to_string())
        .chain(versioned)
        .find(|clang| major_version(clang).is_some_and(|major| major >= 16))
        .ok_or_else(|| anyhow!("no clang 16 or newer found: install one, or set CLANG"))
}

fn major_version(clang: &str) -> Option<u32> {
    let output = Command::new(clang).arg("-dumpversion").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.split('.').next()?.trim().parse().ok()
}

fn compile_program(out: &Path) -> Result<()> {
    SkeletonBuilder::new()
        .source(format!("{BPF}/latency.bpf.c"))
        .obj(out.join("latency.bpf.o"))
        .clang(find_clang()?)
        .clang_args(["-I", ABI, "-mcpu=v3", "-Wall", "-Werror"])
        .build()
        .context("cannot compile guest/bpf/latency.bpf.c")
}

/// The guest's own scheduler is written against the headers that come with the scx crates. They find
/// clang by `$BPF_CLANG`, as the host's programs do.
fn compile_scheduler() -> Result<()> {
    if env::var_os("BPF_CLANG").is_none() {
        env::set_var("BPF_CLANG", find_clang()?);
    }
    let source = format!("{BPF}/place.bpf.c");
    scx_cargo::BpfBuilder::new()?
        .add_include_path(ABI)
        .enable_skel(&source, "place")
        .build()
        .with_context(|| format!("cannot compile {source}"))
}

fn bindings(header: &str) -> bindgen::Builder {
    bindgen::Builder::default()
        .header(header)
        .clang_args(["-I", ABI])
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
}

/// Only what the driver adds; the page and the device come from the library.
fn generate_uapi(out: &Path) -> Result<()> {
    bindings(&format!("{DRIVER}/pvsched_uapi.h"))
        .allowlist_item(
            "pvsched_(info|cpu_info|cpu_role|cpu_state|ioc_nr)|PVSCHED_(INFO|CPU|IOC)_.*",
        )
        .blocklist_type("pvsched_page")
        .raw_line("use scx_pvsched::abi::pvsched_page;")
        .generate()
        .context("cannot read guest/driver/pvsched_uapi.h")?
        .write_to_file(out.join("uapi.rs"))
        .context("cannot write OUT_DIR")
}

/// For the tests: the headers hold static functions, which need a C file around them.
fn generate_arithmetic(out: &Path) -> Result<()> {
    let wrappers = out.join("arithmetic.c");
    let urgency = std::fs::canonicalize(format!("{BPF}/urgency.h"))?;
    let ticket = std::fs::canonicalize(format!("{BPF}/ticket.h"))?;
    let timers = std::fs::canonicalize(format!("{BPF}/timers.h"))?;
    let response = std::fs::canonicalize(format!("{BPF}/response.h"))?;
    let cost = std::fs::canonicalize(format!("{BPF}/cost.h"))?;
    bindings(&urgency.to_string_lossy())
        .header(cost.to_string_lossy())
        .header(ticket.to_string_lossy())
        .header(timers.to_string_lossy())
        .header(response.to_string_lossy())
        .allowlist_function("pvsched_(urgency|more_urgent|urgent|hardirq_ack|response)")
        .allowlist_function("pvsched_cost")
        .allowlist_type("pvsched_runs")
        .allowlist_function("pvsched_timer_(started|stopped|programmed|word)")
        .allowlist_var("PVSCHED_(POLICY|TIMER|COST)_.*")
        .wrap_static_fns(true)
        .wrap_static_fns_path(&wrappers)
        .generate()
        .context("cannot read the arithmetic of guest/bpf")?
        .write_to_file(out.join("arithmetic.rs"))?;
    // The wrappers say bool without its header.
    cc::Build::new()
        .file(&wrappers)
        .include(ABI)
        .flags(["-include", "stdbool.h"])
        .try_compile("arithmetic")?;
    Ok(())
}
