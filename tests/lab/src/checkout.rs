//! The source tree that the lab works for, and what has been built from it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The checkout and its target folder.
#[derive(Clone, Debug)]
pub struct Checkout {
    pub path: PathBuf,
    pub target: PathBuf,
}

impl Checkout {
    /// The checkout that the working folder is in; `$CARGO_TARGET_DIR` is honoured.
    pub fn find() -> Result<Self> {
        let here = env::current_dir()?;
        let path = here
            .ancestors()
            .find(|folder| folder.join("tests/lab/Cargo.toml").exists())
            .context("call this from within a checkout of scx_pvsched")?
            .to_owned();
        let target = env::var_os("CARGO_TARGET_DIR").map_or(path.join("target"), |target| {
            // Cargo takes a relative one from the working folder, too.
            here.join(target)
        });
        Ok(Self { path, target })
    }

    /// Where cargo leaves the binaries of a profile.
    pub fn binaries(&self, profile: &str) -> PathBuf {
        self.target.join(profile)
    }

    /// The lab's own products; always in the checkout, so that reports are easy to find.
    pub fn lab(&self) -> PathBuf {
        self.path.join("target/lab")
    }

    /// The guest driver built for a kernel, if it has been.
    pub fn module(&self, release: &str) -> Option<PathBuf> {
        Some(module_path(&self.lab(), release)).filter(|path| path.exists())
    }
}

/// Where the guest driver for a kernel is put.
pub fn module_path(lab: &Path, release: &str) -> PathBuf {
    lab.join("module").join(release).join("virtio_pvsched.ko")
}

/// Copies a folder and all in it.
pub(crate) fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
