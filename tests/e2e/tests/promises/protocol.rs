//! Which protocol a VM gets, what the one that only observes does, and how both sides say that
//! they have none in common.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{eventually, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm, VmOptions};
use pvsched_lab::hog::Hog;
use pvsched_lab::kernels::Kernel;
use serde_json::Value;

use crate::chain::monitor_once;
use crate::vm::{chain_with, endless_fifo, periodic_fifo, sum};

/// Long enough for hundreds of a periodic task's wake-ups.
const SPAN: Duration = Duration::from_secs(8);

fn offering(protocols: &str) -> Vec<String> {
    vec!["--protocol".into(), protocols.into()]
}

/// How much a statistic has grown; of one that is a histogram, the number of its samples.
fn grown(before: &Value, after: &Value, name: &str) -> u64 {
    let number = |stats: &Value| match &stats[name] {
        Value::Array(buckets) => buckets.iter().filter_map(Value::as_u64).sum(),
        other => other.as_u64().unwrap_or(0),
    };
    number(after).saturating_sub(number(before))
}

#[test]
fn an_observed_vm_is_measured_and_changes_nothing() -> Result<()> {
    promise(|| is_measured_and_changes_nothing(Kernel::Newest))
}

#[test]
fn an_observed_vm_with_an_older_kernel_is_measured_too() -> Result<()> {
    promise(|| is_measured_and_changes_nothing(Kernel::V6_12))
}

fn is_measured_and_changes_nothing(kernel: Kernel) -> Result<()> {
    let mut options = chain_with(kernel);
    options.vm.device_arguments = offering("observe");
    let mut chain = Chain::start(options)?;
    let hogs = Hog::start(4)?;
    // Until here its interrupts got what those of a VM without a driver get.
    let before = chain.scheduler()?.stats()?;
    ensure!(before["vms"]["1"]["protocol"] == "observe v1", "{before}");
    let doorbells = chain.vm.status()?["doorbells"].take();

    let seconds = u32::try_from(SPAN.as_secs())? + 30;
    let fifo = periodic_fifo(&chain.vm.guest, 1, 80, seconds)?;
    thread::sleep(SPAN);
    let after = chain.scheduler()?.stats()?;
    let monitor = monitor_once()?;
    let status = chain.vm.status()?;
    fifo.kill()?;
    drop(hogs);

    for (name, what) in [
        ("boosts_task", "a boost for a task"),
        ("boosts_irq", "a boost for an interrupt"),
        ("boosted_us", "time under a boost"),
        ("throttles", "a boost that was cut short"),
    ] {
        let (before, after) = (sum(&before, name), sum(&after, name));
        ensure!(before == after, "{what}: {before}, then {after}");
    }
    for name in [
        "enqueued_boost",
        "hints_due",
        "posted",
        "moved",
        "held",
        "ended_exit",
    ] {
        let times = grown(&before, &after, name);
        ensure!(times == 0, "{name} is more by {times}");
    }
    // Several, where the periodic task has woken up hundreds of times.
    for name in ["would_task", "would_irq"] {
        let times = sum(&after, name) - sum(&before, name);
        println!("{name}: {times}");
        ensure!(times >= 10, "{name} is more by {times} only: {after}");
    }
    let responses = grown(&before, &after, "due_to_task");
    ensure!(
        responses >= 10,
        "only {responses} response times of the guest: {after}"
    );

    let vcpu = &after["vms"]["1"]["vcpus"]["1"];
    ensure!(vcpu["applied"] == "observed", "{vcpu}");
    ensure!(
        monitor.contains("observe v1") && monitor.contains("would have had"),
        "{monitor}"
    );
    ensure!(
        status["protocol"] == "observe" && status["answer"] == "publishing",
        "{status}"
    );
    let words = &status["vcpus"][1]["words"];
    ensure!(
        words["applied"] == "observed" && words["notify"] == false,
        "{words}"
    );
    ensure!(
        status["doorbells"] == doorbells,
        "the guest was told to ring: {doorbells}, {status}"
    );
    chain.stop_scheduler()
}

