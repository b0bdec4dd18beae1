//! `--partial`: vCPU threads only, and they get back what they had.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::chain::{Scheduler, Vm, VmOptions};
use pvsched_lab::guest::Guest;

use crate::host::{busy, times};
use crate::vm::{sum, wait_attached};

const NORMAL: u32 = 0;
const BATCH: u32 = 3;
const IDLE: u32 = 5;
const EXT: u32 = 7;

/// A busy guest's turns, and its host's, have settled.
const SETTLE: Duration = Duration::from_secs(4);
const DURATION: Duration = Duration::from_secs(8);
/// Beyond what the kernel's watchdog allows, 30 s.
const BEYOND_WATCHDOG: Duration = Duration::from_secs(36);

/// The policies of threads, which may be of any process.
fn policies(tids: &[u32]) -> Result<Vec<u32>> {
    tids.iter().map(|tid| host::policy(*tid, *tid)).collect()
}

fn wait_for(what: &str, tids: &[u32], wanted: &[u32]) -> Result<()> {
    eventually(what, margins::AT_ONCE, || {
        Ok((policies(tids)? == wanted).then_some(()))
    })
    .with_context(|| format!("the policies are {:?}", policies(tids)))?;
    Ok(())
}

/// Gives a thread a policy, by chrt's name for it.
fn chrt(policy: &str, priority: &str, tid: u32) -> Result<()> {
    let status = Command::new("chrt")
        .args([policy, "-p", priority, &tid.to_string()])
        .status()?;
    ensure!(status.success(), "chrt {policy} failed");
    Ok(())
}

/// A busy task on each of the first CPUs of a guest, until the guest ends.
fn load(guest: &Guest, cpus: u32, nice: u32) -> Result<()> {
    for cpu in 0..cpus {
        guest.spawn(&format!(
            "exec taskset -c {cpu} nice -n {nice} sh -c 'while :; do :; done'"
        ))?;
    }
    Ok(())
}

fn partial() -> Result<Scheduler> {
    let scheduler = Scheduler::start(&["--partial"])?;
    let all = fs::read_to_string("/sys/kernel/sched_ext/switch_all")?;
    ensure!(all.trim() == "0", "all tasks were switched: {all}");
    Ok(scheduler)
}

#[test]
fn in_partial_mode_only_vcpu_threads_are_scheduled_and_get_their_policies_back() -> Result<()> {
    promise(|| {
        let known = Vm::start(&VmOptions::default())?;
        let silent = Guest::builder().name("silent").boot()?;
        let (ours, theirs) = (known.guest.vcpu_threads()?, silent.vcpu_threads()?);
        chrt("-b", "0", ours[1])?;
        chrt("-i", "0", theirs[1])?;

        let mut scheduler = partial()?;
        wait_attached(&scheduler, &known, 2)?;
        // A halted vCPU shows what it is when it runs.
        load(&known.guest, 2, 0)?;
        load(&silent, 1, 0)?;
        wait_for("handed-over vCPUs are switched", &ours, &[EXT, EXT])?;
        wait_for("a recognised vCPU is switched", &theirs, &[EXT, IDLE])?;
        let rest = [std::process::id(), known.guest.pid(), silent.pid()];
        ensure!(
            policies(&rest)? == [NORMAL; 3],
            "others were switched, too: {:?}",
            policies(&rest)?
        );
        let stats = scheduler.stats()?;
        ensure!(
            stats["nr_switched"] == 3,
            "{} switched",
            stats["nr_switched"]
        );
        scheduler.check()?;
        scheduler.stop()?;
        wait_for("policies are restored", &ours, &[NORMAL, BATCH])?;
        wait_for("policies are restored", &theirs, &[NORMAL, IDLE])?;

        // A crash leaves the policy, which the kernel then treats as the ordinary one.
        let mut scheduler = partial()?;
        wait_for("vCPUs are switched again", &ours, &[EXT, EXT])?;
        scheduler.check()?;
        scheduler.kill9()?;
        for guest in [&known.guest, &silent] {
            guest.exec("true", margins::COMMAND)?.ok()?;
        }
        Ok(())
    })
}

#[test]
fn in_partial_mode_vms_share_by_what_their_guests_run() -> Result<()> {
    promise(|| {
        let named = |name: &str| VmOptions {
            name: name.to_owned(),
            ..VmOptions::default()
        };
        let normal = Vm::start(&named("normal"))?;
        let nice = Vm::start(&named("nice"))?;
        let mut scheduler = partial()?;
        wait_attached(&scheduler, &normal, 4)?;
        load(&normal.guest, 2, 0)?;
        load(&nice.guest, 2, 5)?;
        thread::sleep(SETTLE);
        let used = |vm: &Vm| -> Result<f64> {
            let tids = vm.guest.vcpu_threads()?;
            let times = tids.iter().map(|tid| host::cpu_time(vm.guest.pid(), *tid));
            Ok(times.sum::<Result<Duration>>()?.as_secs_f64())
        };
        let before = (used(&normal)?, used(&nice)?);
        thread::sleep(DURATION);
        let ratio = (used(&normal)? - before.0) / (used(&nice)? - before.1);
        // An urgent task of the lesser guest is put ahead none the less.
        nice.guest
            .exec(
                "cyclictest -q -m -p 50 -i 10000 -a 1 -t 1 -D 5",
                margins::COMMAND,
            )?
            .ok()?;
        let stats = scheduler.stats()?;
        println!(
            "nice 0 to nice 5: {ratio:.2}; boosts for tasks {}",
            sum(&stats, "boosts_task")
        );
        scheduler.check()?;
        let (least, most) = margins::NICE_5_RATIO;
        ensure!((least..=most).contains(&ratio), "{ratio:.2}, not about 3");
        ensure!(
            sum(&stats, "boosts_task") > 100,
            "an urgent task was not put ahead: {stats}"
        );
        scheduler.stop()
    })
}

/// All of the host's ordinary work comes before the policy SCHED_EXT. Newer kernels leave that a
/// twentieth of the time all the same; on older ones a vCPU behind busy tasks never runs.
#[test]
fn in_partial_mode_a_vcpu_behind_the_hosts_own_work_lives_on() -> Result<()> {
    promise(|| {
        let vm = Vm::start(&VmOptions::default())?;
        let mut scheduler = partial()?;
        wait_attached(&scheduler, &vm, 2)?;
        for tid in vm.guest.vcpu_threads()? {
            host::allow(tid, &[1])?;
        }
        let own = [busy("1", "0")?, busy("1", "0")?];
        let times = times(&own.each_ref(), BEYOND_WATCHDOG)?;
        scheduler.check()?;
        vm.guest.exec("true", margins::COMMAND)?.ok()?;
        let stats = scheduler.stats()?;
        println!(
            "host's tasks had {times:.1?} of {BEYOND_WATCHDOG:?}; {} vCPUs handed back",
            stats["handed_back"]
        );
        scheduler.stop()
    })
}
