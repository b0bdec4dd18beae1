// SPDX-License-Identifier: GPL-2.0-only
//! The messages of the handoff protocol: bytes in, validated types out, and back.
//!
//! A request is parsed in two steps, because a refusal names the first thing that is wrong in the
//! order of `enum pvsched_handoff_error`: [`Envelope::parse`] checks what any message must obey,
//! the server then checks that the message may come now and brings its descriptors, and
//! [`Envelope::open`] checks what it says. Nothing behind a [`Request`] checks these things again.

use std::fmt;
use std::mem::{offset_of, size_of};

use thiserror::Error;

use super::bytes::{narrow, Fields, FieldsMut};
use crate::abi::{self, *};

/// No message is longer, in bytes.
pub const MAX_MESSAGE: usize = PVSCHED_HANDOFF_MAX_MESSAGE as usize;
/// Most memory regions of one VM, and so the most descriptors with one message.
pub const MAX_REGIONS: usize = PVSCHED_HANDOFF_MAX_REGIONS as usize;
/// The unit of guest pages, in bytes.
pub const PAGE_SIZE: u64 = PVSCHED_PAGE_SIZE as u64;
/// The version of the handoff protocol that this crate speaks.
pub const VERSION: u32 = PVSCHED_HANDOFF_VERSION;

const NAME_LEN: usize = PVSCHED_HANDOFF_NAME_LEN as usize;
const TEXT_LEN: usize = PVSCHED_HANDOFF_TEXT_LEN as usize;
const PROTOCOL_NAME_LEN: usize = PVSCHED_PROTOCOL_NAME_LEN as usize;
const MAX_PROTOCOLS: usize = PVSCHED_MAX_PROTOCOLS as usize;

/// Why a request was refused. Each variant is one `enum pvsched_handoff_error`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("The message is malformed: {0}.")]
    Malformed(&'static str),
    #[error("Message type {0} is not a request of this protocol.")]
    UnknownType(u16),
    #[error("No version of the handoff protocol in common: you speak {min} to {max}, the scheduler speaks {VERSION}.")]
    Version { min: u16, max: u16 },
    #[error("{0}")]
    Order(&'static str),
    #[error(
        "The message must carry {expected} file descriptor(s), {} arrived.",
        Arrived(*.arrived)
    )]
    Fds {
        expected: usize,
        /// `None`: more than the receiver takes, or it has no room for them.
        arrived: Option<usize>,
    },
    #[error("The VM's name {0}.")]
    Name(&'static str),
    #[error("The scheduler does not offer protocol {name:?} version {version}.")]
    Protocol { name: String, version: u16 },
    #[error("Memory region {index}: {problem}.")]
    Region { index: usize, problem: String },
    #[error("Guest physical address {0:#x} is not page-aligned or lies in no memory region.")]
    Gpa(u64),
    #[error(
        "The page at guest physical address {gpa:#x} is that of the vCPU with APIC id {apic_id}."
    )]
    PageInUse { gpa: u64, apic_id: u32 },
    #[error("The vCPU with APIC id {apic_id} is {}.", if *.attached { "attached already" } else { "not attached" })]
    ApicId { apic_id: u32, attached: bool },
    #[error("The scheduler accepts no more {0}.")]
    TooMany(&'static str),
    #[error("The descriptor is no pidfd of a live thread: {0}.")]
    NotAThread(String),
    #[error("Thread {tid} belongs to user {owner}; you are user {peer}, and only that user or root may hand it over.")]
    Permission { tid: u32, owner: u32, peer: u32 },
    #[error("KVM knows no vCPU of thread {0}; it may not have run yet, try again later.")]
    NotAVcpu(u32),
    #[error("Thread {0} is attached already.")]
    ThreadInUse(u32),
    #[error("The kernel refused to pin the page: {0}.")]
    Pin(String),
    #[error("The scheduler failed: {0}.")]
    Internal(String),
    #[error("The host's configuration does not allow protocol {name:?} to VM {vm:?}.")]
    NotAllowed { vm: String, name: String },
}

struct Arrived(Option<usize>);

impl fmt::Display for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            Some(count) => write!(f, "{count}"),
            None => f.write_str("more than can be taken"),
        }
    }
}

