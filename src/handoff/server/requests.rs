// SPDX-License-Identifier: GPL-2.0-only
//! What a peer asks for: each request is checked against the connection that it came through, and
//! then carried out whole or refused whole.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use log::{debug, info};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{Connection, RegistryError, Server, Source, Stage, Vcpu, Vm};
use super::{Registry, VmId, VmInfo};
use crate::handoff::bytes::narrow;
use crate::handoff::memory::GuestRegion;
use crate::handoff::socket::Packet;
use crate::handoff::thread::{has_exited, identify};
use crate::handoff::wire::{
    Answer, Envelope, FromScheduler, Notice, ProtocolName, Refusal, Region, Request, RequestKind,
    VmName, Welcome, MAX_REGIONS, VERSION,
};

impl Server {
    /// Carries out one request: the sequence number to answer with, and the answer.
    pub(super) fn handle(
        &mut self,
        registry: &mut impl Registry,
        token: u64,
        packet: Packet,
    ) -> (u32, Result<Answer, Refusal>) {
        let Packet {
            bytes,
            fds,
            fds_lost,
        } = packet;
        let envelope = match Envelope::parse(&bytes) {
            Ok(envelope) => envelope,
            Err((seq, refusal)) => {
                self.closer.close(fds);
                return (seq, Err(refusal));
            }
        };
        let mut fds = fds;
        let outcome = self
            .check_order(token, envelope.kind)
            .and_then(|()| check_descriptors(&envelope, &fds, fds_lost))
            .and_then(|()| envelope.open())
            .and_then(|request| self.carry_out(registry, token, request, &mut fds));
        self.closer.close(fds);
        (envelope.seq, outcome)
    }

    fn check_order(&self, token: u64, kind: RequestKind) -> Result<(), Refusal> {
        let Some(connection) = self.connections.get(&token) else {
            return Err(Refusal::Internal("the connection is gone".into()));
        };
        let problem = match (&connection.stage, kind) {
            (Stage::Connected, RequestKind::Hello)
            | (Stage::Greeted, RequestKind::VmRegister)
            | (Stage::Registered(_), RequestKind::VcpuAttach | RequestKind::VcpuDetach) => {
                return Ok(())
            }
            (Stage::Connected, _) => "The first message must be HELLO.",
            (_, RequestKind::Hello) => "HELLO comes once, as the first message.",
            (Stage::Greeted, _) => "After HELLO a VM must be registered first.",
            (Stage::Registered(_), _) => "A connection registers one VM, once.",
        };
        Err(Refusal::Order(problem))
    }

    /// Takes out of `fds` what the request keeps.
    fn carry_out(
        &mut self,
        registry: &mut impl Registry,
        token: u64,
        request: Request,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        match request {
            Request::Hello {
                min_version,
                max_version,
            } => self.hello(token, min_version, max_version),
            Request::VmRegister {
                name,
                protocol,
                version,
                regions,
            } => {
                let asked = (name, protocol, version);
                self.register(registry, token, asked, &regions, fds)
            }
            Request::VcpuAttach { apic_id, page_gpa } => {
                self.attach(registry, token, apic_id, page_gpa, fds)
            }
            Request::VcpuDetach { apic_id } => {
                if !self.detach(registry, token, apic_id) {
                    return Err(Refusal::ApicId {
                        apic_id,
                        attached: false,
                    });
                }
                Ok(Answer::Ok)
            }
        }
    }

