// SPDX-License-Identifier: GPL-2.0-only
//! What the device answers to its driver, without any transport.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use crate::abi::*;
use crate::handoff::bytes::{narrow, Fields, FieldsMut};
use crate::handoff::wire::PAGE_SIZE;
use crate::handoff::{ErrorCode, Protocol, ProtocolName};

/// Most bytes of any request; a longer one is malformed.
pub const MAX_REQUEST: usize = size_of::<pvsched_req_negotiate>();
/// Bytes of every reply.
pub const REPLY_SIZE: usize = size_of::<pvsched_reply>();
/// Bytes of every event.
pub const EVENT_SIZE: usize = size_of::<pvsched_event>();
/// Bytes of configuration space.
pub const CONFIG_SIZE: usize = size_of::<pvsched_config>();

/// What the device must know of the machine that it sits in.
pub trait Guest {
    /// Whether the whole page at that guest physical address is RAM.
    fn is_ram(&self, gpa: u64) -> bool;

    /// Whether a vCPU has that local APIC id; `true` when that cannot be found out now.
    fn has_vcpu(&self, apic_id: u32) -> bool;
}

/// What a request changed, for the host's side of the device to carry out before the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// All pages are dropped, and the protocol is now this one, or none.
    Negotiated(Option<(ProtocolName, u16)>),
    PageSet {
        apic_id: u32,
        gpa: u64,
    },
    PageCleared {
        apic_id: u32,
    },
}

/// A `struct pvsched_reply`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// `enum pvsched_status`
    pub status: u32,
    /// What NEGOTIATE agreed on; if on nothing, what the device would have liked best.
    pub protocol: Option<(ProtocolName, u16)>,
}

impl Reply {
    fn status(status: u32) -> Self {
        Self {
            status,
            protocol: None,
        }
    }

    /// For a request whose action failed.
    pub fn host_failed() -> Self {
        Self::status(PVSCHED_ERR_HOST)
    }

    pub fn encode(&self) -> Vec<u8> {
        type T = pvsched_reply;
        let mut to = FieldsMut::new(REPLY_SIZE);
        to.u32(offset_of!(T, status), self.status);
        if let Some((name, version)) = &self.protocol {
            to.u16(offset_of!(T, version), *version);
            to.bytes(offset_of!(T, protocol), name.padded());
        }
        to.into_bytes()
    }
}

/// A `struct pvsched_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    HostAttached,
    HostDetached,
    VcpuRefused { apic_id: u32, code: ErrorCode },
}

impl Event {
    pub fn encode(&self) -> Vec<u8> {
        type T = pvsched_event;
        let mut to = FieldsMut::new(EVENT_SIZE);
        match self {
            Self::HostAttached => to.u32(offset_of!(T, type_), PVSCHED_EVENT_HOST_ATTACHED),
            Self::HostDetached => to.u32(offset_of!(T, type_), PVSCHED_EVENT_HOST_DETACHED),
            Self::VcpuRefused { apic_id, code } => to
                .u32(offset_of!(T, type_), PVSCHED_EVENT_VCPU_REFUSED)
                .u32(offset_of!(T, apic_id), *apic_id)
                .u32(offset_of!(T, code), (*code).into()),
        };
        to.into_bytes()
    }
}

/// The state that the driver's requests build up.
#[derive(Debug)]
pub struct Device {
    /// What this device was set up to offer, the best first.
    ours: Vec<Protocol>,
    /// What of that the scheduler offers, too.
    protocols: Vec<Protocol>,
    /// What the driver named last.
    asked: Vec<Protocol>,
    max_vcpus: u32,
    agreed: Option<(ProtocolName, u16)>,
    /// Guest physical address of each page, by APIC id.
    pages: BTreeMap<u32, u64>,
}

impl Device {
    /// Offers all protocols that it knows.
    pub fn new(max_vcpus: u32) -> Self {
        Self::offering(Protocol::all(), max_vcpus)
    }

    /// Offers these protocols, the best first.
    pub fn offering(protocols: Vec<Protocol>, max_vcpus: u32) -> Self {
        Self {
            protocols: protocols.clone(),
            ours: protocols,
            asked: Vec::new(),
            max_vcpus,
            agreed: None,
            pages: BTreeMap::new(),
        }
    }

