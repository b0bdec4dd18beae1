//! What the running scheduler refuses at its handoff socket, each with its own code, and that it
//! goes on as if nothing had been asked. The server's own tests cover every refusal; these show
//! that the scheduler behind it has the knowledge that refusals need.

use std::fs::{self, File, Permissions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    connect, recv, sendmsg, setsockopt, socket, AddressFamily, ControlMessage, MsgFlags, SockFlag,
    SockType, UnixAddr,
};
use nix::sys::time::{TimeVal, TimeValLike};
use pvsched_e2e::{eventually, margins, promise};
use pvsched_lab::chain::Scheduler;
use scx_pvsched::handoff::client::{Client, ClientError};
use scx_pvsched::handoff::thread::open as open_thread;
use scx_pvsched::handoff::wire::{Answer, FromScheduler, Regions, Request};
use scx_pvsched::handoff::{ErrorCode, Protocol, ProtocolName, Region, VmName, DEFAULT_SOCKET};

const NOBODY: u32 = 65534;
const MEMORY: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// A client that says what it likes.
struct Peer(OwnedFd);

impl Peer {
    fn connect() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(5))?;
        connect(socket.as_raw_fd(), &UnixAddr::new(DEFAULT_SOCKET)?)?;
        Ok(Self(socket))
    }

    fn greeted() -> Result<Self> {
        let peer = Self::connect()?;
        ensure!(peer.refusal(&hello(1).encode(1), &[])?.is_none());
        Ok(peer)
    }

    fn registered() -> Result<Self> {
        let peer = Self::greeted()?;
        let memory = memory()?;
        ensure!(peer
            .refusal(&register()?.encode(2), &[memory.as_fd()])?
            .is_none());
        Ok(peer)
    }

    /// Sends a packet; `None` if what it asks for was done.
    fn refusal(&self, bytes: &[u8], fds: &[BorrowedFd]) -> Result<Option<ErrorCode>> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[_] = if raw.is_empty() { &[] } else { &rights };
        let parts = [IoSlice::new(bytes)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        let mut answer = vec![0; 2048];
        let length =
            recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty()).context("no answer")?;
        match FromScheduler::parse(&answer[..length])? {
            FromScheduler::Answer {
                answer: Answer::Error { code, .. },
                ..
            } => Ok(Some(code)),
            FromScheduler::Answer { .. } => Ok(None),
            FromScheduler::Notice(notice) => bail!("unasked: {notice:?}"),
        }
    }

    /// Whether the scheduler has closed the connection.
    fn closed(&self) -> Result<bool> {
        Ok(recv(self.0.as_raw_fd(), &mut [0; 8], MsgFlags::empty())? == 0)
    }
}

fn hello(version: u16) -> Request {
    Request::Hello {
        min_version: version,
        max_version: version,
    }
}

