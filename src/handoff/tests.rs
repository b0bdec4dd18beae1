// SPDX-License-Identifier: GPL-2.0-only
//! The server and the client against each other, over real sockets, memfds and threads; only the
//! scheduler behind the server is a fake.

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

#[test]
fn a_vm_hands_over_its_vcpus_and_takes_them_back() {
    let host = Host::start();
    let mut vm = host.vm();
    assert_eq!(vm.welcome().protocols, Protocol::all());
    let (a, b) = (Vcpu::start(), Vcpu::start());
    vm.attach_vcpu(0, 5 * PAGE_SIZE, a.pidfd().as_fd()).unwrap();
    vm.attach_vcpu(7, HIGH + 9 * PAGE_SIZE, b.pidfd().as_fd())
        .unwrap();
    let (_, attached) = host.state();
    let seen: Vec<_> = attached
        .iter()
        .map(|((_, id), vcpu)| (*id, *vcpu))
        .collect();
    assert_eq!(seen, [(0, (a.tid, 5)), (7, (b.tid, 1009))]);
    vm.detach_vcpu(0).unwrap();
    assert_eq!(host.attached(), 1);
    vm.attach_vcpu(0, 5 * PAGE_SIZE, a.pidfd().as_fd()).unwrap();
    drop(vm);
    eventually(|| host.state().0.is_empty() && host.attached() == 0);
}

#[test]
fn a_vm_is_told_that_its_protocol_is_not_allowed_to_it() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
    host.set_barred(true);
    eventually(|| host.state() == Default::default());
    assert!(matches!(vm.notice(), Err(ClientError::Closed)));

    let memory = memory();
    let mut again = host.client();
    let mut register =
        || again.register_vm(name(), ProtocolName::LATENCY, 1, &guest(memory.as_fd()));
    host.refuses(ErrorCode::NotAllowed, &mut register);
    host.set_barred(false);
    register().unwrap();
}

#[test]
fn a_vm_that_has_left_is_gone_from_the_scheduler() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
    vm.leave().unwrap();
    assert_eq!(host.state(), Default::default());
}

#[test]
fn a_version_that_the_scheduler_does_not_speak_is_refused_and_closes() {
    let host = Host::start();
    let peer = host.peer();
    host.refuses(ErrorCode::Version, || peer.ask(&hello(2, 9), &[]));
    assert!(peer.closed());
}

#[test]
fn malformed_messages_are_refused_and_close() {
    let host = Host::start();
    let sound = hello(1, 1).encode(1);
    let mut reserved = sound.clone();
    reserved[20] = 1;
    let long = [sound.clone(), vec![0]].concat();
    let huge = vec![7; 5000];
    for bytes in [
        &sound[..15],
        &sound[..23],
        &reserved,
        &long,
        &huge,
        b"hello",
    ] {
        let peer = host.peer();
        host.refuses(ErrorCode::Malformed, || peer.say(bytes, &[]));
        assert!(peer.closed());
    }
}

#[test]
fn unknown_requests_are_refused() {
    let host = Host::start();
    let peer = host.peer().greeted();
    for kind in [0, 5, 64, 67, 255] {
        let mut bytes = hello(1, 1).encode(1);
        bytes[4] = kind;
        host.refuses(ErrorCode::UnknownType, || peer.say(&bytes, &[]));
    }
}

#[test]
fn requests_out_of_order_are_refused() {
    let host = Host::start();
    let (ram, file) = (register_bytes(&[]), memory());
    let peer = host.peer();
    let detach = Request::VcpuDetach { apic_id: 0 };
    host.refuses(ErrorCode::Order, || peer.ask(&detach, &[]));
    host.refuses(ErrorCode::Order, || peer.say(&ram, &[file.as_fd()]));
    let peer = peer.greeted();
    host.refuses(ErrorCode::Order, || peer.ask(&hello(1, 1), &[]));
    host.refuses(ErrorCode::Order, || peer.ask(&detach, &[]));
    peer.say(&ram, &[file.as_fd()]).unwrap();
    host.refuses(ErrorCode::Order, || peer.say(&ram, &[file.as_fd()]));
}