    /// Configuration space.
    pub fn config(&self) -> Vec<u8> {
        type T = pvsched_config;
        let mut to = FieldsMut::new(CONFIG_SIZE);
        to.u32(offset_of!(T, magic), PVSCHED_DEVICE_MAGIC);
        to.u16(offset_of!(T, version), narrow(PVSCHED_DEVICE_VERSION));
        to.u16(offset_of!(T, max_protocols), narrow(PVSCHED_MAX_PROTOCOLS));
        to.u32(offset_of!(T, max_vcpus), self.max_vcpus);
        to.u32(offset_of!(T, page_size), PVSCHED_PAGE_SIZE);
        to.into_bytes()
    }

    /// Forgets everything, as when the driver resets the device.
    pub fn reset(&mut self) {
        self.agreed = None;
        self.pages.clear();
    }

    /// From now on agrees only on what the scheduler offers, too; with `None` on all that this
    /// device knows, since the scheduler may come later than the guest.
    pub fn set_offer(&mut self, scheduler: Option<&[Protocol]>) {
        self.protocols = match scheduler {
            Some(scheduler) => common(&self.ours, scheduler).collect(),
            None => self.ours.clone(),
        };
    }

    /// For the log of a device whose NEGOTIATE found nothing in common: what either side speaks.
    pub fn disagreement(&self) -> String {
        let list = |protocols: &[Protocol]| {
            let names: Vec<_> = protocols.iter().map(Protocol::to_string).collect();
            match names.is_empty() {
                true => "nothing".into(),
                false => names.join(", "),
            }
        };
        let (ours, offered) = (list(&self.ours), list(&self.protocols));
        let scheduler = match ours == offered {
            true => String::new(),
            false => format!(", of which the scheduler leaves {offered}"),
        };
        format!(
            "the guest's driver speaks {}, this device offers {ours}{scheduler}",
            list(&self.asked)
        )
    }

    /// Answers one request.
    pub fn handle(&mut self, request: &[u8], guest: &dyn Guest) -> (Reply, Option<Action>) {
        match self.carry_out(request, guest) {
            Ok((reply, action)) => (reply, Some(action)),
            // A NEGOTIATE that finds nothing in common has still started afresh.
            Err(PVSCHED_ERR_NO_PROTOCOL) => {
                let reply = Reply {
                    status: PVSCHED_ERR_NO_PROTOCOL,
                    protocol: self.protocols.first().map(best),
                };
                (reply, Some(Action::Negotiated(None)))
            }
            Err(status) => (Reply::status(status), None),
        }
    }

    fn carry_out(&mut self, request: &[u8], guest: &dyn Guest) -> Result<(Reply, Action), u32> {
        type H = pvsched_req_header;
        let fields = Fields(request);
        if request.len() < size_of::<H>()
            || fields.u16(offset_of!(H, rsvd)) != 0
            || usize::try_from(fields.u32(offset_of!(H, length))) != Ok(request.len())
        {
            return Err(PVSCHED_ERR_MALFORMED);
        }
        match u32::from(fields.u16(offset_of!(H, type_))) {
            PVSCHED_REQ_NEGOTIATE => self.negotiate(fields),
            PVSCHED_REQ_SET_PAGE => self.set_page(fields, guest),
            PVSCHED_REQ_CLEAR_PAGE => self.clear_page(fields),
            _ => Err(PVSCHED_ERR_UNKNOWN_REQUEST),
        }
    }

    fn negotiate(&mut self, fields: Fields) -> Result<(Reply, Action), u32> {
        type T = pvsched_req_negotiate;
        let head = offset_of!(T, protocols);
        let size = size_of::<pvsched_protocol>();
        if fields.0.len() < head || fields.u32(offset_of!(T, rsvd)) != 0 {
            return Err(PVSCHED_ERR_MALFORMED);
        }
        let count = fields.u32(offset_of!(T, count));
        let fits = usize::try_from(count).is_ok_and(|n| {
            (1..=PVSCHED_MAX_PROTOCOLS).contains(&count) && fields.0.len() == head + n * size
        });
        if !fits {
            return Err(PVSCHED_ERR_MALFORMED);
        }
        let driver = fields.0[head..].chunks_exact(size).map(Protocol::parse);
        let driver: Vec<Protocol> = driver.collect::<Option<_>>().ok_or(PVSCHED_ERR_MALFORMED)?;

        self.reset();
        self.asked = driver;
        let agreed = common(&self.protocols, &self.asked).next();
        let agreed = agreed.ok_or(PVSCHED_ERR_NO_PROTOCOL)?;
        self.agreed = Some(best(&agreed));
        let reply = Reply {
            status: PVSCHED_OK,
            protocol: self.agreed,
        };
        Ok((reply, Action::Negotiated(self.agreed)))
    }

