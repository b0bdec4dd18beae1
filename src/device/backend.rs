// SPDX-License-Identifier: GPL-2.0-only
//! The device behind vhost-user, for QEMU's `vhost-user-test-device-pci` and any other front-end.
//!
//! What QEMU says when a guest resets the device is the same as when the machine is paused: it
//! stops the rings (GET_VRING_BASE). So the pages are taken back then, and given out again only if
//! the control ring goes on where it stopped. A driver that starts afresh starts it at 0.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use log::{debug, error, warn};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringRwLock, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::QueueT;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventNotifier};

use super::exit_event::ExitEvent;
use super::handover::{Handover, Machine};
use super::logic::{
    is_negotiate, Device, Event, Guest, Reply, CONFIG_SIZE, EVENT_SIZE, MAX_REQUEST, REPLY_SIZE,
};
use super::vcpus::QemuVcpus;
use crate::abi::{
    pvsched_page, PVSCHED_ERR_NO_PROTOCOL, PVSCHED_HANDOFF_MAX_VCPUS, PVSCHED_QUEUE_CONTROL,
    PVSCHED_QUEUE_COUNT, PVSCHED_QUEUE_DOORBELL, PVSCHED_QUEUE_EVENT,
};
use crate::handoff::wire::PAGE_SIZE;
use crate::handoff::{Protocol, Region, VmName};

const CONTROL: usize = PVSCHED_QUEUE_CONTROL as usize;
const EVENT: usize = PVSCHED_QUEUE_EVENT as usize;
const QUEUE_SIZE: usize = 256;
/// Events that wait for the driver to supply buffers; when there are more, the oldest are lost.
const EVENTS_MAX: usize = 256;

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// What the handover and the rings share.
struct QemuMachine {
    qemu: QemuVcpus,
    known: Mutex<BTreeSet<u32>>,
    memory: Mutex<Option<Memory>>,
    events: Mutex<VecDeque<Event>>,
    /// Set once the rings are running.
    event_ring: Mutex<Option<VringRwLock>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl QemuMachine {
    fn memory(&self) -> Option<Memory> {
        lock(&self.memory).clone()
    }

    /// Puts events that wait into the buffers that the driver has supplied.
    fn deliver(&self) {
        let (Some(ring), Some(memory)) = (lock(&self.event_ring).clone(), self.memory()) else {
            return;
        };
        let memory = memory.memory();
        let mut events = lock(&self.events);
        // Held throughout, so that the ring is not taken from under this.
        let mut state = ring.get_mut();
        if !state.get_queue().ready() || !state.is_enabled() {
            return;
        }
        let mut used = false;
        while let Some(event) = events.front() {
            let queue = state.get_queue_mut();
            let Some(chain) = queue.pop_descriptor_chain(memory.clone()) else {
                break;
            };
            let head = chain.head_index();
            let written = chain
                .writer(&memory)
                .map_err(io::Error::other)
                .and_then(|mut writer| writer.write_all(&event.encode()));
            let length = match written {
                Ok(()) => {
                    events.pop_front();
                    u32::try_from(EVENT_SIZE).unwrap_or(0)
                }
                Err(error) => {
                    warn!("the driver supplied an event buffer that is of no use: {error}");
                    0
                }
            };
            if let Err(error) = state.add_used(head, length) {
                error!("cannot return an event buffer: {error}");
                break;
            }
            used = true;
        }
        if used {
            if let Err(error) = state.signal_used_queue() {
                error!("cannot notify the driver of an event: {error}");
            }
        }
    }
}

impl Machine for QemuMachine {
    fn vcpu_threads(&self) -> Result<BTreeMap<u32, OwnedFd>, String> {
        let threads = self.qemu.threads().map_err(|error| error.to_string())?;
        *lock(&self.known) = threads.keys().copied().collect();
        Ok(threads)
    }