#[test]
fn too_few_and_too_many_descriptors_are_refused() {
    let host = Host::start();
    let file = memory();
    let fd = file.as_fd();
    let peer = host.peer();
    host.refuses(ErrorCode::Fds, || peer.ask(&hello(1, 1), &[fd]));
    let peer = peer.greeted();
    let ram = register_bytes(&[]);
    for count in [0, 2, 32, 33, 200] {
        host.refuses(ErrorCode::Fds, || peer.say(&ram, &vec![fd; count]));
    }
    peer.say(&ram, &[fd]).unwrap();
    let attach = Request::VcpuAttach {
        apic_id: 0,
        page_gpa: 0,
    };
    host.refuses(ErrorCode::Fds, || peer.ask(&attach, &[]));
    host.refuses(ErrorCode::Fds, || peer.ask(&attach, &[fd, fd]));
}

#[test]
fn descriptors_of_refused_requests_are_closed() {
    let host = Host::start();
    let peer = host.peer().greeted();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    host.refuses(ErrorCode::Fds, || {
        peer.say(&register_bytes(&[]), &[writer.as_fd(); 33])
    });
    host.refuses(ErrorCode::Region, || {
        peer.say(&register_bytes(&[]), &[writer.as_fd()])
    });
    drop(writer);
    // Blocks until nobody holds the writing side.
    assert_eq!(nix::unistd::read(&reader, &mut [0]).unwrap(), 0);
}

#[test]
fn names_and_protocols_that_are_none_are_refused() {
    let host = Host::start();
    let (peer, file) = (host.peer().greeted(), memory());
    let fd = [file.as_fd()];
    for bad in [&[0; 5][..], b"a\0b", b"\xff\xfe", b"a\nb"] {
        let bytes = register_bytes(&[(16, bad)]);
        host.refuses(ErrorCode::Name, || peer.say(&bytes, &fd));
    }
    for bad in [&[0; 7][..], b"lat\0ncy", b"speed"] {
        let bytes = register_bytes(&[(80, bad)]);
        host.refuses(ErrorCode::Protocol, || peer.say(&bytes, &fd));
    }
    for version in [0u8, 2] {
        let bytes = register_bytes(&[(96, &[version])]);
        host.refuses(ErrorCode::Protocol, || peer.say(&bytes, &fd));
    }
}

#[test]
fn a_newer_client_gets_the_common_version_and_every_protocol_that_is_offered() {
    let host = Host::start();
    let file = memory();
    for protocol in Protocol::all() {
        let peer = host.peer();
        peer.ask(&hello(1, 9), &[]).unwrap();
        let name = protocol.name.padded();
        peer.say(&register_bytes(&[(80, name)]), &[file.as_fd()])
            .unwrap();
    }
}