impl Refusal {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Malformed(_) => ErrorCode::Malformed,
            Self::UnknownType(_) => ErrorCode::UnknownType,
            Self::Version { .. } => ErrorCode::Version,
            Self::Order(_) => ErrorCode::Order,
            Self::Fds { .. } => ErrorCode::Fds,
            Self::Name(_) => ErrorCode::Name,
            Self::Protocol { .. } => ErrorCode::Protocol,
            Self::Region { .. } => ErrorCode::Region,
            Self::Gpa(_) => ErrorCode::Gpa,
            Self::PageInUse { .. } => ErrorCode::PageInUse,
            Self::ApicId { .. } => ErrorCode::ApicId,
            Self::TooMany(_) => ErrorCode::TooMany,
            Self::NotAThread(_) => ErrorCode::NotAThread,
            Self::Permission { .. } => ErrorCode::Permission,
            Self::NotAVcpu(_) => ErrorCode::NotAVcpu,
            Self::ThreadInUse(_) => ErrorCode::ThreadInUse,
            Self::Pin(_) => ErrorCode::Pin,
            Self::Internal(_) => ErrorCode::Internal,
            Self::NotAllowed { .. } => ErrorCode::NotAllowed,
        }
    }

    /// Whether the connection ends after this refusal.
    pub fn closes(&self) -> bool {
        matches!(self, Self::Malformed(_) | Self::Version { .. })
    }
}

macro_rules! error_codes {
    ($($variant:ident = $constant:ident,)*) => {
        /// `enum pvsched_handoff_error`, as a client receives it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($variant,)*
            /// A code that this version does not know.
            Other(u32),
        }

        impl ErrorCode {
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl From<u32> for ErrorCode {
            fn from(code: u32) -> Self {
                match code {
                    $(abi::$constant => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }

        impl From<ErrorCode> for u32 {
            fn from(code: ErrorCode) -> u32 {
                match code {
                    $(ErrorCode::$variant => abi::$constant,)*
                    ErrorCode::Other(other) => other,
                }
            }
        }
    };
}

error_codes! {
    Malformed = PVSCHED_HANDOFF_ERR_MALFORMED,
    UnknownType = PVSCHED_HANDOFF_ERR_UNKNOWN_TYPE,
    Version = PVSCHED_HANDOFF_ERR_VERSION,
    Order = PVSCHED_HANDOFF_ERR_ORDER,
    Fds = PVSCHED_HANDOFF_ERR_FDS,
    Name = PVSCHED_HANDOFF_ERR_NAME,
    Protocol = PVSCHED_HANDOFF_ERR_PROTOCOL,
    Region = PVSCHED_HANDOFF_ERR_REGION,
    Gpa = PVSCHED_HANDOFF_ERR_GPA,
    PageInUse = PVSCHED_HANDOFF_ERR_PAGE_IN_USE,
    ApicId = PVSCHED_HANDOFF_ERR_APIC_ID,
    TooMany = PVSCHED_HANDOFF_ERR_TOO_MANY,
    NotAThread = PVSCHED_HANDOFF_ERR_NOT_A_THREAD,
    Permission = PVSCHED_HANDOFF_ERR_PERMISSION,
    NotAVcpu = PVSCHED_HANDOFF_ERR_NOT_A_VCPU,
    ThreadInUse = PVSCHED_HANDOFF_ERR_THREAD_IN_USE,
    Pin = PVSCHED_HANDOFF_ERR_PIN,
    Internal = PVSCHED_HANDOFF_ERR_INTERNAL,
    NotAllowed = PVSCHED_HANDOFF_ERR_NOT_ALLOWED,
}

/// The name of a VM, for people: 1 to 64 bytes of UTF-8 without control characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmName(String);

impl VmName {
    pub fn new(name: &str) -> Result<Self, Refusal> {
        if name.is_empty() {
            Err(Refusal::Name("is empty"))
        } else if name.len() > NAME_LEN {
            Err(Refusal::Name("is longer than 64 bytes"))
        } else if name.chars().any(char::is_control) {
            Err(Refusal::Name("has control characters"))
        } else {
            Ok(Self(name.into()))
        }
    }
}

impl std::ops::Deref for VmName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a protocol: 1 to 16 printable ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProtocolName([u8; PROTOCOL_NAME_LEN]);

impl ProtocolName {
    /// The host acts on what the guest says.
    pub const LATENCY: Self = Self::from_c(PVSCHED_PROTOCOL_LATENCY);
    /// The same page, and the host only counts.
    pub const OBSERVE: Self = Self::from_c(PVSCHED_PROTOCOL_OBSERVE);

    /// Of a header's string, which is shorter than a name may be.
    const fn from_c(text: &[u8]) -> Self {
        let mut name = [0; PROTOCOL_NAME_LEN];
        let mut i = 0;
        while i < text.len() {
            name[i] = text[i];
            i += 1;
        }
        Self(name)
    }

    /// `None` unless 1 to 16 printable ASCII characters.
    pub fn new(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > PROTOCOL_NAME_LEN {
            return None;
        }
        if !name.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut padded = [0; PROTOCOL_NAME_LEN];
        padded[..name.len()].copy_from_slice(name);
        Some(Self(padded))
    }

    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0);
        std::str::from_utf8(&self.0[..end.unwrap_or(self.0.len())]).expect("ASCII by construction")
    }

    pub(crate) fn padded(&self) -> &[u8; PROTOCOL_NAME_LEN] {
        &self.0
    }
}

impl fmt::Display for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ProtocolName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The versions of one protocol that a side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: ProtocolName,
    /// At least 1.
    pub min_version: u16,
    /// At least `min_version`.
    pub max_version: u16,
}

