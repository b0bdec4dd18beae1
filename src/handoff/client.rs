// SPDX-License-Identifier: GPL-2.0-only
//! The VMM's end of the handoff socket.
//!
//! ```no_run
//! use std::os::fd::AsFd;
//! use std::path::Path;
//! use scx_pvsched::handoff::client::Client;
//! use scx_pvsched::handoff::{thread, Protocol, Region, VmName, DEFAULT_SOCKET};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (memory, tid) = (std::fs::File::open("/dev/shm/guest")?, 1);
//! let mut client = Client::connect(Path::new(DEFAULT_SOCKET))?;
//! let region = Region::new(0, 512 << 20, 0)?;
//! client.register_vm(
//!     VmName::new("web-1")?,
//!     Protocol::latency().name,
//!     1,
//!     &[(region, memory.as_fd())],
//! )?;
//! client.attach_vcpu(0, 0x1234_5000, thread::open(tid)?.as_fd())?;
//! // The VM stays with the scheduler until `client` is dropped.
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    connect, shutdown, socket, AddressFamily, Shutdown, SockFlag, SockType, UnixAddr,
};
use thiserror::Error;

use super::bytes::narrow;
use super::socket::{receive, send};
use super::wire::{
    Answer, ErrorCode, FromScheduler, MalformedAnswer, Notice, ProtocolName, Refusal, Region,
    Regions, Request, VmName, Welcome, VERSION,
};

/// How long an answer may take. The scheduler answers at once, or is in trouble.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a request failed.
#[derive(Debug, Error)]
pub enum ClientError {
    #[error("no scheduler listens at the handoff socket ({0}); is scx_pvsched running?")]
    Unreachable(io::Error),
    /// The state with the scheduler is what it was before the request.
    #[error("the scheduler refused: {text} ({code:?})")]
    Refused { code: ErrorCode, text: String },
    /// Refused on this side already: the scheduler would not take it.
    #[error("{0}")]
    Invalid(Refusal),
    /// The VM is no longer with the scheduler; connect again.
    #[error("the scheduler has closed the connection")]
    Closed,
    /// As [`ClientError::Closed`], for the caller: drop the client.
    #[error("the connection to the scheduler failed: {0}")]
    Broken(#[from] io::Error),
    /// Likewise.
    #[error(transparent)]
    Malformed(#[from] MalformedAnswer),
}

impl ClientError {
    /// Whether the connection is of no more use.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Invalid(_))
    }
}

/// One connection to the scheduler, which is one VM. Dropping it takes the VM away.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    welcome: Welcome,
    seq: u32,
    /// Came while an answer was awaited.
    notices: VecDeque<Notice>,
}

