// SPDX-License-Identifier: GPL-2.0-only
//! Keeps the host scheduler informed of what the driver has set: hands a VM over once it has
//! pages, again after the scheduler was away, and takes it back when the driver lets go.
//!
//! A thread of its own does all that can take time, so the guest never waits for the scheduler to
//! come. The guest waits for it to *let go*: [`Handover::act`] with a cleared page,
//! [`Handover::reset`] and [`Handover::suspend`] return when the scheduler does not touch the pages any more, or has not
//! answered for so long that the connection was given up.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use thiserror::Error;

use super::logic::{Action, Event};
use crate::handoff::client::{Client, ClientError};
use crate::handoff::wire::{Notice, MAX_REGIONS};
use crate::handoff::{ErrorCode, Protocol, ProtocolName, Region, VmName};

/// How long until the next attempt to reach a scheduler, or to attach a vCPU that it may have
/// refused too early.
const RETRY: Duration = Duration::from_millis(500);
/// How often a refused vCPU is tried like that before the guest is told, and after which it is only
/// tried now and then, in case the cause goes away.
const EARLY_TRIES: u32 = 20;
const LATE_RETRY: Duration = Duration::from_secs(5);

/// What the handover needs of the machine.
pub trait Machine: Send + Sync {
    /// A pidfd, opened with PIDFD_THREAD, of each vCPU's thread by local APIC id.
    fn vcpu_threads(&self) -> Result<BTreeMap<u32, OwnedFd>, String>;

    /// Zeroes the words of the host in the page at that guest physical address, for a guest whose
    /// scheduler has gone away.
    fn clear_host_words(&self, gpa: u64);

    /// Tells the driver.
    fn event(&self, event: Event);
}

/// The scheduler did not confirm in time that it let go of a page.
#[derive(Debug, Error)]
#[error("the scheduler did not confirm that it let go of the page: {0}")]
pub struct NotConfirmed(ClientError);

/// The files and places of guest memory.
type Memory = Vec<(Region, Arc<File>)>;

/// What should be with the scheduler.
struct Wanted {
    protocol: Option<(ProtocolName, u16)>,
    pages: BTreeMap<u32, u64>,
    memory: Arc<Memory>,
    running: bool,
    /// Counts changes that need a new connection.
    generation: u64,
    /// Of the scheduler that is connected.
    offer: Option<Vec<Protocol>>,
    stop: bool,
}

/// What is with the scheduler.
#[derive(Default)]
struct Link {
    client: Option<Client>,
    /// Of what is wanted, when the client registered.
    generation: u64,
    attached: BTreeMap<u32, u64>,
    refused: BTreeMap<u32, Refused>,
    /// The guest knows of the scheduler.
    announced: bool,
}

struct Refused {
    tries: u32,
    again: Instant,
}

