// SPDX-License-Identifier: GPL-2.0-only
//! The VMs that were handed over: their pages go into the BPF map that pins them, and their
//! names stay here for the statistics.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};
use log::{info, warn};

use super::bpf::{intf, MapValue};
use super::config::{Allowed, Config};
use super::placement::Homes;
use super::stats::{Metrics, VcpuMetrics, VmMetrics};
use crate::handoff::server::{MappedPage, Registry, RegistryError, VcpuInfo, VmId, VmInfo};
use crate::handoff::ProtocolName;

/// The number of `ioctl` in x86-64's system call table.
const SYS_IOCTL: &str = "16";
/// `KVM_RUN`, `_IO(KVMIO, 0x80)`; include/uapi/linux/kvm.h.
const KVM_RUN: &str = "0xae80";

/// One vCPU whose page is pinned.
#[derive(Debug)]
pub struct Vcpu {
    /// Thread id in the scheduler's pid namespace.
    pub tid: u32,
    pidfd: OwnedFd,
    /// `pv_page.attachment`, the key of its host timer.
    attachment: u64,
}

/// One VM, as long as its connection lasts.
#[derive(Debug)]
pub struct Vm {
    /// As its VMM named it; not necessarily unique.
    pub name: String,
    /// Name and version of the negotiated protocol.
    pub protocol: String,
    /// What it may have.
    pub allowed: Allowed,
    info: VmInfo,
    /// Its entry in the map `vms`.
    slot: u32,
    /// By APIC id.
    pub vcpus: BTreeMap<u32, Vcpu>,
}

/// The maps of `bpf/state.bpf.h` that make the BPF programs see the VMs.
pub struct Maps {
    pub tasks: MapHandle,
    pub pages: MapHandle,
    pub dues: MapHandle,
    pub vms: MapHandle,
    pub homes: MapHandle,
}

/// All VMs.
pub struct Vms {
    maps: Maps,
    config: Config,
    attachments: u64,
    vms: BTreeMap<u32, Vm>,
}

/// The entry of the map `vms` for vCPUs that nobody has handed over.
const NOBODY: u32 = 0;

