// SPDX-License-Identifier: GPL-2.0-only
//! The configuration file: what each VM may have.
//!
//! - [`allowed`]: what one VM may have, as a validated type
//! - [`parse`]: text in, [`Config`] out
//! - here: which rule is a VM's, and the file with its reload
//!
//! `scripts/scx_pvsched.toml` describes every key.

pub mod allowed;
pub mod parse;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use glob::Pattern;
use log::info;
use thiserror::Error;

use super::options::Options;
use crate::handoff::{server, Protocol};
pub use allowed::{Allowed, Groups};
use parse::Wrong;

/// Read when the command line names no other; need not be there.
pub const DEFAULT_FILE: &str = "/etc/scx_pvsched.toml";

/// Which VMs a rule is for: those with that name, of that user, or both where both are given.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    name: Option<Pattern>,
    /// Of the peer on the handoff socket.
    uid: Option<u32>,
    allowed: Allowed,
}

/// What all VMs may have.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    default: Allowed,
    rules: Vec<Rule>,
}

impl Config {
    /// The same for every VM.
    #[must_use]
    pub fn same_for_all(default: Allowed) -> Self {
        let rules = Vec::new();
        Self { default, rules }
    }

    /// What a VM may have that no rule is for.
    #[must_use]
    pub fn default(&self) -> &Allowed {
        &self.default
    }

    /// What a VM of that name may have whose connection is that user's: by the first rule that is
    /// for it.
    #[must_use]
    pub fn allowed(&self, name: &str, uid: u32) -> &Allowed {
        let is_for = |rule: &&Rule| {
            rule.name
                .as_ref()
                .is_none_or(|name_of| name_of.matches(name))
                && rule.uid.is_none_or(|of| of == uid)
        };
        let rule = self.rules.iter().find(is_for);
        rule.map_or(&self.default, |rule| &rule.allowed)
    }

    /// [`Config::allowed`] for a VM that registers.
    #[must_use]
    pub fn allowed_to(&self, vm: &server::VmInfo) -> &Allowed {
        self.allowed(&vm.name, vm.peer_uid)
    }

    /// The protocols that at least one VM might be allowed.
    #[must_use]
    pub fn protocols(&self) -> Vec<Protocol> {
        let mut offered = known_protocols();
        offered.retain(|protocol| {
            let rules = self.rules.iter().map(|rule| &rule.allowed);
            rules
                .chain([&self.default])
                .any(|allowed| allowed.protocols.contains(&protocol.name))
        });
        offered
    }
}

/// Every protocol that the scheduler speaks.
fn known_protocols() -> Vec<Protocol> {
    server::Config::default().protocols
}

/// Why a configuration is not used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("configuration {path}, {wrong}")]
    Wrong { path: PathBuf, wrong: Wrong },
}

/// The file, and what it said when it was last read without an error.
#[derive(Debug)]
pub struct ConfigFile {
    path: PathBuf,
    /// The command line names it, so it must be there.
    named: bool,
    base: Allowed,
    config: Config,
}

impl ConfigFile {
    /// Reads the file that the command line names, or else the default one if there is one.
    ///
    /// # Errors
    /// When a file that is named is not there, and when one that is cannot be read or is wrong.
    pub fn open(options: &Options) -> Result<Self, ConfigError> {
        let base = Allowed::by_options(options);
        let mut file = Self {
            path: options
                .config
                .clone()
                .unwrap_or_else(|| DEFAULT_FILE.into()),
            named: options.config.is_some(),
            config: Config::same_for_all(base.clone()),
            base,
        };
        file.reload()?;
        Ok(file)
    }

    /// Reads it again. A default file that is gone leaves what the command line says.
    ///
    /// # Errors
    /// As [`ConfigFile::open`]; what was read before stays.
    pub fn reload(&mut self) -> Result<(), ConfigError> {
        self.config = match read(&self.path) {
            Ok(text) => parse::config(&text, &self.base, parse::uid_of).map_err(|wrong| {
                let path = self.path.clone();
                ConfigError::Wrong { path, wrong }
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.named => {
                self.config = Config::same_for_all(self.base.clone());
                return Ok(());
            }
            Err(source) => {
                let path = self.path.clone();
                return Err(ConfigError::Unreadable { path, source });
            }
        };
        info!(
            "configuration {}: a default and {} rules",
            self.path.display(),
            self.config.rules.len()
        );
        Ok(())
    }

    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options(path: &Path) -> Options {
        Options::parse_from(["scx_pvsched", "--config", path.to_str().unwrap()])
    }

    #[test]
    fn a_named_file_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing.toml");
        let error = ConfigFile::open(&options(&path)).unwrap_err().to_string();
        assert!(error.contains("missing.toml: No such file"), "{error}");
    }

    #[test]
    fn a_file_is_read_again_and_a_bad_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vms.toml");
        let write = |text: &str| fs::write(&path, text).unwrap();
        write("[default]\ntask_budget_us = 5\n");
        let mut file = ConfigFile::open(&options(&path)).unwrap();
        let budget = |file: &ConfigFile| file.config().default().task_budget_us;
        assert_eq!(budget(&file), 5);

        write("[default]\ntask_budget_us = -5\n");
        let error = file.reload().unwrap_err().to_string();
        assert!(
            error.contains("vms.toml, line 2, `task_budget_us = -5`: "),
            "{error}"
        );
        assert_eq!(budget(&file), 5);
        fs::remove_file(&path).unwrap();
        file.reload().unwrap_err();
        assert_eq!(budget(&file), 5);

        write("[default]\ntask_budget_us = 6\n");
        file.reload().unwrap();
        assert_eq!(budget(&file), 6);
    }

    #[test]
    fn a_file_that_is_no_text_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bytes");
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(ConfigFile::open(&options(&path)).is_err());
        assert!(ConfigFile::open(&options(folder.path())).is_err());
    }
}
