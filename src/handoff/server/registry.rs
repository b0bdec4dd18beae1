// SPDX-License-Identifier: GPL-2.0-only
//! What the server tells the scheduler, and asks it.

use std::os::fd::BorrowedFd;

use thiserror::Error;

use super::MappedPage;
use crate::handoff::wire::{ProtocolName, VmName};

/// Number of a VM; counts up from 1 and is never used again by the same server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub u32);

/// A VM as it registered.
#[derive(Clone, Debug)]
pub struct VmInfo {
    pub name: VmName,
    /// One that the server was told to offer.
    pub protocol: ProtocolName,
    pub version: u16,
    /// The process that connected, and its effective user, as this process sees them.
    pub peer_pid: i32,
    pub peer_uid: u32,
}

/// A vCPU and its thread. The thread was alive when the request came, and the peer may hand it
/// over.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo<'a> {
    pub apic_id: u32,
    /// In this process's pid namespace.
    pub tid: u32,
    /// The thread's process.
    pub tgid: u32,
    /// Of that one thread; good as the key of a BPF task storage, also after the thread's exit.
    pub pidfd: BorrowedFd<'a>,
}

/// Why the scheduler could not take a vCPU.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The kernel would not pin the page (say why).
    #[error("{0}")]
    Pin(String),
    /// The thread exited meanwhile.
    #[error("the thread has exited")]
    NoThread,
    /// Anything else; the peer is told that the scheduler failed.
    #[error("{0}")]
    Internal(String),
}

/// What the server tells the scheduler. Calls come from within [`Server::turn`](super::Server::turn)
/// and [`Server::stop`](super::Server::stop), and should not take long: no peer is served meanwhile.
///
/// Each `vm_added` is followed by one `vm_removed`, each successful `attach` by one `detach`, all
/// detaches of a VM before its `vm_removed`.
pub trait Registry {
    /// Is this thread a vCPU according to KVM?
    fn is_vcpu(&mut self, vcpu: &VcpuInfo) -> bool;

    /// May this VM speak the protocol that it asks for? Unless implemented, whatever is offered.
    fn allows(&mut self, _vm: &VmInfo) -> bool {
        true
    }

    fn vm_added(&mut self, vm: VmId, info: &VmInfo) -> Result<(), RegistryError>;

    /// Pins the page for the thread. The mapping goes away after this call, the pin stays.
    fn attach(&mut self, vm: VmId, vcpu: &VcpuInfo, page: &MappedPage)
        -> Result<(), RegistryError>;

    /// Unpins the page of the thread, which may have exited. After this nothing touches the page.
    fn detach(&mut self, vm: VmId, vcpu: &VcpuInfo);

    fn vm_removed(&mut self, vm: VmId);
}
