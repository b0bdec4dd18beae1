//! The Debian root: the host VM's user space, the home of the QEMUs of both levels, and the place
//! where modules are built, all of one release whatever the machine runs.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{symlink, DirBuilderExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::{emulator, mirror, process};

/// The Debian release of the root; its backports carry QEMU and the newer kernels.
pub const SUITE: &str = "trixie";

/// Taken from backports where those have it: only that QEMU has vhost-user-test-device on its
/// command line, only that pahole knows the newest kernels' BTF, and halves do not mix.
const PACKAGES: &[&str] = &[
    "bpftool",
    "busybox-static",
    "dbus",
    "fonts-dejavu-core",
    "gcc",
    "iproute2",
    "jq",
    "kmod",
    "libc6-dev",
    "libelf1t64",
    "libseccomp2",
    "libssl3t64",
    "make",
    "memcached",
    "pahole",
    "polkitd",
    "procps",
    "psmisc",
    "qemu-system-x86",
    "rt-tests",
    "socat",
    "stress-ng",
    "systemd",
    "xz-utils",
    "zlib1g",
    "zstd",
];

/// Where the host VM mounts what does not come with the root.
const MOUNT_POINTS: &[&str] = &["out", "src/scx_pvsched", "lab/kernels", "lab/run", "build"];

/// A root made or being made.
pub struct Root(PathBuf);

impl Root {
    pub fn new(cache: &Cache) -> Self {
        Self(cache.folder(&format!("root-{SUITE}")))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether the root has everything this version of the lab wants in it.
    pub fn complete(&self) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp == contents())
    }

    fn stamp(&self) -> PathBuf {
        self.0.join("lab/complete")
    }

    /// Makes the root or brings it up to date; starts where an interrupted call stopped.
    pub fn prepare(&self, cache: &Cache) -> Result<()> {
        if self.complete() {
            return Ok(());
        }
        let mirror = mirror::find()?;
        if !self.0.exists() {
            eprintln!("lab: installing Debian {SUITE} into {}", self.0.display());
            // debootstrap cannot resume, so what it leaves when interrupted goes; its mounts have
            // gone already with their namespace.
            let partial = self.0.with_extension("partial");
            if partial.exists() {
                fs::remove_dir_all(&partial)?;
            }
            let mut debootstrap = Command::new("unshare");
            debootstrap
                .args(["--mount", "--propagation", "private", "debootstrap"])
                .args(["--variant=minbase", SUITE])
                .arg(&partial)
                .arg(&mirror);
            process::run_logged(&mut debootstrap, &cache.log())?;
            fs::rename(&partial, &self.0)?;
        }
        self.configure(&mirror)?;
        eprintln!("lab: installing QEMU and tools into the root");
        process::run_logged(self.enter("apt-get").arg("update"), &cache.log())?;
        let mut apt = self.enter("apt-get");
        apt.args(["install", "--yes", "-t", &format!("{SUITE}-backports")])
            .args(PACKAGES);
        process::run_logged(&mut apt, &cache.log()).context("the root's packages")?;
        process::run_logged(self.enter("apt-get").arg("clean"), &cache.log())?;
        emulator::prepare(self)?;
        fs::write(self.stamp(), contents())?;
        Ok(())
    }

    fn configure(&self, mirror: &str) -> Result<()> {
        mirror::configure_root(&self.0, mirror, SUITE)?;
        // The cache can be made anew, so it need not survive a power cut.
        fs::write(self.0.join("etc/dpkg/dpkg.cfg.d/lab"), "force-unsafe-io\n")?;
        let apt = "APT::Sandbox::User \"root\";\nAPT::Install-Recommends \"false\";\n";
        fs::write(self.0.join("etc/apt/apt.conf.d/90lab"), apt)?;
        // Services have no business in a build root.
        let policy = self.0.join("usr/sbin/policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        for point in MOUNT_POINTS {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(self.0.join(point))?;
        }
        let mtab = self.0.join("etc/mtab");
        if mtab.symlink_metadata().is_err() {
            symlink("/proc/mounts", &mtab)?;
        }
        Ok(())
    }

    /// A command inside the root, in a mount namespace of its own, so that nothing stays mounted
    /// however it ends.
    pub fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        self.enter_with(Path::new("/var/empty"), program)
    }

    /// [`Root::enter`] with the machine's folder `build` at `/build`.
    pub fn enter_with(&self, build: &Path, program: impl AsRef<OsStr>) -> Command {
        const ENTER: &str = r#"
            set -e
            root=$1 build=$2
            shift 2
            mount -t proc proc "$root/proc"
            mount --rbind /dev "$root/dev"
            mount -t tmpfs tmpfs "$root/tmp"
            if [ -d "$build" ]; then mount --bind "$build" "$root/build"; fi
            exec chroot "$root" "$@""#;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                ENTER,
                "enter",
            ])
            .arg(&self.0)
            .arg(build)
            .arg(program)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// A program of the root run on the machine itself, by the root's loader and libraries: so
    /// the machine needs no QEMU of its own, and paths keep their meaning.
    pub fn foreign(&self, program: &str) -> Vec<String> {
        self.loaded(&self.0.join("usr/bin").join(program))
    }

    /// The QEMU that emulates the host VM, run like [`Root::foreign`]'s programs.
    pub fn emulator(&self) -> Vec<String> {
        self.loaded(&self.emulator_file())
    }

    pub(crate) fn emulator_file(&self) -> PathBuf {
        self.0.join("lab/emulator")
    }

    fn loaded(&self, program: &Path) -> Vec<String> {
        vec![
            self.0
                .join("lib64/ld-linux-x86-64.so.2")
                .display()
                .to_string(),
            "--library-path".to_owned(),
            self.libraries().display().to_string(),
            program.display().to_string(),
        ]
    }

    /// The folder of the root's libraries.
    pub fn libraries(&self) -> PathBuf {
        self.0.join("usr/lib/x86_64-linux-gnu")
    }

    /// The libraries a program needs, as the root's loader resolves them: (name, file).
    pub fn needed(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        let loader = self.0.join("lib64/ld-linux-x86-64.so.2");
        let mut list = Command::new(&loader);
        list.arg("--library-path")
            .arg(self.libraries())
            .arg("--list")
            .arg(program);
        let list = process::text(&mut list)
            .with_context(|| format!("{} does not run in {SUITE}", program.display()))?;
        Ok(parse_needed(&list))
    }
}

fn contents() -> String {
    format!(
        "{SUITE} {} {} without {}\n",
        PACKAGES.join(" "),
        MOUNT_POINTS.join(" "),
        emulator::MENDED
    )
}

/// Takes `name => file (address)` lines; the loader and the vdso have no arrow.
fn parse_needed(list: &str) -> Vec<(String, PathBuf)> {
    list.lines()
        .filter_map(|line| {
            let (name, file) = line.trim().split_once(" => ")?;
            let (file, _) = file.rsplit_once(" (")?;
            // The loader is listed by its path, and every initrd has it anyway.
            (!name.starts_with('/')).then(|| (name.to_owned(), PathBuf::from(file)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read_from_the_loaders_list() {
        let list = "\tlinux-vdso.so.1 (0x00007ffd3c5f2000)\n\
                    \tlibelf.so.1 => /c/root/usr/lib/x86_64-linux-gnu/libelf.so.1 (0x00007f1)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /c/root/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let file = PathBuf::from("/c/root/usr/lib/x86_64-linux-gnu/libelf.so.1");
        assert_eq!(parse_needed(list), [("libelf.so.1".to_owned(), file)]);
    }
}