#[test]
fn memory_that_cannot_be_shared_is_refused() {
    let host = Host::start();
    let peer = host.peer().greeted();
    let file = memory();
    let fd = file.as_fd();
    let number = |value: u64| value.to_le_bytes();
    for (at, value) in [
        (104, 1),
        (112, 0),
        (112, 100),
        (120, 8),
        (104, u64::MAX << 12),
    ] {
        let bytes = register_bytes(&[(at, &number(value))]);
        host.refuses(ErrorCode::Region, || peer.say(&bytes, &[fd]));
    }
    let beyond = register_bytes(&[(112, &number(2 * RAM + PAGE_SIZE))]);
    host.refuses(ErrorCode::Region, || peer.say(&beyond, &[fd]));

    let readable = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    let sealed = memory();
    fcntl(&sealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
    let on_disk = File::open(std::env::current_exe().unwrap()).unwrap();
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let pipe = File::from(pipe);
    for unfit in [readable, sealed, on_disk, pipe, memfd(RAM - PAGE_SIZE)] {
        let bytes = register_bytes(&[]);
        host.refuses(ErrorCode::Region, || peer.say(&bytes, &[unfit.as_fd()]));
    }
    peer.say(&register_bytes(&[]), &[fd]).unwrap();

    let mut client = host.client();
    let twice = Region::new(0, RAM, 0).unwrap();
    let error = client
        .register_vm(
            name(),
            ProtocolName::LATENCY,
            1,
            &[(twice, fd), (twice, fd)],
        )
        .unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
}

#[test]
fn overlapping_memory_is_refused() {
    let host = Host::start();
    let (peer, file) = (host.peer().greeted(), memory());
    let mut bytes = register_bytes(&[]);
    let region = bytes[104..128].to_vec();
    bytes.extend(region);
    let length = u8::try_from(bytes.len()).unwrap();
    bytes[8] = length;
    bytes[98] = 2;
    host.refuses(ErrorCode::Region, || peer.say(&bytes, &[file.as_fd(); 2]));
}

#[test]
fn pages_outside_of_memory_or_not_aligned_are_refused() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    for gpa in [
        1,
        RAM,
        HIGH - PAGE_SIZE,
        HIGH + RAM,
        u64::MAX,
        u64::MAX << 12,
    ] {
        host.refuses(ErrorCode::Gpa, || {
            vm.attach_vcpu(0, gpa, vcpu.pidfd().as_fd())
        });
    }
}

#[test]
fn pages_apic_ids_and_threads_are_not_used_twice() {
    let host = Host::start();
    let (mut vm, mut other) = (host.vm(), host.vm());
    let (a, b) = (Vcpu::start(), Vcpu::start());
    vm.attach_vcpu(0, 0, a.pidfd().as_fd()).unwrap();
    host.refuses(ErrorCode::PageInUse, || {
        vm.attach_vcpu(1, 0, b.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ApicId, || {
        vm.attach_vcpu(0, PAGE_SIZE, b.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ApicId, || {
        vm.attach_vcpu(0, 0, a.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ApicId, || vm.detach_vcpu(1));
    host.refuses(ErrorCode::ThreadInUse, || {
        vm.attach_vcpu(1, PAGE_SIZE, a.pidfd().as_fd())
    });
    host.refuses(ErrorCode::ThreadInUse, || {
        other.attach_vcpu(0, 0, a.pidfd().as_fd())
    });
    other.attach_vcpu(0, 0, b.pidfd().as_fd()).unwrap();
}

#[test]
fn more_vcpus_vms_and_connections_than_allowed_are_refused() {
    let host = Host::with(Limits {
        vms: 2,
        vcpus: 1,
        ..Limits::default()
    });
    let (mut first, _second) = (host.vm(), host.vm());
    let (a, b) = (Vcpu::start(), Vcpu::start());
    first.attach_vcpu(0, 0, a.pidfd().as_fd()).unwrap();
    host.refuses(ErrorCode::TooMany, || {
        first.attach_vcpu(1, PAGE_SIZE, b.pidfd().as_fd())
    });
    let mut third = host.client();
    let memory = memory();
    host.refuses(ErrorCode::TooMany, || {
        third.register_vm(name(), ProtocolName::LATENCY, 1, &guest(memory.as_fd()))
    });
    let _fourth = host.client();
    host.refuses(ErrorCode::TooMany, || Client::connect(&host.path).map(drop));
}

#[test]
fn what_is_no_live_thread_is_refused() {
    let host = Host::start();
    let mut vm = host.vm();
    let file = memory();
    host.refuses(ErrorCode::NotAThread, || vm.attach_vcpu(0, 0, file.as_fd()));
    let vcpu = Vcpu::start();
    let pidfd = vcpu.pidfd();
    drop(vcpu);
    eventually(|| thread::has_exited(pidfd.as_fd()));
    host.refuses(ErrorCode::NotAThread, || {
        vm.attach_vcpu(0, 0, pidfd.as_fd())
    });
}

#[test]
fn only_root_and_its_own_user_hand_over_a_thread() {
    if !is_root() {
        return;
    }
    let host = Host::start();
    let (theirs, roots) = (Vcpu::of_user(NOBODY), Vcpu::start());
    let (theirs_fd, roots_fd) = (theirs.pidfd(), roots.pidfd());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_user(NOBODY);
            let mut vm = host.vm();
            host.refuses(ErrorCode::Permission, || {
                vm.attach_vcpu(0, 0, roots_fd.as_fd())
            });
            vm.attach_vcpu(0, 0, theirs_fd.as_fd()).unwrap();
        });
    });
    let mut vm = host.vm();
    eventually(|| host.attached() == 0);
    vm.attach_vcpu(0, 0, theirs_fd.as_fd()).unwrap();
}

#[test]
fn one_user_cannot_take_all_connections() {
    if !is_root() {
        return;
    }
    let host = Host::with(Limits {
        connections_per_user: 3,
        ..Limits::default()
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            become_user(NOBODY);
            let _held: Vec<Client> = (0..3).map(|_| host.client()).collect();
            host.refuses(ErrorCode::TooMany, || Client::connect(&host.path).map(drop));
        });
    });
    host.vm();
}