fn memory() -> Result<File> {
    let file = File::from(memfd_create(c"ram", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(MEMORY)?;
    Ok(file)
}

fn region() -> Result<Region> {
    Region::new(0, MEMORY, 0).map_err(anyhow::Error::msg)
}

fn register() -> Result<Request> {
    Ok(Request::VmRegister {
        name: VmName::new("refused")?,
        protocol: ProtocolName::LATENCY,
        version: Protocol::latency().max_version,
        regions: Regions::new(vec![region()?])?,
    })
}

fn attach(page_gpa: u64) -> Vec<u8> {
    Request::VcpuAttach {
        apic_id: 0,
        page_gpa,
    }
    .encode(3)
}

fn own_thread() -> Result<OwnedFd> {
    Ok(open_thread(u32::try_from(nix::unistd::gettid().as_raw())?)?)
}

/// It schedules, and serves whoever comes next.
fn still_serves(scheduler: &mut Scheduler) -> Result<()> {
    scheduler.check()?;
    let memory = memory()?;
    let mut client = Client::connect(Path::new(DEFAULT_SOCKET))?;
    let version = Protocol::latency().max_version;
    let regions = [(region()?, memory.as_fd())];
    client.register_vm(
        VmName::new("next")?,
        ProtocolName::LATENCY,
        version,
        &regions,
    )?;
    let vms = scheduler.stats()?["nr_vms"].take();
    ensure!(vms == 1, "{vms} VMs instead of the one that was registered");
    client.leave()?;
    eventually("it is gone", margins::AT_ONCE, || {
        Ok((scheduler.stats()?["nr_vms"] == 0).then_some(()))
    })?;
    Ok(())
}

#[test]
fn bad_requests_are_refused_each_by_its_code() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let (ram, thread) = (memory()?, own_thread()?);
        let (ram, thread) = (ram.as_fd(), thread.as_fd());
        let register = register()?.encode(2);
        type Case<'a> = (
            &'static str,
            Peer,
            &'a [u8],
            &'a [BorrowedFd<'a>],
            ErrorCode,
            bool,
        );
        let (new_hello, hello) = (hello(99).encode(1), hello(1).encode(1));
        let (inside, outside, unaligned) = (attach(PAGE), attach(MEMORY), attach(PAGE + 8));
        let cases: [Case; 10] = [
            (
                "another version",
                Peer::connect()?,
                &new_hello,
                &[],
                ErrorCode::Version,
                true,
            ),
            (
                "half a message",
                Peer::connect()?,
                &hello[..12],
                &[],
                ErrorCode::Malformed,
                true,
            ),
            (
                "no VM yet",
                Peer::greeted()?,
                &inside,
                &[thread],
                ErrorCode::Order,
                false,
            ),
            (
                "memory without its file",
                Peer::greeted()?,
                &register,
                &[],
                ErrorCode::Fds,
                false,
            ),
            (
                "a file too many",
                Peer::greeted()?,
                &register,
                &[ram, ram],
                ErrorCode::Fds,
                false,
            ),
            (
                "no thread",
                Peer::registered()?,
                &inside,
                &[],
                ErrorCode::Fds,
                false,
            ),
            (
                "no page of the VM",
                Peer::registered()?,
                &outside,
                &[thread],
                ErrorCode::Gpa,
                false,
            ),
            (
                "half a page",
                Peer::registered()?,
                &unaligned,
                &[thread],
                ErrorCode::Gpa,
                false,
            ),
            (
                "a file as thread",
                Peer::registered()?,
                &inside,
                &[ram],
                ErrorCode::NotAThread,
                false,
            ),
            (
                "no vCPU",
                Peer::registered()?,
                &inside,
                &[thread],
                ErrorCode::NotAVcpu,
                false,
            ),
        ];
        for (what, peer, bytes, fds, code, closes) in cases {
            let refusal = peer.refusal(bytes, fds).context(what)?;
            ensure!(
                refusal == Some(code),
                "{what}: {refusal:?} instead of {code:?}"
            );
            ensure!(
                !closes || peer.closed()?,
                "{what}: the connection stays open"
            );
            drop(peer);
            eventually("nothing stays", margins::AT_ONCE, || {
                Ok((scheduler.stats()?["nr_vcpus"] == 0).then_some(()))
            })?;
        }
        eventually("no VM stays", margins::AT_ONCE, || {
            Ok((scheduler.stats()?["nr_vms"] == 0).then_some(()))
        })?;
        still_serves(&mut scheduler)?;
        scheduler.stop()
    })
}

/// The lab's /dev/kvm is root's, and so is the socket then. Where others may use KVM they may
/// connect, but they hand over their own threads only.
#[test]
fn a_user_hands_over_no_thread_of_another() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let refused = as_nobody(|| Client::connect(Path::new(DEFAULT_SOCKET)).map(|_| ()))?;
        let unreachable = |error: &ClientError| {
            matches!(error, ClientError::Unreachable(why)
                if why.kind() == io::ErrorKind::PermissionDenied)
        };
        ensure!(refused.as_ref().is_err_and(unreachable), "{refused:?}");
        scheduler.stop()?;

        let _kvm = KvmForAll::new()?;
        scheduler = Scheduler::start::<&str>(&[])?;
        let thread = own_thread()?;
        let refusal = as_nobody(|| Peer::registered()?.refusal(&attach(PAGE), &[thread.as_fd()]))??;
        ensure!(refusal == Some(ErrorCode::Permission), "{refusal:?}");
        still_serves(&mut scheduler)?;
        scheduler.stop()
    })
}

/// Runs something in a thread that has given up being root.
fn as_nobody<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<T> {
            // SAFETY: setresuid takes three integers. Not through libc, which changes all threads.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
            ensure!(done == 0, "setresuid: {}", io::Error::last_os_error());
            Ok(run())
        });
        thread.join().expect("it returns what goes wrong")
    })
}

/// /dev/kvm for everybody, as some distributions have it.
struct KvmForAll(Permissions);

impl KvmForAll {
    fn new() -> Result<Self> {
        let before = fs::metadata("/dev/kvm")?.permissions();
        fs::set_permissions("/dev/kvm", Permissions::from_mode(0o666))?;
        Ok(Self(before))
    }
}

impl Drop for KvmForAll {
    fn drop(&mut self) {
        // The lab's machine goes soon anyway.
        let _ = fs::set_permissions("/dev/kvm", self.0.clone());
    }
}