impl Protocol {
    /// `latency` as this version of the project speaks it.
    pub fn latency() -> Self {
        let version = narrow(PVSCHED_PROTOCOL_LATENCY_VERSION);
        Self {
            name: ProtocolName::LATENCY,
            min_version: version,
            max_version: version,
        }
    }

    /// `observe` as this version of the project speaks it.
    pub fn observe() -> Self {
        let version = narrow(PVSCHED_PROTOCOL_OBSERVE_VERSION);
        Self {
            name: ProtocolName::OBSERVE,
            min_version: version,
            max_version: version,
        }
    }

    /// All that this version of the project speaks, the best first.
    pub fn all() -> Vec<Self> {
        vec![Self::latency(), Self::observe()]
    }

    /// The versions that both speak, if they are of one name.
    pub fn common(&self, other: &Self) -> Option<Self> {
        let common = Self {
            name: self.name,
            min_version: self.min_version.max(other.min_version),
            max_version: self.max_version.min(other.max_version),
        };
        (self.name == other.name && common.min_version <= common.max_version).then_some(common)
    }

    pub fn has(&self, name: &ProtocolName, version: u16) -> bool {
        self.name == *name && (self.min_version..=self.max_version).contains(&version)
    }

    /// Parses one `struct pvsched_protocol` of exactly that length.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = Fields(bytes);
        let name = fields.padded(offset_of!(pvsched_protocol, name), PROTOCOL_NAME_LEN)?;
        let protocol = Self {
            name: ProtocolName::new(name)?,
            min_version: fields.u16(offset_of!(pvsched_protocol, min_version)),
            max_version: fields.u16(offset_of!(pvsched_protocol, max_version)),
        };
        let sound = fields.u32(offset_of!(pvsched_protocol, rsvd)) == 0
            && protocol.min_version >= 1
            && protocol.max_version >= protocol.min_version;
        sound.then_some(protocol)
    }

    pub(crate) fn write(&self, to: &mut FieldsMut, at: usize) {
        to.bytes(at + offset_of!(pvsched_protocol, name), self.name.padded())
            .u16(
                at + offset_of!(pvsched_protocol, min_version),
                self.min_version,
            )
            .u16(
                at + offset_of!(pvsched_protocol, max_version),
                self.max_version,
            );
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}", self.name, self.min_version)?;
        if self.max_version > self.min_version {
            write!(f, " to {}", self.max_version)?;
        }
        Ok(())
    }
}

/// A range of guest memory and where it lies in its file; all three page-aligned, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    gpa: u64,
    size: u64,
    offset: u64,
}

impl Region {
    /// Says in words what is wrong with the region.
    pub fn new(gpa: u64, size: u64, offset: u64) -> Result<Self, String> {
        if size == 0 {
            return Err("its size is 0".into());
        }
        for (what, value) in [("address", gpa), ("size", size), ("offset", offset)] {
            if !value.is_multiple_of(PAGE_SIZE) {
                return Err(format!("its {what} {value:#x} is not page-aligned"));
            }
        }
        // A file offset is signed to the kernel.
        let file_end = offset.checked_add(size).map(i64::try_from);
        if gpa.checked_add(size).is_none() || !matches!(file_end, Some(Ok(_))) {
            return Err(format!(
                "address {gpa:#x} or offset {offset:#x} plus size {size:#x} overflows"
            ));
        }
        Ok(Self { gpa, size, offset })
    }

    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The first byte of the file after the region.
    pub fn file_end(&self) -> u64 {
        self.offset + self.size
    }

