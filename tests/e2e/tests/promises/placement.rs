//! vCPUs that a guest wants kept apart never meet on a physical CPU.
//!
//! Each module is named after the host that its tests need: sockets, cores of each, threads of each.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm, VmOptions};
use pvsched_lab::channel::Job;
use pvsched_lab::hog::Hog;
use serde_json::Value;

use crate::vm::vcpus;

/// Long enough for dozens of turns of each vCPU, and for each to be moved if it can be.
const WATCH: Duration = Duration::from_secs(8);

/// Turns last some milliseconds.
const SAMPLE: Duration = Duration::from_millis(2);

/// A vCPU's thread: QEMU's process, and the thread.
type Thread = (u32, u32);

fn threads(vm: &Vm) -> Result<Vec<Thread>> {
    let pid = vm.guest.pid();
    let threads = vm.guest.vcpu_threads()?;
    Ok(threads.into_iter().map(|tid| (pid, tid)).collect())
}

/// Keeps each of a guest's CPUs busy.
fn busy(vm: &Vm, vcpus: u32) -> Result<Vec<Job>> {
    let one = |cpu| format!("exec taskset -c {cpu} sh -c 'while :; do :; done'");
    (0..vcpus).map(|cpu| vm.guest.spawn(&one(cpu))).collect()
}

/// Where the threads were seen.
struct Seen {
    /// How many samples found two of them in the same place.
    met: usize,
    /// By thread: how often it was seen on which CPU.
    places: Vec<BTreeMap<u32, usize>>,
}

/// Looks again and again on which CPU each thread is; `unit` is what two must not have in common.
fn watch(threads: &[Thread], unit: impl Fn(u32) -> u32) -> Result<Seen> {
    let mut seen = Seen {
        met: 0,
        places: vec![BTreeMap::new(); threads.len()],
    };
    let end = Instant::now() + WATCH;
    while Instant::now() < end {
        let mut units = Vec::new();
        for ((pid, tid), places) in threads.iter().zip(&mut seen.places) {
            let cpu = host::last_cpu(*pid, *tid)?;
            *places.entry(cpu).or_default() += 1;
            units.push(unit(cpu));
        }
        units.sort_unstable();
        let before = units.len();
        units.dedup();
        seen.met += usize::from(units.len() < before);
        thread::sleep(SAMPLE);
    }
    println!("met {} times; seen {:?}", seen.met, seen.places);
    Ok(seen)
}

/// Declares a group for all of a guest's CPUs.
fn declare(vm: &Vm, cpus: &str, more: &str) -> Result<()> {
    let command = format!("pvsched-guest role --cpu {cpus} {more}");
    vm.guest.exec(&command, margins::COMMAND)?.ok()?;
    Ok(())
}

/// Waits until the scheduler has given that many vCPUs a home, and returns the statistics.
fn wait_for_homes(scheduler: &Scheduler, count: usize) -> Result<Value> {
    let mut last = Value::Null;
    let found = eventually("the vCPUs have homes", margins::AT_ONCE, || {
        last = scheduler.stats()?;
        let homes = vcpus(&last)
            .iter()
            .filter(|vcpu| vcpu["home"].as_i64() >= Some(0))
            .count();
        Ok((homes == count).then_some(()))
    });
    found.with_context(|| format!("statistics: {last}"))?;
    // Whoever runs elsewhere moves at its next tick.
    thread::sleep(Duration::from_secs(1));
    Ok(last)
}

fn vm_with(name: &str, vcpus: u32) -> VmOptions {
    VmOptions {
        name: name.to_owned(),
        vcpus,
        ..VmOptions::default()
    }
}

pub mod on_1_2_2 {
    use super::*;

    #[test]
    fn vcpus_of_one_group_never_share_a_cpu_and_others_do() -> Result<()> {
        promise(|| a_group_keeps_them_apart(&[]))
    }

    /// Whatever the scheduler's options.
    pub fn a_group_keeps_them_apart(options: &[&str]) -> Result<()> {
        let mut chain = Chain::start(ChainOptions {
            vm: vm_with("guest", 3),
            scheduler: options.iter().copied().map(Into::into).collect(),
            ..ChainOptions::default()
        })?;
        let threads = threads(&chain.vm)?;
        let _busy = busy(&chain.vm, 3)?;
        let hogs = Hog::start(5)?;
        thread::sleep(Duration::from_secs(1));
        let free = watch(&threads, |cpu| cpu)?;

        declare(&chain.vm, "0-2", "--group 7")?;
        declare(&chain.vm, "1", "--role latency")?;
        let stats = wait_for_homes(chain.scheduler()?, 3)?;
        let vcpu = &stats["vms"]["1"]["vcpus"]["1"];
        ensure!(
            vcpu["role"] == "latency" && vcpu["group"] == 7 && stats["shared_placements"] == 0,
            "{stats}"
        );
        let apart = watch(&threads, |cpu| cpu)?;

        declare(&chain.vm, "0-2", "--group 0")?;
        eventually("they are free again", margins::AT_ONCE, || {
            let stats = chain.scheduler()?.stats()?;
            let homeless = vcpus(&stats).iter().all(|vcpu| vcpu["home"] == -1);
            Ok(homeless.then_some(()))
        })?;
        chain.scheduler()?.check()?;
        drop(hogs);
        ensure!(free.met > 0, "they do not meet without a group either");
        ensure!(apart.met == 0, "they met {} times", apart.met);
        ensure!(
            apart.places.iter().all(|places| places.len() == 1),
            "they wandered: {:?}",
            apart.places
        );
        chain.stop_scheduler()
    }

