// SPDX-License-Identifier: GPL-2.0-only
//! `pvsched-guest place`: the guest's own scheduler, which puts tasks that mostly sleep on the CPU
//! that the host runs soonest; see `guest/bpf/place.bpf.c`.

use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use libbpf_rs::{MapCore, MapFlags, OpenObject};
use scx_utils::{scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_report};
use scx_utils::{UserExitInfo, NR_CPU_IDS};

use crate::driver::{Driver, NODE};

#[allow(
    dead_code,
    non_camel_case_types,
    non_snake_case,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/place_skel.rs"));
}

use skel::PlaceSkelBuilder;

const SCHED_EXT: &str = "/sys/kernel/sched_ext";
/// As many as the program has room for.
const CPUS_MAX: usize = 1024;
/// Keys of the program's counts.
const PLACED: u32 = 0;
const MOVED: u32 = 1;
const LOOK: Duration = Duration::from_millis(100);
const REPORT: Duration = Duration::from_secs(1);

/// What must be there before anything is loaded.
fn check() -> Result<()> {
    ensure!(
        Path::new(SCHED_EXT).exists(),
        "this kernel has no sched_ext ({SCHED_EXT} is missing): its own scheduler goes on"
    );
    let attached = std::fs::read_to_string(format!("{SCHED_EXT}/root/ops")).unwrap_or_default();
    ensure!(
        attached.is_empty(),
        "another scheduler is attached: {}; stop it first",
        attached.trim_end()
    );
    ensure!(
        Driver::open(false)?.is_some(),
        "the driver is not loaded, so {NODE} is missing (try: modprobe virtio_pvsched)"
    );
    ensure!(
        *NR_CPU_IDS <= CPUS_MAX,
        "this guest may have {} CPUs; the limit is {CPUS_MAX}",
        *NR_CPU_IDS
    );
    Ok(())
}

/// Schedules until stopped by a signal.
///
/// # Errors
/// When something is missing, the kernel refuses the program, or ejects it.
pub fn run(verbose: bool) -> Result<()> {
    check()?;
    if !verbose {
        // It also warns of what is as it should be, such as what a kernel does not have yet.
        libbpf_rs::set_print(None);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .context("cannot handle signals")?;
    while !stop.load(Ordering::Relaxed) {
        let exit = schedule(&stop, verbose)?;
        if !exit.should_restart() {
            break;
        }
    }
    Ok(())
}

/// A count of all CPUs.
fn sum(counts: &impl MapCore, which: u32) -> Result<u64> {
    let values = counts
        .lookup_percpu(&which.to_ne_bytes(), MapFlags::ANY)?
        .unwrap_or_default();
    let values = values.iter().filter_map(|value| value.first_chunk());
    Ok(values.copied().map(u64::from_ne_bytes).sum())
}

fn schedule(stop: &AtomicBool, verbose: bool) -> Result<UserExitInfo> {
    let mut object: MaybeUninit<OpenObject> = MaybeUninit::uninit();
    let builder = PlaceSkelBuilder::default();
    let mut skel = scx_ops_open!(builder, &mut object, place_ops, None)?;
    skel.maps
        .rodata_data
        .as_mut()
        .context("the program has no constants")?
        .nr_cpus = u32::try_from(*NR_CPU_IDS)?;
    let mut skel = scx_ops_load!(skel, place_ops, uei).context(
        "the kernel refused the scheduler (--verbose shows its reasons): it needs root, and the \
         virtio_pvsched of this version",
    )?;
    let link = scx_ops_attach!(skel, place_ops)?;
    println!("placing tasks");
    let mut reported = Instant::now();
    while !stop.load(Ordering::Relaxed) && !uei_exited!(&skel, uei) {
        thread::sleep(LOOK);
        if verbose && reported.elapsed() >= REPORT {
            reported = Instant::now();
            let [placed, moved] = [PLACED, MOVED].map(|which| sum(&skel.maps.counts, which));
            println!("placed {}, moved {}", placed?, moved?);
        }
    }
    drop(link);
    uei_report!(&skel, uei)
}
