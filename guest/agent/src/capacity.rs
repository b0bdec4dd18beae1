// SPDX-License-Identifier: GPL-2.0-only
//! `pvsched-guest capacity`: what the host has for each CPU, as its scheduler says in the pages.

use std::fmt;

use anyhow::Result;
use scx_pvsched::abi;
use serde::Serialize;

use crate::driver::Driver;
use crate::status::Status;
use crate::uapi::{pvsched_cpu_info, PVSCHED_CPU_SET};

/// The answer of `status`, and what the host says of each CPU of which it says anything.
#[derive(Debug, Serialize)]
pub struct Capacity {
    #[serde(skip)]
    status: Status,
    pub explanation: String,
    pub cpus: Vec<Cpu>,
}

/// What the host has for one CPU, as of when this last got or lost a physical one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cpu {
    pub cpu: u32,
    pub state: State,
    /// 0..=1024: of the host's fastest CPU, the part that it got of late of what it wanted.
    pub capacity: u16,
    /// Tasks of the host and of other guests that wait for the same physical CPU; 0 where the host
    /// does not tell.
    pub load: f64,
    /// Microseconds from wanting a physical CPU to having one, of late.
    pub wait_us: u32,
    /// The physical CPU that it runs on or ran on last, and the last-level cache of that; none where
    /// the host does not tell.
    pub physical_cpu: Option<u16>,
    pub cache: Option<u16>,
    /// Nanoseconds of the host's clock since when it is in that state.
    pub since_ns: u64,
    /// Nanoseconds that it ran, and that it wanted to and did not.
    pub ran_ns: u64,
    pub waited_ns: u64,
}

/// What a guest's CPU does on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Waiting,
    Sleeping,
    /// One that this program does not know.
    Other,
}

