//! As a service: under the scx project's unit, whose settings are in /etc/default/scx, and under its
//! loader with our patch, called over the system bus. Both by a systemd that is really there.

use std::fs;
use std::os::unix::fs::{chown, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::paths::CHECKOUT;
use pvsched_lab::systemd::Systemd;
use scx_pvsched::handoff::DEFAULT_SOCKET;
use serde_json::Value;

/// A unit that does with /etc/default/scx what the scx project documents of its own. TERM is what
/// makes many programs believe in a terminal.
const SCX_SERVICE: &str = "\
[Unit]
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
EnvironmentFile=/etc/default/scx
Environment=TERM=xterm
ExecStart=/bin/sh -c 'exec ${SCX_SCHEDULER_OVERRIDE:-$SCX_SCHEDULER} ${SCX_FLAGS_OVERRIDE:-$SCX_FLAGS}'
Restart=on-failure
";

const DEFAULT_SCX: &str = "\
SCX_SCHEDULER=scx_pvsched
SCX_FLAGS='--slice-us 3000 --guard-us 50000'
";

/// The loader in a sandbox that takes away what the published unit does, and a scheduler could miss:
/// devices, /proc/kallsyms, changes of owners, other processes' secrets.
const LOADER_SERVICE: &str = "\
[Service]
Type=dbus
BusName=org.scx.Loader
ExecStart=/usr/local/bin/scx_loader
KillSignal=SIGINT
PrivateDevices=yes
ProtectSystem=full
ProtectControlGroups=yes
ProtectKernelTunables=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_UNIX
CapabilityBoundingSet=~CAP_CHOWN CAP_SYSLOG CAP_SYS_PTRACE
SystemCallFilter=~@chown:EPERM
";

const LOADER_ON_THE_BUS: &str = "\
<busconfig>
  <policy user='root'>
    <allow own='org.scx.Loader'/>
    <allow send_destination='org.scx.Loader'/>
  </policy>
</busconfig>
";

/// Root may do everything, but only what has a name.
const LOADER_ACTION: &str = "\
<policyconfig>
  <action id='org.scx.loader.manage-schedulers'>
    <description>Change the scheduler</description>
    <message>Changing the scheduler is for administrators</message>
    <defaults><allow_any>no</allow_any></defaults>
  </action>
</policyconfig>
";

/// In the host VM: what has been built.
const PROGRAMS: &str = "/usr/local/bin";

/// What a sandbox is changed by, and a change that does not do: /dev/kvm is seen, and its group not
/// allowed to be given anything.
const DROP_IN: &str = "/etc/systemd/system/scx_loader.service.d/pvsched.conf";
const DEVICES: &str = "/etc/systemd/system/scx_loader.service.d/devices";

/// A published scheduler that the loader knows, with the name in its ops table.
const OTHER: (&str, &str) = ("scx_bpfland", "bpfland");

/// The loader's numbers of its modes.
const AUTO: &str = "0";
const LOW_LATENCY: &str = "3";
const SERVER: &str = "4";

/// Waits until this scheduler schedules.
fn scheduling(ops: &str) -> Result<Duration> {
    let (_, took) = eventually(&format!("{ops} schedules"), margins::START, || {
        let there =
            host::scheduler_state()? == "enabled" && host::scheduler_name()?.starts_with(ops);
        Ok(there.then_some(()))
    })?;
    Ok(took)
}

fn nobody_schedules() -> Result<()> {
    eventually("the kernel schedules", margins::AT_ONCE, || {
        Ok((host::scheduler_state()? == "disabled").then_some(()))
    })?;
    Ok(())
}

/// A process's arguments, without its name.
fn arguments(systemd: &Systemd, pid: &str) -> Result<Vec<String>> {
    let line = systemd.run("cat", &[&format!("/proc/{pid}/cmdline")])?;
    let words = line.trim_end_matches('\0').split('\0').skip(1);
    Ok(words.map(str::to_owned).collect())
}

#[test]
fn scx_service_starts_it_with_its_flags_and_brings_it_back() -> Result<()> {
    promise(|| {
        let systemd = Systemd::start(&[
            ("/etc/systemd/system/scx.service", SCX_SERVICE),
            ("/etc/default/scx", DEFAULT_SCX),
        ])?;
        let property = |name: &str| systemd.property("scx", name);
        let told = |what: &str| {
            eventually(what, margins::AT_ONCE, || {
                Ok(systemd.journal("scx")?.contains(what).then_some(()))
            })
        };
        systemd.run("systemctl", &["start", "scx"])?;
        let first = scheduling("pvsched")?;
        let pid = property("MainPID")?;
        let flags = arguments(&systemd, &pid)?;
        ensure!(
            flags == ["--slice-us", "3000", "--guard-us", "50000"],
            "{flags:?}"
        );

        systemd.run("systemctl", &["kill", "--signal=KILL", "scx"])?;
        let (_, again) = eventually("it is started again", margins::START, || {
            let other = property("MainPID")?;
            Ok((other != "0" && other != pid).then_some(()))
        })?;
        println!("scheduling {first:.1?} after the start, started again {again:.1?} after a kill");
        scheduling("pvsched")?;
        ensure!(property("NRestarts")? == "1");

        systemd.run("systemctl", &["stop", "scx"])?;
        ensure!(host::scheduler_state()? == "disabled");
        for (name, good) in [
            ("ActiveState", "inactive"),
            ("Result", "success"),
            ("ExecMainStatus", "0"),
        ] {
            let value = property(name)?;
            ensure!(value == good, "{name} is {value}");
        }
        told("scheduling all tasks on 2 CPUs")?;
        let journal = systemd.journal("scx")?;
        ensure!(
            !journal.contains('\x1b'),
            "colours in the journal: {journal:?}"
        );

        let wrong = "SCX_FLAGS_OVERRIDE=--no-such-option";
        systemd.run("systemctl", &["set-environment", wrong])?;
        systemd.run("systemctl", &["start", "scx"])?;
        eventually("systemd gives up", margins::START, || {
            Ok((property("ActiveState")? == "failed").then_some(()))
        })?;
        told("--no-such-option")?;
        ensure!(host::scheduler_state()? == "disabled");
        Ok(())
    })
}

/// Tells what a checkout still lacks.
fn built(program: &str, action: &str) -> Result<()> {
    let there = Path::new(PROGRAMS).join(program).exists();
    ensure!(there, "no {program} yet; scripts/lab {action} builds it");
    Ok(())
}

/// A systemd with the loader at its bus.
fn with_loader() -> Result<Systemd> {
    built("scx_loader", "loader")?;
    let systemd = Systemd::start(&[
        ("/etc/systemd/system/scx_loader.service", LOADER_SERVICE),
        ("/etc/dbus-1/system.d/scx_loader.conf", LOADER_ON_THE_BUS),
        ("/etc/polkit-1/actions/scx_loader.policy", LOADER_ACTION),
        (DEVICES, "[Service]\nPrivateDevices=no\n"),
    ])?;
    systemd.run("systemctl", &["start", "scx_loader"])?;
    Ok(systemd)
}

/// The loader, called as by any client.
struct Loader<'a>(&'a Systemd);

