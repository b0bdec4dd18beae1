//! The schedulers that scx_pvsched is compared with, as published on crates.io.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::checkout::Checkout;
use crate::{paths, process};

/// One published scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of the crate and of its program.
    pub package: &'static str,
    pub version: &'static str,
    /// What its name in the kernel begins with.
    pub ops: &'static str,
}

/// Those known. The versions are pinned, lest two reports of one name compare with different peers.
pub const PEERS: &[Peer] = &[
    Peer {
        package: "scx_bpfland",
        version: "1.1.4",
        ops: "bpfland",
    },
    Peer {
        package: "scx_cosmos",
        version: "1.1.7",
        ops: "cosmos",
    },
    Peer {
        package: "scx_lavd",
        version: "1.1.4",
        ops: "lavd",
    },
    Peer {
        package: "scx_flash",
        version: "1.1.4",
        ops: "flash",
    },
    Peer {
        package: "scx_tickless",
        version: "1.1.4",
        ops: "tickless",
    },
    Peer {
        package: "scx_rustland",
        version: "1.1.4",
        ops: "rustland",
    },
];

/// In a checkout: where peers are installed.
const FOLDER: &str = "target/bench";

impl Peer {
    /// The folder of this version, below that of a checkout.
    fn root(self, checkout: &Path) -> PathBuf {
        let name = format!("{}-{}", self.package, self.version);
        checkout.join(FOLDER).join("peers").join(name)
    }

    fn program_in(self, checkout: &Path) -> PathBuf {
        self.root(checkout).join("bin").join(self.package)
    }

    /// Its program inside the host VM.
    pub fn program(self) -> PathBuf {
        self.program_in(Path::new(paths::CHECKOUT))
    }

    /// Builds it from the registry, unless that has been done.
    ///
    /// # Errors
    /// When cargo fails; the message has the end of its output.
    pub fn build(self, checkout: &Checkout) -> Result<()> {
        if self.program_in(&checkout.path).exists() {
            return Ok(());
        }
        let Self {
            package, version, ..
        } = self;
        let folder = checkout.path.join(FOLDER);
        fs::create_dir_all(&folder)?;
        eprintln!("bench: building {package} {version}; that takes some minutes");
        let mut install = Command::new("cargo");
        // The folder of the build is common to all peers, as most of what they need is.
        install
            .args(["install", "--locked", package])
            .arg(format!("--version={version}"))
            .arg("--root")
            .arg(self.root(&checkout.path))
            .arg("--target-dir")
            .arg(folder.join("build"));
        process::run_logged(&mut install, &folder.join("build.log"))
            .with_context(|| format!("{package} {version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_of_a_peer_lie_apart() {
        let peer = PEERS[0];
        let other = Peer {
            version: "0.0.1",
            ..peer
        };
        assert_ne!(peer.program(), other.program());
    }
}
