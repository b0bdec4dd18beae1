//! The promises that do not depend on what decides, with a policy in user space.
//!
//! What both engines keep is one function each, beside the test of the BPF scheduler.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use pvsched_e2e::guest_pages::GuestPages;
use pvsched_e2e::{eventually, host, margins, promise, promise_with};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm};
use pvsched_lab::hog::Hog;

use crate::host::busy;
use crate::vm::{endless_fifo, sum};
use crate::{chain, cheat, config, placement, priority, weights};

const RUSTLAND: [&str; 2] = ["--engine", "rustland"];

/// The kernel gives up on a scheduler 5 s after a task began to wait. It looks every half of that.
const WATCHDOG: Duration = Duration::from_secs(30);

fn options() -> ChainOptions {
    ChainOptions {
        scheduler: RUSTLAND.map(str::to_owned).into(),
        ..ChainOptions::default()
    }
}

/// The process that decides.
fn engine() -> Result<Pid> {
    for entry in fs::read_dir("/proc")?.flatten() {
        // The kernel keeps 15 characters of a name.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("scx_pvsched_rus") {
            let pid = entry.file_name().to_string_lossy().parse()?;
            return Ok(Pid::from_raw(pid));
        }
    }
    anyhow::bail!("there is no engine")
}

#[test]
fn a_guest_publishes_and_a_policy_in_user_space_acts() -> Result<()> {
    promise(|| chain::publishes_and_is_served(options()))
}

#[test]
fn nice_values_weigh_on_the_host() -> Result<()> {
    promise(|| crate::host::nice_values_weigh(&RUSTLAND))
}

#[test]
fn nice_values_in_a_guest_weigh_and_never_more_than_the_vcpu() -> Result<()> {
    promise(|| weights::nice_values_weigh(options()))
}

#[test]
fn a_vm_gets_no_boost_that_the_configuration_does_not_grant() -> Result<()> {
    promise(|| config::granted_class_counts(&RUSTLAND))
}

#[test]
fn of_two_urgent_guests_the_one_with_the_higher_priority_goes_first() -> Result<()> {
    promise(|| priority::higher_priority_goes_first(&RUSTLAND))
}

#[test]
fn no_lie_in_its_pages_gains_a_guest_more_than_its_share() -> Result<()> {
    promise(|| cheat::no_lie_gains_more_than_its_share(options()))
}

#[test]
fn a_cpus_own_kernel_threads_do_not_wait_for_urgent_guests() -> Result<()> {
    promise(|| cheat::kernel_threads_come_first(options()))
}

mod on_1_2_2 {
    use super::*;

    #[test]
    fn vcpus_of_one_group_never_share_a_cpu() -> Result<()> {
        promise(|| placement::on_1_2_2::a_group_keeps_them_apart(&RUSTLAND))
    }
}

/// It waits for its CPU though the other one has less to do, also when that changes.
#[test]
fn a_bound_task_runs_where_it_may_and_nowhere_else() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start(&RUSTLAND)?;
        let _crowd = [busy("1", "0")?, busy("1", "0")?];
        let task = busy("1", "0")?;
        for cpu in [1, 0, 1] {
            host::allow(task.pid(), &[usize::try_from(cpu)?])?;
            thread::sleep(Duration::from_millis(200));
            let before = host::cpu_time(task.pid(), task.pid())?;
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end {
                let on = host::last_cpu(task.pid(), task.pid())?;
                ensure!(on == cpu, "on CPU {on} instead of {cpu}");
                thread::sleep(Duration::from_millis(5));
            }
            let used = host::cpu_time(task.pid(), task.pid())? - before;
            // A third of 2 s, at least, and half of that where the engine needs as much itself.
            ensure!(
                used > Duration::from_millis(300),
                "only {used:?} on CPU {cpu}"
            );
        }
        scheduler.check()?;
        scheduler.stop()
    })
}