impl Loader<'_> {
    const ADDRESS: [&'static str; 3] = ["org.scx.Loader", "/org/scx/Loader", "org.scx.Loader"];

    fn call(&self, words: &[&str]) -> Result<Value> {
        let mut all = vec!["--json=short", "call"];
        all.extend(Self::ADDRESS);
        all.extend(words);
        let answer = self.0.run("busctl", &all)?;
        // A method without an answer prints nothing.
        if answer.trim().is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str::<Value>(&answer)?["data"][0].take())
    }

    fn current(&self) -> Result<String> {
        let mut all = vec!["--json=short", "get-property"];
        all.extend(Self::ADDRESS);
        all.push("CurrentScheduler");
        let answer: Value = serde_json::from_str(&self.0.run("busctl", &all)?)?;
        Ok(answer["data"].as_str().unwrap_or_default().to_owned())
    }

    /// The arguments of each mode, by its number.
    fn modes(&self) -> Result<Vec<Vec<String>>> {
        let modes = self.call(&["SchedulerModeArgs", "s", "scx_pvsched"])?;
        let mut all = vec![Vec::new(); 5];
        for mode in modes.as_array().context("no list of modes")? {
            let number = mode[0].as_u64().context("a mode without a number")?;
            *all.get_mut(usize::try_from(number)?)
                .context("a sixth mode")? = serde_json::from_value(mode[1].clone())?;
        }
        Ok(all)
    }

    /// The process of scx_pvsched.
    fn scheduler(&self) -> Result<String> {
        Ok(self
            .0
            .run("pgrep", &["-x", "scx_pvsched"])?
            .trim()
            .to_owned())
    }
}

