// SPDX-License-Identifier: GPL-2.0-only
//! The server and the client against each other, over real sockets, memfds and threads; only the
//! scheduler behind the server is a fake.

mod connections;
mod memory;
mod messages;
mod vcpus;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{fcntl, FcntlArg, SealFlag};
use nix::sys::memfd::{memfd_create, MFdFlags};
use nix::sys::socket::{connect, socket, AddressFamily, SockFlag, SockType, UnixAddr};

use super::client::{Client, ClientError};
use super::server::*;
use super::socket::{receive, send};
use super::wire::{Answer, FromScheduler, Notice, Request, PAGE_SIZE};
use super::{thread, ErrorCode, Protocol, ProtocolName, Region, VmName};

pub(crate) const RAM: u64 = 64 * PAGE_SIZE;
const HIGH: u64 = 1 << 32;
const NOBODY: u32 = 65534;

/// Thread and first word of the page, by VM and APIC id.
type Attached = BTreeMap<(VmId, u32), (u32, u64)>;

/// A scheduler without one: remembers what it was told, and checks that it makes sense.
#[derive(Default)]
struct Fake {
    vms: BTreeSet<VmId>,
    attached: Attached,
    not_vcpus: BTreeSet<u32>,
    /// No VM may speak any protocol.
    barred: bool,
    /// The server has not been told yet that this has changed.
    barred_is_new: bool,
    fail_next: Option<RegistryError>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Fake>>);

impl Registry for Shared {
    fn is_vcpu(&mut self, vcpu: &VcpuInfo) -> bool {
        !self.0.lock().unwrap().not_vcpus.contains(&vcpu.tid)
    }

    fn allows(&mut self, _: &VmInfo) -> bool {
        !self.0.lock().unwrap().barred
    }

    fn vm_added(&mut self, vm: VmId, _: &VmInfo) -> Result<(), RegistryError> {
        assert!(self.0.lock().unwrap().vms.insert(vm));
        Ok(())
    }

    fn attach(
        &mut self,
        vm: VmId,
        vcpu: &VcpuInfo,
        page: &MappedPage,
    ) -> Result<(), RegistryError> {
        let mut fake = self.0.lock().unwrap();
        if let Some(error) = fake.fail_next.take() {
            return Err(error);
        }
        assert!(fake.vms.contains(&vm));
        assert_eq!(page.address() % PAGE_SIZE, 0);
        // As the kernel would when it pins: access that fails with an error, not with a signal.
        let memory = File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem")
            .unwrap();
        let mut word = [0; 8];
        memory
            .read_exact_at(&mut word, page.address())
            .and_then(|()| memory.write_all_at(&word, page.address()))
            .map_err(|error| RegistryError::Pin(error.to_string()))?;
        let word = u64::from_le_bytes(word);
        assert!(fake
            .attached
            .insert((vm, vcpu.apic_id), (vcpu.tid, word))
            .is_none());
        Ok(())
    }

    fn detach(&mut self, vm: VmId, vcpu: &VcpuInfo) {
        let removed = self.0.lock().unwrap().attached.remove(&(vm, vcpu.apic_id));
        assert_eq!(removed.map(|(tid, _)| tid), Some(vcpu.tid));
    }

    fn vm_removed(&mut self, vm: VmId) {
        let mut fake = self.0.lock().unwrap();
        assert!(fake.attached.keys().all(|(of, _)| *of != vm));
        assert!(fake.vms.remove(&vm));
    }
}

/// A running server.
pub(crate) struct Host {
    fake: Shared,
    pub path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    directory: Option<tempfile::TempDir>,
}

