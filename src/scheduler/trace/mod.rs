// SPDX-License-Identifier: GPL-2.0-only
//! Records what the running scheduler decides, and what CPUs and vCPUs do meanwhile, into a file for
//! <https://ui.perfetto.dev>. It runs beside the scheduler and needs nothing of its process but
//! the names of VMs.
//!
//! - [`programs`]: the BPF programs that record, attached to those of the scheduler
//! - [`timeline`]: records become tracks
//! - [`words`]: numbers become words
//! - [`json`]: the file

pub mod json;
pub mod programs;
pub mod timeline;
mod words;

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File};
use std::io::BufWriter;
use std::mem::MaybeUninit;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use libbpf_rs::RingBufferBuilder;
use log::{info, warn};
use nix::time::{clock_gettime, ClockId};
use scx_stats::prelude::*;

use super::bpf::{intf, MapValue};
use super::stats::Metrics;
use json::facts;
use programs::Recorder;
use timeline::{Comms, Counts, Known, Names, Timeline};

/// How often records are fetched. Meanwhile there is room for some 60,000.
const FETCH: Duration = Duration::from_millis(50);
/// How often names are asked for while there is a vCPU without.
const NAMES_RETRY: Duration = Duration::from_secs(1);
/// For an answer of the scheduler process.
const NAMES_LIMIT_MS: u64 = 2000;
/// How long a file may get.
const SIZE_LIMIT: u64 = 512 << 20;
/// What the kernel says of the scheduler that it has.
const ROOT_OPS: &str = "/sys/kernel/sched_ext/root/ops";
/// As in `SCX_OPS_DEFINE()` of `bpf/main.bpf.c`; the kernel's name of it may go on with a version.
const OPS_NAME: &str = "pvsched";

/// What became of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    counts: Counts,
    lost: u64,
    is_full: bool,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            records,
            vcpus,
            boosts,
        } = self.counts;
        write!(
            f,
            "{records} events, {vcpus} vCPUs, {boosts} boosts; {} lost",
            self.lost
        )?;
        if self.is_full {
            write!(f, "; ended early, as the file has got too long")?;
        }
        write!(f, "; open it in https://ui.perfetto.dev")
    }
}

/// Records for `duration`, or until `stop`.
///
/// # Errors
/// When no instance of this scheduler runs, and then there is no file; when the kernel refuses the
/// programs, or the file cannot be written.
pub fn run(path: &Path, duration: Duration, stop: &AtomicBool) -> Result<Summary> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "not running as root: watching a scheduler needs root; try again with sudo"
    );
    let ops = fs::read_to_string(ROOT_OPS).unwrap_or_default();
    ensure!(
        ops.starts_with(OPS_NAME),
        "scx_pvsched does not run, so there is nothing to trace; start it first"
    );

    let mut object = MaybeUninit::uninit();
    let recorder = Recorder::attach(&mut object)?;
    let names = known_vcpus().unwrap_or_else(|error| {
        warn!("VMs will have no names: {error:#}");
        Names::new()
    });
    let cannot_write = || format!("cannot write {}", path.display());
    let file = File::create(path).with_context(cannot_write)?;
    let file = BufWriter::new(file);
    let mut timeline =
        Timeline::new(file, recorder.names.clone(), names, comms()).with_context(cannot_write)?;
    info!("tracing for {duration:.1?}");

    let fetched = RefCell::new(Vec::new());
    let mut builder = RingBufferBuilder::new();
    builder.add(&recorder.skel.maps.records, |bytes| {
        // Longer than a record is none, so this does not fail.
        if let Ok(record) = intf::pv_record::from_bytes(bytes) {
            fetched.borrow_mut().push(record);
        }
        0
    })?;
    let ring = builder.build().context("cannot read what is recorded")?;

    let end = Instant::now() + duration;
    let mut names_at = Instant::now() + NAMES_RETRY;
    let mut is_full = false;
    let mut before = 0;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let is_last = left.is_zero() || is_full || stop.load(Ordering::Relaxed);
        let now = now_ns()?;
        ring.consume().context("cannot read what is recorded")?;
        // A record may be finished after others that are later. Whatever is from before the last
        // look has been finished since.
        let until = if is_last { u64::MAX } else { before };
        add_until(&mut timeline, &mut fetched.borrow_mut(), until).with_context(cannot_write)?;
        before = now;
        if is_last {
            break;
        }
        is_full = timeline.written() >= SIZE_LIMIT;
        if timeline.wants_names() && Instant::now() >= names_at {
            if let Ok(names) = known_vcpus() {
                timeline.set_names(names);
            }
            names_at = Instant::now() + NAMES_RETRY;
        }
        thread::sleep(left.min(FETCH));
    }

    let lost = recorder.lost();
    let about = facts! {
        "scheduler": ops.trim_end(),
        "clock": "CLOCK_MONOTONIC",
        "lost": lost,
    };
    let (_, counts) = timeline.finish(&about).with_context(cannot_write)?;
    Ok(Summary {
        counts,
        lost,
        is_full,
    })
}

/// Adds the records from before `until`, in ns, in the order of time, and leaves the others.
fn add_until<W: std::io::Write>(
    timeline: &mut Timeline<W>,
    fetched: &mut Vec<intf::pv_record>,
    until: u64,
) -> std::io::Result<()> {
    fetched.sort_by_key(|record| record.at);
    let ready = fetched.partition_point(|record| record.at < until);
    for record in fetched.drain(..ready) {
        timeline.add(&record)?;
    }
    Ok(())
}

/// The names of all threads; of those that come or go just now, or not.
fn comms() -> Comms {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(Path::new("/proc"))
        .flat_map(|process| entries(&process.path().join("task")))
        .filter_map(|thread| {
            let tid = thread.file_name().to_str()?.parse().ok()?;
            let comm = fs::read_to_string(thread.path().join("comm")).ok()?;
            Some((tid, comm.trim_end().to_owned()))
        })
        .collect()
}

/// The clock of the records.
fn now_ns() -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_nanos())?)
}

/// The vCPUs that the running instance was handed over.
fn known_vcpus() -> Result<Names> {
    let mut client = StatsClient::new().connect(Some(NAMES_LIMIT_MS))?;
    let metrics: Metrics = client.request("stats", vec![])?;
    let mut names = Names::new();
    for (vm, metrics) in metrics.vms {
        for (apic_id, vcpu) in metrics.vcpus {
            let known = Known {
                vm,
                vm_name: metrics.name.clone(),
                apic_id,
            };
            names.insert(i32::try_from(vcpu.tid)?, known);
        }
    }
    Ok(names)
}
