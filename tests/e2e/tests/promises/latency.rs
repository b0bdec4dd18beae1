//! A real-time task in a guest runs soon although the host is busy, and the host does not pay.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{host, margins, median, promise};
use pvsched_lab::chain::{Scheduler, Vm, VmOptions};
use pvsched_lab::guest::Guest;
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::{phase_of_round, Cyclictest, GuestLoad};
use serde_json::Value;

use crate::vm::{wait_attached, Used};

const ROUNDS: usize = 5;

/// Long enough for 500 wake-ups, of which the 50 slowest are above the p90.
const DURATION: Duration = Duration::from_secs(5);

/// What is measured in a round: p90 and p99 of the wake-up latencies in microseconds, work of the
/// host's tasks per second, and CPU time of the vCPUs per second.
#[derive(Debug)]
struct Cell {
    p90: f64,
    /// Of some 500 wake-ups: too few to judge by.
    p99: f64,
    host_rate: f64,
    vcpus: f64,
}

/// Medians over the rounds, of ratios within a round.
struct Ratios {
    /// p90 under ours, of that under the kernel's scheduler, and of that on an idle host.
    of_kernels: f64,
    of_floor: f64,
    /// p99, of that on an idle host.
    tail_of_floor: f64,
    /// Work of the host's tasks under ours, of that under the kernel's scheduler.
    host_rate: f64,
    /// CPU time of the vCPUs, in the same way.
    vcpus: f64,
}

impl std::fmt::Display for Ratios {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p90 is {:.2} of the kernel's and {:.2} of an idle host's, p99 {:.2} of an idle host's, \
             host tasks keep {:.2}, vCPUs {:.2}",
            self.of_kernels, self.of_floor, self.tail_of_floor, self.host_rate, self.vcpus
        )
    }
}

/// What the scheduler replaces, and an idle host, are measured in the same boot and round: ratios
/// of measurements minutes apart, or on different machines, say nothing. Machines change their
/// speed within a boot, too, so each round compares what it measured itself, with the wake-ups at the
/// same distance from the guest's ticks, and every other one goes backwards.
fn compare(vm: &Vm, vcpus: u32, arguments: &[&str]) -> Result<Ratios> {
    let guest = &vm.guest;
    // The guest is busy itself, or its vCPU would sleep and look interactive to any scheduler.
    let load = GuestLoad::start(guest, 0..vcpus)?;
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let phase = phase_of_round(round, ROUNDS);
        let kernels = || measure(guest, &Hog::start(4)?, phase);
        let floor = || measure(guest, &Hog::start(0)?, phase);
        let ours = || {
            let hogs = Hog::start(4)?;
            let mut scheduler = Scheduler::start(arguments)?;
            wait_attached(&scheduler, vm, vcpus)?;
            let cell = measure(guest, &hogs, phase)?;
            let stats = scheduler.stats()?;
            ensure!(
                stats["hints_due"].as_u64() > Some(0),
                "never ahead of a guest's timer: {stats}"
            );
            println!("{}", counts(&stats));
            // What the guest says when its wake-ups are late is gone when the test has failed.
            let status = guest.exec("pvsched-guest status", margins::COMMAND)?;
            println!("{}", status.stdout);
            if arguments.is_empty() {
                // scx_rustland_core leaves those to the kernel that may not migrate.
                host::ensure_all_were_asked_about()?;
            }
            scheduler.check()?;
            scheduler.stop()?;
            anyhow::Ok(cell)
        };
        let (kernels, floor, ours) = if round % 2 == 0 {
            let kernels = kernels()?;
            (kernels, floor()?, ours()?)
        } else {
            let (ours, floor) = (ours()?, floor()?);
            (kernels()?, floor, ours)
        };
        println!(
            "round {round}: kernel's scheduler {kernels:.2?}, idle host {floor:.2?}, \
             scx_pvsched {ours:.2?}"
        );
        rounds.push((kernels, floor, ours));
    }
    drop(load);
    let middle = |ratio: fn(&(Cell, Cell, Cell)) -> f64| {
        median(&rounds.iter().map(ratio).collect::<Vec<_>>())
    };
    let ratios = Ratios {
        of_kernels: middle(|(kernels, _, ours)| ours.p90 / kernels.p90)?,
        of_floor: middle(|(_, floor, ours)| ours.p90 / floor.p90)?,
        tail_of_floor: middle(|(_, floor, ours)| ours.p99 / floor.p99)?,
        host_rate: middle(|(kernels, _, ours)| ours.host_rate / kernels.host_rate)?,
        vcpus: middle(|(kernels, _, ours)| ours.vcpus / kernels.vcpus)?,
    };
    println!("{ratios}");
    Ok(ratios)
}

/// Of the scheduler's statistics, what tells where long wake-ups come from.
fn counts(stats: &Value) -> String {
    const NAMES: [&str; 13] = [
        "boosts_irq",
        "boosts_task",
        "ended_exit",
        "ended_tick",
        "hints_due",
        "moved",
        "throttled_irq",
        "throttled_task",
        "hint_to_running",
        "hint_to_entered",
        "hint_to_taken",
        "due_to_handled",
        "due_to_task",
    ];
    let counts: Vec<_> = NAMES
        .iter()
        .map(|name| format!("{name} {}", stats[name]))
        .collect();
    counts.join(", ")
}

