//! A guest can tell what the host has for each of its CPUs, and place its tasks by it.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use pvsched_e2e::{eventually, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions, VmOptions};
use pvsched_lab::daemon::Daemon;
use pvsched_lab::guest::Guest;
use pvsched_lab::hog::Hog;
use pvsched_lab::kernels::Kernel;
use pvsched_lab::latency::{Cyclictest, GuestLoad, Histogram};
use serde_json::Value;

use crate::config::{reload, File};
use crate::vm::{chain_with, vcpus};

const VCPUS: usize = 2;

/// What the guest is told of each of its CPUs.
fn cpus(chain: &Chain) -> Result<Vec<Value>> {
    let output = chain
        .vm
        .guest
        .exec("pvsched-guest capacity --json", margins::COMMAND)?
        .ok()?;
    let told: Value = serde_json::from_str(&output)?;
    Ok(told["cpus"].as_array().context("no CPUs")?.clone())
}

/// Waits until the guest is told something of each of its CPUs that satisfies `wanted`.
fn all_become(chain: &Chain, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Duration> {
    let mut last = Vec::new();
    let outcome = eventually(what, margins::AT_ONCE, || {
        last = cpus(chain)?;
        Ok((last.len() == VCPUS && last.iter().all(&wanted)).then_some(()))
    });
    match outcome {
        Ok(((), took)) => Ok(took),
        Err(error) => Err(error).with_context(|| format!("the guest was told {last:#?}")),
    }
}

#[test]
fn a_guest_is_told_what_the_host_has_for_its_cpus() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        all_become(&chain, "idle CPUs have slept", |cpu| {
            cpu["physical_cpu"].as_u64() < Some(2)
                && cpu["cache"] == 0
                && cpu["since_ns"].as_u64() > Some(0)
                && cpu["ran_ns"].as_u64() > Some(0)
        })?;

        let load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
        let alone = all_become(&chain, "alone they get all", |cpu| {
            cpu["state"] == "running"
                && cpu["capacity"].as_u64() >= Some(900)
                && cpu["load"].as_f64() < Some(0.5)
        })?;

        // Four tasks and two vCPUs on two CPUs: each gets a third, and has two more waiting beside it.
        let hogs = Hog::start(4)?;
        let waited = |cpus: &[Value]| -> Vec<_> {
            cpus.iter().map(|cpu| cpu["waited_ns"].as_u64()).collect()
        };
        let before = waited(&cpus(&chain)?);
        let contended = all_become(&chain, "beside others they get a third", |cpu| {
            (200..=480).contains(&cpu["capacity"].as_u64().unwrap_or_default())
                && (1.0..=3.0).contains(&cpu["load"].as_f64().unwrap_or_default())
                && cpu["wait_us"].as_u64() >= Some(1000)
        })?;
        let after = waited(&cpus(&chain)?);
        ensure!(
            before
                .iter()
                .zip(&after)
                .all(|(before, after)| before < after),
            "no wait was added: {before:?} and then {after:?}"
        );

        let stats = chain.scheduler()?.stats()?;
        ensure!(
            vcpus(&stats)
                .iter()
                .all(|vcpu| vcpu["waited_us"].as_u64() > Some(0)
                    && vcpu["wait_us"].as_u64() >= Some(1000)),
            "the host's statistics do not say so: {stats}"
        );

        drop(hogs);
        let again = all_become(&chain, "alone again they get all again", |cpu| {
            cpu["capacity"].as_u64() >= Some(900)
        })?;
        println!("told of it within {alone:.1?}, {contended:.1?} and {again:.1?}");
        drop(load);
        chain.scheduler()?.check()
    })
}

#[test]
fn a_guest_is_not_told_what_its_vm_is_not_to_know() -> Result<()> {
    promise(|| {
        let file = File::new("[default]\nplacement = false\n")?;
        let mut chain = Chain::start(ChainOptions {
            scheduler: file.options().into(),
            ..ChainOptions::default()
        })?;
        let _load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
        let _hogs = Hog::start(4)?;
        all_become(&chain, "it is told of its own waits only", |cpu| {
            cpu["wait_us"].as_u64() >= Some(1000)
                && cpu["physical_cpu"].is_null()
                && cpu["cache"].is_null()
                && cpu["load"] == 0.0
        })?;
        file.write("[default]\nplacement = true\n")?;
        reload(chain.scheduler()?)?;
        all_become(&chain, "it is told of its CPUs", |cpu| {
            cpu["physical_cpu"].is_u64() && cpu["cache"] == 0 && cpu["load"].as_f64() > Some(0.0)
        })?;
        chain.scheduler()?.check()
    })
}

