//! How what scx_pvsched costs grows with the number of vCPUs: a crowd of small VMs, each vCPU a
//! thread of KVM's with a page of its own, that are interrupted one after the other at one rate,
//! however many they are, beside busy host tasks.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bpf_programs::{map_bytes, Counting};
use super::compare::median;
use super::decision::{memory_of, Usage, MIB};
use super::measure::Scale;
use super::SETTLE;
use crate::chain::{sched_ext_state, Scheduler};
use crate::demo_report::delta;
use crate::hog::Hog;

pub const NAME: &str = "growth";

/// VMs, and vCPUs of each.
const STEPS: &[(u32, u32)] = &[
    (1, 2),
    (1, 8),
    (2, 8),
    (4, 8),
    (8, 8),
    (16, 8),
    (32, 8),
    (64, 8),
    (64, 2),
    (4, 128),
];
const QUICK: &[(u32, u32)] = &[(1, 2), (4, 8), (64, 8)];

/// Per second, of all vCPUs together.
const RATE: u32 = 200;

const DURATION: Duration = Duration::from_secs(8);

/// With start, stop, and the making of VMs.
const STEP_GUESS: Duration = Duration::from_secs(30);

/// How often a step is tried.
const TRIES: u32 = 2;

/// For a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub vms: u32,
    /// Of all VMs together.
    pub vcpus: u32,
    /// Nanoseconds in BPF programs for each interrupt of a vCPU; in them are the host's ticks, which
    /// come at their own rate.
    pub bpf_ns: f64,
    /// Microseconds of CPU time of the process per second.
    pub process_us: f64,
    /// Microseconds from a hint to the vCPU's thread running.
    pub hint_p50_us: f64,
    pub hint_p99_us: f64,
    /// Microseconds to register a VM, and to attach a vCPU; medians, and the longest.
    pub register_us: f64,
    pub attach_us: f64,
    pub attach_max_us: f64,
    /// MiB of the process, and of its BPF maps.
    pub memory_mib: f64,
    pub maps_mib: f64,
    /// Interrupts that were sent, and taken by guests.
    pub sent: u64,
    pub taken: u64,
    /// Times that KVM gave up entering a guest, and did at the next try: a fault of emulation.
    pub faults: u64,
}

pub fn estimate(quick: bool) -> Duration {
    let steps = if quick { QUICK } else { STEPS };
    u32::try_from(steps.len()).unwrap_or(1) * STEP_GUESS
}

/// Measures every step; one that comes to nothing twice is left out, and told.
///
/// # Errors
/// When it is to stop, or nothing could be measured at all.
pub fn measure(scale: &Scale, arguments: &[String], stop: &AtomicBool) -> Result<Vec<Point>> {
    let steps = if scale.quick { QUICK } else { STEPS };
    let mut points = Vec::new();
    for (number, (vms, vcpus)) in (1..).zip(steps) {
        for attempt in 1..=TRIES {
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            match step(scale, arguments, *vms, *vcpus) {
                Ok(point) => {
                    eprintln!("bench: growth [{number}/{}] {point:.1?}", steps.len());
                    points.push(point);
                    break;
                }
                Err(error) => eprintln!(
                    "bench: growth, {vms} VMs of {vcpus} vCPUs, attempt {attempt}: {error:#}"
                ),
            }
            ensure!(
                sched_ext_state() == "disabled",
                "sched_ext is {} after that",
                sched_ext_state()
            );
        }
    }
    ensure!(!points.is_empty(), "the growth could not be measured");
    Ok(points)
}