    /// Where in the file the guest physical address lies.
    pub fn file_offset(&self, gpa: u64) -> Option<u64> {
        let inside = gpa.checked_sub(self.gpa)?;
        (inside < self.size).then(|| self.offset + inside)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.gpa < other.gpa + other.size && other.gpa < self.gpa + self.size
    }
}

/// The memory of a VM: at least one region, none overlapping another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions(Vec<Region>);

impl Regions {
    pub fn new(regions: Vec<Region>) -> Result<Self, Refusal> {
        let refuse = |index, problem: &str| Refusal::Region {
            index,
            problem: problem.into(),
        };
        if regions.is_empty() {
            return Err(refuse(0, "there must be at least one"));
        }
        if regions.len() > MAX_REGIONS {
            return Err(refuse(MAX_REGIONS, "it is one too many"));
        }
        for (index, region) in regions.iter().enumerate() {
            if regions[..index].iter().any(|other| region.overlaps(other)) {
                return Err(refuse(index, "it overlaps another in guest memory"));
            }
        }
        Ok(Self(regions))
    }
}

impl std::ops::Deref for Regions {
    type Target = [Region];

    fn deref(&self) -> &[Region] {
        &self.0
    }
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Hello {
        min_version: u16,
        max_version: u16,
    },
    /// With one descriptor per region.
    VmRegister {
        name: VmName,
        protocol: ProtocolName,
        version: u16,
        regions: Regions,
    },
    /// With the pidfd of the vCPU's thread.
    VcpuAttach {
        apic_id: u32,
        /// Page-aligned.
        page_gpa: u64,
    },
    VcpuDetach {
        apic_id: u32,
    },
}

