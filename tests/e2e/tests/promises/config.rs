//! What the configuration file grants to each VM, and that a change of it needs no restart.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm, VmOptions};
use pvsched_lab::hog::Hog;
use scx_pvsched::handoff::client::{Client, ClientError};
use scx_pvsched::handoff::{ErrorCode, Protocol, ProtocolName, Region, VmName, DEFAULT_SOCKET};
use serde_json::Value;
use tempfile::TempDir;

use crate::vm::endless_fifo;

/// A configuration file of this test's own.
pub struct File {
    folder: TempDir,
}

impl File {
    pub fn new(text: &str) -> Result<Self> {
        let folder = TempDir::new()?;
        let file = Self { folder };
        file.write(text)?;
        Ok(file)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("vms.toml")
    }

    pub fn write(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.path(), text)?)
    }

    /// The scheduler's options that name it.
    pub fn options(&self) -> [String; 2] {
        ["--config".into(), self.path().display().to_string()]
    }
}

pub fn reload(scheduler: &Scheduler) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(scheduler.pid())?);
    Ok(kill(pid, Signal::SIGHUP)?)
}

fn class(stats: &Value) -> &Value {
    &stats["vms"]["1"]["class"]
}

#[test]
fn a_vm_that_is_granted_no_class_gets_boosts_once_it_is_without_a_restart() -> Result<()> {
    promise(|| granted_class_counts(&[]))
}

/// With more options of the scheduler.
pub fn granted_class_counts(more: &[&str]) -> Result<()> {
    let file = File::new("[[vm]]\nname = 'gu*'\nclass = 'normal'\n")?;
    let mut chain = Chain::start(ChainOptions {
        scheduler: more
            .iter()
            .copied()
            .map(Into::into)
            .chain(file.options())
            .collect(),
        ..ChainOptions::default()
    })?;
    let pid = chain.scheduler()?.pid();
    // Others must want the CPUs, or there is nothing to be ahead of.
    let hogs = Hog::start(4)?;
    let fifo = endless_fifo(&chain.vm.guest, 1, 77, 120)?;
    let vcpu = |stats: &Value| stats["vms"]["1"]["vcpus"]["1"].clone();
    eventually("the priority arrives", margins::COMMAND, || {
        let vcpu = vcpu(&chain.scheduler()?.stats()?);
        Ok((vcpu["published"] == "rt 77").then_some(()))
    })?;
    // A vCPU that may be boosted is within 0.1 s where others want its CPU.
    thread::sleep(Duration::from_secs(3));
    let stats = chain.scheduler()?.stats()?;
    ensure!(class(&stats) == "normal", "{stats}");
    let capped = vcpu(&stats);
    ensure!(
        capped["published"] == "rt 77" && capped["boosts_task"] == 0,
        "{capped}"
    );

    file.write("[[vm]]\nname = 'gu*'\nclass = 'rt'\nrt_prio_max = 50\nnice = [-3, 3]\n")?;
    reload(chain.scheduler()?)?;
    let mut last = stats;
    eventually("boosts are granted", margins::AT_ONCE, || {
        last = chain.scheduler()?.stats()?;
        Ok((vcpu(&last)["boosts_task"].as_u64() > Some(0)).then_some(()))
    })
    .with_context(|| format!("statistics: {last}"))?;
    let vm = &last["vms"]["1"];
    ensure!(vm["class"] == "rt 50" && vm["nice"] == "-3..3", "{vm}");
    ensure!(chain.scheduler()?.pid() == pid);
    fifo.kill()?;
    drop(hogs);
    chain.stop_scheduler()
}