impl Vms {
    /// Serves the maps; the default of `config` is for vCPUs that nobody has handed over, too.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn new(maps: Maps, config: Config) -> Result<Self> {
        let vms = Self {
            maps,
            config,
            attachments: 0,
            vms: BTreeMap::new(),
        };
        vms.grant(NOBODY, vms.config.default(), ProtocolName::LATENCY)?;
        Ok(vms)
    }

    /// Grants what another configuration says, to the VMs that are here, too. Those whose protocol
    /// it does not allow stay until the server asks about them.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn configure(&mut self, config: Config) -> Result<()> {
        self.config = config;
        self.grant(NOBODY, self.config.default(), ProtocolName::LATENCY)?;
        for vm in self.vms.values_mut() {
            vm.allowed = self.config.allowed_to(&vm.info).clone();
        }
        for vm in self.vms.values() {
            self.grant(vm.slot, &vm.allowed, vm.info.protocol)?;
        }
        Ok(())
    }

    /// Tells the BPF programs what the VM with this entry may have.
    fn grant(
        &self,
        slot: u32,
        allowed: &Allowed,
        protocol: ProtocolName,
    ) -> Result<(), libbpf_rs::Error> {
        let vm = intf::pv_vm {
            observe: u32::from(protocol == ProtocolName::OBSERVE),
            ..allowed.to_pv_vm()
        };
        self.maps
            .vms
            .update(&slot.to_ne_bytes(), &vm.to_bytes(), MapFlags::ANY)
    }

    /// An entry of the map `vms` that no VM has.
    fn free_slot(&self) -> Option<u32> {
        (NOBODY + 1..intf::PV_MAX_VMS).find(|slot| self.vms.values().all(|vm| vm.slot != *slot))
    }

    /// The VMs by number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Vm)> {
        self.vms.iter().map(|(id, vm)| (*id, vm))
    }

    /// What the BPF programs know of a vCPU; `None` once its thread is gone.
    ///
    /// # Errors
    /// When the map cannot be read for another reason.
    pub fn state_of(&self, vcpu: &Vcpu) -> Result<Option<intf::pv_task>> {
        lookup_task(&self.maps.tasks, vcpu.pidfd.as_raw_fd())
    }

    /// Tells the BPF programs the CPU that a vCPU's exclusion group leaves it; `None` for any.
    /// Without effect once its thread is gone.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_home(&self, vcpu: &Vcpu, home: Option<u32>) -> Result<()> {
        let home = intf::pv_home {
            cpu: home.map_or(Ok(-1), i32::try_from)?,
            rsvd: 0,
        };
        let key = vcpu.pidfd.as_raw_fd().to_ne_bytes();
        match self
            .maps
            .homes
            .update(&key, &home.to_bytes(), MapFlags::ANY)
        {
            Err(error) if !is_gone(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Ends the host timer of a handover; without effect where there is none.
    fn forget_due(&self, attachment: u64) {
        match self.maps.dues.delete(&attachment.to_ne_bytes()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => warn!("a host timer of a vCPU that is gone stays: {error}"),
        }
    }
}

/// What the BPF programs know of the thread behind a pidfd; `None` once it is gone.
///
/// # Errors
/// When the map cannot be read for another reason.
pub(super) fn lookup_task(tasks: &MapHandle, pidfd: i32) -> Result<Option<intf::pv_task>> {
    match tasks.lookup(&pidfd.to_ne_bytes(), MapFlags::ANY) {
        Ok(Some(bytes)) => intf::pv_task::from_bytes(&bytes).map(Some),
        Ok(None) => Ok(None),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What the BPF programs count on each CPU, and what they keep of each vCPU.
///
/// # Errors
/// When a map cannot be read.
pub(super) fn collect(
    metrics: &mut Metrics,
    vms: &Vms,
    homes: &Homes,
    stats: &dyn MapCore,
) -> Result<()> {
    let key = 0u32.to_ne_bytes();
    let per_cpu = stats
        .lookup_percpu(&key, MapFlags::ANY)?
        .context("the statistics map is empty")?;
    for cpu in per_cpu {
        metrics.add_cpu(&intf::pv_stats::from_bytes(&cpu)?);
    }
    for (id, vm) in vms.iter() {
        let mut entry = VmMetrics {
            name: vm.name.clone(),
            protocol: vm.protocol.clone(),
            class: vm.allowed.class_text(),
            nice: vm.allowed.nice_text(),
            task_budget_us: vm.allowed.task_budget_us(),
            irq_budget_us: vm.allowed.irq_budget_us(),
            vcpus: BTreeMap::new(),
        };
        for (apic_id, vcpu) in &vm.vcpus {
            if let Some(task) = vms.state_of(vcpu)? {
                let home = homes.of(id, *apic_id);
                entry
                    .vcpus
                    .insert(*apic_id, VcpuMetrics::new(vcpu.tid, &task, home));
            }
        }
        metrics.nr_vcpus += entry.vcpus.len() as u64;
        metrics.nr_vms += 1;
        metrics.vms.insert(id, entry);
    }
    Ok(())
}

/// Task storage says that the thread behind a pidfd has exited.
fn is_gone(error: &libbpf_rs::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::raw_os_error)
            == Some(libc::ESRCH)
        || error.to_string().contains("os error 3)")
}

/// Whether a thread that KVM has not yet been seen to enter waits in KVM's run call, as a halted
/// vCPU does: its system call is `ioctl(fd, KVM_RUN)`, and the descriptor is a vCPU's.
fn waits_in_kvm_run(tgid: u32, tid: u32) -> bool {
    let task = Path::new("/proc")
        .join(tgid.to_string())
        .join("task")
        .join(tid.to_string());
    let Ok(line) = fs::read_to_string(task.join("syscall")) else {
        return false;
    };
    let Some(fd) = fd_of_kvm_run(&line) else {
        return false;
    };
    fs::read_link(task.join("fd").join(fd.to_string()))
        .is_ok_and(|target| target.to_string_lossy().starts_with("anon_inode:kvm-vcpu:"))
}

/// The descriptor of a blocked `ioctl(fd, KVM_RUN)` in the text of `/proc/PID/task/TID/syscall`.
fn fd_of_kvm_run(line: &str) -> Option<u32> {
    let mut words = line.split_whitespace();
    if words.next()? != SYS_IOCTL {
        return None;
    }
    let fd = u32::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    (words.next()? == KVM_RUN).then_some(fd)
}

impl Registry for Vms {
    fn is_vcpu(&mut self, vcpu: &VcpuInfo) -> bool {
        let seen = lookup_task(&self.maps.tasks, vcpu.pidfd.as_raw_fd())
            .is_ok_and(|task| task.is_some_and(|task| task.is_vcpu != 0));
        seen || waits_in_kvm_run(vcpu.tgid, vcpu.tid)
    }

    fn allows(&mut self, vm: &VmInfo) -> bool {
        self.config.allowed_to(vm).may_speak(&vm.protocol)
    }

    fn vm_added(&mut self, vm: VmId, info: &VmInfo) -> Result<(), RegistryError> {
        let protocol = format!("{} v{}", info.protocol, info.version);
        info!(
            "VM {}: registered, {protocol}, by process {}",
            &*info.name, info.peer_pid
        );
        let name = info.name.to_string();
        let slot = self
            .free_slot()
            .ok_or_else(|| RegistryError::Internal("there is no room for another VM".into()))?;
        let allowed = self.config.allowed_to(info).clone();
        self.grant(slot, &allowed, info.protocol)
            .map_err(|error| RegistryError::Internal(error.to_string()))?;
        self.vms.insert(
            vm.0,
            Vm {
                name,
                protocol,
                allowed,
                info: info.clone(),
                slot,
                vcpus: BTreeMap::new(),
            },
        );
        Ok(())
    }

    fn attach(
        &mut self,
        vm: VmId,
        vcpu: &VcpuInfo,
        page: &MappedPage,
    ) -> Result<(), RegistryError> {
        let internal = |error: &dyn std::fmt::Display| RegistryError::Internal(error.to_string());
        let pidfd = vcpu
            .pidfd
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| internal(&error))?;

        // struct pv_page of bpf/state.bpf.h: the kernel pins the page behind the address.
        let slot = self
            .vms
            .get(&vm.0)
            .ok_or_else(|| internal(&"the VM is not registered"))?
            .slot;
        let attachment = self.attachments + 1;
        let due = vec![0; usize::try_from(self.maps.dues.value_size()).unwrap_or_default()];
        self.maps
            .dues
            .update(&attachment.to_ne_bytes(), &due, MapFlags::ANY)
            .map_err(|error| internal(&error))?;
        let mut value = page.address().to_ne_bytes().to_vec();
        value.extend_from_slice(&attachment.to_ne_bytes());
        value.extend_from_slice(&slot.to_ne_bytes());
        value.extend_from_slice(&[0; 4]);
        self.maps
            .pages
            .update(&pidfd.as_raw_fd().to_ne_bytes(), &value, MapFlags::ANY)
            .map_err(|error| {
                self.forget_due(attachment);
                if is_gone(&error) {
                    RegistryError::NoThread
                } else {
                    RegistryError::Pin(error.to_string())
                }
            })?;
        self.attachments = attachment;
        let entry = self
            .vms
            .get_mut(&vm.0)
            .ok_or_else(|| internal(&"the VM is not registered"))?;
        info!(
            "VM {}: vCPU with APIC id {} is thread {}",
            entry.name, vcpu.apic_id, vcpu.tid
        );
        let before = entry.vcpus.insert(
            vcpu.apic_id,
            Vcpu {
                tid: vcpu.tid,
                pidfd,
                attachment,
            },
        );
        if let Some(before) = before {
            self.forget_due(before.attachment);
        }
        Ok(())
    }

    fn detach(&mut self, vm: VmId, vcpu: &VcpuInfo) {
        let Some(entry) = self.vms.get_mut(&vm.0) else {
            return;
        };
        let Some(known) = entry.vcpus.remove(&vcpu.apic_id) else {
            return;
        };
        match self
            .maps
            .pages
            .delete(&known.pidfd.as_raw_fd().to_ne_bytes())
        {
            // The kernel drops a thread's page with the thread.
            Ok(()) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                warn!(
                    "VM {}: the page of APIC id {} stays pinned: {error}",
                    entry.name, vcpu.apic_id
                );
            }
        }
        self.forget_due(known.attachment);
    }

    fn vm_removed(&mut self, vm: VmId) {
        if let Some(entry) = self.vms.remove(&vm.0) {
            info!("VM {}: gone", entry.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_kvm_run_is_recognised() {
        assert_eq!(
            fd_of_kvm_run("16 0x1b 0xae80 0x0 0x0 0x0 0x0 0x7f 0x7f\n"),
            Some(27)
        );
    }

    #[test]
    fn other_calls_are_not_a_vcpu() {
        for line in [
            "running\n",
            "",
            "16 0x1b 0xae81 0x0",
            "7 0x1b 0xae80",
            "16 27 0xae80",
            "16",
        ] {
            assert_eq!(fd_of_kvm_run(line), None, "{line:?}");
        }
    }

    #[test]
    fn this_test_is_no_vcpu() {
        assert!(!waits_in_kvm_run(std::process::id(), std::process::id()));
    }
}