impl Client {
    /// Connects and says HELLO. The scheduler waits 5 seconds for the VM's registration then.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let unreachable = |errno: Errno| ClientError::Unreachable(errno.into());
        let address = UnixAddr::new(path).map_err(unreachable)?;
        // Non-blocking, so that no wait is without a limit.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = SockType::SeqPacket;
        let socket = socket(AddressFamily::Unix, kind, flags, None).map_err(unreachable)?;
        connect(socket.as_raw_fd(), &address).map_err(unreachable)?;
        let nobody = Welcome {
            version: 0,
            max_vcpus: 0,
            max_regions: 0,
            protocols: Vec::new(),
        };
        let mut client = Self {
            socket,
            welcome: nobody,
            seq: 0,
            notices: VecDeque::new(),
        };
        let hello = Request::Hello {
            min_version: narrow(VERSION),
            max_version: narrow(VERSION),
        };
        match client.ask(&hello, &[])? {
            Answer::Welcome(welcome) => client.welcome = welcome,
            _ => return Err(client.unexpected()),
        }
        Ok(client)
    }

    /// What the scheduler speaks and takes.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Registers the VM of this connection. Each region comes with the file that backs it: a memfd
    /// or a file of tmpfs or hugetlbfs, open for reading and writing.
    pub fn register_vm(
        &mut self,
        name: VmName,
        protocol: ProtocolName,
        version: u16,
        memory: &[(Region, BorrowedFd)],
    ) -> Result<(), ClientError> {
        let regions = memory.iter().map(|(region, _)| *region).collect();
        let request = Request::VmRegister {
            name,
            protocol,
            version,
            regions: Regions::new(regions).map_err(ClientError::Invalid)?,
        };
        let fds: Vec<BorrowedFd> = memory.iter().map(|(_, file)| *file).collect();
        self.done(&request, &fds)
    }

    /// Attaches a vCPU: its shared page, by guest physical address, and its thread, by a pidfd of
    /// [`super::thread::open`].
    pub fn attach_vcpu(
        &mut self,
        apic_id: u32,
        page_gpa: u64,
        pidfd: BorrowedFd,
    ) -> Result<(), ClientError> {
        self.done(&Request::VcpuAttach { apic_id, page_gpa }, &[pidfd])
    }

    /// Detaches a vCPU. When this returns, the scheduler does not touch the page again.
    pub fn detach_vcpu(&mut self, apic_id: u32) -> Result<(), ClientError> {
        self.done(&Request::VcpuDetach { apic_id }, &[])
    }

    /// Takes the VM away and waits until the scheduler has let go of all its pages. Dropping the
    /// client does the same without the wait.
    pub fn leave(mut self) -> Result<(), ClientError> {
        shutdown(self.socket.as_raw_fd(), Shutdown::Write).map_err(io::Error::from)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.read() {
                // The scheduler closes a connection after it has given back what came with it.
                Err(ClientError::Closed) => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) => self.wait(deadline)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// What the scheduler has said unasked; does not wait. [`ClientError::Closed`] once it has
    /// closed the connection and all notices are fetched.
    pub fn notice(&mut self) -> Result<Option<Notice>, ClientError> {
        if let Some(notice) = self.notices.pop_front() {
            return Ok(Some(notice));
        }
        match self.read()? {
            None => Ok(None),
            Some(FromScheduler::Notice(notice)) => Ok(Some(notice)),
            Some(FromScheduler::Answer { .. }) => Err(self.unexpected()),
        }
    }

    /// Becomes readable when [`Client::notice`] has something to say. Check that first after each
    /// request, since notices that came before its answer have been read by then.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn done(&mut self, request: &Request, fds: &[BorrowedFd]) -> Result<(), ClientError> {
        match self.ask(request, fds)? {
            Answer::Ok => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    fn ask(&mut self, request: &Request, fds: &[BorrowedFd]) -> Result<Answer, ClientError> {
        // 0 is the number of notices.
        self.seq = self.seq.checked_add(1).unwrap_or(1);
        let sent = send(self.socket.as_fd(), &request.encode(self.seq), fds);
        match sent {
            Ok(()) => {}
            // The scheduler may have said why before it closed: read on.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => return Err(error.into()),
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.read()? {
                Some(FromScheduler::Notice(notice)) => self.notices.push_back(notice),
                // Also one with seq 0, from a scheduler that could not make out ours.
                Some(FromScheduler::Answer {
                    answer: Answer::Error { code, text },
                    ..
                }) => return Err(ClientError::Refused { code, text }),
                Some(FromScheduler::Answer { seq, answer }) if seq == self.seq => {
                    return Ok(answer)
                }
                Some(FromScheduler::Answer { .. }) => return Err(self.unexpected()),
                None => self.wait(deadline)?,
            }
        }
    }

    fn wait(&self, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(io::Error::from(errno).into()),
        }
    }

    /// The next message, if there is one already.
    fn read(&mut self) -> Result<Option<FromScheduler>, ClientError> {
        let mut received = receive(self.socket.as_fd(), false);
        // So the kernel first says that the scheduler closed with a request of ours unread. What
        // the scheduler said before that, such as why, is still there.
        if matches!(&received, Err(error) if error.kind() == io::ErrorKind::ConnectionReset) {
            received = receive(self.socket.as_fd(), false);
        }
        match received {
            Ok(Some(packet)) => Ok(Some(FromScheduler::parse(&packet.bytes)?)),
            Ok(None) => Err(ClientError::Closed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn unexpected(&self) -> ClientError {
        io::Error::new(io::ErrorKind::InvalidData, "it answers what was not asked").into()
    }
}