    fn clear_host_words(&self, gpa: u64) {
        let Some(memory) = self.memory() else { return };
        let memory = memory.memory();
        for offset in [
            std::mem::offset_of!(pvsched_page, applied),
            std::mem::offset_of!(pvsched_page, ticket),
            std::mem::offset_of!(pvsched_page, boosts),
            std::mem::offset_of!(pvsched_page, throttles),
            std::mem::offset_of!(pvsched_page, placement),
            std::mem::offset_of!(pvsched_page, since),
            std::mem::offset_of!(pvsched_page, capacity),
            std::mem::offset_of!(pvsched_page, ran),
            std::mem::offset_of!(pvsched_page, waited),
        ] {
            let word = GuestAddress(gpa).unchecked_add(u64::try_from(offset).unwrap_or(0));
            // Memory that is gone has no words to clear.
            let _ = memory.store(0u64, word, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn event(&self, event: Event) {
        {
            let mut events = lock(&self.events);
            if events.len() == EVENTS_MAX {
                events.pop_front();
            }
            events.push_back(event);
        }
        self.deliver();
    }
}

impl Guest for QemuMachine {
    fn is_ram(&self, gpa: u64) -> bool {
        self.memory().is_some_and(|memory| {
            let size = usize::try_from(PAGE_SIZE).unwrap_or(usize::MAX);
            memory.memory().check_range(GuestAddress(gpa), size)
        })
    }

    fn has_vcpu(&self, apic_id: u32) -> bool {
        if lock(&self.known).contains(&apic_id) {
            return true;
        }
        // It may have been plugged in since.
        match self.vcpu_threads() {
            Ok(threads) => threads.contains_key(&apic_id),
            Err(error) => {
                // The handover tries again, and says so if it does not get better.
                debug!("accepting vCPU {apic_id} unseen: {error}");
                true
            }
        }
    }
}

/// The device of one front-end.
pub struct Backend {
    machine: Arc<QemuMachine>,
    handover: Handover,
    device: Mutex<Device>,
    /// Where the control ring stopped, until it starts again.
    stopped_at: Mutex<Option<u16>>,
    control_ring: Mutex<Option<VringRwLock>>,
    /// The library holds this as long as its threads run.
    exit_events: Mutex<Vec<ExitEvent>>,
}

impl Backend {
    /// `qmp` is a QMP socket of the QEMU that will connect; `handoff` the scheduler's socket;
    /// `protocols` what the guest may choose from, the best first.
    pub fn new(
        handoff: &Path,
        name: VmName,
        qmp: &Path,
        protocols: Vec<Protocol>,
    ) -> io::Result<Self> {
        let machine = Arc::new(QemuMachine {
            qemu: QemuVcpus::new(qmp.into()),
            known: Mutex::default(),
            memory: Mutex::default(),
            events: Mutex::default(),
            event_ring: Mutex::default(),
        });
        Ok(Self {
            handover: Handover::start(handoff, name, machine.clone())?,
            machine,
            device: Mutex::new(Device::offering(protocols, PVSCHED_HANDOFF_MAX_VCPUS)),
            stopped_at: Mutex::default(),
            control_ring: Mutex::default(),
            exit_events: Mutex::default(),
        })
    }

    /// Answers what the driver has put into the control ring.
    fn control(&self, ring: &VringRwLock) {
        self.start_or_resume(ring);
        let Some(memory) = self.machine.memory() else {
            return;
        };
        let memory = memory.memory();
        let mut used = false;
        loop {
            // Not held while a request is carried out: that can take a while, and QEMU may want
            // to stop the ring meanwhile.
            let chain = {
                let mut state = ring.get_mut();
                if !state.get_queue().ready() || !state.is_enabled() {
                    return;
                }
                state.get_queue_mut().pop_descriptor_chain(memory.clone())
            };
            let Some(chain) = chain else { break };
            let head = chain.head_index();
            let length = self.answer(&chain, &memory).unwrap_or_else(|error| {
                warn!("the driver's control request is of no use: {error}");
                0
            });
            let mut state = ring.get_mut();
            if !state.get_queue().ready() {
                return;
            }
            if let Err(error) = state.add_used(head, length) {
                error!("cannot return a control request: {error}");
                return;
            }
            used = true;
        }
        if used {
            if let Err(error) = ring.signal_used_queue() {
                error!("cannot notify the driver of a reply: {error}");
            }
        }
    }

    /// How many bytes the reply has.
    fn answer<M>(
        &self,
        chain: &virtio_queue::DescriptorChain<M>,
        memory: &GuestMemoryMmap,
    ) -> io::Result<u32>
    where
        M: std::ops::Deref<Target = GuestMemoryMmap> + Clone,
    {
        let reader = chain.clone().reader(memory).map_err(io::Error::other)?;
        let mut writer = chain.clone().writer(memory).map_err(io::Error::other)?;
        if writer.available_bytes() < REPLY_SIZE {
            return Err(io::Error::other("it has no room for the reply"));
        }
        // One byte more than the longest, so that a longer request is seen as such.
        let mut request = Vec::new();
        let limit = u64::try_from(MAX_REQUEST + 1).unwrap_or(u64::MAX);
        reader.take(limit).read_to_end(&mut request)?;
        let mut device = lock(&self.device);
        if is_negotiate(&request) {
            device.set_offer(self.handover.offer().as_deref());
        }
        let (reply, action) = device.handle(&request, &*self.machine);
        if reply.status == PVSCHED_ERR_NO_PROTOCOL {
            warn!("{}", device.disagreement());
        }
        let reply = match action.map_or(Ok(()), |action| self.handover.act(action)) {
            Ok(()) => reply,
            Err(error) => {
                error!("{error}");
                Reply::host_failed()
            }
        };
        drop(device);
        writer.write_all(&reply.encode())?;
        Ok(u32::try_from(REPLY_SIZE).unwrap_or(0))
    }

    /// The ring runs. If it had stopped, has the driver started afresh, or does it go on?
    fn start_or_resume(&self, ring: &VringRwLock) {
        let Some(stopped_at) = lock(&self.stopped_at).take() else {
            return;
        };
        let at = ring.queue_next_avail();
        if at == stopped_at && at != 0 {
            debug!("the device goes on where it was stopped");
            self.handover.resume();
        } else {
            debug!("the device was reset");
            self.reset();
        }
    }

    fn reset(&self) {
        lock(&self.device).reset();
        lock(&self.machine.events).clear();
        self.handover.reset();
        // What the reset itself has to say is not for the next driver.
        lock(&self.machine.events).clear();
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        PVSCHED_QUEUE_COUNT as usize
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        lock(&self.stopped_at).take();
        self.reset();
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = lock(&self.device).config();
        let (Ok(offset), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
            return Vec::new();
        };
        // Zero beyond what there is, for a front-end that was told of a larger space.
        config.resize(CONFIG_SIZE.max(offset.saturating_add(size)), 0);
        config[offset..offset + size].to_vec()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        let snapshot = memory.memory();
        let regions = snapshot.iter().filter_map(|region| {
            let file = region.file_offset()?;
            let place = Region::new(region.start_addr().0, region.len(), file.start());
            match place {
                Ok(place) => Some((place, Arc::clone(file.arc()))),
                Err(problem) => {
                    warn!(
                        "memory at {:#x} is not handed over: {problem}",
                        region.start_addr().0
                    );
                    None
                }
            }
        });
        let regions: Vec<(Region, Arc<File>)> = regions.collect();
        drop(snapshot);
        *lock(&self.machine.memory) = Some(memory);
        self.handover.set_memory(regions);
        Ok(())
    }

    /// One thread, for the control and the event ring. The doorbell is in no mask: its eventfd is
    /// then neither waited for nor read, so that a notification costs the guest's exit and no more.
    fn queues_per_thread(&self) -> Vec<u64> {
        vec![1 << PVSCHED_QUEUE_CONTROL | 1 << PVSCHED_QUEUE_EVENT]
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (kept, ends) = ExitEvent::new()
            .inspect_err(|error| error!("cannot create an event to end the ring thread: {error}"))
            .ok()?;
        lock(&self.exit_events).push(kept);
        Some(ends)
    }

    fn stop_vring(&self, index: u32) -> io::Result<()> {
        if index == PVSCHED_QUEUE_CONTROL {
            // A ring that this never saw run has nothing to go on with.
            let at = lock(&self.control_ring)
                .as_ref()
                .map_or(0, VringT::queue_next_avail);
            let mut stopped_at = lock(&self.stopped_at);
            // Stopped twice without a run between: the first is the one to go on from.
            stopped_at.get_or_insert(at);
            self.handover.suspend();
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _: EventSet,
        rings: &[VringRwLock],
        _: usize,
    ) -> io::Result<()> {
        // The masks name the lowest rings, so positions here are ring numbers.
        match usize::from(event) {
            CONTROL => {
                lock(&self.control_ring).get_or_insert_with(|| rings[CONTROL].clone());
                self.control(&rings[CONTROL]);
            }
            EVENT => {
                lock(&self.machine.event_ring).get_or_insert_with(|| rings[EVENT].clone());
                self.machine.deliver();
            }
            other => debug!("an event of ring {other}, which is not waited for"),
        }
        Ok(())
    }
}

const _: () = assert!(
    PVSCHED_QUEUE_CONTROL == 0 && PVSCHED_QUEUE_EVENT == 1 && PVSCHED_QUEUE_DOORBELL == 2,
    "handle_event takes positions within queues_per_thread for ring numbers"
);

#[cfg(test)]
mod tests {
    use super::*;

    /// vhost-user-backend refuses whatever else a driver may want.
    #[test]
    fn no_feature_is_offered_but_the_transports() {
        let folder = tempfile::tempdir().unwrap();
        let (nobody, qmp) = (folder.path().join("nobody"), folder.path().join("qmp"));
        let name = VmName::new("guest").unwrap();
        let backend = Backend::new(&nobody, name, &qmp, Protocol::all()).unwrap();
        // VHOST_USER_F_PROTOCOL_FEATURES never reaches the guest.
        assert_eq!(backend.features(), 1 << 32 | 1 << 30);
    }
}
