// SPDX-License-Identifier: GPL-2.0-only
//! What CPUs are for, and which the host is to keep apart: declared through the driver, and kept in
//! a configuration across reboots.
//!
//! ```toml
//! [cpu.0]
//! role = "interrupt"
//!
//! [cpu."1,4-7"]
//! role = "latency"
//! group = 1
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{bail, ensure, Context, Result};
use clap::ValueEnum;
use scx_pvsched::abi;
use serde::{Deserialize, Serialize};

use crate::args::Change;
use crate::driver::Driver;
use crate::run::missing;
use crate::uapi::{PVSCHED_CPU_ABSENT, PVSCHED_INFO_DEVICE};

/// Where roles are kept.
pub const CONFIG: &str = "/etc/pvsched-guest.toml";

const HEAD: &str =
    "# Written by `pvsched-guest role --persist`, declared by `pvsched-guest run`.\n\n";

/// More CPUs than any machine has; bounds what a list may name.
const CPUS_MAX: u32 = 65_536;

/// What a CPU is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Nothing special
    #[default]
    None,
    /// Latency-critical work
    Latency,
    /// Handles interrupts that others wait for
    Interrupt,
    /// Throughput only, nobody waits for it
    Batch,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Latency => "latency",
            Self::Interrupt => "interrupt",
            Self::Batch => "batch",
        }
    }
}

/// What is declared for one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Declared {
    pub role: Role,
    /// Exclusion group; 0 for none.
    pub group: u16,
}

impl From<u64> for Declared {
    /// From a word of the page.
    fn from(word: u64) -> Self {
        let [role, low, high, ..] = word.to_le_bytes();
        Self {
            role: match u32::from(role) {
                abi::PVSCHED_ROLE_LATENCY => Role::Latency,
                abi::PVSCHED_ROLE_INTERRUPT => Role::Interrupt,
                abi::PVSCHED_ROLE_BATCH => Role::Batch,
                _ => Role::None,
            },
            group: u16::from_le_bytes([low, high]),
        }
    }
}

impl From<Declared> for u64 {
    fn from(declared: Declared) -> Self {
        let role = match declared.role {
            Role::None => abi::PVSCHED_ROLE_NONE,
            Role::Latency => abi::PVSCHED_ROLE_LATENCY,
            Role::Interrupt => abi::PVSCHED_ROLE_INTERRUPT,
            Role::Batch => abi::PVSCHED_ROLE_BATCH,
        };
        Self::from(role) | Self::from(declared.group) << abi::PVSCHED_ROLE_GROUP_SHIFT
    }
}

/// CPUs, as the kernel lists them: `1,4-7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(BTreeSet<u32>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.trim().parse().ok().filter(|cpu: &u32| *cpu < CPUS_MAX);
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err(format!("{text:?} is no list of CPUs such as 1,4-7")),
            }
        }
        Ok(Self(cpus))
    }
}

/// A configuration: what to declare, by CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Config(BTreeMap<u32, Declared>);

/// As it is written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    cpu: BTreeMap<String, Declared>,
}

impl FromStr for Config {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        // The parser's errors show the line, and the key in it.
        let file: File = toml::from_str(text)?;
        let mut cpus = BTreeMap::new();
        for (key, declared) in file.cpu {
            let list: CpuList = match key.parse() {
                Ok(list) => list,
                Err(error) => bail!("cpu.{key:?}: {error}"),
            };
            for cpu in list.0 {
                ensure!(
                    cpus.insert(cpu, declared).is_none(),
                    "cpu.{key:?}: CPU {cpu} has an entry already"
                );
            }
        }
        Ok(Self(cpus))
    }
}