    fn set_page(&mut self, fields: Fields, guest: &dyn Guest) -> Result<(Reply, Action), u32> {
        type T = pvsched_req_set_page;
        if fields.0.len() != size_of::<T>() || fields.u32(offset_of!(T, rsvd)) != 0 {
            return Err(PVSCHED_ERR_MALFORMED);
        }
        if self.agreed.is_none() {
            return Err(PVSCHED_ERR_NOT_NEGOTIATED);
        }
        let apic_id = fields.u32(offset_of!(T, apic_id));
        if !guest.has_vcpu(apic_id) {
            return Err(PVSCHED_ERR_NO_VCPU);
        }
        let gpa = fields.u64(offset_of!(T, gfn)).checked_mul(PAGE_SIZE);
        let gpa = gpa.filter(|gpa| guest.is_ram(*gpa));
        let gpa = gpa.ok_or(PVSCHED_ERR_BAD_PAGE)?;
        if self.pages.contains_key(&apic_id) || self.pages.values().any(|used| *used == gpa) {
            return Err(PVSCHED_ERR_PAGE_IN_USE);
        }
        // Each vCPU has one page, so this only meets a machine with more vCPUs than it promised,
        // or one whose vCPUs cannot be looked up.
        if self.pages.len() >= usize::try_from(self.max_vcpus).unwrap_or(usize::MAX) {
            return Err(PVSCHED_ERR_NO_VCPU);
        }
        self.pages.insert(apic_id, gpa);
        Ok((Reply::status(PVSCHED_OK), Action::PageSet { apic_id, gpa }))
    }

    fn clear_page(&mut self, fields: Fields) -> Result<(Reply, Action), u32> {
        type T = pvsched_req_clear_page;
        if fields.0.len() != size_of::<T>() || fields.u32(offset_of!(T, rsvd)) != 0 {
            return Err(PVSCHED_ERR_MALFORMED);
        }
        if self.agreed.is_none() {
            return Err(PVSCHED_ERR_NOT_NEGOTIATED);
        }
        let apic_id = fields.u32(offset_of!(T, apic_id));
        self.pages.remove(&apic_id).ok_or(PVSCHED_ERR_NO_PAGE)?;
        Ok((Reply::status(PVSCHED_OK), Action::PageCleared { apic_id }))
    }
}

/// Whether the request asks what the scheduler offers.
pub fn is_negotiate(request: &[u8]) -> bool {
    type H = pvsched_req_header;
    request.len() >= size_of::<H>()
        && u32::from(Fields(request).u16(offset_of!(H, type_))) == PVSCHED_REQ_NEGOTIATE
}

/// What of `ours` is also in `theirs`, in our order.
fn common<'a>(ours: &'a [Protocol], theirs: &'a [Protocol]) -> impl Iterator<Item = Protocol> + 'a {
    ours.iter()
        .filter_map(|ours| theirs.iter().find_map(|theirs| ours.common(theirs)))
}