#[test]
fn a_thread_that_is_no_vcpu_is_refused_until_it_is_one() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    host.set_vcpu(vcpu.tid, false);
    host.refuses(ErrorCode::NotAVcpu, || {
        vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd())
    });
    host.set_vcpu(vcpu.tid, true);
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
}

#[test]
fn what_the_scheduler_cannot_do_is_refused_by_its_reason() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    for (error, code) in [
        (RegistryError::Pin("no memory".into()), ErrorCode::Pin),
        (RegistryError::NoThread, ErrorCode::NotAThread),
        (
            RegistryError::Internal("no map".into()),
            ErrorCode::Internal,
        ),
    ] {
        host.fail_next(error);
        host.refuses(code, || vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()));
    }
    vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd()).unwrap();
}

#[test]
fn memory_that_the_vmm_truncates_cannot_be_pinned_and_hurts_nobody() {
    let host = Host::start();
    let (mut vm, vcpu, file) = (host.client(), Vcpu::start(), memory());
    vm.register_vm(name(), ProtocolName::LATENCY, 1, &guest(file.as_fd()))
        .unwrap();
    file.set_len(0).unwrap();
    host.refuses(ErrorCode::Pin, || {
        vm.attach_vcpu(0, 0, vcpu.pidfd().as_fd())
    });
}

#[test]
fn a_page_of_hugetlbfs_memory_is_found_inside_its_huge_page() {
    const HUGE: u64 = 2 << 20;
    let flags = MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
    let file = memfd_create(c"huge", flags)
        .map(File::from)
        .map_err(io::Error::from);
    let page = 3 * PAGE_SIZE;
    let mapped = file.and_then(|file| {
        file.set_len(2 * HUGE)?;
        let region = Region::new(0, HUGE, HUGE).unwrap();
        let region = super::memory::GuestRegion::new(region, file.into());
        let region = region.unwrap_or_else(|(_, problem)| panic!("{problem}"));
        Ok(region.map_page(page).unwrap()?)
    });
    match mapped {
        Ok(mapped) => assert_eq!(mapped.address() % HUGE, page),
        Err(error) => eprintln!("not tested: no huge pages here ({error})"),
    }
}

#[test]
fn a_vcpu_whose_thread_exits_is_detached_and_the_vmm_told() {
    let host = Host::start();
    let mut vm = host.vm();
    let vcpu = Vcpu::start();
    vm.attach_vcpu(3, 0, vcpu.pidfd().as_fd()).unwrap();
    drop(vcpu);
    eventually(|| host.attached() == 0);
    let mut notice = None;
    let since = Instant::now();
    while notice.is_none() && since.elapsed() < Duration::from_secs(5) {
        notice = vm.notice().unwrap();
    }
    assert_eq!(notice, Some(Notice::VcpuGone { apic_id: 3 }));
    vm.attach_vcpu(3, 0, Vcpu::start().pidfd().as_fd()).unwrap();
}