impl Request {
    pub fn encode(&self, seq: u32) -> Vec<u8> {
        match self {
            Self::Hello {
                min_version,
                max_version,
            } => {
                type T = pvsched_handoff_hello;
                let mut to = message(PVSCHED_HANDOFF_HELLO, size_of::<T>(), seq);
                to.u16(offset_of!(T, min_version), *min_version);
                to.u16(offset_of!(T, max_version), *max_version);
                to.into_bytes()
            }
            Self::VmRegister {
                name,
                protocol,
                version,
                regions,
            } => {
                type T = pvsched_handoff_vm_register;
                type R = pvsched_handoff_region;
                let head = offset_of!(T, regions);
                let length = head + regions.len() * size_of::<R>();
                let mut to = message(PVSCHED_HANDOFF_VM_REGISTER, length, seq);
                to.bytes(offset_of!(T, name), name.as_bytes());
                to.bytes(offset_of!(T, protocol), protocol.padded());
                to.u16(offset_of!(T, version), *version);
                to.u16(offset_of!(T, region_count), narrow(regions.len()));
                for (index, region) in regions.iter().enumerate() {
                    let at = head + index * size_of::<R>();
                    to.u64(at + offset_of!(R, gpa), region.gpa);
                    to.u64(at + offset_of!(R, size), region.size);
                    to.u64(at + offset_of!(R, offset), region.offset);
                }
                to.into_bytes()
            }
            Self::VcpuAttach { apic_id, page_gpa } => {
                type T = pvsched_handoff_vcpu_attach;
                let mut to = message(PVSCHED_HANDOFF_VCPU_ATTACH, size_of::<T>(), seq);
                to.u32(offset_of!(T, apic_id), *apic_id);
                to.u64(offset_of!(T, page_gpa), *page_gpa);
                to.into_bytes()
            }
            Self::VcpuDetach { apic_id } => {
                type T = pvsched_handoff_vcpu_detach;
                let mut to = message(PVSCHED_HANDOFF_VCPU_DETACH, size_of::<T>(), seq);
                to.u32(offset_of!(T, apic_id), *apic_id);
                to.into_bytes()
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Hello,
    VmRegister,
    VcpuAttach,
    VcpuDetach,
}

/// A request whose header, length, counts and reserved fields are sound.
#[derive(Clone, Copy)]
pub struct Envelope<'a> {
    pub seq: u32,
    pub kind: RequestKind,
    fields: Fields<'a>,
}

impl<'a> Envelope<'a> {
    /// On refusal also says the sequence number to answer with, 0 when there is none to trust.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, (u32, Refusal)> {
        let (kind, seq) =
            parse_header(bytes).map_err(|problem| (0, Refusal::Malformed(problem)))?;
        let fields = Fields(bytes);
        let malformed = |problem| Err((seq, Refusal::Malformed(problem)));
        let fixed = |length: usize, rsvd: usize| {
            if bytes.len() != length {
                Some("its length is not that of its type")
            } else if fields.u32(rsvd) != 0 {
                Some("a reserved field is not zero")
            } else {
                None
            }
        };
        let (kind, problem) = match u32::from(kind) {
            PVSCHED_HANDOFF_HELLO => {
                type T = pvsched_handoff_hello;
                let problem = fixed(size_of::<T>(), offset_of!(T, rsvd)).or_else(|| {
                    let min = fields.u16(offset_of!(T, min_version));
                    let max = fields.u16(offset_of!(T, max_version));
                    (min == 0 || max < min).then_some("its versions are no range from 1 upwards")
                });
                (RequestKind::Hello, problem)
            }
            PVSCHED_HANDOFF_VM_REGISTER => {
                type T = pvsched_handoff_vm_register;
                let head = offset_of!(T, regions);
                let problem = if bytes.len() < head {
                    Some("its length is not that of its type")
                } else {
                    let count = usize::from(fields.u16(offset_of!(T, region_count)));
                    if count == 0 || count > MAX_REGIONS {
                        Some("its region count is not 1 to 32")
                    } else {
                        let length = head + count * size_of::<pvsched_handoff_region>();
                        fixed(length, offset_of!(T, rsvd))
                    }
                };
                (RequestKind::VmRegister, problem)
            }
            PVSCHED_HANDOFF_VCPU_ATTACH => {
                type T = pvsched_handoff_vcpu_attach;
                let problem = fixed(size_of::<T>(), offset_of!(T, rsvd));
                (RequestKind::VcpuAttach, problem)
            }
            PVSCHED_HANDOFF_VCPU_DETACH => {
                type T = pvsched_handoff_vcpu_detach;
                let problem = fixed(size_of::<T>(), offset_of!(T, rsvd));
                (RequestKind::VcpuDetach, problem)
            }
            _ => return Err((seq, Refusal::UnknownType(kind))),
        };
        match problem {
            Some(problem) => malformed(problem),
            None => Ok(Self { seq, kind, fields }),
        }
    }

    /// How many descriptors the message must carry.
    pub fn descriptors(&self) -> usize {
        match self.kind {
            RequestKind::Hello | RequestKind::VcpuDetach => 0,
            RequestKind::VmRegister => {
                type T = pvsched_handoff_vm_register;
                usize::from(self.fields.u16(offset_of!(T, region_count)))
            }
            RequestKind::VcpuAttach => 1,
        }
    }

    /// The request itself.
    pub fn open(&self) -> Result<Request, Refusal> {
        let fields = self.fields;
        match self.kind {
            RequestKind::Hello => {
                type T = pvsched_handoff_hello;
                Ok(Request::Hello {
                    min_version: fields.u16(offset_of!(T, min_version)),
                    max_version: fields.u16(offset_of!(T, max_version)),
                })
            }
            RequestKind::VmRegister => self.open_vm_register(),
            RequestKind::VcpuAttach => {
                type T = pvsched_handoff_vcpu_attach;
                let page_gpa = fields.u64(offset_of!(T, page_gpa));
                if !page_gpa.is_multiple_of(PAGE_SIZE) {
                    return Err(Refusal::Gpa(page_gpa));
                }
                Ok(Request::VcpuAttach {
                    apic_id: fields.u32(offset_of!(T, apic_id)),
                    page_gpa,
                })
            }
            RequestKind::VcpuDetach => {
                type T = pvsched_handoff_vcpu_detach;
                Ok(Request::VcpuDetach {
                    apic_id: fields.u32(offset_of!(T, apic_id)),
                })
            }
        }
    }

    fn open_vm_register(&self) -> Result<Request, Refusal> {
        type T = pvsched_handoff_vm_register;
        type R = pvsched_handoff_region;
        let fields = self.fields;
        let name = fields
            .padded(offset_of!(T, name), NAME_LEN)
            .ok_or(Refusal::Name("goes on after its end"))?;
        let name = std::str::from_utf8(name).map_err(|_| Refusal::Name("is not UTF-8"))?;
        let name = VmName::new(name)?;

        let version = fields.u16(offset_of!(T, version));
        let bytes = fields.bytes(offset_of!(T, protocol), PROTOCOL_NAME_LEN);
        let protocol = fields
            .padded(offset_of!(T, protocol), PROTOCOL_NAME_LEN)
            .and_then(ProtocolName::new)
            .ok_or_else(|| Refusal::Protocol {
                name: bytes.escape_ascii().to_string(),
                version,
            })?;

        let regions = (0..self.descriptors()).map(|index| {
            let at = offset_of!(T, regions) + index * size_of::<R>();
            Region::new(
                fields.u64(at + offset_of!(R, gpa)),
                fields.u64(at + offset_of!(R, size)),
                fields.u64(at + offset_of!(R, offset)),
            )
            .map_err(|problem| Refusal::Region { index, problem })
        });
        Ok(Request::VmRegister {
            name,
            protocol,
            version,
            regions: Regions::new(regions.collect::<Result<_, _>>()?)?,
        })
    }
}

/// What the scheduler answers to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Welcome(Welcome),
    Ok,
    Error { code: ErrorCode, text: String },
}