#[test]
fn each_vm_has_the_protocol_that_its_device_offers() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let start = |name: &str, protocols: &str| {
            Vm::start(&VmOptions {
                name: name.into(),
                vcpus: 1,
                memory_mib: 192,
                device_arguments: offering(protocols),
                ..VmOptions::default()
            })
        };
        let served = start("served", "latency,observe")?;
        let observed = start("observed", "observe,latency")?;
        let (mut stats, _) = eventually("both are attached", margins::COMMAND, || {
            let stats = scheduler.stats()?;
            Ok((stats["nr_vcpus"] == 2).then_some(stats))
        })?;
        let hogs = Hog::start(4)?;
        let vcpu = |stats: &Value, name: &str| -> Result<Value> {
            let vms = stats["vms"].as_object().context("no VMs")?;
            let vm = vms.values().find(|vm| vm["name"] == name);
            let vm = vm.with_context(|| format!("no {name} in {stats}"))?;
            Ok(vm["vcpus"]["0"].clone())
        };
        let before = vcpu(&stats, "observed")?;
        let _busy = (
            endless_fifo(&served.guest, 0, 70, 60)?,
            endless_fifo(&observed.guest, 0, 70, 60)?,
        );
        let seen = eventually("one is boosted", margins::COMMAND, || {
            stats = scheduler.stats()?;
            let (served, observed) = (vcpu(&stats, "served")?, vcpu(&stats, "observed")?);
            let seen = served["boosts_task"].as_u64() > Some(0)
                && served["published"] == "rt 70"
                && observed["published"] == "rt 70"
                && observed["would_task"].as_u64() > Some(0);
            Ok(seen.then_some(observed))
        });
        let (after, _) = seen.with_context(|| format!("statistics: {stats}"))?;
        ensure!(
            after["boosts_task"] == before["boosts_task"] && after["applied"] == "observed",
            "{before}, then {after}"
        );
        drop(hogs);
        scheduler.check()?;
        scheduler.stop()
    })
}

#[test]
fn without_a_protocol_in_common_both_sides_say_why() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions {
            vm: VmOptions {
                agent: false,
                device_arguments: offering("observe"),
                driver_parameters: "protocol=latency".into(),
                ..VmOptions::default()
            },
            ..ChainOptions::default()
        })?;
        let status = chain
            .vm
            .guest
            .exec("pvsched-guest status", margins::COMMAND)?;
        ensure!(
            status.status == 5 && status.stdout.contains("no protocol in common"),
            "{}: {}",
            status.status,
            status.stdout
        );
        let dmesg = "dmesg | grep -i pvsched";
        let dmesg = chain.vm.guest.exec(dmesg, margins::COMMAND)?.ok()?;
        for words in [
            "the device wants observe version 1",
            "this driver speaks latency version 1",
        ] {
            ensure!(dmesg.contains(words), "{words:?} is not in {dmesg}");
        }
        let log = chain.vm.device.log();
        ensure!(
            log.contains("the guest's driver speaks latency 1, this device offers observe 1"),
            "{log}"
        );
        ensure!(chain.scheduler()?.stats()?["nr_vms"] == 0);

        // A name that nobody speaks is refused where it is said.
        let load = "rmmod virtio_pvsched && guest-up protocol=throughput";
        let load = chain.vm.guest.exec(load, margins::COMMAND)?;
        ensure!(load.status != 0, "the driver took an unknown protocol");
        let dmesg = "dmesg | tail -n 3";
        let dmesg = chain.vm.guest.exec(dmesg, margins::COMMAND)?.ok()?;
        ensure!(dmesg.contains("protocol=throughput"), "{dmesg}");

        // And with one in common all is well.
        let load = "guest-up protocol=observe";
        chain.vm.guest.exec(load, margins::COMMAND)?.ok()?;
        chain.vm.start_agent()?;
        chain.wait_attached()?;
        ensure!(chain.vm.status()?["protocol"] == "observe");
        chain.stop_scheduler()
    })
}