#[test]
fn a_replaced_vcpu_can_be_attached_before_the_exit_of_the_old_one_is_noticed() {
    let host = Host::start();
    let mut vm = host.vm();
    for _ in 0..200 {
        let vcpu = Vcpu::start();
        let pidfd = vcpu.pidfd();
        vm.attach_vcpu(0, 0, pidfd.as_fd()).unwrap();
        drop(vcpu);
        eventually(|| thread::has_exited(pidfd.as_fd()));
    }
}

#[test]
fn a_scheduler_that_stops_says_so_and_leaves_nothing() {
    let mut host = Host::start();
    let mut vm = host.vm();
    vm.attach_vcpu(0, 0, Vcpu::start().pidfd().as_fd()).unwrap();
    let mut vm = host.vm();
    host.stop();
    assert_eq!(vm.notice().unwrap(), Some(Notice::Stopping));
    assert!(matches!(vm.notice(), Err(ClientError::Closed)));
    assert_eq!(host.state(), Default::default());
    assert!(!host.path.exists());
    assert!(matches!(
        Client::connect(&host.path),
        Err(ClientError::Unreachable(_))
    ));
}

#[test]
fn a_connection_that_registers_nothing_is_closed_in_time() {
    let host = Host::with(Limits {
        registration: Duration::from_millis(100),
        ..Limits::default()
    });
    let (silent, greeted, vm) = (host.peer(), host.peer().greeted(), host.vm());
    assert!(silent.closed() && greeted.closed());
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(host.state().0.len(), 1);
    drop(vm);
}

#[test]
fn a_peer_that_does_not_read_is_dropped_and_blocks_nobody() {
    let host = Host::start();
    let peer = host.peer().greeted();
    peer.say(&register_bytes(&[]), &[memory().as_fd()]).unwrap();
    let detach = Request::VcpuDetach { apic_id: 0 }.encode(1);
    let flood = std::thread::spawn(move || while send(peer.0.as_fd(), &detach, &[]).is_ok() {});
    let mut vm = host.vm();
    vm.attach_vcpu(0, 0, Vcpu::start().pidfd().as_fd()).unwrap();
    flood.join().unwrap();
    eventually(|| host.state().0.len() == 1);
}

#[test]
fn the_socket_of_a_dead_server_is_replaced_and_that_of_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handoff.sock");
    let bind = |path: &Path| Server::bind(path, config(Limits::default()));
    // What a killed scheduler leaves: a socket file that nobody listens at.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = bind(&path).unwrap();
    assert!(matches!(bind(&path), Err(ServerError::InUse(_))));
    drop(server);
    assert!(!path.exists());
    fs::write(&path, "precious").unwrap();
    assert!(matches!(bind(&path), Err(ServerError::NotASocket(_))));
    assert!(path.exists());
}

#[test]
fn sixty_four_vms_with_eight_vcpus_each_come_and_go() {
    let host = Host::start();
    let vms: Vec<_> = (0..64)
        .map(|_| {
            let mut vm = host.vm();
            let vcpus: Vec<Vcpu> = (0..8).map(|_| Vcpu::start()).collect();
            for (id, vcpu) in (0u32..).zip(&vcpus) {
                let gpa = u64::from(id) * PAGE_SIZE;
                vm.attach_vcpu(id, gpa, vcpu.pidfd().as_fd()).unwrap();
            }
            (vm, vcpus)
        })
        .collect();
    assert_eq!((host.state().0.len(), host.attached()), (64, 512));
    let (clients, threads): (Vec<Client>, Vec<_>) = vms.into_iter().unzip();
    drop(clients);
    eventually(|| host.state().0.is_empty() && host.attached() == 0);
    drop(threads);
}
