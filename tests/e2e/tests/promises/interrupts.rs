//! Interrupts reach a busy guest soon although the host is busy, and are worth no CPU time.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{host, margins, median, promise};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm, VmOptions};
use pvsched_lab::guest::Guest;
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::{GuestLoad, Histogram};

use crate::vm::{wait_attached, Used};

const ROUNDS: usize = 3;
const DURATION: Duration = Duration::from_secs(12);
/// No device interrupts a guest that only computes.
const TICKS: &str = "ticks only";
/// Frames for nobody.
const FLOODED: &str = "flooded by its network";
/// An ordinary task wakes another one on the other CPU, as often as that has gone to sleep.
const SIGNALLED: &str = "its CPUs interrupt each other";
const WAKERS: &str = "taskset -c 0 sh -c 'while :; do echo; done' | taskset -c 1 cat >/dev/null";
const SETTLE: Duration = Duration::from_secs(2);
const SHARE: Duration = Duration::from_secs(10);
const FLOOD: Duration = Duration::from_micros(500);
/// Not a multiple of the tick, and seldom enough for a guest that gets a third of a CPU.
const PING: Duration = Duration::from_millis(19);

/// For how many wake-ups.
const WAKE_UPS: Duration = Duration::from_secs(6);

/// Of one line of what `scx_pvsched --measure` writes, how many interrupts there were, and the p99 of
/// their waits in microseconds.
#[derive(Debug)]
struct Waits {
    number: u64,
    p99: u64,
}

fn waits(report: &str, kind: &str) -> Result<Waits> {
    let line = report.lines().find(|line| line.starts_with(kind));
    let numbers: Vec<u64> = line
        .with_context(|| format!("no line for {kind}: {report}"))?
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [number, _, _, p99, _] = numbers[..] else {
        anyhow::bail!("not five numbers for {kind}: {report}");
    };
    Ok(Waits { number, p99 })
}

/// Pings the guest, and measures meanwhile how long its interrupts wait.
fn measure(guest: &Guest) -> Result<(Waits, Histogram)> {
    let mut measuring = Command::new("scx_pvsched")
        .arg("--measure")
        .arg(DURATION.as_secs().to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let log = BufReader::new(measuring.stderr.take().context("it has a log")?);
    let mut lines = log.lines().map_while(Result::ok);
    ensure!(
        lines.any(|line| line.contains("measuring")),
        "scx_pvsched --measure does not begin"
    );
    let pings = guest.network()?.ping(PING, DURATION)?;
    let output = measuring.wait_with_output()?;
    ensure!(output.status.success(), "scx_pvsched --measure failed");
    let report = String::from_utf8(output.stdout)?;
    println!("{report}");
    Ok((waits(&report, "interrupt")?, pings))
}

#[test]
fn a_busy_guests_interrupts_reach_it_soon_on_a_busy_host() -> Result<()> {
    promise(|| {
        let options = VmOptions {
            network: true,
            ..VmOptions::default()
        };
        let vm = Vm::start(&options)?;
        let _load = GuestLoad::start(&vm.guest, [0, 1])?;
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let hogs = Hog::start(4)?;
            let (kernels, kernels_pings) = measure(&vm.guest)?;
            let mut scheduler = Scheduler::start::<&str>(&[])?;
            wait_attached(&scheduler, &vm, options.vcpus)?;
            let (ours, pings) = measure(&vm.guest)?;
            let stats = scheduler.stats()?;
            let count = |name| format!("{name} {}", stats[name]);
            println!(
                "{}",
                [
                    "boosts_irq",
                    "boosts_task",
                    "hints_ahead",
                    "hints_spent",
                    "throttled_irq"
                ]
                .map(count)
                .join(", ")
            );
            scheduler.check()?;
            scheduler.stop()?;
            drop(hogs);
            println!(
                "round {round}: interrupts wait {kernels:?} under the kernel's scheduler, {ours:?} \
                 under scx_pvsched; pings p50 {} and {}, p99 {} and {} us",
                kernels_pings.p50(),
                pings.p50(),
                kernels_pings.p99(),
                pings.p99()
            );
            ensure!(
                kernels.number >= 300 && ours.number >= 300,
                "too few interrupts"
            );
            ratios.push(ours.p99 as f64 / kernels.p99 as f64);
        }
        let ratio = median(&ratios)?;
        ensure!(
            ratio <= margins::INTERRUPT_OF_KERNELS,
            "the p99 is {ratio:.2} of that under the kernel's scheduler, at most {:.2}",
            margins::INTERRUPT_OF_KERNELS
        );
        Ok(())
    })
}

