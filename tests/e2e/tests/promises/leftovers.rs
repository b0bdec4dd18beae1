//! Nothing is left of VMs that have come and gone.

use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::chain::{Device, Scheduler, Vm, VmOptions};
use pvsched_lab::guest::Guest;
use serde_json::Value;

use crate::vm::pinned_pages;

/// Within this the device has closed what it had for a guest and waits for the next.
const SETTLE: Duration = Duration::from_secs(3);

/// What there is of VMs.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    vms: Option<u64>,
    vcpus: Option<u64>,
    scheduler_files: usize,
    pinned: i64,
}

impl Held {
    /// With no VM there, and everything open that the scheduler opens for none in particular: it
    /// attaches to KVM after it has begun to schedule.
    fn without_a_vm(scheduler: &Scheduler) -> Result<Self> {
        eventually("hints from KVM", margins::START, || {
            Ok((scheduler.stats()?["hint_sources"] != "").then_some(()))
        })?;
        std::thread::sleep(SETTLE);
        Ok(Self {
            // The lab's own file system pins some for a moment now and then.
            pinned: 0,
            ..Self::now(scheduler)?
        })
    }

    fn now(scheduler: &Scheduler) -> Result<Self> {
        let stats = scheduler.stats()?;
        let number = |name: &str| stats.get(name).and_then(Value::as_u64);
        Ok(Self {
            vms: number("nr_vms"),
            vcpus: number("nr_vcpus"),
            scheduler_files: host::open_files(scheduler.pid())?,
            pinned: pinned_pages()?,
        })
    }

    fn wait_for(self, scheduler: &Scheduler) -> Result<()> {
        let mut last = None;
        let same = eventually("everything of the VMs is gone", margins::UNPINNED, || {
            let now = Self::now(scheduler)?;
            let same = now == self;
            last = Some(now);
            Ok(same.then_some(()))
        });
        ensure!(same.is_ok(), "before: {self:?}, after: {last:?}");
        Ok(())
    }
}

fn wait_for_vcpus(scheduler: &Scheduler, count: u64) -> Result<()> {
    eventually("all vCPUs are attached", margins::COMMAND, || {
        Ok((scheduler.stats()?["nr_vcpus"] == count).then_some(()))
    })?;
    Ok(())
}

#[test]
fn ten_guests_one_after_another_on_one_device_leave_nothing() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let mut device = Device::start("series")?;
        let mut device_files = 0;
        let before = Held::without_a_vm(&scheduler)?;
        for number in 0..10 {
            let guest = Guest::builder()
                .name(format!("guest-{number}"))
                .vcpus(1)
                .memory_mib(192)
                .device(device.socket())
                .qmp(device.qmp())
                .driver(true)
                .boot()?;
            wait_for_vcpus(&scheduler, 1)?;
            // By turns the ordinary end and that of a crash.
            if number % 2 == 0 {
                guest.poweroff(margins::COMMAND)?;
            } else {
                guest.kill();
            }
            wait_for_vcpus(&scheduler, 0)?;
            if number == 0 {
                // Only now: when its socket appears, the device has not yet opened everything that
                // it waits with.
                std::thread::sleep(SETTLE);
                device_files = host::open_files(device.pid())?;
            }
        }
        before.wait_for(&scheduler)?;
        ensure!(device.running(), device.failure("has gone"));
        eventually(
            "the device has closed what it opened",
            margins::AT_ONCE,
            || {
                let files = host::open_files(device.pid())?;
                println!("the device has {files} files open, {device_files} after the first guest");
                Ok((files <= device_files).then_some(()))
            },
        )?;
        scheduler.check()?;
        device.stop()?;
        scheduler.stop()
    })
}

#[test]
fn four_guests_at_a_time_are_told_apart_and_leave_nothing() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let before = Held::without_a_vm(&scheduler)?;
        let mut vms = Vec::new();
        for number in 0..4 {
            vms.push(Vm::start(&VmOptions {
                name: format!("guest-{number}"),
                vcpus: 1,
                memory_mib: 192,
                ..VmOptions::default()
            })?);
        }
        wait_for_vcpus(&scheduler, 4)?;
        let stats = scheduler.stats()?;
        for vm in &vms {
            let threads = vm.guest.vcpu_threads()?;
            let mut known = stats["vms"].as_object().into_iter().flatten();
            let own = known.find(|(_, known)| known["name"] == vm.guest.name());
            let tid = own.map(|(_, known)| &known["vcpus"]["0"]["tid"]);
            ensure!(
                tid == Some(&Value::from(threads[0])),
                "{} in {stats}",
                vm.guest.name()
            );
        }
        drop(vms);
        before.wait_for(&scheduler)?;
        scheduler.check()?;
        scheduler.stop()
    })
}