/// Locks are taken in the order of the fields. `wanted` is never held over anything that waits;
/// `link` is only held over one exchange with the scheduler, whose time is limited.
struct Shared {
    link: Mutex<Link>,
    wanted: Mutex<Wanted>,
    wake: EventFd,
    machine: Arc<dyn Machine>,
    path: PathBuf,
    name: VmName,
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().expect("no holder panics")
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().expect("no holder panics")
    }

    fn wake(&self) {
        // Only fails when the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    fn detach(&self, apic_id: u32) -> Result<(), NotConfirmed> {
        let mut link = self.link();
        link.refused.remove(&apic_id);
        if link.attached.remove(&apic_id).is_none() {
            return Ok(());
        }
        let Some(client) = &mut link.client else {
            return Ok(());
        };
        match client.detach_vcpu(apic_id) {
            // Refused: the thread has exited meanwhile, and the scheduler has let go by itself.
            Ok(()) | Err(ClientError::Refused { .. }) => {}
            Err(error) => {
                let confirmed = matches!(error, ClientError::Closed);
                self.lost(&mut link, &error.to_string());
                if !confirmed {
                    return Err(NotConfirmed(error));
                }
            }
        }
        // Notices may have come with the answer.
        self.wake();
        Ok(())
    }

    /// The scheduler refused the VM as a whole. The guest is told of each page at the second
    /// attempt: by then its driver knows that the page is set.
    fn vm_refused(&self, target: &Target, code: ErrorCode) {
        let mut link = self.link();
        if link.generation != target.generation {
            link.generation = target.generation;
            link.refused.clear();
        }
        for apic_id in target.pages.keys() {
            let again = Instant::now();
            let refused = link
                .refused
                .entry(*apic_id)
                .or_insert(Refused { tries: 0, again });
            refused.tries = refused.tries.saturating_add(1);
            if refused.tries == 2 {
                let apic_id = *apic_id;
                self.machine.event(Event::VcpuRefused { apic_id, code });
            }
        }
    }

    /// Takes the VM away from the scheduler, and waits until it is.
    fn leave(&self, link: &mut Link, why: &str) {
        if let Some(client) = link.client.take() {
            if let Err(error) = client.leave() {
                warn!("{}: {}", self.name, NotConfirmed(error));
            }
            self.lost(link, why);
        }
    }

    /// The scheduler has nothing of this VM any more.
    fn lost(&self, link: &mut Link, why: &str) {
        link.client = None;
        link.refused.clear();
        let attached = std::mem::take(&mut link.attached);
        let mut wanted = self.wanted();
        wanted.offer = None;
        let kept = attached
            .iter()
            .filter(|(id, gpa)| wanted.pages.get(id) == Some(gpa));
        let kept: Vec<u64> = kept.map(|(_, gpa)| *gpa).collect();
        drop(wanted);
        // The guest must not go on to notify a host that does not listen.
        for gpa in kept {
            self.machine.clear_host_words(gpa);
        }
        if std::mem::take(&mut link.announced) {
            info!("{}: no longer with the scheduler: {why}", self.name);
            self.machine.event(Event::HostDetached);
        }
    }
}

