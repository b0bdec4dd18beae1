// SPDX-License-Identifier: GPL-2.0-only
//! How long interrupts for vCPUs wait, under whatever scheduler the host has: `bpf/measure.bpf.c`.

use std::io::Write;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};
use log::info;

use super::bpf::measure_skel::MeasureSkelBuilder;
use super::bpf::{intf, MapValue};
use super::hints::{kvm_functions, kvm_is_loaded};
use crate::policy::arithmetic::{fine_least, PV_FINE_BUCKETS};

/// How often it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Waits of one kind of interrupt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// By bucket of `bpf/histogram.h`, in microseconds.
    buckets: Vec<u64>,
    /// The longest, in microseconds.
    longest: u64,
}

impl Waits {
    fn new() -> Self {
        Self {
            buckets: vec![0; PV_FINE_BUCKETS as usize],
            longest: 0,
        }
    }

    fn add(&mut self, buckets: &[u64], longest: u64) {
        for (sum, count) in self.buckets.iter_mut().zip(buckets) {
            *sum += count;
        }
        self.longest = self.longest.max(longest);
    }

    fn samples(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Microseconds within which `share` (0 to 1) of the interrupts were there: the upper end of a
    /// bucket, at most an eighth too much, and never more than the longest.
    fn quantile(&self, share: f64) -> u64 {
        let mut seen = 0;
        for (bucket, count) in (0u32..).zip(&self.buckets) {
            seen += count;
            #[allow(clippy::cast_precision_loss)]
            if *count > 0 && seen as f64 >= share * self.samples() as f64 {
                // The last bucket has no upper end.
                if bucket + 1 == PV_FINE_BUCKETS {
                    break;
                }
                return fine_least(bucket + 1).min(self.longest);
            }
        }
        self.longest
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// From a local APIC timer's expiry; none where this kernel does not show it.
    timer: Option<Waits>,
    /// From any other interrupt's acceptance.
    interrupt: Waits,
}

impl Report {
    /// Writes a line for each kind of interrupt.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn write(&self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(
            out,
            "{:<10} {:>10} {:>8} {:>8} {:>8} {:>8}",
            "waits, us", "number", "p50", "p90", "p99", "max"
        )?;
        let rows = [
            ("timer", self.timer.as_ref()),
            ("interrupt", Some(&self.interrupt)),
        ];
        for (name, waits) in rows {
            let Some(waits) = waits else { continue };
            writeln!(
                out,
                "{name:<10} {:>10} {:>8} {:>8} {:>8} {:>8}",
                waits.samples(),
                waits.quantile(0.5),
                waits.quantile(0.9),
                waits.quantile(0.99),
                waits.longest
            )?;
        }
        out.flush()
    }
}

/// Measures for `duration`, or until `stop`.
///
/// # Errors
/// When there is no KVM, it lacks the functions, or the kernel refuses the programs.
pub fn run(duration: Duration, stop: &AtomicBool) -> Result<Report> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "not running as root: watching KVM needs root; try again with sudo"
    );
    ensure!(
        kvm_is_loaded(),
        "the kvm module is not loaded: no VM can be running"
    );
    let functions = kvm_functions().context("cannot tell what KVM shows")?;
    ensure!(
        functions.contains("__apic_accept_irq"),
        "this kernel's KVM does not show interrupts: it has no __apic_accept_irq"
    );
    let shows_timers = functions.contains("apic_timer_fn");

    let mut object = MaybeUninit::uninit();
    let mut open = MeasureSkelBuilder::default()
        .open(&mut object)
        .context("cannot open the measuring programs")?;
    open.progs.on_timer.set_autoload(shows_timers);
    let skel = open
        .load()
        .context("the kernel refused the measuring programs")?;
    // What ends a wait goes first: a wait must not last until that is attached.
    let attached = "cannot attach to KVM";
    let _entry = skel.progs.on_entry.attach().context(attached)?;
    let _irq = skel.progs.on_irq.attach().context(attached)?;
    let _timer = shows_timers
        .then(|| skel.progs.on_timer.attach())
        .transpose()
        .context(attached)?;
    info!("measuring for {duration:.1?}");

    let end = Instant::now() + duration;
    while !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        thread::sleep(left.min(LOOK));
    }

    let per_cpu = skel
        .maps
        .waits
        .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)?
        .context("the map of waits is empty")?;
    let mut all = [Waits::new(), Waits::new()];
    for cpu in per_cpu {
        let counted = intf::pv_waits::from_bytes(&cpu)?;
        for ((sum, buckets), longest) in all.iter_mut().zip(&counted.buckets).zip(counted.longest) {
            sum.add(buckets, longest);
        }
    }
    let [timer, interrupt] = all;
    Ok(Report {
        timer: shows_timers.then_some(timer),
        interrupt,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::arithmetic::fine_bucket;

    fn waits(all: &[u64]) -> Waits {
        let mut waits = Waits::new();
        for us in all {
            waits.buckets[fine_bucket(*us) as usize] += 1;
            waits.longest = waits.longest.max(*us);
        }
        waits
    }

    #[test]
    fn quantiles_are_upper_ends_of_buckets_and_at_most_the_longest() {
        let many: Vec<u64> = (1..=1000).collect();
        let waits = waits(&many);
        assert_eq!(waits.samples(), 1000);
        for (share, exact) in [(0.5, 500), (0.9, 900), (0.99, 990)] {
            let told = waits.quantile(share);
            assert!(
                told >= exact && told <= exact + exact / 8 + 1,
                "{share}: {told}"
            );
        }
        assert_eq!(waits.quantile(1.0), 1000);
        assert_eq!(Waits::new().quantile(0.99), 0);
    }

    #[test]
    fn a_report_has_a_line_for_each_kind_that_is_shown() {
        let text = |timer| {
            let mut out = Vec::new();
            let interrupt = waits(&[5, 7]);
            Report { timer, interrupt }.write(&mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        let both = text(Some(waits(&[1_500_000])));
        let lines: Vec<Vec<&str>> = both
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            ["timer", "1", "1500000", "1500000", "1500000", "1500000"]
        );
        assert_eq!(lines[2], ["interrupt", "2", "6", "7", "7", "7"]);
        assert_eq!(text(None).lines().count(), 2);
    }
}
