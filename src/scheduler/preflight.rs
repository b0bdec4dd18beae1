// SPDX-License-Identifier: GPL-2.0-only
//! What must be true of the host before anything is loaded.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Kernel that first lets task storage pin a user page (`__uptr`).
const MIN_KERNEL: (u32, u32) = (6, 13);

/// Why this host cannot run the scheduler, and what to do about it.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Unfit {
    #[error("not running as root: loading a scheduler needs root; try again with sudo")]
    NotRoot,
    #[error(
        "this kernel is {0}, and reading guests' pages needs 6.13 or newer; boot a newer kernel"
    )]
    OldKernel(String),
    #[error(
        "this kernel has no sched_ext: /sys/kernel/sched_ext is missing; \
         boot a kernel with CONFIG_SCHED_CLASS_EXT=y"
    )]
    NoSchedExt,
    #[error(
        "another scheduler is attached: {0}; stop it first (systemctl stop scx, scxctl stop, \
         or end its process)"
    )]
    Attached(String),
    #[error(
        "this kernel has no type information: /sys/kernel/btf/vmlinux is missing; \
         boot a kernel with CONFIG_DEBUG_INFO_BTF=y"
    )]
    NoBtf,
}

/// The host as the checks see it; a field each, so that tests can make any host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Effective user id.
    pub euid: u32,
    /// `uname -r`.
    pub release: String,
    /// Root of sysfs.
    pub sys: PathBuf,
}

impl Host {
    /// This machine.
    ///
    /// # Errors
    /// When uname(2) fails.
    pub fn this() -> nix::Result<Self> {
        Ok(Self {
            euid: nix::unistd::geteuid().as_raw(),
            release: nix::sys::utsname::uname()?
                .release()
                .to_string_lossy()
                .into_owned(),
            sys: PathBuf::from("/sys"),
        })
    }

    /// Checks everything, the most basic cause first.
    ///
    /// # Errors
    /// The first thing that stands in the way.
    pub fn check(&self) -> Result<(), Unfit> {
        if self.euid != 0 {
            return Err(Unfit::NotRoot);
        }
        let sched_ext = self.sys.join("kernel/sched_ext");
        if !sched_ext.exists() {
            return Err(Unfit::NoSchedExt);
        }
        if kernel_version(&self.release) < MIN_KERNEL {
            return Err(Unfit::OldKernel(self.release.clone()));
        }
        if !self.sys.join("kernel/btf/vmlinux").exists() {
            return Err(Unfit::NoBtf);
        }
        match word(&sched_ext.join("state")).as_deref() {
            None | Some("disabled") => Ok(()),
            Some(_) => Err(Unfit::Attached(
                word(&sched_ext.join("root/ops")).unwrap_or_else(|| "name unknown".into()),
            )),
        }
    }
}

fn word(path: &Path) -> Option<String> {
    fs::read_to_string(path)
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Major and minor number of a release; 0.0 for what has none.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(dir: &tempfile::TempDir) -> Host {
        let sys = dir.path().to_owned();
        fs::create_dir_all(sys.join("kernel/sched_ext/root")).unwrap();
        fs::create_dir_all(sys.join("kernel/btf")).unwrap();
        fs::write(sys.join("kernel/btf/vmlinux"), "").unwrap();
        fs::write(sys.join("kernel/sched_ext/state"), "disabled\n").unwrap();
        Host {
            euid: 0,
            release: "6.18.15+deb13-amd64".into(),
            sys,
        }
    }

    #[test]
    fn a_fit_host_passes() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host(&dir).check(), Ok(()));
    }

    #[test]
    fn each_obstacle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fit = host(&dir);
        let user = Host {
            euid: 1000,
            ..fit.clone()
        };
        assert_eq!(user.check(), Err(Unfit::NotRoot));
        let old = Host {
            release: "6.12.9".into(),
            ..fit.clone()
        };
        assert_eq!(old.check(), Err(Unfit::OldKernel("6.12.9".into())));

        fs::write(dir.path().join("kernel/sched_ext/state"), "enabled\n").unwrap();
        fs::write(
            dir.path().join("kernel/sched_ext/root/ops"),
            "bpfland_1.1.4\n",
        )
        .unwrap();
        assert_eq!(fit.check(), Err(Unfit::Attached("bpfland_1.1.4".into())));
        fs::remove_file(dir.path().join("kernel/btf/vmlinux")).unwrap();
        assert_eq!(fit.check(), Err(Unfit::NoBtf));
        fs::remove_dir_all(dir.path().join("kernel/sched_ext")).unwrap();
        assert_eq!(fit.check(), Err(Unfit::NoSchedExt));
    }

    #[test]
    fn releases_are_read_as_numbers() {
        assert_eq!(kernel_version("7.3.4-amd64"), (7, 3));
        assert_eq!(kernel_version("6.13-rc1"), (6, 13));
        assert_eq!(kernel_version("unknown"), (0, 0));
    }
}
