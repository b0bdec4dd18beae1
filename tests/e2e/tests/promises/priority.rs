//! Real-time priorities count across VMs.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use pvsched_e2e::{margins, promise};
use pvsched_lab::chain::{Scheduler, Vm, VmOptions};
use pvsched_lab::latency::Cyclictest;

/// The host CPU that both VMs' vCPUs have to share.
const CPU: usize = 1;

const DURATION: Duration = Duration::from_secs(8);

fn vm(name: &str) -> Result<Vm> {
    let vm = Vm::start(&VmOptions {
        name: name.to_owned(),
        vcpus: 1,
        memory_mib: 192,
        ..VmOptions::default()
    })?;
    let mut cpu = CpuSet::new();
    cpu.set(CPU)?;
    for tid in vm.guest.vcpu_threads()? {
        sched_setaffinity(Pid::from_raw(i32::try_from(tid)?), &cpu)?;
    }
    Ok(vm)
}

/// p90 in microseconds of a task of one priority in one guest, while a task of another priority
/// works in bursts in the other, for less than its share of the CPU.
#[allow(clippy::cast_precision_loss)]
fn p90(sleeper: &Vm, priority: u32, worker: &Vm, of_worker: u32) -> Result<f64> {
    let work = worker
        .guest
        .spawn(&format!("exec chrt -f {of_worker} pvsched-lab burn 30 70"))?;
    thread::sleep(Duration::from_secs(1));
    let latencies = Cyclictest {
        cpu: Some(0),
        priority,
        duration: DURATION,
        ..Cyclictest::default()
    }
    .run(&sleeper.guest);
    work.kill()?;
    Ok(latencies?.p90() as f64)
}

#[test]
fn of_two_urgent_guests_the_one_with_the_higher_priority_goes_first() -> Result<()> {
    promise(|| higher_priority_goes_first(&[]))
}

/// The same two vCPUs on the same CPU; only the priorities change sides.
pub fn higher_priority_goes_first(more: &[&str]) -> Result<()> {
    let mut scheduler = Scheduler::start(more)?;
    let (sleeper, worker) = (vm("sleeper")?, vm("worker")?);
    let higher = p90(&sleeper, 80, &worker, 20)?;
    let lower = p90(&sleeper, 20, &worker, 80)?;
    scheduler.check()?;
    println!("p90 with the higher priority {higher:.0} us, with the lower {lower:.0} us");
    ensure!(
        lower >= higher * margins::LOWER_PRIORITY_WAITS,
        "with the higher priority {higher:.0} us, with the lower only {lower:.0} us"
    );
    scheduler.stop()
}