impl Config {
    /// Nothing if there is no such file.
    fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        text.parse().with_context(|| path.display().to_string())
    }

    fn write(&self, path: &Path) -> Result<()> {
        let cpu = self.0.iter().map(|(cpu, one)| (cpu.to_string(), *one));
        let text = toml::to_string(&File { cpu: cpu.collect() })?;
        // Whoever reads it meanwhile, or after a crash, finds the old file or the new one.
        let mut new = PathBuf::from(path).into_os_string();
        new.push(".new");
        fs::write(&new, HEAD.to_owned() + &text)
            .and_then(|()| fs::rename(&new, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Declares what a configuration says. Returns of how many CPUs.
pub fn apply(driver: &Driver, path: &Path) -> Result<usize> {
    let config = Config::read(path)?;
    let mut count = 0;
    for (cpu, declared) in config.0 {
        let set = driver.set_role(cpu, declared.into());
        let set = set.with_context(|| format!("{}: cpu.{cpu}", path.display()))?;
        count += usize::from(set);
    }
    Ok(count)
}

/// `pvsched-guest role`. Returns what to print.
pub fn command(change: &Change) -> Result<String> {
    let Change {
        cpu,
        role,
        group,
        persist,
        config: path,
    } = change;
    let wanted = |cpu_number: u32| cpu.as_ref().is_none_or(|list| list.0.contains(&cpu_number));
    let changes = role.is_some() || group.is_some();
    let driver = Driver::open(changes)?;
    let now = driver.as_ref().map(declared).transpose()?.flatten();
    let config = if *persist {
        Some(Config::read(path)?)
    } else {
        None
    };
    let Some(mut known) = now.or_else(|| config.as_ref().map(|config| config.0.clone())) else {
        match driver {
            Some(driver) => bail!(missing(&driver.info()?)),
            None => bail!("the driver is not loaded (try: modprobe virtio_pvsched)"),
        }
    };
    if changes {
        for cpu in cpu.iter().flat_map(|list| &list.0) {
            let one = known.entry(*cpu).or_default();
            one.role = role.unwrap_or(one.role);
            one.group = group.unwrap_or(one.group);
            if let Some(driver) = &driver {
                // Without a device there is only the configuration to change.
                driver.set_role(*cpu, (*one).into())?;
            }
        }
    }
    if let Some(mut config) = config {
        for (cpu, one) in known.iter().filter(|(cpu, _)| wanted(**cpu)) {
            if *one == Declared::default() {
                config.0.remove(cpu);
            } else {
                config.0.insert(*cpu, *one);
            }
        }
        config.write(path)?;
    }
    let mut text = format!("{:>4} {:<9} {:>5}\n", "CPU", "role", "group");
    for (cpu, one) in known.iter().filter(|(cpu, _)| wanted(**cpu)) {
        writeln!(text, "{cpu:>4} {:<9} {:>5}", one.role.name(), one.group)?;
    }
    Ok(text)
}

/// What is declared for each CPU; None without a device.
fn declared(driver: &Driver) -> Result<Option<BTreeMap<u32, Declared>>> {
    let info = driver.info()?;
    if info.flags & PVSCHED_INFO_DEVICE == 0 {
        return Ok(None);
    }
    let mut cpus = BTreeMap::new();
    for number in 0..info.cpu_count {
        let cpu = driver.cpu(number)?;
        if cpu.state != PVSCHED_CPU_ABSENT {
            cpus.insert(number, cpu.page.role.into());
        }
    }
    Ok(Some(cpus))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_of_cpus_reads_like_the_kernels() {
        let list: CpuList = "1, 4-6".parse().unwrap();
        assert_eq!(list.0, BTreeSet::from([1, 4, 5, 6]));
        for bad in ["", "1,", "3-1", "x", "-1", "1-", "0-99999999", "+1-2-3"] {
            assert!(bad.parse::<CpuList>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_configuration_names_cpus_and_lists() {
        let text =
            "[cpu.0]\nrole = \"interrupt\"\n[cpu.\"1,4-5\"]\nrole = \"latency\"\ngroup = 3\n";
        let config: Config = text.parse().unwrap();
        let (role, group) = (Role::Latency, 3);
        assert_eq!(config.0[&5], Declared { role, group });
        assert_eq!(config.0[&0].role, Role::Interrupt);
        assert_eq!(config.0.len(), 4);
    }

    #[test]
    fn an_error_names_file_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roles.toml");
        for (text, key) in [
            ("[cpu.0]\nroll = 1\n", "roll"),
            ("[cpu.0]\nrole = \"fast\"\n", "role"),
            ("[cpu.0]\ngroup = 70000\n", "group"),
            ("[cpu.x]\ngroup = 1\n", "cpu.\"x\""),
            ("[cpu.1]\ngroup = 1\n[cpu.\"0-2\"]\ngroup = 1\n", "cpu."),
            ("[cpus.1]\n", "cpus"),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", Config::read(&path).unwrap_err());
            assert!(
                error.contains("roles.toml") && error.contains(key),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn a_configuration_that_is_not_there_says_nothing() {
        let path = Path::new("/nonexistent/roles.toml");
        assert_eq!(Config::read(path).unwrap(), Config::default());
    }

    fn some_role() -> impl Strategy<Value = Role> {
        prop::sample::select(Role::value_variants())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            cpus in prop::collection::btree_map(0_u32..CPUS_MAX, (some_role(), any::<u16>()), 0..9)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("roles.toml");
            let cpus = cpus.into_iter().map(|(cpu, (role, group))| (cpu, Declared { role, group }));
            let config = Config(cpus.collect());
            config.write(&path).unwrap();
            prop_assert_eq!(Config::read(&path).unwrap(), config);
        }

        #[test]
        fn a_declaration_survives_the_page(role in some_role(), group: u16) {
            let declared = Declared { role, group };
            prop_assert_eq!(Declared::from(u64::from(declared)), declared);
        }

        #[test]
        fn any_word_is_a_declaration(word: u64) {
            prop_assert!(!Declared::from(word).role.name().is_empty());
        }

        #[test]
        fn any_text_is_a_configuration_or_an_error(text in ".{0,80}") {
            let _ = text.parse::<Config>();
        }
    }
}