/// How late half of the wake-ups and nine in ten are at most, in microseconds, of a real-time task that another of the
/// guest's CPUs wakes.
fn woken(guest: &Guest) -> Result<[f64; 2]> {
    let command = format!("pvsched-lab wakes {}", WAKE_UPS.as_millis());
    let output = guest.exec(&command, WAKE_UPS + margins::COMMAND)?.ok()?;
    let numbers = output.split_whitespace().map(str::parse::<f64>);
    let [p50, p90, number] = numbers.collect::<Result<Vec<_>, _>>()?[..] else {
        anyhow::bail!("not three numbers: {output}");
    };
    ensure!(number >= 30.0, "only {number} wake-ups");
    Ok([p50, p90])
}

/// Its CPU may have been told to reschedule before, by a tick: then the guest's kernel sends no
/// interrupt for it, and the host learns of it from the driver's.
#[test]
fn a_realtime_task_that_another_cpu_wakes_runs_soon() -> Result<()> {
    promise(|| {
        let options = VmOptions::default();
        let vm = Vm::start(&options)?;
        let _load = GuestLoad::start(&vm.guest, [0, 1])?;
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let hogs = Hog::start(4)?;
            let kernels = woken(&vm.guest)?;
            let mut scheduler = Scheduler::start::<&str>(&[])?;
            wait_attached(&scheduler, &vm, options.vcpus)?;
            let ours = woken(&vm.guest)?;
            scheduler.check()?;
            scheduler.stop()?;
            drop(hogs);
            println!(
                "round {round}: p50 and p90 {kernels:.0?} us under the kernel's scheduler, {ours:.0?} us \
                 under scx_pvsched"
            );
            ratios.push(ours[1] / kernels[1]);
        }
        let ratio = median(&ratios)?;
        ensure!(
            ratio <= margins::WOKEN_OF_KERNELS,
            "the p90 is {ratio:.2} of that under the kernel's scheduler, at most {:.2}",
            margins::WOKEN_OF_KERNELS
        );
        Ok(())
    })
}

/// How often the guest has been interrupted by its network device, and its CPUs by each other.
fn interrupts(guest: &Guest) -> Result<u64> {
    let table = guest.exec("cat /proc/interrupts", margins::COMMAND)?.ok()?;
    let counts = |line: &str| -> u64 {
        let words = line.split_whitespace().skip(1);
        words.map_while(|word| word.parse::<u64>().ok()).sum()
    };
    let meant = |line: &&str| {
        let of = ["virtio", "RES:", "CAL:"];
        of.iter().any(|of| line.contains(of))
    };
    Ok(table.lines().filter(meant).map(counts).sum())
}

/// With interrupts of each kind that wake nobody urgent a busy guest gets its share and no more.
fn interrupts_gain_nothing(guest: &Guest) -> Result<()> {
    let _load = GuestLoad::start(guest, [0, 1])?;
    let hogs = Hog::start(4)?;
    let mut told = String::new();
    for name in [TICKS, FLOODED, SIGNALLED] {
        let flood = (name == FLOODED)
            .then(|| guest.network()?.flood(FLOOD))
            .transpose()?;
        // The last case, so that they may go on until the guest ends.
        let _wakers = (name == SIGNALLED)
            .then(|| guest.spawn(WAKERS))
            .transpose()?;
        thread::sleep(SETTLE);
        let before = interrupts(guest)?;
        let (used, ()) = Used::during(guest, &hogs, || {
            thread::sleep(SHARE);
            Ok(())
        })?;
        let interrupts = interrupts(guest)? - before;
        drop(flood);
        let (vcpu, least) = (used.share_of_vcpu(), used.least_share_of_host());
        told += &format!(
            "{name}: {interrupts} interrupts, each vCPU {vcpu:.3} of its share, the least of the \
             host's tasks {least:.3}\n"
        );
        ensure!(
            (margins::SHARE_OF_INTERRUPTED.0..=margins::SHARE_OF_INTERRUPTED.1).contains(&vcpu),
            "{told}from {:.2} to {:.2} is fair",
            margins::SHARE_OF_INTERRUPTED.0,
            margins::SHARE_OF_INTERRUPTED.1
        );
        ensure!(
            name == TICKS || interrupts >= 100,
            "{told}too few interrupts to show anything"
        );
    }
    print!("{told}");
    Ok(())
}

#[test]
fn interrupts_that_wake_nobody_urgent_gain_a_guest_no_cpu_time() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions {
            vm: VmOptions {
                network: true,
                ..VmOptions::default()
            },
            ..ChainOptions::default()
        })?;
        interrupts_gain_nothing(&chain.vm.guest)?;
        chain.scheduler()?.check()?;
        Ok(())
    })
}

#[test]
fn interrupts_gain_a_guest_without_anything_no_cpu_time() -> Result<()> {
    promise(|| {
        let guest = Guest::builder().name("silent").network(true).boot()?;
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        interrupts_gain_nothing(&guest)?;
        // Without any it would have had its share, too.
        let boosts = scheduler.stats()?["boosts_irq"].as_u64();
        ensure!(boosts > Some(100), "{boosts:?} boosts for interrupts");
        host::ensure_all_were_asked_about()?;
        scheduler.check()?;
        scheduler.stop()?;
        Ok(())
    })
}
