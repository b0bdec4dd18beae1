//! The schedulers that scx_pvsched is compared with, as published on crates.io.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Error, Result};

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
const PEERS: &[Peer] = &[Peer {
    package: "scx_bpfland",
    version: "1.1.4",
    ops: "bpfland",
}];

/// In a checkout: where peers are installed.
const FOLDER: &str = "target/bench";

/// Some of them, as a command line names them: with commas between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers(pub Vec<Peer>);

impl FromStr for Peers {
    type Err = Error;

    fn from_str(names: &str) -> Result<Self> {
        let names = names.split(',').filter(|name| !name.is_empty());
        Ok(Self(names.map(str::parse).collect::<Result<_>>()?))
    }
}

impl fmt::Display for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|peer| peer.package).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Peer {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let names: Vec<_> = PEERS.iter().map(|peer| peer.package).collect();
        PEERS
            .iter()
            .find(|peer| peer.package == name)
            .copied()
            .with_context(|| format!("the peers are {}", names.join(", ")))
    }
}

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
    fn a_peer_is_known_by_the_name_of_its_crate() {
        let peer: Peer = "scx_bpfland".parse().unwrap();
        assert_eq!(peer.ops, "bpfland");
        let error = "scx_unknown".parse::<Peer>().unwrap_err();
        assert!(error.to_string().contains("scx_bpfland"), "{error}");
    }

    #[test]
    fn there_may_be_no_peers() {
        assert_eq!("".parse::<Peers>().unwrap(), Peers::default());
        let peers: Peers = "scx_bpfland".parse().unwrap();
        assert_eq!(peers.to_string().parse::<Peers>().unwrap(), peers);
    }

    #[test]
    fn two_versions_of_a_peer_lie_apart() {
        let peer: Peer = "scx_bpfland".parse().unwrap();
        let other = Peer {
            version: "0.0.1",
            ..peer
        };
        assert_ne!(peer.program(), other.program());
    }
}
