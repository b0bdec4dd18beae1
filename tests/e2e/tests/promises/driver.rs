//! The guest's driver: loaded and unloaded, with CPUs that come and go, across reboots.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{eventually, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use serde_json::Value;

fn wait_for_vcpus(chain: &mut Chain, count: u64) -> Result<()> {
    eventually(
        "the scheduler has each vCPU with a page",
        margins::COMMAND,
        || {
            let stats = chain.scheduler()?.stats()?;
            Ok((stats["nr_vcpus"] == count).then_some(()))
        },
    )?;
    Ok(())
}

fn exec(chain: &Chain, command: &str) -> Result<String> {
    chain.vm.guest.exec(command, margins::COMMAND)?.ok()
}

#[test]
fn it_is_unloaded_and_loaded_again_five_times() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        for _ in 0..5 {
            chain.vm.stop_agent()?;
            exec(&chain, "rmmod virtio_pvsched")?;
            wait_for_vcpus(&mut chain, 0)?;
            ensure!(chain.vm.status()?["answer"] == "no-driver");
            chain.vm.load_driver()?;
            chain.vm.start_agent()?;
            chain.wait_attached()?;
        }
        guest_is_sound(&chain)?;
        chain.stop_scheduler()
    })
}

#[test]
fn a_guest_cpu_that_goes_offline_takes_its_page_along() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        for _ in 0..2 {
            exec(&chain, "echo 0 >/sys/devices/system/cpu/cpu1/online")?;
            wait_for_vcpus(&mut chain, 1)?;
            ensure!(chain.vm.status()?["vcpus"][1]["page"] == "offline");
            exec(&chain, "echo 1 >/sys/devices/system/cpu/cpu1/online")?;
            wait_for_vcpus(&mut chain, 2)?;
            let vcpu = chain.vm.status()?["vcpus"][1].take();
            ensure!(
                vcpu["page"] == "set" && vcpu["words"]["publishing"] == true,
                "{vcpu}"
            );
        }
        guest_is_sound(&chain)?;
        chain.stop_scheduler()
    })
}

#[test]
fn a_guest_that_reboots_drops_its_pages_and_is_attached_again() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        // The lab's guests end where others reboot.
        set_reboot_action(&chain, "reset")?;
        let boot_id = |chain: &Chain| exec(chain, "cat /proc/sys/kernel/random/boot_id");
        let before = boot_id(&chain)?;
        // No answer can come to this.
        let _rebooting = chain.vm.guest.spawn("reboot -f")?;
        wait_for_vcpus(&mut chain, 0)?;
        eventually("the guest is up again", 3 * margins::COMMAND, || {
            Ok((boot_id(&chain)? != before).then_some(()))
        })?;
        ensure!(
            chain.scheduler()?.stats()?["nr_vcpus"] == 0,
            "pages without a driver"
        );
        chain.vm.load_driver()?;
        chain.vm.start_agent()?;
        chain.wait_attached()?;
        chain.stop_scheduler()
    })
}

/// The guest's own kernel has nothing to complain about either.
fn guest_is_sound(chain: &Chain) -> Result<()> {
    let complaints = "dmesg | grep -E 'BUG|WARNING|Oops|Call Trace|rcu.*stall' || true";
    let complaints = exec(chain, complaints)?;
    ensure!(
        complaints.is_empty(),
        "the guest's kernel complained:\n{complaints}"
    );
    Ok(())
}

/// Tells QEMU what a guest's reboot is to do. The device is the monitor's usual client, and leaves
/// it between its questions.
fn set_reboot_action(chain: &Chain, action: &str) -> Result<()> {
    eventually("QEMU's monitor is free", margins::AT_ONCE, || {
        let mut monitor = UnixStream::connect(chain.vm.device.qmp())?;
        monitor.set_read_timeout(Some(margins::AT_ONCE))?;
        let mut lines = BufReader::new(monitor.try_clone()?).lines();
        lines.next().context("QEMU did not greet")??;
        let command = format!(r#"{{"execute":"set-action","arguments":{{"reboot":"{action}"}}}}"#);
        for command in [r#"{"execute":"qmp_capabilities"}"#, &command] {
            writeln!(monitor, "{command}")?;
            let answer: Value = serde_json::from_str(&lines.next().context("no answer")??)?;
            ensure!(answer.get("return").is_some(), "{answer}");
        }
        Ok(Some(()))
    })?;
    Ok(())
}
