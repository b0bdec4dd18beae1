// SPDX-License-Identifier: GPL-2.0-only
//! The scheduler's end of the handoff socket.
//!
//! One thread, no blocking call: [`Server::turn`] waits for what comes next and handles it, and
//! tells the scheduler through its [`Registry`]. Peers are not trusted. What a peer can hold is
//! limited, a peer that does not read is dropped, and descriptors of unexpected kinds are closed on
//! a thread of their own, because closing a file can mean waiting for a file system.
//!
//! Who may connect: whoever may use KVM. The socket takes the group and mode of /dev/kvm (see
//! [`Access`]), since nobody else has a vCPU to hand over. Who may hand over *a thread* is decided
//! for each one, by its owner.

mod registry;
mod requests;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{accept4, getsockopt, SockFlag};
use thiserror::Error;

use super::closer::Closer;
use super::listen::open_socket;
use super::memory::GuestRegion;
pub use super::memory::MappedPage;
use super::socket::{receive, send};
use super::thread::Identity;
use super::wire::{Answer, FromScheduler, Notice, Protocol, Refusal};
use crate::abi;

pub use registry::{Registry, RegistryError, VcpuInfo, VmId, VmInfo};

/// What the server lets its peers have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub vms: usize,
    /// Most connections of one user other than root, so that one cannot keep out the others.
    pub connections_per_user: usize,
    /// Of one VM; at most `PVSCHED_HANDOFF_MAX_VCPUS`.
    pub vcpus: usize,
    /// Time from connecting to the registration of a VM, after which the connection is closed.
    pub registration: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            vms: 256,
            connections_per_user: 192,
            vcpus: abi::PVSCHED_HANDOFF_MAX_VCPUS as usize,
            registration: Duration::from_secs(5),
        }
    }
}

/// Who may connect to the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever may open /dev/kvm by its group and mode; only root when there is no such file.
    LikeKvm,
    /// The mode's read and write bits, for the group given, else the server's own.
    Mode { mode: u32, gid: Option<u32> },
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// What VMs may ask for, those at least that the registry allows it; at most 8.
    pub protocols: Vec<Protocol>,
    pub limits: Limits,
    pub access: Access,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            protocols: Protocol::all(),
            limits: Limits::default(),
            access: Access::LikeKvm,
        }
    }
}

/// Why a server cannot start or go on.
#[derive(Debug, Error)]
pub enum ServerError {
    #[error("another scheduler already serves {0}; stop it first")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket; remove it, or choose another path")]
    NotASocket(PathBuf),
    #[error("cannot {what} {path}: {source}")]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot wait for the handoff socket: {0}")]
    Epoll(#[from] Errno),
}

struct Vcpu {
    identity: Identity,
    pidfd: OwnedFd,
    page_gpa: u64,
    token: u64,
}

impl Vcpu {
    fn info(&self, apic_id: u32) -> VcpuInfo<'_> {
        VcpuInfo {
            apic_id,
            tid: self.identity.tid,
            tgid: self.identity.tgid,
            pidfd: self.pidfd.as_fd(),
        }
    }
}

struct Vm {
    id: VmId,
    info: VmInfo,
    regions: Vec<GuestRegion>,
    vcpus: BTreeMap<u32, Vcpu>,
}

enum Stage {
    Connected,
    Greeted,
    Registered(Vm),
}

struct Connection {
    socket: OwnedFd,
    peer_pid: i32,
    peer_uid: u32,
    since: Instant,
    stage: Stage,
}

/// What an epoll event is about. Tokens are never used again, so an event of something that has
/// gone in the same turn finds nothing.
#[derive(Clone, Copy)]
enum Source {
    Connection,
    /// Of the connection with that token.
    Vcpu {
        connection: u64,
        apic_id: u32,
    },
}

const LISTENER: u64 = 0;
/// Messages of one connection in one turn, so that a busy peer leaves room for the others.
const MESSAGES_PER_TURN: usize = 16;
/// How long no connection is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The socket, and everything that was handed over through it.
pub struct Server {
    path: PathBuf,
    /// Of the socket file, to remove only our own.
    inode: (u64, u64),
    listener: OwnedFd,
    epoll: Epoll,
    config: Config,
    sources: HashMap<u64, Source>,
    connections: HashMap<u64, Connection>,
    /// Which thread (by the inode of its pidfd) is whose vCPU: connection and APIC id.
    threads: HashMap<u64, (u64, u32)>,
    next_token: u64,
    next_vm: u32,
    accept_again: Option<Instant>,
    closer: Closer,
}