#[test]
fn the_patched_loader_starts_it_in_a_mode_switches_and_brings_it_back() -> Result<()> {
    promise(|| {
        built(OTHER.0, "other-scheduler")?;
        let systemd = with_loader()?;
        let loader = Loader(&systemd);
        let modes = loader.modes()?;
        let of = |mode: &str| -> Result<&Vec<String>> { Ok(&modes[mode.parse::<usize>()?]) };
        ensure!(of(AUTO)?.is_empty(), "{modes:?}");
        for arguments in modes.iter().filter(|mode| !mode.is_empty()) {
            let mut command = Command::new("scx_pvsched");
            let understood = command.args(arguments).arg("--help-stats").output()?;
            ensure!(understood.status.success(), "{arguments:?}: {understood:?}");
        }
        let others = modes.iter().filter(|mode| !mode.is_empty()).count();
        ensure!(others == 4, "{modes:?}");

        loader.call(&["StartScheduler", "su", "scx_pvsched", LOW_LATENCY])?;
        let started = scheduling("pvsched")?;
        ensure!(loader.current()? == "scx_pvsched");
        let running = arguments(&systemd, &loader.scheduler()?)?;
        ensure!(&running == of(LOW_LATENCY)?, "{running:?}");
        let socket = mode_and_group(&systemd)?;
        ensure!(socket == "600 0", "{socket}");
        // The sandbox takes nothing else away that it needs.
        eventually("hints from KVM", margins::AT_ONCE, || {
            let journal = systemd.journal("scx_loader")?;
            ensure!(!journal.contains("no hints"), "{journal}");
            Ok(journal.contains("hints from KVM").then_some(()))
        })?;

        loader.call(&["SwitchScheduler", "su", OTHER.0, AUTO])?;
        let other = scheduling(OTHER.1)?;
        loader.call(&["SwitchScheduler", "su", "scx_pvsched", SERVER])?;
        let back = scheduling("pvsched")?;
        let pid = loader.scheduler()?;
        let running = arguments(&systemd, &pid)?;
        ensure!(&running == of(SERVER)?, "{running:?}");

        systemd.run("kill", &["-KILL", &pid])?;
        let (_, again) = eventually("another one is started", margins::AT_ONCE, || {
            Ok((loader.scheduler()? != pid).then_some(()))
        })?;
        scheduling("pvsched")?;
        println!(
            "scheduling {started:.1?} after StartScheduler, {} after {other:.1?}, back after \
             {back:.1?}; started again {again:.1?} after a kill",
            OTHER.0
        );
        let running = arguments(&systemd, &loader.scheduler()?)?;
        ensure!(&running == of(SERVER)?, "{running:?}");

        loader.call(&["StopScheduler"])?;
        nobody_schedules()?;
        ensure!(loader.current()? == "unknown");
        eventually("no process is left", margins::AT_ONCE, || {
            Ok(loader.scheduler().is_err().then_some(()))
        })?;

        Ok(())
    })
}

#[test]
fn the_loaders_sandbox_lets_root_hand_vms_over_and_our_drop_in_the_group_of_kvm() -> Result<()> {
    promise(|| {
        let systemd = with_loader()?;
        let loader = Loader(&systemd);
        let kvm = KvmOfGroup::new()?;
        let ours = format!("{CHECKOUT}/scripts/scx_loader.conf");
        let for_group = format!("660 {}", kvm.gid);
        for (drop_in, wanted) in [(DEVICES, "600 0"), (&ours, for_group.as_str())] {
            systemd.run("cp", &[drop_in, DROP_IN])?;
            systemd.run("systemctl", &["daemon-reload"])?;
            systemd.run("systemctl", &["restart", "scx_loader"])?;
            loader.call(&["StartScheduler", "su", "scx_pvsched", AUTO])?;
            scheduling("pvsched")?;
            let socket = mode_and_group(&systemd)?;
            ensure!(
                socket == wanted,
                "{socket} with {drop_in}, and not {wanted}"
            );
            // The loader takes along what it runs.
            systemd.run("systemctl", &["stop", "scx_loader"])?;
            nobody_schedules()?;
            ensure!(systemd.property("scx_loader", "Result")? == "success");
        }
        Ok(())
    })
}

/// Of the handoff socket: who may hand VMs over.
fn mode_and_group(systemd: &Systemd) -> Result<String> {
    let socket = systemd.run("stat", &["--format=%a %g", DEFAULT_SOCKET])?;
    Ok(socket.trim().to_owned())
}

/// /dev/kvm as it is where udev cares for it; as before when this is dropped.
struct KvmOfGroup {
    gid: u32,
    before: fs::Metadata,
}

impl KvmOfGroup {
    const PATH: &'static str = "/dev/kvm";

    fn new() -> Result<Self> {
        let kvm = Self {
            gid: 900,
            before: fs::metadata(Self::PATH)?,
        };
        chown(Self::PATH, None, Some(kvm.gid))?;
        fs::set_permissions(Self::PATH, fs::Permissions::from_mode(0o660))?;
        Ok(kvm)
    }
}

impl Drop for KvmOfGroup {
    fn drop(&mut self) {
        // Root may do both; nobody else uses it here.
        let _ = chown(Self::PATH, None, Some(self.before.gid()));
        let _ = fs::set_permissions(Self::PATH, self.before.permissions());
    }
}
