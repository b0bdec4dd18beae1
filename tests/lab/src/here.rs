//! A machine that needs no host VM: its own kernel has sched_ext and KVM. Commands run in the
//! lab's Debian root on it, at the paths that the host VM has.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};

use crate::host_vm::Setup;
use crate::paths;

/// Fails with what this machine lacks.
pub fn check() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim_end();
    ensure!(
        Path::new("/sys/kernel/sched_ext").exists(),
        "kernel {release} of this machine has no sched_ext (CONFIG_SCHED_CLASS_EXT); \
         leave out --here to use the lab's host VM"
    );
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context(
            "this machine has no KVM to use (/dev/kvm); leave out --here to use the lab's host VM",
        )?;
    Ok(())
}

/// A command in the root, in a mount namespace of its own, so that nothing stays mounted however
/// it ends; the scheduler's and the device's sockets are in that namespace, too.
pub fn command(setup: &Setup, argv: &[String]) -> Command {
    const ENTER: &str = r#"
        set -e
        root=$1 kernels=$2 run=$3 bin=$4 out=$5 src=$6
        shift 6
        for dir in proc sys dev; do
            mount --rbind "/$dir" "$root/$dir"
        done
        for dir in tmp run boot; do
            mount -t tmpfs tmpfs "$root/$dir"
        done
        # libbpf looks for the configuration here to give programs their kconfig values.
        config=/boot/config-$(uname -r)
        if [ -e "$config" ]; then cp "$config" "$root/boot"; fi
        mount --bind "$kernels" "$root/lab/kernels"
        mount --bind "$run" "$root/lab/run"
        mount --bind "$bin" "$root/usr/local/bin"
        mount --bind "$out" "$root/out"
        mount --bind "$src" "$root/src/scx_pvsched"
        exec chroot "$root" "$@""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .args(["setpriv", "--pdeathsig", "KILL", "sh", "-c", ENTER, "enter"])
        .arg(setup.root().path())
        .arg(setup.kernels().path())
        .arg(setup.share())
        .arg(setup.binaries())
        .arg(setup.out())
        .arg(setup.checkout())
        .args(argv)
        .env(
            "PATH",
            format!(
                "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{}",
                paths::RUN
            ),
        )
        .env("HOME", "/root")
        .env("LC_ALL", "C.UTF-8")
        .env("PVSCHED_LAB", "host");
    command
}