/// Another policy is a matter of its name.
#[test]
fn the_policy_is_chosen_by_name() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start(&["--engine", "rustland", "--policy", "round-robin"])?;
        let hogs = Hog::start(4)?;
        thread::sleep(Duration::from_secs(1));
        let before = hogs.progress();
        thread::sleep(Duration::from_secs(4));
        let work = hogs.progress().since(&before);
        scheduler.check()?;
        let least = work.threads.iter().map(|(_, cpu)| cpu.as_secs_f64());
        let least = least.fold(f64::INFINITY, f64::min) / work.cpus() / work.elapsed.as_secs_f64();
        println!("the least of four had {least:.3}");
        ensure!(
            least > 0.2,
            "{least:.3} of what four equal tasks had, not a quarter"
        );
        scheduler.stop()
    })
}

/// A chain in the middle of a boost, whose engine meets its end by `end`. The kernel takes over, the
/// scheduler's process tells and ends, and the guest goes on.
fn ends_and_the_guest_goes_on(
    exits: &[&str],
    limit: Duration,
    end: impl FnOnce(Pid, &mut Chain) -> Result<()>,
) -> Result<()> {
    promise_with(exits, || {
        let mut chain = Chain::start(options())?;
        let hogs = Hog::start(4)?;
        let _fifo = endless_fifo(&chain.vm.guest, 1, 50, 90)?;
        eventually("a boost", margins::AT_ONCE, || {
            let stats = chain.scheduler()?.stats()?;
            Ok((sum(&stats, "boosts_task") > 0).then_some(()))
        })?;
        end(engine()?, &mut chain)?;
        let (_, took) = eventually("the kernel takes over", limit, || {
            Ok((host::scheduler_state()? == "disabled").then_some(()))
        })?;
        println!("the kernel took over after {took:.1?}");
        eventually("the process ends", WATCHDOG, || {
            Ok((!chain.scheduler()?.is_running()).then_some(()))
        })?;
        // To let go of programs at KVM's functions takes it as long as the process that is waited for above.
        eventually("the engine ends", WATCHDOG, || {
            Ok(engine().is_err().then_some(()))
        })?;
        let hello = chain.vm.guest.exec("echo hello", margins::COMMAND)?.ok()?;
        ensure!(hello.trim() == "hello");
        // It can be started again.
        drop(hogs);
        let scheduler = Scheduler::start(&RUSTLAND)?;
        eventually("the VM is attached again", margins::START, || {
            Ok((scheduler.stats()?["nr_vcpus"] == 2).then_some(()))
        })?;
        scheduler.stop()
    })
}

#[test]
fn a_killed_engine_leaves_the_host_and_the_guest_running() -> Result<()> {
    ends_and_the_guest_goes_on(&[], margins::AT_ONCE, |engine, _| {
        Ok(kill(engine, Signal::SIGKILL)?)
    })
}

#[test]
fn an_engine_that_is_stopped_is_replaced_by_the_kernel() -> Result<()> {
    ends_and_the_guest_goes_on(&["runnable task stall"], WATCHDOG, |engine, _| {
        Ok(kill(engine, Signal::SIGSTOP)?)
    })
}

#[test]
fn the_engine_ends_with_the_process_that_started_it() -> Result<()> {
    ends_and_the_guest_goes_on(&[], margins::AT_ONCE, |_, chain| {
        let pid = Pid::from_raw(i32::try_from(chain.scheduler()?.pid())?);
        Ok(kill(pid, Signal::SIGKILL)?)
    })
}

/// A VMM may take its memory back at any time. It does not survive that itself.
#[test]
fn a_vmm_that_takes_its_memory_back_harms_nobody_else() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(options())?;
        let hogs = Hog::start(4)?;
        let _fifo = endless_fifo(&chain.vm.guest, 1, 50, 60)?;
        eventually("a boost", margins::AT_ONCE, || {
            let stats = chain.scheduler()?.stats()?;
            Ok((sum(&stats, "boosts_task") > 0).then_some(()))
        })?;
        let engine = engine()?;
        GuestPages::find(chain.vm.guest.pid())?.take_away()?;
        eventually("its VM is gone", margins::AT_ONCE, || {
            chain.vm.guest.kill();
            Ok((chain.scheduler()?.stats()?["nr_vcpus"] == 0).then_some(()))
        })?;
        chain.scheduler()?.check()?;
        ensure!(self::engine()? == engine, "the engine was replaced");
        drop(hogs);
        let next = Vm::start(&ChainOptions::default().vm)?;
        chain.wait_attached().context("the next VM is not served")?;
        drop(next);
        chain.stop_scheduler()
    })
}