fn best(protocol: &Protocol) -> (ProtocolName, u16) {
    (protocol.name, protocol.max_version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const RAM_PAGES: u64 = 16;

    struct Fake;

    impl Guest for Fake {
        fn is_ram(&self, gpa: u64) -> bool {
            gpa < RAM_PAGES * PAGE_SIZE
        }

        fn has_vcpu(&self, apic_id: u32) -> bool {
            apic_id.is_multiple_of(2) && apic_id < 20
        }
    }

    fn protocol(name: &str, min_version: u16, max_version: u16) -> Protocol {
        Protocol {
            name: ProtocolName::new(name.as_bytes()).unwrap(),
            min_version,
            max_version,
        }
    }

    fn request(kind: u32, length: usize) -> FieldsMut {
        type H = pvsched_req_header;
        let mut to = FieldsMut::new(length);
        to.u16(offset_of!(H, type_), narrow(kind));
        to.u32(offset_of!(H, length), narrow(length));
        to
    }

    fn negotiate(protocols: &[Protocol]) -> Vec<u8> {
        type T = pvsched_req_negotiate;
        let head = offset_of!(T, protocols);
        let size = size_of::<pvsched_protocol>();
        let mut to = request(PVSCHED_REQ_NEGOTIATE, head + protocols.len() * size);
        to.u32(offset_of!(T, count), narrow(protocols.len()));
        for (index, protocol) in protocols.iter().enumerate() {
            protocol.write(&mut to, head + index * size);
        }
        to.into_bytes()
    }

    fn set(apic_id: u32, gfn: u64) -> Vec<u8> {
        type T = pvsched_req_set_page;
        let mut to = request(PVSCHED_REQ_SET_PAGE, size_of::<T>());
        to.u32(offset_of!(T, apic_id), apic_id);
        to.u64(offset_of!(T, gfn), gfn);
        to.into_bytes()
    }

    fn clear(apic_id: u32) -> Vec<u8> {
        type T = pvsched_req_clear_page;
        let mut to = request(PVSCHED_REQ_CLEAR_PAGE, size_of::<T>());
        to.u32(offset_of!(T, apic_id), apic_id);
        to.into_bytes()
    }

    fn negotiated() -> Device {
        let mut device = Device::new(8);
        let (reply, _) = device.handle(&negotiate(&[Protocol::latency()]), &Fake);
        assert_eq!(reply.status, PVSCHED_OK);
        device
    }

    /// The request is answered with that status and changes nothing.
    #[track_caller]
    fn refused(device: &mut Device, request: &[u8], status: u32) {
        let before = format!("{device:?}");
        assert_eq!(device.handle(request, &Fake), (Reply::status(status), None));
        assert_eq!(format!("{device:?}"), before);
    }

    #[test]
    fn configuration_space_says_what_the_header_says() {
        let config = Device::new(64).config();
        assert_eq!(&config[..4], b"PVSD");
        assert_eq!(config[4..], [1, 0, 8, 0, 64, 0, 0, 0, 0, 16, 0, 0]);
    }

    /// What the device and a driver that speaks this agree on.
    #[track_caller]
    fn agree(device: &mut Device, theirs: &[Protocol]) -> Option<String> {
        let (reply, action) = device.handle(&negotiate(theirs), &Fake);
        let agreed = reply.protocol.filter(|_| reply.status == PVSCHED_OK);
        assert_eq!(action, Some(Action::Negotiated(agreed)));
        assert!(agreed.is_some() || reply.status == PVSCHED_ERR_NO_PROTOCOL);
        agreed.map(|(name, version)| format!("{name} {version}"))
    }

    #[test]
    fn the_devices_first_choice_in_common_is_taken_in_its_highest_version() {
        let ours = vec![protocol("latency", 1, 3), protocol("other", 2, 2)];
        let mut device = Device::offering(ours, 8);
        let latency = |version| Some(format!("latency {version}"));
        let unknown = protocol("unknown", 1, 9);
        let other = protocol("other", 1, 5);
        assert_eq!(agree(&mut device, &[protocol("latency", 2, 9)]), latency(3));
        assert_eq!(
            agree(&mut device, &[unknown, other, protocol("latency", 1, 2)]),
            latency(2)
        );
        assert_eq!(
            agree(&mut device, &[other, unknown]),
            Some("other 2".into())
        );
        assert_eq!(
            agree(&mut device, &[protocol("latency", 4, 5), other]),
            Some("other 2".into())
        );
        assert_eq!(agree(&mut device, &[unknown]), None);
        assert_eq!(agree(&mut device, &[protocol("latency", 4, 5)]), None);
    }

    #[test]
    fn a_vms_operator_chooses_the_protocol() {
        let both = [Protocol::latency(), Protocol::observe()];
        let mut plain = Device::new(8);
        assert_eq!(agree(&mut plain, &both), Some("latency 1".into()));
        let mut observing = Device::offering(vec![Protocol::observe()], 8);
        assert_eq!(agree(&mut observing, &both), Some("observe 1".into()));
        assert_eq!(agree(&mut observing, &both[..1]), None);
        let mut prefers = Device::offering(vec![Protocol::observe(), Protocol::latency()], 8);
        assert_eq!(agree(&mut prefers, &both), Some("observe 1".into()));
        assert_eq!(agree(&mut prefers, &both[..1]), Some("latency 1".into()));
    }

    #[test]
    fn a_newer_guest_and_a_newer_host_agree_on_the_common_part() {
        let newer = [
            protocol("throughput", 1, 1),
            protocol("latency", 1, 9),
            protocol("observe", 1, 4),
        ];
        // A newer guest on this device.
        assert_eq!(agree(&mut Device::new(8), &newer), Some("latency 1".into()));
        // A newer device, with a guest as of now and one in between.
        let mut device = Device::offering(newer.into(), 8);
        assert_eq!(
            agree(&mut device, &Protocol::all()),
            Some("latency 1".into())
        );
        assert_eq!(
            agree(&mut device, &[protocol("latency", 3, 5)]),
            Some("latency 5".into())
        );
        // A newer scheduler than this device, and a newer device than the scheduler.
        let mut device = Device::new(8);
        device.set_offer(Some(&newer));
        assert_eq!(agree(&mut device, &newer), Some("latency 1".into()));
        let mut device = Device::offering(newer.into(), 8);
        device.set_offer(Some(&Protocol::all()));
        assert_eq!(agree(&mut device, &newer), Some("latency 1".into()));
    }

    #[test]
    fn a_refusal_names_what_either_side_speaks() {
        let mut device = Device::offering(vec![protocol("latency", 2, 3)], 8);
        let ask = [protocol("latency", 1, 1), protocol("unknown", 1, 9)];
        let (reply, _) = device.handle(&negotiate(&ask), &Fake);
        let best = (ProtocolName::LATENCY, 3);
        assert_eq!(
            (reply.status, reply.protocol),
            (PVSCHED_ERR_NO_PROTOCOL, Some(best))
        );
        assert_eq!(
            device.disagreement(),
            "the guest's driver speaks latency 1, unknown 1 to 9, this device offers latency 2 to 3"
        );
        device.set_offer(Some(&[]));
        let (reply, _) = device.handle(&negotiate(&ask), &Fake);
        assert_eq!(
            (reply.status, reply.protocol),
            (PVSCHED_ERR_NO_PROTOCOL, None)
        );
        assert!(device
            .disagreement()
            .ends_with("of which the scheduler leaves nothing"));
    }

    #[test]
    fn what_the_scheduler_does_not_offer_is_not_agreed_on() {
        let mut device = Device::new(8);
        device.set_offer(Some(&[protocol("other", 1, 1)]));
        let ask = negotiate(&[Protocol::latency()]);
        assert_eq!(device.handle(&ask, &Fake).0.status, PVSCHED_ERR_NO_PROTOCOL);
        for offer in [Some(&[protocol("latency", 1, 7)][..]), None] {
            device.set_offer(offer);
            assert_eq!(device.handle(&ask, &Fake).0.status, PVSCHED_OK);
        }
        // A scheduler that does not know `observe` leaves what it knows, whatever comes first.
        let mut device = Device::offering(vec![Protocol::observe(), Protocol::latency()], 8);
        device.set_offer(Some(&[Protocol::latency()]));
        assert_eq!(
            agree(&mut device, &Protocol::all()),
            Some("latency 1".into())
        );
    }

    #[test]
    fn negotiating_again_starts_afresh_even_in_vain() {
        for theirs in ["latency", "unknown"] {
            let mut device = negotiated();
            device.handle(&set(0, 1), &Fake);
            device.handle(&negotiate(&[protocol(theirs, 1, 1)]), &Fake);
            assert!(device.pages.is_empty());
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        let mut device = negotiated();
        let good = set(0, 1);
        for at in [2, 4, 12] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            refused(&mut device, &bad, PVSCHED_ERR_MALFORMED);
        }
        for end in 0..good.len() {
            refused(&mut device, &good[..end], PVSCHED_ERR_MALFORMED);
        }
        let many = negotiate(&[Protocol::latency(); 9]);
        refused(&mut device, &many, PVSCHED_ERR_MALFORMED);
        refused(&mut device, &negotiate(&[]), PVSCHED_ERR_MALFORMED);
        let mut backwards = negotiate(&[Protocol::latency()]);
        backwards[32] = 9;
        refused(&mut device, &backwards, PVSCHED_ERR_MALFORMED);
        // The reserved field of a protocol, where a later version might put features.
        let mut features = negotiate(&[Protocol::latency()]);
        features[36] = 1;
        refused(&mut device, &features, PVSCHED_ERR_MALFORMED);
        let unknown = request(9, 8).into_bytes();
        refused(&mut device, &unknown, PVSCHED_ERR_UNKNOWN_REQUEST);
    }

    #[test]
    fn pages_are_refused_by_the_reason_why() {
        let mut fresh = Device::new(8);
        refused(&mut fresh, &set(0, 1), PVSCHED_ERR_NOT_NEGOTIATED);
        refused(&mut fresh, &clear(0), PVSCHED_ERR_NOT_NEGOTIATED);
        let mut device = negotiated();
        device.handle(&set(0, 1), &Fake);
        refused(&mut device, &set(1, 2), PVSCHED_ERR_NO_VCPU);
        for gfn in [RAM_PAGES, 1 << 52, u64::MAX] {
            refused(&mut device, &set(2, gfn), PVSCHED_ERR_BAD_PAGE);
        }
        refused(&mut device, &set(0, 2), PVSCHED_ERR_PAGE_IN_USE);
        refused(&mut device, &set(2, 1), PVSCHED_ERR_PAGE_IN_USE);
        refused(&mut device, &clear(2), PVSCHED_ERR_NO_PAGE);
        for gfn in 2..9 {
            let apic_id = u32::try_from(gfn).unwrap() * 2;
            assert_eq!(
                device.handle(&set(apic_id, gfn), &Fake).0.status,
                PVSCHED_OK
            );
        }
        refused(&mut device, &set(18, 9), PVSCHED_ERR_NO_VCPU);
        assert_eq!(device.handle(&clear(0), &Fake).0.status, PVSCHED_OK);
        assert_eq!(device.handle(&set(0, 1), &Fake).0.status, PVSCHED_OK);
    }

    fn any_request() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            vec(any::<u8>(), 0..MAX_REQUEST + 8),
            (0u32..22, 0u64..20).prop_map(|(apic_id, gfn)| set(apic_id, gfn)),
            (0u32..22, 0u64..20).prop_map(|(apic_id, gfn)| set(apic_id, gfn)),
            (0u32..22).prop_map(clear),
            (1u16..4).prop_map(|version| negotiate(&[protocol("latency", version, version)])),
            (Just(set(2, 3)).prop_shuffle(), Just(1u8)).prop_map(|(mut bytes, kind)| {
                bytes[0] = kind;
                bytes
            }),
        ]
    }

    proptest! {
        #[test]
        fn no_request_can_bring_the_device_into_a_bad_state(
            requests in vec(any_request(), 0..64),
        ) {
            let mut device = Device::new(8);
            for request in requests {
                let (reply, action) = device.handle(&request, &Fake);
                prop_assert_eq!(reply.encode().len(), REPLY_SIZE);
                let changed = reply.status == PVSCHED_OK || reply.status == PVSCHED_ERR_NO_PROTOCOL;
                prop_assert_eq!(action.is_some(), changed);
                let pages: BTreeSet<u64> = device.pages.values().copied().collect();
                prop_assert_eq!(pages.len(), device.pages.len());
                prop_assert!(device.pages.len() <= 8);
                prop_assert!(device.agreed.is_some() || device.pages.is_empty());
                let sound = device.pages.iter().all(|(id, gpa)| {
                    Fake.has_vcpu(*id) && Fake.is_ram(*gpa) && gpa.is_multiple_of(PAGE_SIZE)
                });
                prop_assert!(sound);
            }
        }
    }
}