/// What the scheduler speaks and takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Of the handoff protocol.
    pub version: u16,
    /// Most vCPUs of one VM.
    pub max_vcpus: u32,
    /// Most memory regions of one VM.
    pub max_regions: u32,
    /// At most 8.
    pub protocols: Vec<Protocol>,
}

/// What the scheduler says unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The vCPU's thread has exited; it counts as detached.
    VcpuGone { apic_id: u32 },
    /// The scheduler stops; the connection closes next.
    Stopping,
}

/// Anything that the scheduler sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromScheduler {
    Answer { seq: u32, answer: Answer },
    Notice(Notice),
}

/// What makes bytes no message of a scheduler.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the scheduler sent a malformed message: {0}")]
pub struct MalformedAnswer(&'static str);

impl FromScheduler {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Answer { seq, answer } => answer.encode(*seq),
            Self::Notice(notice) => {
                type T = pvsched_handoff_notice;
                let (kind, apic_id) = match notice {
                    Notice::VcpuGone { apic_id } => (PVSCHED_HANDOFF_NOTICE_VCPU_GONE, *apic_id),
                    Notice::Stopping => (PVSCHED_HANDOFF_NOTICE_STOPPING, 0),
                };
                let mut to = message(PVSCHED_HANDOFF_NOTICE, size_of::<T>(), 0);
                to.u32(offset_of!(T, kind), kind);
                to.u32(offset_of!(T, apic_id), apic_id);
                to.into_bytes()
            }
        }
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, MalformedAnswer> {
        let (kind, seq) = parse_header(bytes).map_err(MalformedAnswer)?;
        let fields = Fields(bytes);
        let exactly = |length: usize| {
            let fits = bytes.len() == length;
            fits.then_some(())
                .ok_or(MalformedAnswer("its length is not that of its type"))
        };
        let answer = match u32::from(kind) {
            PVSCHED_HANDOFF_WELCOME => Answer::Welcome(Welcome::parse(fields)?),
            PVSCHED_HANDOFF_OK => {
                exactly(size_of::<pvsched_handoff_ok>())?;
                Answer::Ok
            }
            PVSCHED_HANDOFF_ERROR => {
                type T = pvsched_handoff_error_reply;
                exactly(size_of::<T>())?;
                let text = fields
                    .padded(offset_of!(T, text), TEXT_LEN)
                    .and_then(|text| std::str::from_utf8(text).ok())
                    .ok_or(MalformedAnswer("its text is not padded UTF-8"))?;
                Answer::Error {
                    code: fields.u32(offset_of!(T, code)).into(),
                    text: text.into(),
                }
            }
            PVSCHED_HANDOFF_NOTICE => {
                type T = pvsched_handoff_notice;
                exactly(size_of::<T>())?;
                let apic_id = fields.u32(offset_of!(T, apic_id));
                return match fields.u32(offset_of!(T, kind)) {
                    PVSCHED_HANDOFF_NOTICE_VCPU_GONE => {
                        Ok(Self::Notice(Notice::VcpuGone { apic_id }))
                    }
                    PVSCHED_HANDOFF_NOTICE_STOPPING => Ok(Self::Notice(Notice::Stopping)),
                    _ => Err(MalformedAnswer("its kind of notice is unknown")),
                };
            }
            _ => return Err(MalformedAnswer("its type is unknown")),
        };
        Ok(Self::Answer { seq, answer })
    }
}