/// The crowd's process; ended however this one ends.
struct Crowd {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Crowd {
    fn start(vms: u32, vcpus: u32) -> Result<Self> {
        let mut child = Command::new("pvsched-crowd")
            .arg(format!("--vms={vms}"))
            .arg(format!("--vcpus={vcpus}"))
            .arg(format!("--rate={RATE}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start pvsched-crowd")?;
        let out = child.stdout.take().context("it has an output")?;
        Ok(Self {
            child,
            lines: BufReader::new(out).lines(),
        })
    }

    fn line(&mut self) -> Result<Value> {
        match self.lines.next() {
            Some(line) => Ok(serde_json::from_str(&line?)?),
            None => bail!("pvsched-crowd ended ({})", self.child.wait()?),
        }
    }

    /// Lets it come to its end.
    fn finish(mut self) -> Result<Value> {
        drop(self.child.stdin.take());
        let last = self.line()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "pvsched-crowd ended with {status}");
        Ok(last)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn step(scale: &Scale, arguments: &[String], vms: u32, vcpus: u32) -> Result<Point> {
    let mut scheduler = Scheduler::start(arguments)?;
    let pid = scheduler.pid();
    let mut crowd = Crowd::start(vms, vcpus)?;
    let times = crowd.line()?;
    let _hogs = Hog::start(scale.cpus)?;
    thread::sleep(SETTLE);
    let counting = Counting::start()?;
    let (stats, before, start) = (scheduler.stats()?, Usage::now(&[pid])?, Instant::now());
    thread::sleep(scale.duration(DURATION));
    let elapsed = start.elapsed();
    let used = Usage::now(&[pid])?.since(&before)?;
    drop(counting);
    let stats = delta(&stats, &scheduler.stats()?);
    #[allow(clippy::cast_precision_loss)]
    let mib = |bytes: u64| bytes as f64 / MIB;
    let (memory_mib, maps_mib) = (mib(memory_of(pid)?), mib(map_bytes(&[pid])?));
    scheduler.check()?;
    let counts = crowd.finish()?;
    scheduler.stop()?;
    let count = |name: &str| counts[name].as_u64().unwrap_or_default();
    let (sent, taken) = (count("sent"), count("taken"));
    // Some are on their way, and one that comes before the last was taken adds nothing.
    ensure!(
        taken * 2 > sent,
        "of {sent} interrupts only {taken} were taken"
    );
    let interrupts = stats["hints_irq"].as_f64().unwrap_or_default();
    ensure!(interrupts > 0.0, "no vCPU was interrupted");
    let hints = numbers(&stats["hint_to_running"]);
    let attached = numbers(&times["attach_us"]);
    Ok(Point {
        vms,
        vcpus: vms * vcpus,
        bpf_ns: used.bpf_ns / interrupts,
        process_us: used.process_ns / 1000.0 / elapsed.as_secs_f64(),
        hint_p50_us: within(&hints, 0.5).context("no vCPU was hinted at")?,
        hint_p99_us: within(&hints, 0.99).context("no vCPU was hinted at")?,
        register_us: median(numbers(&times["register_us"])).context("no VM was registered")?,
        attach_us: median(attached.iter().copied()).context("no vCPU was attached")?,
        attach_max_us: attached.into_iter().fold(0.0, f64::max),
        memory_mib,
        maps_mib,
        sent,
        taken,
        faults: count("faults"),
    })
}

fn numbers(array: &Value) -> Vec<f64> {
    let all = array.as_array().into_iter().flatten();
    all.filter_map(Value::as_f64).collect()
}

/// Microseconds within which `share` (0 to 1) of a histogram's samples lie that counts those below
/// 1, 2, 4, ...; within a bucket they are taken to be spread evenly. `None` without samples.
fn within(buckets: &[f64], share: f64) -> Option<f64> {
    let wanted = share * buckets.iter().sum::<f64>();
    let (mut seen, mut most) = (0.0, 1.0);
    for count in buckets {
        let least = if most > 1.0 { most / 2.0 } else { 0.0 };
        if *count > 0.0 && seen + count >= wanted {
            return Some(least + (most - least) * (wanted - seen) / count);
        }
        seen += count;
        most *= 2.0;
    }
    None
}

/// A cost whose exponent is no further from 0 counts as one that does not grow: with it 256 times as
/// many vCPUs cost 1.7 times as much.
pub const FLAT: f64 = 0.1;

/// How a cost grows: `constant + slope * vcpus`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Law {
    pub constant: f64,
    pub slope: f64,
}

impl Law {
    /// The mean of a cost that does not grow, else a line by least squares. `None` of fewer than two
    /// different numbers of vCPUs.
    pub fn of(points: &[Point], cost: impl Fn(&Point) -> f64) -> Option<Self> {
        #[allow(clippy::cast_precision_loss)]
        let count = points.len() as f64;
        let mean = |of: &dyn Fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(&|point| f64::from(point.vcpus)), mean(&cost));
        if exponent(points, &cost)?.abs() <= FLAT {
            return Some(Self {
                constant: y,
                slope: 0.0,
            });
        }
        let sum = |of: &dyn Fn(&Point) -> f64| points.iter().map(of).sum::<f64>();
        let squares = sum(&|point| (f64::from(point.vcpus) - x).powi(2));
        let products = sum(&|point| (f64::from(point.vcpus) - x) * (cost(point) - y));
        let slope = products / squares;
        Some(Self {
            constant: y - slope * x,
            slope,
        })
    }

