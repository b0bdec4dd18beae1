//! Each part may die at any moment, here in the middle of a boost: the others go on.

use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm};
use pvsched_lab::channel::Job;
use pvsched_lab::hog::Hog;

use crate::vm::{endless_fifo, nothing_pinned, periodic_fifo, sum};

/// A chain in the middle of a boost.
struct Boosted {
    chain: Chain,
    _hogs: Hog,
    _fifo: Job,
}

impl Boosted {
    fn start() -> Result<Self> {
        nothing_pinned()?;
        let mut chain = Chain::start(ChainOptions::default())?;
        let hogs = Hog::start(4)?;
        let fifo = endless_fifo(&chain.vm.guest, 1, 50, 60)?;
        eventually("a boost", margins::AT_ONCE, || {
            let stats = chain.scheduler()?.stats()?;
            Ok((sum(&stats, "boosts_task") > 0).then_some(()))
        })?;
        Ok(Self {
            chain,
            _hogs: hogs,
            _fifo: fifo,
        })
    }
}

#[test]
fn a_killed_scheduler_leaves_the_host_running_and_is_used_again_when_back() -> Result<()> {
    promise(|| {
        let mut boosted = Boosted::start()?;
        let chain = &mut boosted.chain;
        let pid = chain.scheduler()?.pid();
        let start = Instant::now();
        let gone = chain.kill9_scheduler()?;
        let reaped = start.elapsed();
        ensure!(host::scheduler_state()? == "disabled");
        ensure!(
            gone < margins::AT_ONCE,
            "process {pid} held the host for {gone:?}"
        );
        eventually("the guest is told", margins::AT_ONCE, || {
            Ok((chain.vm.status()?["answer"] == "host-detached").then_some(()))
        })?;
        let status = chain.vm.status()?;
        ensure!(status["vcpus"][1]["words"]["applied"] == "none", "{status}");
        nothing_pinned()?;

        let start = Instant::now();
        let scheduler = Scheduler::start::<&str>(&[])?;
        let loading = start.elapsed();
        let (_, again) = eventually(
            "the VM is attached again",
            margins::REATTACH.max(loading),
            || Ok((scheduler.stats()?["nr_vcpus"] == 2).then_some(())),
        )?;
        println!("gone in {gone:.1?}, reaped in {reaped:.1?}, loaded again in {loading:.1?}, attached {again:.1?} later");
        eventually("and boosted", margins::AT_ONCE, || {
            Ok((sum(&scheduler.stats()?, "boosts_task") > 0).then_some(()))
        })?;
        scheduler.stop()
    })
}

#[test]
fn a_killed_device_takes_its_vm_away_and_the_guest_runs_on() -> Result<()> {
    promise(|| {
        let mut boosted = Boosted::start()?;
        boosted.chain.vm.device.kill9()?;
        nothing_left(&mut boosted)?;
        let chain = &mut boosted.chain;
        let hello = chain.vm.guest.exec("echo hello", margins::COMMAND)?.ok()?;
        ensure!(hello.trim() == "hello" && chain.vm.guest.running());
        chain.scheduler()?.check()?;
        chain.stop_scheduler()
    })
}

#[test]
fn a_killed_qemu_leaves_nothing_and_the_next_one_is_served() -> Result<()> {
    promise(|| {
        let mut boosted = Boosted::start()?;
        boosted.chain.vm.guest.kill();
        nothing_left(&mut boosted)?;
        let chain = &mut boosted.chain;
        ensure!(
            chain.vm.device.running(),
            chain.vm.device.failure("has gone too")
        );
        chain.scheduler()?.check()?;
        let next = Vm::start(&ChainOptions::default().vm)?;
        chain.wait_attached()?;
        drop(next);
        chain.stop_scheduler()
    })
}

#[test]
fn a_killed_agent_leaves_no_urgent_word_behind_and_publishes_again_when_back() -> Result<()> {
    promise(|| {
        let mut boosted = Boosted::start()?;
        let chain = &mut boosted.chain;
        chain.vm.kill9_agent()?;
        eventually("status says so", margins::AT_ONCE, || {
            Ok((chain.vm.status()?["answer"] == "not-publishing").then_some(()))
        })?;
        let status = chain.vm.status()?;
        for vcpu in status["vcpus"].as_array().into_iter().flatten() {
            let words = &vcpu["words"];
            let silent = words["publishing"] == false && words["current"]["class"] == "none";
            ensure!(vcpu["page"] == "set" && silent, "{status}");
        }
        // A task that wakes up often would be boosted each time.
        let waking = periodic_fifo(&chain.vm.guest, 0, 60, 40)?;
        let boosts = |chain: &mut Chain| -> Result<u64> {
            Ok(sum(&chain.scheduler()?.stats()?, "boosts_task"))
        };
        let before = boosts(chain)?;
        std::thread::sleep(Duration::from_secs(2));
        let after = boosts(chain)?;
        ensure!(
            after == before,
            "{} boosts for a silent guest",
            after - before
        );

        chain.vm.start_agent()?;
        eventually("it is boosted again", margins::AT_ONCE, || {
            Ok((boosts(chain)? > after).then_some(()))
        })?;
        waking.kill()?;
        chain.stop_scheduler()
    })
}

fn nothing_left(boosted: &mut Boosted) -> Result<()> {
    eventually("no VM is left", margins::AT_ONCE, || {
        let stats = boosted.chain.scheduler()?.stats()?;
        Ok((stats["nr_vms"] == 0 && stats["nr_vcpus"] == 0).then_some(()))
    })?;
    nothing_pinned()
}