fn field(word: u64, shift: u32) -> u16 {
    let [low, high, ..] = (word >> shift).to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// A number of the host's, if it tells.
fn told(number: u16) -> Option<u16> {
    (number != u16::MAX).then_some(number)
}

impl Cpu {
    /// None of a CPU of which the host says nothing.
    fn decode(info: &pvsched_cpu_info) -> Option<Self> {
        let page = &info.page;
        let state = page.placement & u64::from(abi::PVSCHED_PLACEMENT_STATE_MASK);
        let state = match u32::try_from(state).unwrap_or(u32::MAX) {
            abi::PVSCHED_HOST_UNKNOWN => return None,
            abi::PVSCHED_HOST_RUNNING => State::Running,
            abi::PVSCHED_HOST_WAITING => State::Waiting,
            abi::PVSCHED_HOST_SLEEPING => State::Sleeping,
            _ => State::Other,
        };
        let full = u16::try_from(abi::PVSCHED_CAPACITY_FULL).unwrap_or(u16::MAX);
        let load = field(page.capacity, abi::PVSCHED_CAPACITY_LOAD_SHIFT);
        (info.state == PVSCHED_CPU_SET).then(|| Self {
            cpu: info.cpu,
            state,
            capacity: field(page.capacity, 0).min(full),
            load: f64::from(load) / f64::from(abi::PVSCHED_CAPACITY_LOAD_ONE),
            wait_us: u32::try_from(page.capacity >> abi::PVSCHED_CAPACITY_WAIT_SHIFT)
                .unwrap_or(u32::MAX),
            physical_cpu: told(field(page.placement, abi::PVSCHED_PLACEMENT_CPU_SHIFT)),
            cache: told(field(page.placement, abi::PVSCHED_PLACEMENT_CACHE_SHIFT)),
            since_ns: page.since,
            ran_ns: page.ran,
            waited_ns: page.waited,
        })
    }
}

impl Capacity {
    fn new(status: Status, cpus: &[pvsched_cpu_info]) -> Self {
        let cpus: Vec<_> = cpus.iter().filter_map(Cpu::decode).collect();
        let explanation = if !cpus.is_empty() {
            "as of when each CPU last got or lost a physical one".to_owned()
        } else if status.exit_code() == 0 {
            "the host's scheduler says nothing of it: it is an older one, or has just started"
                .to_owned()
        } else {
            status.explanation.clone()
        };
        Self {
            status,
            explanation,
            cpus,
        }
    }

    /// That of `status`.
    pub fn exit_code(&self) -> u8 {
        self.status.exit_code()
    }
}

pub fn read() -> Result<Capacity> {
    let Some(driver) = Driver::open(false)? else {
        return Ok(Capacity::new(Status::no_driver(), &[]));
    };
    let info = driver.info()?;
    let cpus = driver.cpus(&info)?;
    Ok(Capacity::new(Status::decode(&info, &cpus), &cpus))
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cpus.is_empty() {
            return writeln!(f, "unknown: {}", self.explanation);
        }
        writeln!(
            f,
            "{:>4} {:<9} {:>8} {:>6} {:>10} {:>8} {:>6} {:>12} {:>12}",
            "CPU",
            "state",
            "capacity",
            "load",
            "wait us",
            "physical",
            "cache",
            "ran ms",
            "waited ms"
        )?;
        for cpu in &self.cpus {
            writeln!(f, "{cpu}")?;
        }
        Ok(())
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Sleeping => "sleeping",
            Self::Other => "other",
        })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u16>| number.map_or_else(|| "-".into(), |n| n.to_string());
        write!(
            f,
            "{:>4} {:<9} {:>8} {:>6.2} {:>10} {:>8} {:>6} {:>12} {:>12}",
            self.cpu,
            self.state,
            self.capacity,
            self.load,
            self.wait_us,
            number(self.physical_cpu),
            number(self.cache),
            self.ran_ns / 1_000_000,
            self.waited_ns / 1_000_000
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(placement: u64, capacity: u64) -> pvsched_cpu_info {
        pvsched_cpu_info {
            cpu: 1,
            state: PVSCHED_CPU_SET,
            page: abi::pvsched_page {
                placement,
                capacity,
                since: 5,
                ran: 6,
                waited: 7,
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_page_is_decoded() {
        let cpu = Cpu::decode(&info(3 << 32 | 17 << 16 | 2, 1500 << 32 | 40 << 16 | 512));
        let expected = Cpu {
            cpu: 1,
            state: State::Waiting,
            capacity: 512,
            load: 2.5,
            wait_us: 1500,
            physical_cpu: Some(17),
            cache: Some(3),
            since_ns: 5,
            ran_ns: 6,
            waited_ns: 7,
        };
        assert_eq!(cpu, Some(expected));
    }

    #[test]
    fn a_number_that_is_not_told_is_none() {
        let placement = u64::from(abi::PVSCHED_HOST_RUNNING) | abi::PVSCHED_PLACEMENT_UNTOLD;
        let cpu = Cpu::decode(&info(placement, 512)).unwrap();
        assert_eq!((cpu.state, cpu.capacity), (State::Running, 512));
        assert_eq!((cpu.physical_cpu, cpu.cache), (None, None));
        assert!(cpu.to_string().contains(" - "), "{cpu}");
    }

    #[test]
    fn a_host_that_says_nothing_is_told_from_one_that_is_not_there() {
        assert_eq!(Cpu::decode(&info(0, 1024)), None);
        let unset = pvsched_cpu_info {
            state: crate::uapi::PVSCHED_CPU_UNSET,
            ..info(1, 1024)
        };
        assert_eq!(Cpu::decode(&unset), None);
        let absent = Capacity::new(Status::no_driver(), &[]);
        assert_eq!(absent.exit_code(), 7);
        assert!(absent.to_string().starts_with("unknown: the driver"));
    }

    #[test]
    fn every_cpu_has_a_line() {
        let capacity = Capacity::new(Status::no_driver(), &[info(1, 1024), info(3, 0)]);
        assert_eq!(capacity.to_string().lines().count(), 3);
    }

    proptest! {
        #[test]
        fn no_page_makes_the_decoder_fail(placement: u64, word: u64) {
            if let Some(cpu) = Cpu::decode(&info(placement, word)) {
                prop_assert!(cpu.capacity <= 1024);
                prop_assert!(!cpu.to_string().is_empty());
            }
        }
    }
}