#[test]
fn a_guests_realtime_task_wakes_up_fast_on_a_busy_host() -> Result<()> {
    promise(|| {
        let options = VmOptions::default();
        let vm = Vm::start(&options)?;
        let ratios = compare(&vm, options.vcpus, &[])?;
        ensure!(
            ratios.of_kernels <= margins::LATENCY_OF_KERNELS
                && ratios.of_floor <= margins::LATENCY_OF_FLOOR
                && ratios.host_rate >= margins::HOST_RATE,
            "{ratios}; at most {:.2}, at most {:.2}, at least {:.2}",
            margins::LATENCY_OF_KERNELS,
            margins::LATENCY_OF_FLOOR,
            margins::HOST_RATE
        );
        Ok(())
    })
}

/// Its vCPU has a quarter of a CPU, and needs more if it is boosted for longer than the task takes.
/// Then it spends its budget, and waits. A neighbour that nothing is known of always waits for long.
#[test]
fn a_guests_realtime_task_that_needs_little_has_it_beside_a_busy_neighbour() -> Result<()> {
    promise(|| {
        let options = VmOptions::default();
        let vm = Vm::start(&options)?;
        let batch = VmOptions {
            name: "batch".to_owned(),
            vcpus: 6,
            driver: false,
            agent: false,
            ..VmOptions::default()
        };
        let neighbour = Vm::start(&batch)?;
        let _load = GuestLoad::start(&vm.guest, 0..options.vcpus)?;
        let _batch = GuestLoad::start(&neighbour.guest, 0..batch.vcpus)?;
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        wait_attached(&scheduler, &vm, options.vcpus)?;
        let cyclictest = Cyclictest {
            duration: 2 * DURATION,
            ..Cyclictest::default()
        };
        let measured = cyclictest.run(&vm.guest)?;
        let (due, had) = (1000, measured.samples());
        let (p90, p99) = (measured.p90(), measured.p99());
        println!("{}", counts(&scheduler.stats()?));
        println!("{had} of {due} wake-ups, p90 {p90} us, p99 {p99} us");
        scheduler.check()?;
        ensure!(
            had >= margins::WAKE_UPS_HAD * due / 100 && p99 <= margins::TAIL_BESIDE_NEIGHBOUR_US,
            "at least {} % of the wake-ups, p99 at most {} us",
            margins::WAKE_UPS_HAD,
            margins::TAIL_BESIDE_NEIGHBOUR_US
        );
        Ok(())
    })
}

/// With each decision made by a process that has to be woken for it.
#[test]
fn an_engine_in_user_space_has_a_guests_realtime_task_run_soon() -> Result<()> {
    promise(|| {
        let options = VmOptions::default();
        let vm = Vm::start(&options)?;
        let ratios = compare(&vm, options.vcpus, &["--engine", "rustland"])?;
        ensure!(
            ratios.of_kernels <= margins::ENGINE_OF_KERNELS,
            "{ratios}; at most {:.2} of the kernel's",
            margins::ENGINE_OF_KERNELS
        );
        Ok(())
    })
}

/// Nothing tells what its tasks are, which all wait as their vCPU does: for longer where its turns are longer.
#[test]
fn turns_of_a_guest_without_anything_end_on_time() -> Result<()> {
    promise(|| {
        let guest = Guest::builder().name("silent").boot()?;
        let _load = GuestLoad::start(&guest, 0..2)?;
        let hogs = Hog::start(4)?;
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        thread::sleep(Duration::from_secs(2));
        let threads = guest.vcpu_threads()?;
        let turns = || -> Result<u64> {
            let ended = |tid: &u32| host::turns_cut_short(guest.pid(), *tid);
            threads.iter().map(ended).sum()
        };
        let before = turns()?;
        let (used, ()) = Used::during(&guest, &hogs, || {
            thread::sleep(DURATION);
            Ok(())
        })?;
        #[allow(clippy::cast_precision_loss)]
        let turn = used.vcpus.iter().sum::<f64>() * 1000.0 / (turns()? - before) as f64;
        scheduler.check()?;
        scheduler.stop()?;
        let told = format!(
            "a turn lasts {turn:.2} ms, {:.3} of a share",
            used.share_of_vcpu()
        );
        println!("{told}");
        ensure!(
            turn <= margins::SILENT_TURN_MS,
            "{told}; at most {:.1} ms",
            margins::SILENT_TURN_MS
        );
        Ok(())
    })
}

#[allow(clippy::cast_precision_loss)]
fn measure(guest: &Guest, hogs: &Hog, phase: Duration) -> Result<Cell> {
    let cyclictest = Cyclictest {
        duration: DURATION,
        phase: Some(phase),
        ..Cyclictest::default()
    };
    let (used, measured) = Used::during(guest, hogs, || cyclictest.run(guest))?;
    // Of 500. cyclictest skips the periods that it oversleeps, so that the worst scheduler would
    // show the fewest long latencies.
    ensure!(
        measured.samples() >= 250,
        "only {} wake-ups within {DURATION:?}",
        measured.samples()
    );
    Ok(Cell {
        p90: measured.p90() as f64,
        p99: measured.p99() as f64,
        host_rate: used.work.rate(),
        vcpus: used.vcpus.iter().sum::<f64>() / used.work.elapsed.as_secs_f64(),
    })
}
