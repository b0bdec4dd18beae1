//! A guest's words reach the host's scheduler, and what the scheduler does reaches the guest, with
//! stock QEMU and stock kernels at both ends.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;
use pvsched_e2e::{eventually, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::daemon::Daemon;
use pvsched_lab::hog::Hog;
use pvsched_lab::kernels::Kernel;

use crate::vm::{chain_with, endless_fifo, nothing_pinned, pinned_pages, vcpus};

#[test]
fn a_guest_publishes_and_the_scheduler_acts() -> Result<()> {
    promise(|| publishes_and_is_served(chain_with(Kernel::Newest)))
}

/// That kernel has no sched_ext: a guest does not need it.
#[test]
fn a_guest_with_an_older_kernel_publishes_too() -> Result<()> {
    promise(|| publishes_and_is_served(chain_with(Kernel::V6_12)))
}

/// Whatever the scheduler's options.
pub fn publishes_and_is_served(options: ChainOptions) -> Result<()> {
    nothing_pinned()?;
    let mut chain = Chain::start(options)?;

    let stats = chain.scheduler()?.stats()?;
    ensure!(stats["nr_vms"] == 1 && stats["nr_vcpus"] == 2, "{stats}");
    let vm = &stats["vms"]["1"];
    ensure!(
        vm["name"] == "guest" && vm["protocol"] == "latency v1",
        "{vm}"
    );
    let threads: Vec<_> = vcpus(&stats)
        .iter()
        .map(|vcpu| vcpu["tid"].clone())
        .collect();
    ensure!(
        chain.vm.guest.vcpu_threads()? == threads,
        "the scheduler has other threads than QEMU's: {threads:?}"
    );
    // Those of an earlier handover of the same VM go after a while.
    let mut pinned = 0;
    let exact = eventually("a page a vCPU is pinned", margins::UNPINNED, || {
        pinned = pinned_pages()?;
        Ok((pinned == 2).then_some(()))
    });
    ensure!(exact.is_ok(), "{pinned} pages are pinned for 2 vCPUs");

    let (status, _) = eventually("the guest knows of its host", margins::AT_ONCE, || {
        let status = chain.vm.status()?;
        Ok((status["answer"] == "publishing").then_some(status))
    })?;
    ensure!(
        status["protocol"] == "latency" && status["version"] == 1,
        "{status}"
    );
    for vcpu in status["vcpus"].as_array().context("no vCPUs")? {
        ensure!(
            vcpu["page"] == "set" && vcpu["words"]["publishing"] == true,
            "{status}"
        );
    }

    // Others must want the CPUs, or there is nothing to be ahead of.
    let hogs = Hog::start(4)?;
    let boosts = stats["boosts_task"].as_u64();
    let fifo = endless_fifo(&chain.vm.guest, 1, 77, 90)?;
    let mut last = stats;
    let seen = eventually("the priority arrives", margins::COMMAND, || {
        last = chain.scheduler()?.stats()?;
        let vcpu = &last["vms"]["1"]["vcpus"]["1"];
        let seen = vcpu["published"] == "rt 77" && last["boosts_task"].as_u64() > boosts;
        Ok(seen.then_some(()))
    });
    seen.with_context(|| format!("statistics: {last}"))?;
    let stats = last;
    let (monitor, _) = eventually("--monitor shows it", margins::AT_ONCE, || {
        let text = monitor_once()?;
        Ok(text.contains("rt 77").then_some(text))
    })?;
    ensure!(monitor.contains("1 VMs, 2 vCPUs"), "{monitor}");
    fifo.kill()?;
    drop(hogs);

    // What the host did, as the guest sees it, and that it ended with the task.
    let status = chain.vm.status()?;
    let words = &status["vcpus"][1]["words"];
    ensure!(
        words["boosts"].as_u64() > Some(0),
        "no boost in {words}; {stats}"
    );
    eventually(
        "the priority is gone with the task",
        margins::AT_ONCE,
        || {
            let stats = chain.scheduler()?.stats()?;
            let vcpu = &stats["vms"]["1"]["vcpus"]["1"];
            Ok((vcpu["published"] != "rt 77" && vcpu["applied"] != "boost: task").then_some(()))
        },
    )?;
    chain.stop_scheduler()
}

/// What `scx_pvsched --monitor` prints within a second.
pub fn monitor_once() -> Result<String> {
    let mut monitor = Daemon::start("monitor", "scx_pvsched", ["--monitor", "0.3"])?;
    thread::sleep(Duration::from_secs(1));
    let status = monitor.stop(Signal::SIGINT, margins::START)?;
    ensure!(status.success(), monitor.failure("ended badly"));
    Ok(monitor.log())
}