impl Server {
    /// Creates the socket and its directory, and replaces the socket of a server that is dead.
    /// Raises this process's limit of open files as far as it may, as each vCPU takes one.
    pub fn bind(path: &Path, config: Config) -> Result<Self, ServerError> {
        check_offer(&config.protocols);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let (listener, inode) = open_socket(path, config.access)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                warn!("cannot raise the limit of open files to {hard}: {error}");
            }
        }
        Ok(Self {
            path: path.into(),
            inode,
            listener,
            epoll,
            config,
            sources: HashMap::new(),
            connections: HashMap::new(),
            threads: HashMap::new(),
            next_token: LISTENER + 1,
            next_vm: 1,
            accept_again: None,
            closer: Closer::default(),
        })
    }

    /// Becomes readable when there is something for [`Server::turn`] to do, except for deadlines:
    /// call it at least once a second as well.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Waits up to `timeout` for something to happen and handles all that has.
    pub fn turn(
        &mut self,
        registry: &mut impl Registry,
        timeout: Duration,
    ) -> Result<(), ServerError> {
        self.end_accept_pause()?;
        let mut events = [EpollEvent::empty(); 64];
        let timeout = self.time_to_deadline().map_or(timeout, |d| d.min(timeout));
        // Rounded up, so that a deadline has passed when the wait for it ends.
        let timeout = u16::try_from(timeout.as_millis()).map_or(u16::MAX, |ms| {
            ms.saturating_add(u16::from(!timeout.subsec_nanos().is_multiple_of(1_000_000)))
        });
        let count = match self.epoll.wait(&mut events, EpollTimeout::from(timeout)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in &events[..count] {
            let token = event.data();
            if token == LISTENER {
                self.accept()?;
                continue;
            }
            match self.sources.get(&token) {
                Some(Source::Connection) => self.serve(registry, token),
                Some(&Source::Vcpu {
                    connection,
                    apic_id,
                }) => {
                    if let Err(error) = self.vcpu_gone(registry, connection, apic_id) {
                        self.close(registry, connection, &format!("it does not read: {error}"));
                    }
                }
                None => {}
            }
        }
        self.close_overdue(registry);
        Ok(())
    }

    /// Tells the peers that the scheduler stops, gives everything back, and removes the socket.
    pub fn stop(mut self, registry: &mut impl Registry) {
        let tokens: Vec<u64> = self.connections.keys().copied().collect();
        for token in tokens {
            // Best effort: the closed connection says the same.
            let _ = self.tell(token, &FromScheduler::Notice(Notice::Stopping));
            self.close(registry, token, "the scheduler stops");
        }
    }

    /// From now on offers these protocols, at most 8, and closes the connections of VMs whose
    /// protocol the registry does not allow any more.
    pub fn offer(&mut self, registry: &mut impl Registry, protocols: Vec<Protocol>) {
        check_offer(&protocols);
        self.config.protocols = protocols;
        let mut barred = Vec::new();
        for (token, connection) in &self.connections {
            if let Stage::Registered(vm) = &connection.stage {
                if !registry.allows(&vm.info) {
                    barred.push(*token);
                }
            }
        }
        for token in barred {
            self.close(registry, token, "its protocol is not allowed any more");
        }
    }

    /// How many VMs are registered.
    pub fn vms(&self) -> usize {
        let registered = |c: &&Connection| matches!(c.stage, Stage::Registered(_));
        self.connections.values().filter(registered).count()
    }

    /// How many vCPUs are attached.
    pub fn vcpus(&self) -> usize {
        self.threads.len()
    }

    fn new_token(&mut self, source: Source) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.sources.insert(token, source);
        token
    }

    fn accept(&mut self) -> Result<(), ServerError> {
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = match accept4(self.listener.as_raw_fd(), flags) {
                // SAFETY: accept4 returned a new descriptor that nobody else owns.
                Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => {
                    // The listener stays readable, so waiting for it would be a busy loop.
                    warn!("cannot accept a connection on the handoff socket: {errno}");
                    self.epoll.delete(&self.listener)?;
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    return Ok(());
                }
            };
            if let Err(errno) = self.admit(socket) {
                warn!("cannot serve a connection on the handoff socket: {errno}");
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> Result<(), Errno> {
        let peer = getsockopt(&socket, PeerCredentials)?;
        let of_user = |c: &&Connection| c.peer_uid == peer.uid();
        let crowded = if self.connections.len() >= self.config.limits.vms * 2 {
            Some("connections")
        } else if peer.uid() != 0
            && self.connections.values().filter(of_user).count()
                >= self.config.limits.connections_per_user
        {
            Some("connections of one user")
        } else {
            None
        };
        if let Some(what) = crowded {
            let answer = FromScheduler::Answer {
                seq: 0,
                answer: Refusal::TooMany(what).into(),
            };
            // Best effort: the peer also understands a closed connection.
            let _ = send(socket.as_fd(), &answer.encode(), &[]);
            return Ok(());
        }
        let token = self.new_token(Source::Connection);
        self.epoll
            .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        let connection = Connection {
            socket,
            peer_pid: peer.pid(),
            peer_uid: peer.uid(),
            since: Instant::now(),
            stage: Stage::Connected,
        };
        self.connections.insert(token, connection);
        Ok(())
    }

    fn end_accept_pause(&mut self) -> Result<(), ServerError> {
        if self.accept_again.is_some_and(|at| Instant::now() >= at) {
            self.accept_again = None;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER);
            self.epoll.add(&self.listener, event)?;
        }
        Ok(())
    }

    fn time_to_deadline(&self) -> Option<Duration> {
        let now = Instant::now();
        self.connections
            .values()
            .filter(|c| !matches!(c.stage, Stage::Registered(_)))
            .map(|c| c.since + self.config.limits.registration)
            .chain(self.accept_again)
            .map(|at| at.saturating_duration_since(now))
            .min()
    }

    fn close_overdue(&mut self, registry: &mut impl Registry) {
        let limit = self.config.limits.registration;
        let overdue: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, c)| !matches!(c.stage, Stage::Registered(_)))
            .filter(|(_, c)| c.since.elapsed() >= limit)
            .map(|(token, _)| *token)
            .collect();
        for token in overdue {
            self.close(registry, token, "it registered no VM in time");
        }
    }

    /// Handles what a connection has sent.
    fn serve(&mut self, registry: &mut impl Registry, token: u64) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(connection) = self.connections.get(&token) else {
                return;
            };
            let take = !self.closer.is_behind();
            let packet = match receive(connection.socket.as_fd(), take) {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.close(registry, token, "the peer closed it"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.close(registry, token, &error.to_string()),
            };
            let (seq, outcome) = self.handle(registry, token, packet);
            let closes = match &outcome {
                Ok(_) => false,
                Err(refusal) => {
                    self.log_refusal(token, refusal);
                    refusal.closes()
                }
            };
            let answer = outcome.unwrap_or_else(Answer::from);
            let sent = self.tell(token, &FromScheduler::Answer { seq, answer });
            if closes {
                return self.close(registry, token, "its message could not be understood");
            }
            if let Err(error) = sent {
                return self.close(registry, token, &format!("it does not read: {error}"));
            }
        }
    }

    fn log_refusal(&self, token: u64, refusal: &Refusal) {
        if let Some(c) = self.connections.get(&token) {
            let name = match &c.stage {
                Stage::Registered(vm) => vm.info.name.to_string(),
                _ => "no VM yet".into(),
            };
            let (pid, uid) = (c.peer_pid, c.peer_uid);
            // At debug level, since peers could fill the log; the peer is told, and logs it.
            debug!("refused a request of process {pid}, user {uid} ({name}): {refusal}");
        }
    }

    fn tell(&self, token: u64, message: &FromScheduler) -> io::Result<()> {
        match self.connections.get(&token) {
            Some(connection) => send(connection.socket.as_fd(), &message.encode(), &[]),
            None => Ok(()),
        }
    }

    fn close(&mut self, registry: &mut impl Registry, token: u64, why: &str) {
        let apic_ids: Vec<u32> = match self.connections.get(&token) {
            Some(Connection {
                stage: Stage::Registered(vm),
                ..
            }) => vm.vcpus.keys().copied().collect(),
            _ => Vec::new(),
        };
        for apic_id in apic_ids {
            self.detach(registry, token, apic_id);
        }
        self.sources.remove(&token);
        let Some(connection) = self.connections.remove(&token) else {
            return;
        };
        let _ = self.epoll.delete(&connection.socket);
        match connection.stage {
            Stage::Registered(vm) => {
                registry.vm_removed(vm.id);
                info!("VM {} ({}) removed: {why}", vm.id.0, vm.info.name);
            }
            _ => debug!(
                "connection of process {} closed: {why}",
                connection.peer_pid
            ),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.inode);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn check_offer(protocols: &[Protocol]) {
    assert!(
        protocols.len() <= abi::PVSCHED_MAX_PROTOCOLS as usize,
        "WELCOME has room for 8 protocols"
    );
}
