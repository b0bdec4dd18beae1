// SPDX-License-Identifier: GPL-2.0-only
//! The homes of vCPUs in exclusion groups, kept up to date.
//!
//! A guest declares a vCPU's role and group in its page, the BPF programs note the word when the
//! vCPU runs (`pv_task.role`), and [`Homes`] looks now and then whether anything has changed, has
//! homes worked out anew ([`place`]) and tells the BPF programs.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use log::{debug, warn};
use nix::sched::{sched_getaffinity, CpuSet};
use nix::unistd::Pid;
use scx_utils::Topology;

use super::config::Groups;
use super::registry::Vms;
use crate::policy::homes::{place, Cores, Declared, Group, Id, Member, Placement};
use crate::policy::Role;

/// How often the declarations are looked at. A change takes about that long to have its effect.
const LOOK: Duration = Duration::from_secs(1);

/// A CPU that comes or goes is seen in some of the kernel's files earlier than in others, for
/// milliseconds, on a busy host for longer: how often, and after what pause, they are read.
const READINGS: u32 = 20;
const READ_AGAIN: Duration = Duration::from_millis(100);

/// The topology of this host.
///
/// # Errors
/// When the kernel does not show it, also not a little later.
pub fn topology() -> Result<Topology> {
    read_again(Topology::new).context("cannot read the CPU topology")
}

fn read_again<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..READINGS {
        match read() {
            Ok(it) => return Ok(it),
            Err(error) => debug!("CPUs may just be coming or going: {error:#}"),
        }
        thread::sleep(READ_AGAIN);
    }
    read()
}

/// The cores and cache domains of this host.
///
/// # Errors
/// When a CPU's number is out of all bounds.
pub fn cores(topology: &Topology) -> Result<Cores> {
    let cpus = topology.all_cpus.values();
    let cpus = cpus.map(|cpu| Ok((u32::try_from(cpu.id)?, cpu.core_id, cpu.llc_id)));
    Ok(Cores::new(cpus.collect::<Result<Vec<_>>>()?))
}

/// The homes in force.
#[derive(Debug)]
pub struct Homes {
    cores: Cores,
    smt_isolate: bool,
    next_look: Instant,
    /// As last looked at, with the thread of each.
    members: Vec<(Member, u32)>,
    placement: Placement,
    /// What the BPF programs were told: thread and home.
    told: BTreeMap<Id, (u32, u32)>,
    /// VMs, or all that share (`None`), of whose groups it was said that they have too few CPUs.
    warned: BTreeSet<Option<u32>>,
}

impl Homes {
    /// No homes yet.
    #[must_use]
    pub fn new(cores: Cores, smt_isolate: bool) -> Self {
        Self {
            cores,
            smt_isolate,
            next_look: Instant::now(),
            members: Vec::new(),
            placement: Placement::default(),
            told: BTreeMap::new(),
            warned: BTreeSet::new(),
        }
    }

    /// The home of a vCPU.
    #[must_use]
    pub fn of(&self, vm: u32, apic_id: u32) -> Option<u32> {
        self.placement.homes.get(&(vm, apic_id)).copied()
    }

    /// How many vCPUs share what their group says they should not.
    #[must_use]
    pub fn shared(&self) -> u64 {
        self.placement.shared.values().sum()
    }

    /// Once a second: looks at what guests declare and, where that or an affinity has changed, gives
    /// out homes anew.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn look(&mut self, vms: &Vms) -> Result<()> {
        if Instant::now() < self.next_look {
            return Ok(());
        }
        self.next_look = Instant::now() + LOOK;
        let members = self.members(vms)?;
        if members == self.members {
            return Ok(());
        }
        let (bare, threads): (Vec<_>, Vec<_>) = members.iter().cloned().unzip();
        self.placement = place(&bare, &self.placement.homes, &self.cores, self.smt_isolate);
        self.tell(vms, &bare, &threads)?;
        self.members = members;
        self.warn(vms);
        Ok(())
    }

    /// The vCPUs whose groups count, with their threads.
    fn members(&self, vms: &Vms) -> Result<Vec<(Member, u32)>> {
        let mut members = Vec::new();
        for (number, vm) in vms.iter() {
            let scope = match vm.allowed.groups() {
                Groups::None => continue,
                Groups::Own => Some(number),
                Groups::Shared => None,
            };
            for (apic_id, vcpu) in &vm.vcpus {
                let Some(task) = vms.state_of(vcpu)? else {
                    continue;
                };
                let declared = Declared::from(task.role);
                if declared.group == 0 {
                    continue;
                }
                // Fails for a thread that has just gone.
                let Some(allowed) = affinity(vcpu.tid) else {
                    continue;
                };
                let member = Member {
                    id: (number, *apic_id),
                    group: Group {
                        vm: scope,
                        number: declared.group,
                    },
                    latency: declared.role == Role::Latency,
                    allowed,
                };
                members.push((member, vcpu.tid));
            }
        }
        Ok(members)
    }

    /// Tells the BPF programs what has changed. A vCPU that left its group keeps an entry that they
    /// no longer look at.
    fn tell(&mut self, vms: &Vms, members: &[Member], threads: &[u32]) -> Result<()> {
        let mut told = BTreeMap::new();
        for (member, tid) in members.iter().zip(threads) {
            let Some(home) = self.placement.homes.get(&member.id) else {
                continue;
            };
            told.insert(member.id, (*tid, *home));
        }
        let changed: BTreeSet<Id> = told
            .keys()
            .chain(self.told.keys())
            .filter(|id| told.get(id) != self.told.get(id))
            .copied()
            .collect();
        for (number, vm) in vms.iter() {
            for (apic_id, vcpu) in &vm.vcpus {
                let id = (number, *apic_id);
                if changed.contains(&id) {
                    vms.set_home(vcpu, told.get(&id).map(|(_, home)| *home))?;
                }
            }
        }
        self.told = told;
        Ok(())
    }

    /// Says once for each VM that its groups are too large: a guest can make groups as it likes.
    fn warn(&mut self, vms: &Vms) {
        let numbers: BTreeSet<_> = vms.iter().map(|(number, _)| number).collect();
        self.warned
            .retain(|vm| vm.is_none_or(|number| numbers.contains(&number)));
        for (group, count) in &self.placement.shared {
            if !self.warned.insert(group.vm) {
                continue;
            }
            let whose = vms
                .iter()
                .find(|(number, _)| group.vm == Some(*number))
                .map_or("all VMs".to_owned(), |(_, vm)| format!("VM {}", vm.name));
            let what = if self.smt_isolate { "cores" } else { "CPUs" };
            warn!(
                "{whose}: exclusion group {} has more vCPUs than {what} that they may run on; \
                 {count} of them share (shared_placements in the statistics counts all)",
                group.number
            );
        }
    }
}

/// The CPUs that a thread may run on.
fn affinity(tid: u32) -> Option<Vec<u32>> {
    let set = sched_getaffinity(Pid::from_raw(i32::try_from(tid).ok()?)).ok()?;
    let cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
    Some(cpus.filter_map(|cpu| u32::try_from(cpu).ok()).collect())
}
#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn what_cannot_be_read_while_a_cpu_comes_is_read_again() {
        let mut readings = 0;
        let read = read_again(|| {
            readings += 1;
            if readings < 3 {
                bail!("No such file or directory");
            }
            Ok(readings)
        });
        assert_eq!(read.unwrap(), 3);
    }

    #[test]
    fn this_thread_may_run_somewhere() {
        assert!(!affinity(std::process::id()).unwrap().is_empty());
    }
}