impl Host {
    pub fn start() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self::at(limits, directory)
    }

    fn at(limits: Limits, directory: tempfile::TempDir) -> Self {
        let path = directory.path().join("run/handoff.sock");
        let (fake, stop) = (Shared::default(), Arc::new(AtomicBool::new(false)));
        let mut server = Server::bind(&path, config(limits)).unwrap();
        let (mut registry, until) = (fake.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                if std::mem::take(&mut registry.0.lock().unwrap().barred_is_new) {
                    server.offer(&mut registry, config(limits).protocols);
                }
                server
                    .turn(&mut registry, Duration::from_millis(20))
                    .unwrap();
            }
            server.stop(&mut registry);
        });
        Self {
            fake,
            path,
            stop,
            thread: Some(thread),
            directory: Some(directory),
        }
    }

    /// Stops, and starts another at the same place after what happens `meanwhile`.
    pub fn restart(mut self, meanwhile: impl FnOnce()) -> Self {
        self.stop();
        meanwhile();
        Self::at(Limits::default(), self.directory.take().unwrap())
    }

    /// Whether KVM takes the thread for a vCPU from now on.
    pub fn set_vcpu(&self, tid: u32, is_one: bool) {
        let mut fake = self.fake.0.lock().unwrap();
        if is_one {
            fake.not_vcpus.remove(&tid);
        } else {
            fake.not_vcpus.insert(tid);
        }
    }

    /// Whether no VM may speak any protocol from now on.
    pub fn set_barred(&self, barred: bool) {
        let mut fake = self.fake.0.lock().unwrap();
        (fake.barred, fake.barred_is_new) = (barred, true);
    }

    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// A client whose VM has two regions: page n from 0 holds the word n, from 4 GiB on 1000 + n.
    fn vm(&self) -> Client {
        let mut client = self.client();
        client
            .register_vm(name(), ProtocolName::LATENCY, 1, &guest(memory().as_fd()))
            .unwrap();
        client
    }

    fn peer(&self) -> Peer {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.path).unwrap()).unwrap();
        Peer(socket)
    }

    pub fn state(&self) -> (BTreeSet<VmId>, Attached) {
        let fake = self.fake.0.lock().unwrap();
        (fake.vms.clone(), fake.attached.clone())
    }

    pub fn attached(&self) -> usize {
        self.state().1.len()
    }

    /// Runs the request, which must be refused with that code and must not change anything.
    #[track_caller]
    fn refuses(&self, code: ErrorCode, request: impl FnOnce() -> Result<(), ClientError>) {
        let before = self.state();
        match request() {
            Err(ClientError::Refused { code: got, text }) => {
                assert_eq!(got, code, "{text}");
                assert!(text.ends_with('.'), "{text}");
            }
            other => panic!("not refused by the scheduler: {other:?}"),
        }
        assert_eq!(self.state(), before);
    }

    fn fail_next(&self, error: RegistryError) {
        self.fake.0.lock().unwrap().fail_next = Some(error);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn config(limits: Limits) -> Config {
    Config {
        limits,
        access: Access::Mode {
            mode: 0o666,
            gid: None,
        },
        ..Config::default()
    }
}

/// A client that says what it likes.
struct Peer(OwnedFd);

impl Peer {
    fn say(&self, bytes: &[u8], fds: &[BorrowedFd]) -> Result<(), ClientError> {
        send(self.0.as_fd(), bytes, fds)?;
        let packet = receive(self.0.as_fd(), false)?.ok_or(ClientError::Closed)?;
        match FromScheduler::parse(&packet.bytes)? {
            FromScheduler::Answer {
                answer: Answer::Error { code, text },
                ..
            } => Err(ClientError::Refused { code, text }),
            _ => Ok(()),
        }
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd]) -> Result<(), ClientError> {
        self.say(&request.encode(1), fds)
    }

    fn greeted(self) -> Self {
        self.ask(&hello(1, 1), &[]).unwrap();
        self
    }

    fn closed(&self) -> bool {
        receive(self.0.as_fd(), false).is_ok_and(|packet| packet.is_none())
    }
}

/// A thread that only exists, until dropped.
pub(crate) struct Vcpu {
    pub tid: u32,
    leave: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    pub fn start() -> Self {
        Self::of_user(0)
    }

    fn of_user(uid: u32) -> Self {
        let (says, hears) = mpsc::channel();
        let (leave, left) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            become_user(uid);
            says.send(u32::try_from(nix::unistd::gettid().as_raw()).unwrap())
                .unwrap();
            let _ = left.recv();
        });
        Self {
            tid: hears.recv().unwrap(),
            leave: Some(leave),
            thread: Some(thread),
        }
    }

    pub fn pidfd(&self) -> OwnedFd {
        thread::open(self.tid).unwrap()
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.leave = None;
        let _ = self.thread.take().unwrap().join();
    }
}

/// Makes this thread, not the process, one of that user. Only root can.
fn become_user(uid: u32) {
    if uid != 0 {
        // SAFETY: setresuid takes three integers. Not through libc, which changes all threads.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(done, 0, "{}", io::Error::last_os_error());
    }
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("not tested: it takes root to act as two users");
    }
    root
}

fn hello(min_version: u16, max_version: u16) -> Request {
    Request::Hello {
        min_version,
        max_version,
    }
}

fn name() -> VmName {
    VmName::new("guest").unwrap()
}

fn memfd(size: u64) -> File {
    let file = File::from(memfd_create(c"ram", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(size).unwrap();
    file
}

pub(crate) fn memory() -> File {
    let file = memfd(2 * RAM);
    for page in 0..RAM / PAGE_SIZE {
        file.write_all_at(&page.to_le_bytes(), page * PAGE_SIZE)
            .unwrap();
        file.write_all_at(&(1000 + page).to_le_bytes(), RAM + page * PAGE_SIZE)
            .unwrap();
    }
    file
}

fn guest(file: BorrowedFd) -> [(Region, BorrowedFd); 2] {
    let low = Region::new(0, RAM, 0).unwrap();
    let high = Region::new(HIGH, RAM, RAM).unwrap();
    [(low, file), (high, file)]
}

#[track_caller]
pub(crate) fn eventually(what: impl Fn() -> bool) {
    let since = Instant::now();
    while !what() {
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "it does not come true"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A VM_REGISTER of one region with some bytes replaced.
fn register_bytes(patches: &[(usize, &[u8])]) -> Vec<u8> {
    let regions = super::wire::Regions::new(vec![Region::new(0, RAM, 0).unwrap()]).unwrap();
    let mut bytes = Request::VmRegister {
        name: name(),
        protocol: ProtocolName::LATENCY,
        version: 1,
        regions,
    }
    .encode(1);
    for (at, patch) in patches {
        bytes[*at..at + patch.len()].copy_from_slice(patch);
    }
    bytes
}
