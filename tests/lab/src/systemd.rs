//! A systemd of its own inside the host VM: process 1 of a PID namespace, with a system bus, polkit
//! and a journal. What it is given and what it writes in /etc and /run ends with it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::daemon::Daemon;
use crate::process;

/// From its start to units that can be started; measured at 5 to 10 s.
const START_LIMIT: Duration = Duration::from_secs(90);

const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The unit that it starts by itself: sockets, the bus's among them, and all that those need.
const TARGET: &str = "basic.target";

const CGROUPS: &str = "/sys/fs/cgroup";

/// Runs in new namespaces: private state, the files given, then systemd. `container` makes it leave
/// alone what belongs to a machine of its own.
const INIT: &str = r#"
    set -e
    echo $$ >"$1/cgroup.procs"
    exec unshare --cgroup sh -ec '
        mount -t tmpfs -o mode=755 tmpfs /run
        mkdir /run/etc /run/etc.work
        mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc.work overlay /etc
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        cp -R "$1/." /
        exec env -i container=lab PATH="$PATH" LC_ALL=C.UTF-8 /usr/lib/systemd/systemd \
            --unit="$2" --log-target=console --log-color=no --show-status=no' init "$2" "$3""#;

/// A running systemd; ends with all that it has started when dropped.
#[derive(Debug)]
pub struct Systemd {
    daemon: Daemon,
    init: u32,
    cgroup: PathBuf,
}

impl Systemd {
    /// Starts it with these files in place, given by their absolute paths in /etc or /run, and waits
    /// until it takes orders.
    pub fn start(files: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for (path, text) in files {
            let path = folder.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().context("a file without a folder")?)?;
            fs::write(path, text)?;
        }
        let cgroup = Path::new(CGROUPS).join(format!("systemd.{}", std::process::id()));
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let arguments: [&OsStr; 12] = [
            "--pid".as_ref(),
            "--fork".as_ref(),
            "--kill-child".as_ref(),
            "--mount".as_ref(),
            "--mount-proc".as_ref(),
            "sh".as_ref(),
            "-c".as_ref(),
            INIT.as_ref(),
            "init".as_ref(),
            cgroup.as_ref(),
            folder.path().as_ref(),
            TARGET.as_ref(),
        ];
        let mut daemon = Daemon::start("systemd", "unshare", arguments)?;
        let unshare = daemon.pid();
        let init = daemon.wait_until("starting", START_LIMIT, || {
            let mut children = process::children(unshare).into_iter();
            Ok(children.find(|child| takes_orders(*child)))
        })?;
        Ok(Self {
            daemon,
            init,
            cgroup,
        })
    }

    /// A command where its units are: it sees their processes, files and bus.
    pub fn command(&self, program: &str) -> Command {
        enter(self.init, program)
    }

    /// Runs a command there to success and gives its output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        process::text(self.command(program).args(arguments))
            .with_context(|| format!("{program} {}", arguments.join(" ")))
    }

    /// A property of a unit, in the words of `systemctl show`.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.run("systemctl", &["show", "--value", "--property", name, unit])?;
        Ok(value.trim_end().to_owned())
    }

    /// What a unit's processes have written, and systemd about them.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.run("journalctl", &["--output=cat", "--all", "--unit", unit])
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // All processes of the namespace end with it, and their cgroups can go then.
        let _ = self.daemon.stop(Signal::SIGKILL, STOP_LIMIT);
        let deadline = Instant::now() + STOP_LIMIT;
        while remove_cgroups(&self.cgroup).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn enter(init: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .args(["--mount", "--pid", "--cgroup", "--target"])
        .arg(init.to_string())
        .arg("--")
        .arg(program);
    command
}

fn takes_orders(init: u32) -> bool {
    process::text(enter(init, "systemctl").args(["is-active", TARGET])).is_ok()
}

fn remove_cgroups(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroups(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}