    pub fn at(&self, vcpus: u32) -> f64 {
        self.constant + self.slope * f64::from(vcpus)
    }
}

/// Of a power law `cost = c * vcpus^exponent`, by least squares of logarithms: 0 is flat, 1 is
/// proportional.
pub fn exponent(points: &[Point], cost: impl Fn(&Point) -> f64) -> Option<f64> {
    // The same sums, of logarithms; the number of vCPUs is at least 1.
    let logs: Vec<(f64, f64)> = points
        .iter()
        .map(|point| {
            (
                f64::from(point.vcpus).ln(),
                cost(point).max(f64::MIN_POSITIVE).ln(),
            )
        })
        .collect();
    #[allow(clippy::cast_precision_loss)]
    let count = logs.len() as f64;
    let (x, y) = logs.iter().fold((0.0, 0.0), |sum, log| {
        (sum.0 + log.0 / count, sum.1 + log.1 / count)
    });
    let squares: f64 = logs.iter().map(|log| (log.0 - x).powi(2)).sum();
    let products: f64 = logs.iter().map(|log| (log.0 - x) * (log.1 - y)).sum();
    (squares > 0.0).then(|| products / squares)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(cost: impl Fn(f64) -> f64) -> Vec<Point> {
        let point = |vcpus: u32| Point {
            vcpus,
            bpf_ns: cost(vcpus.into()),
            ..Point::default()
        };
        [2, 8, 32, 128, 512].map(point).to_vec()
    }

    #[test]
    fn a_line_is_found_again() {
        let law = Law::of(&points(|n| 5.0 + 0.25 * n), |point| point.bpf_ns).unwrap();
        assert!((law.constant - 5.0).abs() < 1e-9 && (law.slope - 0.25).abs() < 1e-9);
        assert!((law.at(4096) - 1029.0).abs() < 1e-6);
        assert_eq!(Law::of(&[], |point| point.bpf_ns), None);
        assert_eq!(Law::of(&points(|n| n)[..1], |point| point.bpf_ns), None);
    }

    #[test]
    fn what_does_not_grow_is_not_drawn_out_to_less_than_nothing() {
        let falling = points(|n| 160.0 - n / 10.0);
        let law = Law::of(&falling, |point| point.bpf_ns).unwrap();
        assert!(law.slope == 0.0 && law.at(4096) > 100.0, "{law:?}");
    }

    #[test]
    fn the_exponent_tells_flat_from_proportional() {
        let of = |points: Vec<Point>| exponent(&points, |point| point.bpf_ns).unwrap();
        assert!(of(points(|_| 300.0)).abs() < 1e-9);
        assert!((of(points(|n| 3.0 * n)) - 1.0).abs() < 1e-9);
        assert!((of(points(|n| n.sqrt())) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        // 10 below 1 us, 10 from 2 to 4, one from 8 to 16.
        let buckets = [10.0, 0.0, 10.0, 0.0, 1.0];
        assert!((within(&buckets, 0.25).unwrap() - 0.525).abs() < 1e-9);
        assert!((2.0..=4.0).contains(&within(&buckets, 0.6).unwrap()));
        assert!((8.0..=16.0).contains(&within(&buckets, 0.99).unwrap()));
        assert_eq!(within(&[0.0, 0.0], 0.5), None);
    }
}
