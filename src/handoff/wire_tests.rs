// SPDX-License-Identifier: GPL-2.0-only
//! Tests of the wire types.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn protocol_name() -> impl Strategy<Value = ProtocolName> {
    vec(0x21u8..0x7f, 1..=16).prop_map(|name| ProtocolName::new(&name).unwrap())
}

fn protocol() -> impl Strategy<Value = Protocol> {
    (protocol_name(), 1u16.., 0u16..9).prop_map(|(name, min_version, more)| Protocol {
        name,
        min_version,
        max_version: min_version.saturating_add(more),
    })
}

fn regions() -> impl Strategy<Value = Regions> {
    vec((0u64..4, 1u64..1 << 20, 0u64..1 << 30), 1..=MAX_REGIONS).prop_map(|parts| {
        let mut next = 0;
        let regions = parts.into_iter().map(|(gap, pages, offset)| {
            let gpa = next + gap * PAGE_SIZE;
            next = gpa + pages * PAGE_SIZE;
            Region::new(gpa, pages * PAGE_SIZE, offset * PAGE_SIZE).unwrap()
        });
        Regions::new(regions.collect()).unwrap()
    })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (1u16.., 0u16..9).prop_map(|(min_version, more)| Request::Hello {
            min_version,
            max_version: min_version.saturating_add(more),
        }),
        ("[^\\p{Cc}]{1,16}", protocol_name(), any::<u16>(), regions()).prop_map(
            |(name, protocol, version, regions)| Request::VmRegister {
                name: VmName::new(&name).unwrap(),
                protocol,
                version,
                regions,
            }
        ),
        (any::<u32>(), 0..1u64 << 52).prop_map(|(apic_id, gfn)| Request::VcpuAttach {
            apic_id,
            page_gpa: gfn * PAGE_SIZE,
        }),
        any::<u32>().prop_map(|apic_id| Request::VcpuDetach { apic_id }),
    ]
}

fn from_scheduler() -> impl Strategy<Value = FromScheduler> {
    let welcome = (
        any::<u16>(),
        any::<u32>(),
        any::<u32>(),
        vec(protocol(), 0..=8),
    );
    let answer = prop_oneof![
        welcome.prop_map(|(version, max_vcpus, max_regions, protocols)| {
            Answer::Welcome(Welcome {
                version,
                max_vcpus,
                max_regions,
                protocols,
            })
        }),
        Just(Answer::Ok),
        (any::<u32>(), "[^\\x00]{0,48}").prop_map(|(code, text)| Answer::Error {
            code: code.into(),
            text,
        }),
    ];
    prop_oneof![
        (any::<u32>(), answer).prop_map(|(seq, answer)| FromScheduler::Answer { seq, answer }),
        any::<u32>().prop_map(|apic_id| FromScheduler::Notice(Notice::VcpuGone { apic_id })),
        Just(FromScheduler::Notice(Notice::Stopping)),
    ]
}

proptest! {
    #[test]
    fn a_request_survives_the_wire(request in request(), seq: u32) {
        let bytes = request.encode(seq);
        prop_assert!(bytes.len() <= MAX_MESSAGE);
        let envelope = Envelope::parse(&bytes).unwrap_or_else(|(_, why)| panic!("{why}"));
        prop_assert_eq!(envelope.seq, seq);
        prop_assert_eq!(envelope.open(), Ok(request));
    }

    #[test]
    fn what_the_scheduler_says_survives_the_wire(message in from_scheduler()) {
        let bytes = message.encode();
        prop_assert!(bytes.len() <= MAX_MESSAGE);
        prop_assert_eq!(FromScheduler::parse(&bytes), Ok(message));
    }

    #[test]
    fn random_bytes_are_refused_without_a_panic(bytes in vec(any::<u8>(), 0..MAX_MESSAGE + 8)) {
        prop_assert!(Envelope::parse(&bytes).is_err());
        prop_assert!(FromScheduler::parse(&bytes).is_err());
    }

    /// Random bytes rarely get beyond the magic, so also damage what was sound.
    #[test]
    fn damaged_requests_never_panic(
        request in request(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = request.encode(7);
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(envelope) = Envelope::parse(&bytes) {
            if let Ok(read) = envelope.open() {
                prop_assert_eq!(read.encode(envelope.seq), bytes);
            }
        }
    }

    #[test]
    fn damaged_answers_never_panic(
        message in from_scheduler(),
        damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = message.encode();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        let _ = FromScheduler::parse(&bytes);
    }

    #[test]
    fn every_truncation_is_refused(request in request(), message in from_scheduler()) {
        let (request, message) = (request.encode(1), message.encode());
        for end in 0..request.len() {
            prop_assert!(Envelope::parse(&request[..end]).is_err());
        }
        for end in 0..message.len() {
            prop_assert!(FromScheduler::parse(&message[..end]).is_err());
        }
    }

    #[test]
    fn a_region_contains_its_addresses_and_no_others(
        first in 0u64..1 << 40, pages in 1u64..1 << 20, probe in 0u64..1 << 53,
    ) {
        let region = Region::new(first * PAGE_SIZE, pages * PAGE_SIZE, 8 * PAGE_SIZE).unwrap();
        let inside = probe >= region.gpa() && probe < region.gpa() + region.size();
        prop_assert_eq!(region.file_offset(probe).is_some(), inside);
    }
}

#[test]
fn every_code_of_the_header_has_its_own_variant() {
    for (code, variant) in (1..).zip(ErrorCode::ALL) {
        assert_eq!(ErrorCode::from(code), *variant);
        assert_eq!(u32::from(*variant), code);
    }
    let beyond = u32::try_from(ErrorCode::ALL.len()).unwrap() + 1;
    assert_eq!(ErrorCode::from(beyond), ErrorCode::Other(beyond));
}

#[test]
fn an_error_text_that_is_too_long_ends_at_a_whole_character() {
    let text = "ä".repeat(200);
    assert_eq!(fitting(&text).len(), TEXT_LEN);
    assert_eq!(fitting(&format!("x{text}")).len(), TEXT_LEN - 1);
}