#[test]
fn a_bad_file_is_told_and_changes_nothing() -> Result<()> {
    promise(|| {
        let file = File::new("[default]\nclass = 'fifo'\n")?;
        let refused = Command::new("scx_pvsched").args(file.options()).output()?;
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1), "{message}");
        for word in ["vms.toml", "line 2", "class", "fifo", "deadline"] {
            ensure!(message.contains(word), "{word:?} is not in: {message}");
        }
        ensure!(host::scheduler_state()? == "disabled");

        file.write("[default]\nclass = 'rt'\ntask_budget_us = 7000\n")?;
        let mut scheduler = Scheduler::start(&file.options())?;
        let client = register("someone")?;
        file.write("[default]\nclass = 'rt'\ntask_budget = 8000\n")?;
        reload(&scheduler)?;
        eventually("the log tells", margins::AT_ONCE, || {
            let log = scheduler.log();
            let told = ["vms.toml", "line 3", "task_budget"];
            Ok(told.iter().all(|word| log.contains(word)).then_some(()))
        })?;
        scheduler.check()?;
        let stats = scheduler.stats()?;
        let vm = &stats["vms"]["1"];
        ensure!(
            vm["class"] == "rt 99" && vm["task_budget_us"] == 7000,
            "{vm}"
        );

        file.write("[default]\ntask_budget_us = 8000\n")?;
        reload(&scheduler)?;
        eventually("a good file is read", margins::AT_ONCE, || {
            let stats = scheduler.stats()?;
            let vm = &stats["vms"]["1"];
            Ok((vm["class"] == "deadline" && vm["task_budget_us"] == 8000).then_some(()))
        })?;
        client.leave()?;
        scheduler.stop()
    })
}

/// A VM without vCPUs.
fn register(name: &str) -> Result<Client> {
    let size = 16 << 20;
    let memory = fs::File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC)?);
    memory.set_len(size)?;
    let region = Region::new(0, size, 0).map_err(anyhow::Error::msg)?;
    let mut client = Client::connect(Path::new(DEFAULT_SOCKET))?;
    let version = Protocol::latency().max_version;
    let regions = [(region, memory.as_fd())];
    client.register_vm(VmName::new(name)?, ProtocolName::LATENCY, version, &regions)?;
    Ok(client)
}

#[test]
fn a_protocol_is_refused_by_name_and_not_to_others() -> Result<()> {
    promise(|| {
        let rule = "[[vm]]\nname = 'barred-?'\nprotocols = []\n";
        let file = File::new(rule)?;
        let mut scheduler = Scheduler::start(&file.options())?;
        let other = register("barred-10")?;
        ensure!(other.welcome().protocols == Protocol::all());
        let refused = register("barred-1").map(|_| ()).unwrap_err();
        match refused.downcast_ref() {
            Some(ClientError::Refused { code, text }) => ensure!(
                *code == ErrorCode::NotAllowed
                    && text.contains("barred-1")
                    && text.contains("latency"),
                "{code:?}: {text}"
            ),
            _ => ensure!(false, "{refused:#}"),
        }
        ensure!(scheduler.stats()?["nr_vms"] == 1);

        // The other way round: one that is there is barred by the next reload.
        file.write("[[vm]]\nname = 'barred-10'\nprotocols = []\n")?;
        reload(&scheduler)?;
        let mut other = other;
        eventually("it is dismissed", margins::AT_ONCE, || {
            let closed = matches!(other.notice(), Err(ClientError::Closed));
            Ok((closed && scheduler.stats()?["nr_vms"] == 0).then_some(()))
        })?;
        register("barred-1")?.leave()?;
        scheduler.check()?;
        scheduler.stop()
    })
}

#[test]
fn a_guest_whose_protocol_is_refused_knows_and_is_taken_once_it_is_allowed() -> Result<()> {
    promise(|| {
        let file = File::new("[[vm]]\nname = 'guest'\nprotocols = []\n")?;
        let mut scheduler = Scheduler::start(&file.options())?;
        let vm = Vm::start(&VmOptions::default())?;
        eventually("the guest is told", margins::COMMAND, || {
            let status = vm.status()?;
            let pages = status["vcpus"].as_array().context("no vCPUs")?;
            let code = u32::from(ErrorCode::NotAllowed);
            let refused = |vcpu: &Value| vcpu["page"] == "refused" && vcpu["code"] == code;
            Ok(pages.iter().all(refused).then_some(()))
        })
        .with_context(|| vm.state("it is not"))?;
        ensure!(scheduler.stats()?["nr_vms"] == 0);

        file.write("")?;
        reload(&scheduler)?;
        eventually("it is handed over", margins::REATTACH, || {
            Ok((scheduler.stats()?["nr_vcpus"] == 2).then_some(()))
        })?;
        eventually("the guest knows", margins::AT_ONCE, || {
            Ok((vm.status()?["answer"] == "publishing").then_some(()))
        })?;
        drop(vm);
        scheduler.check()?;
        scheduler.stop()
    })
}