#[test]
fn a_guest_without_a_host_scheduler_knows_nothing_of_its_cpus() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        all_become(&chain, "it is told", |_| true)?;
        chain.stop_scheduler()?;
        let (output, _) = eventually("it is told no more", margins::AT_ONCE, || {
            let output = chain
                .vm
                .guest
                .exec("pvsched-guest capacity", margins::COMMAND)?;
            Ok((output.status == 3).then_some(output))
        })?;
        ensure!(
            output
                .stdout
                .starts_with("unknown: the host has no scheduler"),
            "{}",
            output.stdout
        );
        Ok(())
    })
}

const ROUNDS: usize = 3;

/// A busy process of the host on one CPU.
fn busy(cpu: usize) -> Result<Daemon> {
    let cpu = cpu.to_string();
    let words = ["-c", &cpu, "sh", "-c", "while :; do :; done"];
    Daemon::start(&format!("busy-{cpu}"), "taskset", words)
}

/// Keeps each vCPU on the physical CPU of its number.
fn pin_vcpus(guest: &Guest) -> Result<()> {
    for (cpu, tid) in guest.vcpu_threads()?.into_iter().enumerate() {
        let mut set = CpuSet::new();
        set.set(cpu)?;
        sched_setaffinity(Pid::from_raw(i32::try_from(tid)?), &set)?;
    }
    Ok(())
}

/// Wake-up latencies of ordinary tasks in the guest that mostly sleep.
fn wake_ups(guest: &Guest) -> Result<Histogram> {
    let cyclictest = Cyclictest {
        cpu: None,
        tasks: 4,
        priority: 0,
        duration: Duration::from_secs(5),
        ..Cyclictest::default()
    };
    let measured = cyclictest.run(guest)?;
    ensure!(
        measured.samples() >= 500,
        "only {} wake-ups",
        measured.samples()
    );
    Ok(measured)
}

#[test]
#[allow(clippy::cast_precision_loss)]
fn a_guest_that_places_its_tasks_wakes_them_up_where_they_run() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions {
            vm: VmOptions {
                memory_mib: 512,
                ..VmOptions::default()
            },
            ..ChainOptions::default()
        })?;
        let guest = &chain.vm.guest;
        pin_vcpus(guest)?;
        // Both CPUs of the guest are busy, so neither is the better one as far as the guest can see.
        let _load = GuestLoad::start(guest, [0, 1])?;
        let _busy = [busy(1)?, busy(1)?, busy(1)?];
        // All rounds together, as without it a round may be lucky with where it starts.
        let (mut without, mut with) = (Histogram::default(), Histogram::default());
        for _ in 0..ROUNDS {
            let kernels = wake_ups(guest)?;
            let placer = guest.spawn(
                "echo $$ >/tmp/place.pid; exec pvsched-guest place --verbose >/tmp/place.log 2>&1",
            )?;
            eventually("it places", margins::COMMAND, || {
                let log = guest.exec("cat /tmp/place.log", margins::COMMAND)?.stdout;
                Ok(log.contains("placing tasks").then_some(()))
            })?;
            let placed = wake_ups(guest)?;
            let log = guest.exec("cat /tmp/place.log", margins::COMMAND)?.stdout;
            guest
                .exec("kill -TERM $(cat /tmp/place.pid)", margins::COMMAND)?
                .ok()?;
            let ended = placer.wait(margins::COMMAND)?;
            ensure!(ended.status == 0, "it ended with {}: {log}", ended.status);
            println!(
                "p90 without {} us, with {} us; {}",
                kernels.p90(),
                placed.p90(),
                log.lines().last().unwrap_or_default()
            );
            without.add(&kernels);
            with.add(&placed);
        }
        ensure!(
            with.p90() as f64 <= without.p90() as f64 * margins::PLACED_OF_UNPLACED,
            "p90 without {} us, with {} us; at most {:.2} of it",
            without.p90(),
            with.p90(),
            margins::PLACED_OF_UNPLACED
        );
        chain.scheduler()?.check()
    })
}

#[test]
fn a_guest_whose_kernel_has_no_schedulers_is_told() -> Result<()> {
    promise(|| {
        let chain = Chain::start(chain_with(Kernel::V6_12))?;
        let output = chain
            .vm
            .guest
            .exec("pvsched-guest place", margins::COMMAND)?;
        ensure!(
            output.status == 1 && output.stderr.contains("no sched_ext"),
            "{} {}",
            output.status,
            output.stderr
        );
        Ok(())
    })
}
