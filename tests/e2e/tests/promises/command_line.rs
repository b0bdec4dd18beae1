//! What an operator sees of scx_pvsched: its messages, its exit statuses, and that the host always
//! has a scheduler.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;
use pvsched_e2e::{eventually, host, margins, promise, promise_with};
use pvsched_lab::chain::{ChainOptions, Scheduler, Vm};
use pvsched_lab::daemon::Daemon;

/// The user that has nothing.
const NOBODY: u32 = 65534;

fn run(command: &mut Command) -> Result<(Option<i32>, String, String)> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().context("scx_pvsched does not start")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((status.code(), text(stdout), text(stderr)))
}

/// A scheduler that runs, of which the test also looks at the end.
fn start() -> Result<Daemon> {
    let mut daemon = Daemon::start("scheduler", "scx_pvsched", [""; 0])?;
    daemon.wait_until("scheduling", margins::START, || {
        Ok((host::scheduler_state()? == "enabled").then_some(()))
    })?;
    ensure!(host::scheduler_name()?.starts_with("pvsched"));
    Ok(daemon)
}

#[test]
fn questions_are_answered_without_scheduling() -> Result<()> {
    promise(|| {
        let (status, stdout, _) = run(Command::new("scx_pvsched").arg("--version"))?;
        ensure!(
            status == Some(0) && stdout.starts_with("scx_pvsched "),
            "{stdout}"
        );
        let (status, stdout, _) = run(Command::new("scx_pvsched").arg("--help-stats"))?;
        ensure!(status == Some(0) && stdout.contains("nr_vcpus"), "{stdout}");
        let (status, stdout, _) = run(Command::new("scx_pvsched").args(["--measure", "0.5"]))?;
        ensure!(
            status == Some(0) && stdout.contains("\ntimer ") && stdout.contains("\ninterrupt "),
            "{stdout}"
        );
        let (status, _, stderr) = run(Command::new("scx_pvsched").arg("--no-such-option"))?;
        ensure!(
            status == Some(2) && stderr.contains("--no-such-option"),
            "{stderr}"
        );
        ensure!(host::scheduler_state()? == "disabled");
        Ok(())
    })
}

#[test]
fn who_is_not_root_is_told() -> Result<()> {
    promise(|| {
        for arguments in [
            &[][..],
            &["--measure", "1"],
            &["--trace", "/tmp/trace.json"],
        ] {
            let mut command = Command::new("scx_pvsched");
            let (status, _, stderr) = run(command.args(arguments).uid(NOBODY))?;
            ensure!(
                status == Some(1) && stderr.contains("root"),
                "{arguments:?}: {status:?}: {stderr}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_second_instance_names_the_first_and_leaves_it_alone() -> Result<()> {
    promise(|| {
        let mut first = Scheduler::start::<&str>(&[])?;
        let (status, _, stderr) = run(&mut Command::new("scx_pvsched"))?;
        ensure!(status == Some(1), "{status:?}: {stderr}");
        ensure!(
            stderr.contains("another scheduler") && stderr.contains("pvsched"),
            "{stderr}"
        );
        first.check()?;
        ensure!(first.stats()?["nr_vms"] == 0);
        first.stop()
    })
}

#[test]
fn both_signals_end_it_well_and_the_kernel_schedules_again() -> Result<()> {
    promise(|| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut scheduler = start()?;
            let status = scheduler.stop(signal, margins::AT_ONCE)?;
            ensure!(
                status.success(),
                scheduler.failure(&format!("after {signal}: {status}"))
            );
            ensure!(host::scheduler_state()? == "disabled");
        }
        Ok(())
    })
}

/// An operator's last resort, sysrq-S, stands for every way in which the kernel ends a scheduler.
#[test]
fn ejected_by_the_kernel_it_says_why_and_fails() -> Result<()> {
    promise_with(&["disabled by sysrq-S"], || {
        let mut scheduler = start()?;
        fs::write("/proc/sysrq-trigger", "S").context("sysrq-S")?;
        let (status, _) = eventually("it ends by itself", margins::AT_ONCE, || scheduler.ended())?;
        ensure!(
            status.code() == Some(1),
            scheduler.failure(&format!("ended with {status}"))
        );
        ensure!(
            scheduler.log().contains("sysrq-S"),
            scheduler.failure("does not say why")
        );
        ensure!(host::scheduler_state()? == "disabled");
        Ok(())
    })
}

#[test]
fn kvm_may_be_loaded_later() -> Result<()> {
    promise(|| {
        let kvm = KvmUnloaded::new()?;
        let (status, _, stderr) = run(Command::new("scx_pvsched").args(["--measure", "1"]))?;
        ensure!(
            status == Some(1) && stderr.contains("kvm module is not loaded"),
            "{status:?}: {stderr}"
        );
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        ensure!(scheduler.stats()?["hint_sources"] == "");
        scheduler.check()?;
        kvm.load()?;
        let (sources, took) = eventually("hints from KVM", margins::AT_ONCE, || {
            let sources = scheduler.stats()?["hint_sources"].take();
            Ok((sources != "").then_some(sources))
        })?;
        println!("hints by {sources} after {took:.1?}");
        let vm = Vm::start(&ChainOptions::default().vm)?;
        eventually("a guest is recognised", margins::COMMAND, || {
            Ok((scheduler.stats()?["nr_vcpus"] == 2).then_some(()))
        })?;
        drop(vm);
        scheduler.stop()
    })
}

/// What it needs of KVM may be missing for a moment, here the kernel's lists of functions.
#[test]
fn what_kvm_refuses_at_first_is_tried_again() -> Result<()> {
    promise(|| {
        let hidden = "mount --bind /dev/null /proc/kallsyms && \
                      mount -t tmpfs none /sys/kernel/tracing && exec scx_pvsched";
        let words = ["--mount", "sh", "-c", hidden];
        let mut scheduler = Daemon::start("scx_pvsched", "unshare", words)?;
        let says = |what: &str| {
            let said = || Ok(scheduler.log().contains(what).then_some(()));
            eventually(what, margins::START, said)
                .with_context(|| scheduler.failure("does not say so"))
        };
        says("no hints from KVM, boosts start late; tried again in")?;
        let there = [
            "-m",
            "-t",
            &scheduler.pid().to_string(),
            "umount",
            "/proc/kallsyms",
        ];
        let shown = Command::new("nsenter").args(there).status()?;
        ensure!(shown.success(), "nsenter or umount failed");
        let (_, took) = says("hints from KVM: timer")?;
        println!("hints after {took:.1?}");
        let status = scheduler.stop(Signal::SIGTERM, margins::START)?;
        ensure!(status.success(), scheduler.failure("ended badly"));
        Ok(())
    })
}

/// The host without KVM, for as long as this lives.
struct KvmUnloaded;

impl KvmUnloaded {
    fn new() -> Result<Self> {
        let unloaded = Self;
        let removed = Command::new("modprobe").args(["-r", "kvm_amd"]).status()?;
        ensure!(removed.success(), "kvm_amd is in use");
        // On some kernels it goes with its last user.
        let _ = Command::new("modprobe").args(["-r", "kvm"]).status()?;
        let gone = !fs::exists("/sys/module/kvm")?;
        ensure!(gone, "kvm is in use");
        Ok(unloaded)
    }

    fn load(&self) -> Result<()> {
        let loaded = Command::new("modprobe").arg("kvm_amd").status()?;
        ensure!(loaded.success(), "cannot load kvm_amd");
        Ok(())
    }
}

impl Drop for KvmUnloaded {
    fn drop(&mut self) {
        // Later tests need it; they will say so if this fails.
        let _ = self.load();
    }
}