    fn hello(&mut self, token: u64, min: u16, max: u16) -> Result<Answer, Refusal> {
        let version: u16 = narrow(VERSION);
        if !(min..=max).contains(&version) {
            return Err(Refusal::Version { min, max });
        }
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.stage = Stage::Greeted;
        }
        Ok(Answer::Welcome(Welcome {
            version,
            max_vcpus: narrow(self.config.limits.vcpus),
            max_regions: narrow(MAX_REGIONS),
            protocols: self.config.protocols.clone(),
        }))
    }

    fn register(
        &mut self,
        registry: &mut impl Registry,
        token: u64,
        (name, protocol, version): (VmName, ProtocolName, u16),
        regions: &[Region],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        let offered = &self.config.protocols;
        if !offered.iter().any(|p| p.has(&protocol, version)) {
            return Err(Refusal::Protocol {
                name: protocol.to_string(),
                version,
            });
        }
        let mut files = fds.drain(..);
        let mut kept = Vec::with_capacity(regions.len());
        let mut refused = None;
        for (index, (region, file)) in regions.iter().zip(&mut files).enumerate() {
            match GuestRegion::new(*region, file) {
                Ok(region) => kept.push(region),
                Err((file, problem)) => {
                    refused = Some((file, Refusal::Region { index, problem }));
                    break;
                }
            }
        }
        let rest: Vec<OwnedFd> = files.collect();
        if let Some((file, refusal)) = refused {
            fds.push(file);
            fds.extend(rest);
            return Err(refusal);
        }
        if self.vms() >= self.config.limits.vms {
            return Err(Refusal::TooMany("VMs"));
        }
        let Some(connection) = self.connections.get_mut(&token) else {
            return Err(Refusal::Internal("the connection is gone".into()));
        };
        let id = VmId(self.next_vm);
        let info = VmInfo {
            name,
            protocol,
            version,
            peer_pid: connection.peer_pid,
            peer_uid: connection.peer_uid,
        };
        if !registry.allows(&info) {
            return Err(Refusal::NotAllowed {
                vm: info.name.to_string(),
                name: protocol.to_string(),
            });
        }
        registry
            .vm_added(id, &info)
            .map_err(|error| Refusal::Internal(error.to_string()))?;
        self.next_vm += 1;
        info!(
            "VM {} ({}) registered by process {}, user {}: protocol {protocol} version {version}",
            id.0, info.name, connection.peer_pid, connection.peer_uid
        );
        connection.stage = Stage::Registered(Vm {
            id,
            info,
            regions: kept,
            vcpus: BTreeMap::new(),
        });
        Ok(Answer::Ok)
    }

    fn attach(
        &mut self,
        registry: &mut impl Registry,
        token: u64,
        apic_id: u32,
        page_gpa: u64,
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Answer, Refusal> {
        self.forget_dead(registry, token, apic_id, page_gpa);
        let gone = || Refusal::Internal("the connection is gone".into());
        let connection = self.connections.get(&token).ok_or_else(gone)?;
        let Stage::Registered(vm) = &connection.stage else {
            return Err(gone());
        };
        let regions = &vm.regions;
        if !regions
            .iter()
            .any(|r| r.region.file_offset(page_gpa).is_some())
        {
            return Err(Refusal::Gpa(page_gpa));
        }
        let same_page = |(id, vcpu): (&u32, &Vcpu)| (vcpu.page_gpa == page_gpa).then_some(*id);
        match vm.vcpus.iter().find_map(same_page) {
            Some(other) if other != apic_id => {
                return Err(Refusal::PageInUse {
                    gpa: page_gpa,
                    apic_id: other,
                })
            }
            _ => {}
        }
        if vm.vcpus.contains_key(&apic_id) {
            return Err(Refusal::ApicId {
                apic_id,
                attached: true,
            });
        }
        if vm.vcpus.len() >= self.config.limits.vcpus {
            return Err(Refusal::TooMany("vCPUs of this VM"));
        }
        let identity = match fds.first() {
            Some(pidfd) => identify(pidfd.as_fd()).map_err(Refusal::NotAThread)?,
            None => return Err(Refusal::NotAThread("there is none".into())),
        };
        let peer = connection.peer_uid;
        if peer != 0 && (identity.real_uid, identity.effective_uid) != (peer, peer) {
            return Err(Refusal::Permission {
                tid: identity.tid,
                owner: identity.real_uid,
                peer,
            });
        }
        // From here on the descriptor is known to be a pidfd, which closes without waiting.
        let pidfd = fds.remove(0);
        let mut vcpu = Vcpu {
            identity,
            pidfd,
            page_gpa,
            token: 0,
        };
        let info = vcpu.info(apic_id);
        if !registry.is_vcpu(&info) {
            return Err(Refusal::NotAVcpu(identity.tid));
        }
        if self.threads.contains_key(&identity.inode) {
            return Err(Refusal::ThreadInUse(identity.tid));
        }
        let page = regions
            .iter()
            .find_map(|region| region.map_page(page_gpa))
            .ok_or(Refusal::Gpa(page_gpa))?
            .map_err(|errno| Refusal::Pin(format!("it cannot be mapped: {errno}")))?;
        registry
            .attach(vm.id, &info, &page)
            .map_err(|error| match error {
                RegistryError::Pin(why) => Refusal::Pin(why),
                RegistryError::NoThread => Refusal::NotAThread("it has exited".into()),
                RegistryError::Internal(why) => Refusal::Internal(why),
            })?;
        drop(page);

        let vm_id = vm.id;
        vcpu.token = self.new_token(Source::Vcpu {
            connection: token,
            apic_id,
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, vcpu.token);
        if let Err(errno) = self.epoll.add(&vcpu.pidfd, event) {
            self.sources.remove(&vcpu.token);
            registry.detach(vm_id, &vcpu.info(apic_id));
            return Err(Refusal::Internal(format!(
                "the thread cannot be watched: {errno}"
            )));
        }
        debug!(
            "VM {}: vCPU {apic_id} attached, thread {}",
            vm_id.0, identity.tid
        );
        self.threads.insert(identity.inode, (token, apic_id));
        if let Some(Connection {
            stage: Stage::Registered(vm),
            ..
        }) = self.connections.get_mut(&token)
        {
            vm.vcpus.insert(apic_id, vcpu);
        }
        Ok(Answer::Ok)
    }

    /// Detaches vCPUs in the way of a new one whose threads have exited without the news having
    /// been handled yet. A client that knows of the exit may reuse APIC id and page at once.
    fn forget_dead(&mut self, registry: &mut impl Registry, token: u64, apic_id: u32, gpa: u64) {
        let Some(Connection {
            stage: Stage::Registered(vm),
            ..
        }) = self.connections.get(&token)
        else {
            return;
        };
        let dead: Vec<u32> = vm
            .vcpus
            .iter()
            .filter(|(id, vcpu)| **id == apic_id || vcpu.page_gpa == gpa)
            .filter(|(_, vcpu)| has_exited(vcpu.pidfd.as_fd()))
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            // If the peer does not read, the answer that follows finds that out.
            let _ = self.vcpu_gone(registry, token, id);
        }
    }

    /// Fails if the peer does not read.
    pub(super) fn vcpu_gone(
        &mut self,
        registry: &mut impl Registry,
        connection: u64,
        apic_id: u32,
    ) -> io::Result<()> {
        if !self.detach(registry, connection, apic_id) {
            return Ok(());
        }
        let notice = Notice::VcpuGone { apic_id };
        self.tell(connection, &FromScheduler::Notice(notice))
    }

    /// Whether there was something to detach.
    pub(super) fn detach(
        &mut self,
        registry: &mut impl Registry,
        connection: u64,
        apic_id: u32,
    ) -> bool {
        let Some(Connection {
            stage: Stage::Registered(vm),
            ..
        }) = self.connections.get_mut(&connection)
        else {
            return false;
        };
        let Some(vcpu) = vm.vcpus.remove(&apic_id) else {
            return false;
        };
        registry.detach(vm.id, &vcpu.info(apic_id));
        debug!("VM {}: vCPU {apic_id} detached", vm.id.0);
        self.threads.remove(&vcpu.identity.inode);
        self.sources.remove(&vcpu.token);
        // Explicitly, because epoll watches the file and the peer holds it open, too.
        let _ = self.epoll.delete(&vcpu.pidfd);
        true
    }
}

fn check_descriptors(envelope: &Envelope, fds: &[OwnedFd], lost: bool) -> Result<(), Refusal> {
    let expected = envelope.descriptors();
    if lost || fds.len() != expected {
        return Err(Refusal::Fds {
            expected,
            arrived: (!lost).then_some(fds.len()),
        });
    }
    Ok(())
}
