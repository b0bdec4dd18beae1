//! The shape of a virtual machine's processors.

use std::fmt;
use std::str::FromStr;

use anyhow::{ensure, Context, Error, Result};

/// Sockets, cores in each, threads in each of those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topology {
    pub sockets: u32,
    pub cores: u32,
    pub threads: u32,
}

impl Topology {
    /// One socket of cores without siblings.
    pub fn flat(cpus: u32) -> Self {
        Self {
            sockets: 1,
            cores: cpus,
            threads: 1,
        }
    }

    pub fn cpus(self) -> u32 {
        self.sockets * self.cores * self.threads
    }
}

impl FromStr for Topology {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<u32> = text
            .split(',')
            .map(|number| {
                number
                    .trim()
                    .parse()
                    .ok()
                    .filter(|number| (1..=64).contains(number))
            })
            .collect::<Option<_>>()
            .with_context(|| format!("{text}: three numbers from 1 to 64, as in 1,2,2"))?;
        let [sockets, cores, threads] = numbers[..] else {
            anyhow::bail!("{text}: name sockets, cores and threads, as in 1,2,2");
        };
        let topology = Self {
            sockets,
            cores,
            threads,
        };
        ensure!(topology.cpus() <= 64, "{text}: more than 64 processors");
        Ok(topology)
    }
}

/// As QEMU's `-smp` takes it.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sockets,
            cores,
            threads,
        } = self;
        write!(
            f,
            "{},sockets={sockets},cores={cores},threads={threads}",
            self.cpus()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_reads_as_qemu_writes_it() {
        let topology: Topology = "2,2,1".parse().unwrap();
        assert_eq!(topology.cpus(), 4);
        assert_eq!(topology.to_string(), "4,sockets=2,cores=2,threads=1");
        assert_eq!(
            Topology::flat(3).to_string(),
            "3,sockets=1,cores=3,threads=1"
        );
    }

    #[test]
    fn what_is_no_topology_is_refused() {
        for text in [
            "", "2", "2,2", "1,2,2,1", "0,1,1", "1,x,1", "64,64,64", "-1,1,1",
        ] {
            assert!(text.parse::<Topology>().is_err(), "{text}");
        }
    }
}