impl Answer {
    fn encode(&self, seq: u32) -> Vec<u8> {
        match self {
            Self::Welcome(welcome) => welcome.encode(seq),
            Self::Ok => {
                message(PVSCHED_HANDOFF_OK, size_of::<pvsched_handoff_ok>(), seq).into_bytes()
            }
            Self::Error { code, text } => {
                type T = pvsched_handoff_error_reply;
                let mut to = message(PVSCHED_HANDOFF_ERROR, size_of::<T>(), seq);
                to.u32(offset_of!(T, code), (*code).into());
                to.bytes(offset_of!(T, text), fitting(text).as_bytes());
                to.into_bytes()
            }
        }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Error {
            code: refusal.code(),
            text: fitting(&refusal.to_string()).into(),
        }
    }
}

impl Welcome {
    fn encode(&self, seq: u32) -> Vec<u8> {
        type T = pvsched_handoff_welcome;
        let head = offset_of!(T, protocols);
        let length = head + self.protocols.len() * size_of::<pvsched_protocol>();
        let mut to = message(PVSCHED_HANDOFF_WELCOME, length, seq);
        to.u16(offset_of!(T, version), self.version);
        to.u16(offset_of!(T, protocol_count), narrow(self.protocols.len()));
        to.u32(offset_of!(T, max_vcpus), self.max_vcpus);
        to.u32(offset_of!(T, max_regions), self.max_regions);
        for (index, protocol) in self.protocols.iter().enumerate() {
            protocol.write(&mut to, head + index * size_of::<pvsched_protocol>());
        }
        to.into_bytes()
    }

    fn parse(fields: Fields) -> Result<Self, MalformedAnswer> {
        type T = pvsched_handoff_welcome;
        let head = offset_of!(T, protocols);
        let size = size_of::<pvsched_protocol>();
        if fields.0.len() < head {
            return Err(MalformedAnswer("its length is not that of its type"));
        }
        let count = usize::from(fields.u16(offset_of!(T, protocol_count)));
        if count > MAX_PROTOCOLS || fields.0.len() != head + count * size {
            return Err(MalformedAnswer("its count of protocols does not fit it"));
        }
        let protocols = fields.0[head..].chunks_exact(size).map(Protocol::parse);
        Ok(Self {
            version: fields.u16(offset_of!(T, version)),
            max_vcpus: fields.u32(offset_of!(T, max_vcpus)),
            max_regions: fields.u32(offset_of!(T, max_regions)),
            protocols: protocols
                .collect::<Option<_>>()
                .ok_or(MalformedAnswer("it offers a protocol that is none"))?,
        })
    }
}

/// The text as far as it fits an error message, ended at a whole character.
fn fitting(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(TEXT_LEN)]
}

fn message(kind: u32, length: usize, seq: u32) -> FieldsMut {
    type T = pvsched_handoff_header;
    let mut to = FieldsMut::new(length);
    to.u32(offset_of!(T, magic), PVSCHED_HANDOFF_MAGIC);
    to.u16(offset_of!(T, type_), narrow(kind));
    to.u32(offset_of!(T, length), narrow(length));
    to.u32(offset_of!(T, seq), seq);
    to
}

/// The type and the sequence number.
fn parse_header(bytes: &[u8]) -> Result<(u16, u32), &'static str> {
    type T = pvsched_handoff_header;
    if bytes.len() < size_of::<T>() {
        return Err("it is shorter than a header");
    }
    let fields = Fields(bytes);
    if fields.u32(offset_of!(T, magic)) != PVSCHED_HANDOFF_MAGIC {
        return Err("its magic is not that of the handoff protocol");
    }
    if fields.u16(offset_of!(T, rsvd)) != 0 {
        return Err("a reserved field is not zero");
    }
    if usize::try_from(fields.u32(offset_of!(T, length))) != Ok(bytes.len()) {
        return Err("its length field is not the packet's length");
    }
    Ok((
        fields.u16(offset_of!(T, type_)),
        fields.u32(offset_of!(T, seq)),
    ))
}

#[cfg(test)]
#[path = "wire_tests.rs"]
pub(crate) mod tests;