/// The handover of one VM. Dropping it takes the VM away from the scheduler.
pub struct Handover {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Handover {
    /// Starts the thread that follows what is set from now on.
    pub fn start(path: &Path, name: VmName, machine: Arc<dyn Machine>) -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let shared = Arc::new(Shared {
            link: Mutex::default(),
            wanted: Mutex::new(Wanted {
                protocol: None,
                pages: BTreeMap::new(),
                memory: Arc::default(),
                running: true,
                generation: 0,
                offer: None,
                stop: false,
            }),
            wake: EventFd::from_value_and_flags(0, flags)?,
            machine,
            path: path.into(),
            name,
        });
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let worker = Worker {
            shared: Arc::clone(&shared),
            epoll,
            threads: BTreeMap::new(),
            next_connect: Instant::now(),
            next_lookup: Instant::now(),
            complaint: String::new(),
        };
        let thread = std::thread::Builder::new()
            .name("handover".into())
            .spawn(move || worker.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Where guest memory is. With other memory than before the VM is handed over anew.
    pub fn set_memory(&self, memory: Vec<(Region, Arc<File>)>) {
        let mut wanted = self.shared.wanted();
        if !same_memory(&wanted.memory, &memory) {
            wanted.memory = Arc::new(memory);
            wanted.generation += 1;
            drop(wanted);
            self.shared.wake();
        }
    }

    /// Carries out what the driver asked for.
    pub fn act(&self, action: Action) -> Result<(), NotConfirmed> {
        match action {
            Action::Negotiated(protocol) => {
                self.reset();
                self.shared.wanted().protocol = protocol;
                match protocol {
                    Some((name, version)) => info!(
                        "{}: negotiated protocol {name} version {version}",
                        self.shared.name
                    ),
                    None => warn!(
                        "{}: no protocol in common with the guest's driver",
                        self.shared.name
                    ),
                }
                Ok(())
            }
            Action::PageSet { apic_id, gpa } => {
                self.shared.wanted().pages.insert(apic_id, gpa);
                self.shared.wake();
                Ok(())
            }
            Action::PageCleared { apic_id } => {
                self.shared.wanted().pages.remove(&apic_id);
                self.shared.detach(apic_id)
            }
        }
    }

    /// Drops all pages and the protocol, as when the driver resets the device.
    pub fn reset(&self) {
        let mut wanted = self.shared.wanted();
        wanted.protocol = None;
        wanted.pages.clear();
        wanted.running = true;
        wanted.generation += 1;
        drop(wanted);
        self.shared
            .leave(&mut self.shared.link(), "the guest has reset the device");
    }

    /// Takes the VM away from the scheduler until [`Handover::resume`], but keeps what is set.
    pub fn suspend(&self) {
        let mut wanted = self.shared.wanted();
        wanted.running = false;
        wanted.generation += 1;
        drop(wanted);
        self.shared
            .leave(&mut self.shared.link(), "the device was stopped");
    }

    /// Hands over again after [`Handover::suspend`].
    pub fn resume(&self) {
        self.shared.wanted().running = true;
        self.shared.wake();
    }

    /// What the scheduler offers, if there is one. Where none is connected this asks, and takes as
    /// long as the scheduler is given for an answer.
    pub fn offer(&self) -> Option<Vec<Protocol>> {
        let known = self.shared.wanted().offer.clone();
        known.or_else(|| {
            let client = Client::connect(&self.shared.path).ok()?;
            Some(client.welcome().protocols.clone())
        })
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        let mut wanted = self.shared.wanted();
        wanted.stop = true;
        wanted.generation += 1;
        drop(wanted);
        // At once: the thread may be waiting for the machine.
        self.shared.link().client = None;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is wanted, when something is.
struct Target {
    generation: u64,
    protocol: (ProtocolName, u16),
    pages: BTreeMap<u32, u64>,
    memory: Arc<Memory>,
}

struct Worker {
    shared: Arc<Shared>,
    /// Of the wake descriptor and the client's. Does not keep a client's connection open.
    epoll: Epoll,
    threads: BTreeMap<u32, OwnedFd>,
    next_connect: Instant,
    next_lookup: Instant,
    /// The last one logged, so that each cause is logged once.
    complaint: String,
}

impl Worker {
    fn run(mut self) {
        loop {
            let mut events = [EpollEvent::empty(); 2];
            let pause = if self.step() { RETRY } else { LATE_RETRY };
            if self.shared.wanted().stop {
                self.shared.link().client = None;
                return;
            }
            let pause = EpollTimeout::try_from(pause).unwrap_or(EpollTimeout::ZERO);
            if self.epoll.wait(&mut events, pause).is_ok() {
                let _ = self.shared.wake.read();
            }
        }
    }

    /// Brings what is with the scheduler nearer to what is wanted; whether to try again soon.
    fn step(&mut self) -> bool {
        self.read_notices();
        let target = self.target();
        {
            let mut link = self.shared.link();
            match &target {
                None => self
                    .shared
                    .leave(&mut link, "the guest has no pages any more"),
                Some(target) if target.generation != link.generation => {
                    self.shared.leave(&mut link, "guest memory has changed");
                }
                Some(_) => {}
            }
        }
        let Some(target) = target else {
            return false;
        };
        if !self.connect(&target) {
            return true;
        }
        let missing = self.missing(&target);
        if missing.iter().any(|(id, _)| !self.threads.contains_key(id)) {
            self.look_up();
        }
        if let Some((id, _)) = missing
            .iter()
            .find(|(id, _)| !self.threads.contains_key(id))
        {
            debug!("{}: no thread is known of vCPU {id}", self.shared.name);
        }
        for (apic_id, gpa) in missing {
            self.attach(&target, apic_id, gpa);
        }
        self.announce();
        self.read_notices();
        let link = self.shared.link();
        link.client.is_none()
            || target
                .pages
                .keys()
                .any(|id| !link.attached.contains_key(id))
    }

    fn target(&self) -> Option<Target> {
        let wanted = self.shared.wanted();
        let protocol = wanted.protocol.filter(|_| wanted.running && !wanted.stop)?;
        (!wanted.pages.is_empty()).then(|| Target {
            generation: wanted.generation,
            protocol,
            pages: wanted.pages.clone(),
            memory: Arc::clone(&wanted.memory),
        })
    }

    /// Whether there is a connection now.
    fn connect(&mut self, target: &Target) -> bool {
        if self.shared.link().client.is_some() {
            return true;
        }
        if Instant::now() < self.next_connect {
            return false;
        }
        self.next_connect = Instant::now() + RETRY;
        // Without the lock, so that the guest's requests do not wait for this.
        let client = match self.register(target) {
            Ok(client) => client,
            Err(error) => {
                if let ClientError::Refused { code, .. } = error {
                    self.shared.vm_refused(target, code);
                }
                self.complain(&error.to_string());
                return false;
            }
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, 1);
        if let Err(errno) = self.epoll.add(client.fd(), event) {
            self.complain(&format!("cannot wait for the scheduler: {errno}"));
            return false;
        }
        let mut link = self.shared.link();
        let mut wanted = self.shared.wanted();
        if wanted.generation != target.generation {
            return false;
        }
        wanted.offer = Some(client.welcome().protocols.clone());
        link.generation = target.generation;
        link.refused.clear();
        link.client = Some(client);
        true
    }

    fn register(&self, target: &Target) -> Result<Client, ClientError> {
        let mut client = Client::connect(&self.shared.path)?;
        let (protocol, version) = target.protocol;
        let mut memory: Vec<_> = target
            .memory
            .iter()
            .map(|(region, file)| (*region, file.as_fd()))
            .collect();
        // Regions with pages first, for a machine with more regions than can be named.
        memory.sort_by_key(|(region, _)| {
            let mut pages = target.pages.values();
            !pages.any(|gpa| region.file_offset(*gpa).is_some())
        });
        memory.truncate(MAX_REGIONS);
        client.register_vm(self.shared.name.clone(), protocol, version, &memory)?;
        Ok(client)
    }

    /// The pages that are to be attached now.
    fn missing(&self, target: &Target) -> Vec<(u32, u64)> {
        let link = self.shared.link();
        let now = Instant::now();
        let due = |id: &u32| {
            link.refused
                .get(id)
                .is_none_or(|refused| refused.again <= now)
        };
        let missing = target
            .pages
            .iter()
            .filter(|(id, _)| !link.attached.contains_key(id));
        missing
            .filter(|(id, _)| due(id))
            .map(|(id, gpa)| (*id, *gpa))
            .collect()
    }

    fn look_up(&mut self) {
        if Instant::now() < self.next_lookup {
            return;
        }
        match self.shared.machine.vcpu_threads() {
            Ok(threads) => self.threads = threads,
            Err(error) => {
                self.complain(&error);
            }
        }
        self.next_lookup = Instant::now() + RETRY;
    }

    fn attach(&mut self, target: &Target, apic_id: u32, gpa: u64) {
        let Some(pidfd) = self.threads.get(&apic_id) else {
            return;
        };
        let mut link = self.shared.link();
        {
            // Taken back meanwhile, or still wanted: whoever takes it back now finds it attached.
            let wanted = self.shared.wanted();
            let same = wanted.generation == target.generation;
            if !same || wanted.pages.get(&apic_id) != Some(&gpa) {
                return;
            }
        }
        let Some(client) = &mut link.client else {
            return;
        };
        match client.attach_vcpu(apic_id, gpa, pidfd.as_fd()) {
            Ok(()) => {
                debug!("{}: vCPU {apic_id} attached", self.shared.name);
                link.attached.insert(apic_id, gpa);
                link.refused.remove(&apic_id);
            }
            Err(ClientError::Refused { code, text }) => {
                if code == ErrorCode::NotAThread {
                    self.threads.remove(&apic_id);
                }
                refused(&self.shared, &mut link, apic_id, code, &text);
            }
            Err(error) => self.shared.lost(&mut link, &error.to_string()),
        }
    }

    fn announce(&mut self) {
        let mut link = self.shared.link();
        if link.announced || link.attached.is_empty() {
            return;
        }
        link.announced = true;
        self.complaint.clear();
        info!("{}: handed over to the scheduler", self.shared.name);
        self.shared.machine.event(Event::HostAttached);
    }

    fn read_notices(&mut self) {
        let mut link = self.shared.link();
        while let Some(client) = &mut link.client {
            match client.notice() {
                Ok(Some(Notice::VcpuGone { apic_id })) => {
                    debug!(
                        "{}: the thread of vCPU {apic_id} has exited",
                        self.shared.name
                    );
                    link.attached.remove(&apic_id);
                    self.threads.remove(&apic_id);
                }
                Ok(Some(Notice::Stopping)) => debug!("{}: the scheduler stops", self.shared.name),
                Ok(None) => break,
                Err(error) => self.shared.lost(&mut link, &error.to_string()),
            }
        }
    }

    fn complain(&mut self, complaint: &str) {
        if self.complaint != complaint {
            warn!("{}: {complaint}", self.shared.name);
            self.complaint = complaint.into();
        }
    }
}

/// Plans the next attempt for a vCPU, and tells the guest when it looks final.
fn refused(shared: &Shared, link: &mut Link, apic_id: u32, code: ErrorCode, text: &str) {
    let tries = link
        .refused
        .get(&apic_id)
        .map_or(1, |refused| refused.tries.saturating_add(1));
    // What a moment may change: a vCPU that KVM has not entered yet under this scheduler, or one
    // whose connection before this, or thread before this, is just going away.
    let passing = matches!(
        code,
        ErrorCode::NotAVcpu
            | ErrorCode::NotAThread
            | ErrorCode::ThreadInUse
            | ErrorCode::PageInUse
            | ErrorCode::ApicId
    );
    let early = passing && tries < EARLY_TRIES;
    let again = Instant::now() + if early { RETRY } else { LATE_RETRY };
    link.refused.insert(apic_id, Refused { tries, again });
    if tries == if passing { EARLY_TRIES } else { 1 } {
        warn!(
            "{}: the scheduler refuses vCPU {apic_id}: {text}",
            shared.name
        );
        shared.machine.event(Event::VcpuRefused { apic_id, code });
    } else {
        debug!("{}: vCPU {apic_id} refused: {text}", shared.name);
    }
}

/// Whether both name the same places of the same files.
fn same_memory(a: &Memory, b: &Memory) -> bool {
    let place = |(region, file): &(Region, Arc<File>)| {
        let id = file.metadata().map(|file| (file.dev(), file.ino())).ok();
        (*region, id)
    };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| place(a) == place(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::server::{Access, Config, Server};
    use crate::handoff::tests::{eventually, memory, Host, Vcpu, RAM};
    use crate::handoff::wire::PAGE_SIZE;

    /// Two vCPUs with the APIC ids 0 and 2.
    struct Fake {
        vcpus: Mutex<BTreeMap<u32, Vcpu>>,
        cleared: Mutex<Vec<u64>>,
        events: Mutex<Vec<Event>>,
    }

    impl Machine for Fake {
        fn vcpu_threads(&self) -> Result<BTreeMap<u32, OwnedFd>, String> {
            let vcpus = self.vcpus.lock().unwrap();
            Ok(vcpus.iter().map(|(id, vcpu)| (*id, vcpu.pidfd())).collect())
        }

        fn clear_host_words(&self, gpa: u64) {
            self.cleared.lock().unwrap().push(gpa);
        }

        fn event(&self, event: Event) {
            self.events.lock().unwrap().push(event);
        }
    }

    impl Fake {
        fn events(&self) -> Vec<Event> {
            std::mem::take(&mut self.events.lock().unwrap())
        }
    }

    fn start(path: &Path) -> (Handover, Arc<Fake>) {
        let vcpus = [(0, Vcpu::start()), (2, Vcpu::start())];
        let machine = Arc::new(Fake {
            vcpus: Mutex::new(vcpus.into()),
            cleared: Mutex::default(),
            events: Mutex::default(),
        });
        let name = VmName::new("guest").unwrap();
        let handover = Handover::start(path, name, machine.clone()).unwrap();
        handover.set_memory(ram());
        (handover, machine)
    }

    fn ram() -> Vec<(Region, Arc<File>)> {
        vec![(Region::new(0, RAM, 0).unwrap(), Arc::new(memory()))]
    }

    fn negotiate(handover: &Handover) {
        let latency = (ProtocolName::LATENCY, 1);
        handover.act(Action::Negotiated(Some(latency))).unwrap();
    }

    fn set_pages(handover: &Handover) {
        negotiate(handover);
        for (apic_id, page) in [(0, 3), (2, 4)] {
            let gpa = page * PAGE_SIZE;
            handover.act(Action::PageSet { apic_id, gpa }).unwrap();
        }
    }

    /// The first words of the pages that the scheduler has, by APIC id.
    fn pages(host: &Host) -> Vec<(u32, u64)> {
        let (_, attached) = host.state();
        attached
            .into_iter()
            .map(|((_, id), (_, word))| (id, word))
            .collect()
    }

    #[test]
    fn pages_reach_the_scheduler_and_are_back_when_the_guest_is_answered() {
        let host = Host::start();
        let (handover, machine) = start(&host.path);
        assert_eq!(host.state().0.len(), 0);
        set_pages(&handover);
        eventually(|| pages(&host) == [(0, 3), (2, 4)]);
        eventually(|| !machine.events.lock().unwrap().is_empty());
        assert_eq!(machine.events(), [Event::HostAttached]);
        assert_eq!(handover.offer(), Some(Protocol::all()));

        handover.act(Action::PageCleared { apic_id: 0 }).unwrap();
        assert_eq!(pages(&host), [(2, 4)]);
        handover.reset();
        assert_eq!(host.state(), Default::default());
        assert_eq!(machine.events(), [Event::HostDetached]);
        assert!(machine.cleared.lock().unwrap().is_empty());
    }

    #[test]
    fn a_scheduler_that_comes_back_gets_the_vm_again_within_two_seconds() {
        let host = Host::start();
        let (handover, machine) = start(&host.path);
        set_pages(&handover);
        eventually(|| host.attached() == 2);
        eventually(|| machine.events() == [Event::HostAttached]);
        let host = host.restart(|| {
            eventually(|| machine.events() == [Event::HostDetached]);
            let mut cleared = std::mem::take(&mut *machine.cleared.lock().unwrap());
            cleared.sort_unstable();
            assert_eq!(cleared, [3 * PAGE_SIZE, 4 * PAGE_SIZE]);
        });
        let since = Instant::now();
        eventually(|| host.attached() == 2);
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "{:?}",
            since.elapsed()
        );
        eventually(|| machine.events() == [Event::HostAttached]);
    }

    #[test]
    fn what_the_scheduler_offers_is_known_before_anything_is_handed_over() {
        let host = Host::start();
        let (handover, _machine) = start(&host.path);
        assert_eq!(handover.offer(), Some(Protocol::all()));
        assert_eq!(host.state(), Default::default());
    }

    #[test]
    fn a_guest_is_told_when_a_scheduler_comes_that_does_not_speak_its_protocol() {
        let host = Host::start();
        let (handover, machine) = start(&host.path);
        let newer = (ProtocolName::LATENCY, 9);
        handover.act(Action::Negotiated(Some(newer))).unwrap();
        let gpa = 3 * PAGE_SIZE;
        handover.act(Action::PageSet { apic_id: 0, gpa }).unwrap();
        let refused = Event::VcpuRefused {
            apic_id: 0,
            code: ErrorCode::Protocol,
        };
        eventually(|| machine.events.lock().unwrap().contains(&refused));
        // Once, although it goes on trying.
        std::thread::sleep(RETRY + Duration::from_millis(200));
        assert_eq!(machine.events(), [refused]);
        assert_eq!(host.attached(), 0);
    }

    #[test]
    fn a_guest_may_come_before_the_scheduler_and_is_not_kept_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let (handover, _machine) = start(&directory.path().join("nobody"));
        assert_eq!(handover.offer(), None);
        let since = Instant::now();
        set_pages(&handover);
        handover.act(Action::PageCleared { apic_id: 0 }).unwrap();
        handover.reset();
        assert!(
            since.elapsed() < Duration::from_millis(200),
            "{:?}",
            since.elapsed()
        );
    }

    #[test]
    fn a_scheduler_that_hangs_does_not_keep_the_guest_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hung");
        let config = Config {
            access: Access::Mode {
                mode: 0o600,
                gid: None,
            },
            ..Config::default()
        };
        let _hung = Server::bind(&path, config).unwrap();
        let (handover, _machine) = start(&path);
        for _ in 0..3 {
            let since = Instant::now();
            set_pages(&handover);
            std::thread::sleep(Duration::from_millis(100));
            handover.act(Action::PageCleared { apic_id: 0 }).unwrap();
            handover.reset();
            assert!(
                since.elapsed() < Duration::from_millis(400),
                "{:?}",
                since.elapsed()
            );
        }
    }

    #[test]
    fn a_device_that_goes_away_takes_its_vm_along() {
        let host = Host::start();
        let (handover, _machine) = start(&host.path);
        set_pages(&handover);
        eventually(|| host.attached() == 2);
        drop(handover);
        eventually(|| host.state() == Default::default());
    }

    #[test]
    fn a_paused_vm_is_away_and_comes_back_with_its_pages() {
        let host = Host::start();
        let (handover, _machine) = start(&host.path);
        set_pages(&handover);
        eventually(|| host.attached() == 2);
        handover.suspend();
        assert_eq!(host.state(), Default::default());
        std::thread::sleep(RETRY + Duration::from_millis(200));
        assert_eq!(host.state(), Default::default());
        handover.resume();
        eventually(|| pages(&host) == [(0, 3), (2, 4)]);
    }

    #[test]
    fn other_memory_is_handed_over_anew_and_the_same_is_not() {
        let host = Host::start();
        let (handover, _machine) = start(&host.path);
        let memory = ram();
        handover.set_memory(memory.clone());
        set_pages(&handover);
        eventually(|| host.attached() == 2);
        let vm = host.state().0;
        handover.set_memory(memory);
        handover.act(Action::PageCleared { apic_id: 0 }).unwrap();
        assert_eq!(host.state().0, vm);
        handover.set_memory(ram());
        eventually(|| host.state().0 != vm && pages(&host) == [(2, 4)]);
    }

    #[test]
    fn a_vcpu_that_kvm_has_not_entered_yet_is_tried_again() {
        let host = Host::start();
        let (handover, machine) = start(&host.path);
        let late = machine.vcpus.lock().unwrap()[&2].tid;
        host.set_vcpu(late, false);
        set_pages(&handover);
        eventually(|| pages(&host) == [(0, 3)]);
        host.set_vcpu(late, true);
        eventually(|| pages(&host) == [(0, 3), (2, 4)]);
        eventually(|| machine.events() == [Event::HostAttached]);
    }

    #[test]
    fn a_guest_is_told_of_a_protocol_that_is_not_allowed_and_gets_it_once_it_is() {
        let host = Host::start();
        host.set_barred(true);
        let (handover, machine) = start(&host.path);
        set_pages(&handover);
        let told = |apic_id| Event::VcpuRefused {
            apic_id,
            code: ErrorCode::NotAllowed,
        };
        eventually(|| machine.events.lock().unwrap().len() == 2);
        // Not again at each attempt.
        std::thread::sleep(2 * RETRY);
        assert_eq!(machine.events(), [told(0), told(2)]);
        host.set_barred(false);
        eventually(|| pages(&host) == [(0, 3), (2, 4)]);
        eventually(|| machine.events() == [Event::HostAttached]);
    }

    #[test]
    fn a_vcpu_that_is_plugged_again_is_handed_over_with_its_new_thread() {
        let host = Host::start();
        let (handover, machine) = start(&host.path);
        set_pages(&handover);
        eventually(|| host.attached() == 2);
        machine.vcpus.lock().unwrap().remove(&2);
        eventually(|| host.attached() == 1);
        let vcpu = Vcpu::start();
        let tid = vcpu.tid;
        machine.vcpus.lock().unwrap().insert(2, vcpu);
        eventually(|| host.state().1.values().any(|(of, _)| *of == tid));
    }
}