    #[test]
    fn isolated_vcpus_are_never_on_siblings_of_one_core() -> Result<()> {
        promise(|| {
            let mut chain = Chain::start(ChainOptions {
                scheduler: vec!["--smt-isolate".into()],
                ..ChainOptions::default()
            })?;
            let threads = threads(&chain.vm)?;
            let core = |cpu| cpu / 2;
            let _busy = busy(&chain.vm, 2)?;
            let hogs = Hog::start(5)?;
            thread::sleep(Duration::from_secs(1));
            let free = watch(&threads, core)?;
            declare(&chain.vm, "0-1", "--group 1")?;
            wait_for_homes(chain.scheduler()?, 2)?;
            let apart = watch(&threads, core)?;
            chain.scheduler()?.check()?;
            drop(hogs);
            ensure!(free.met > 0, "they do not meet without a group either");
            ensure!(apart.met == 0, "they met {} times", apart.met);
            chain.stop_scheduler()
        })
    }

    #[test]
    fn a_group_that_is_too_large_shares_as_little_as_it_can() -> Result<()> {
        promise(|| {
            let mut chain = Chain::start(ChainOptions {
                vm: vm_with("guest", 3),
                ..ChainOptions::default()
            })?;
            let threads = threads(&chain.vm)?;
            for (_, tid) in &threads {
                host::allow(*tid, &[1, 2])?;
            }
            let _busy = busy(&chain.vm, 3)?;
            declare(&chain.vm, "0-2", "--group 3")?;
            let mut last = Value::Null;
            let counted = eventually("the sharing is counted", margins::AT_ONCE, || {
                last = chain.scheduler()?.stats()?;
                Ok((last["shared_placements"] == 2).then_some(()))
            });
            counted.with_context(|| format!("statistics: {last}"))?;
            for (_, tid) in &threads {
                host::allow(*tid, &[0, 1, 2, 3])?;
            }
            eventually("more CPUs end it", margins::AT_ONCE, || {
                let stats = chain.scheduler()?.stats()?;
                Ok((stats["shared_placements"] == 0).then_some(()))
            })?;
            thread::sleep(Duration::from_secs(1));
            let apart = watch(&threads, |cpu| cpu)?;
            ensure!(apart.met == 0, "they met {} times", apart.met);
            chain.scheduler()?.check()?;
            chain.stop_scheduler()
        })
    }
}

/// Two cache domains.
mod on_2_2_1 {
    use super::*;

    #[test]
    fn shared_groups_hold_between_vms() -> Result<()> {
        promise(|| {
            let mut scheduler = Scheduler::start(&["--groups", "shared"])?;
            let first = Vm::start(&vm_with("first", 2))?;
            let second = Vm::start(&vm_with("second", 2))?;
            let all = [threads(&first)?, threads(&second)?].concat();
            let _busy = [busy(&first, 2)?, busy(&second, 2)?];
            for vm in [&first, &second] {
                declare(vm, "0-1", "--group 5")?;
            }
            wait_for_homes(&scheduler, 4)?;
            let apart = watch(&all, |cpu| cpu)?;
            scheduler.check()?;
            ensure!(apart.met == 0, "they met {} times", apart.met);
            drop((first, second));
            scheduler.stop()
        })
    }
}

#[test]
fn what_was_declared_to_stay_is_declared_again() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        declare(&chain.vm, "1", "--role interrupt --group 9 --persist")?;
        // With the device goes what the driver knows.
        chain.vm.stop_agent()?;
        let reload = "rmmod virtio_pvsched && guest-up";
        chain.vm.guest.exec(reload, margins::COMMAND)?.ok()?;
        let role =
            |chain: &Chain| -> Result<Value> { Ok(chain.vm.status()?["vcpus"][1]["words"].take()) };
        ensure!(role(&chain)?["role"] == "none", "{}", role(&chain)?);
        chain.vm.start_agent()?;
        let words = role(&chain)?;
        ensure!(
            words["role"] == "interrupt" && words["group"] == 9,
            "{words}"
        );
        // It stays with the CPU, too.
        let cpu = "echo 0 >/sys/devices/system/cpu/cpu1/online && \
                   echo 1 >/sys/devices/system/cpu/cpu1/online";
        chain.vm.guest.exec(cpu, margins::COMMAND)?.ok()?;
        let words = role(&chain)?;
        ensure!(
            words["role"] == "interrupt" && words["group"] == 9,
            "{words}"
        );
        let seen = eventually("the scheduler reads it", margins::AT_ONCE, || {
            let stats = chain.scheduler()?.stats()?;
            // Handed over anew, the VM has another number.
            let seen = vcpus(&stats)
                .iter()
                .any(|vcpu| vcpu["role"] == "interrupt" && vcpu["group"] == 9);
            Ok(seen.then_some(()))
        });
        seen.with_context(|| chain.vm.state("what was declared"))?;
        chain.stop_scheduler()
    })
}
