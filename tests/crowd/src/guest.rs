//! The guest: a few instructions in real mode, the same for all vCPUs of a VM, each of which has its
//! page as data segment.

use scx_pvsched::abi;

/// Memory below the first megabyte is all that real mode has.
pub const MEMORY: u64 = 1 << 20;

/// One page each, from [`PAGES`] on.
pub const MAX_VCPUS: u32 = 128;

/// Of the interrupt that wakes it up.
pub const VECTOR: u8 = 0x40;

/// Where a vCPU begins.
pub const CODE: u64 = 0x1000;

const HANDLER: u16 = 0x1100;

/// A stack for each vCPU, with the number of interrupts taken at its far end.
const STACKS: u64 = 0x2000;
const STACK: u64 = 64;

const PAGES: u64 = 0x1_0000;

/// Rounds of an empty loop: what the real-time task does.
const WORK: u32 = 5_000;

/// Guest physical address of a vCPU's page.
pub fn page(vcpu: u32) -> u64 {
    PAGES + u64::from(vcpu) * u64::from(abi::PVSCHED_PAGE_SIZE)
}

/// Base and size of a vCPU's stack; the first 32-bit word counts its interrupts.
pub fn stack(vcpu: u32) -> (u64, u64) {
    (STACKS + u64::from(vcpu) * STACK, STACK)
}

/// An urgency word of `abi/page.h`.
const fn urgency(class: u32, priority: u32) -> u32 {
    class << abi::PVSCHED_URGENCY_CLASS_SHIFT
        | priority << abi::PVSCHED_URGENCY_PRIO_SHIFT
        | abi::PVSCHED_NICE_OFFSET << abi::PVSCHED_URGENCY_NICE_SHIFT
}

const IDLE: u32 = urgency(abi::PVSCHED_CLASS_IDLE_CPU, 0);
const REAL_TIME: u32 = urgency(abi::PVSCHED_CLASS_RT, 50);

/// Byte offsets of words of the page, as real mode addresses them.
const CURRENT: [u8; 2] = [64, 0];
const ACK: [u8; 2] = [88, 0];
const TIMER: usize = 96;
const TICKET: [u8; 2] = [136, 0];

/// What lies where in the memory of a VM.
pub fn image(vcpus: u32) -> Vec<(u64, Vec<u8>)> {
    let mut parts = vec![
        // The interrupt's entry in the vector table: offset, segment.
        (
            u64::from(VECTOR) * 4,
            [HANDLER.to_le_bytes(), [0, 0]].concat(),
        ),
        // sti; hlt; and again
        (CODE, vec![0xfb, 0xf4, 0xeb, 0xfc]),
        (u64::from(HANDLER), handler()),
    ];
    parts.extend((0..vcpus).map(|vcpu| (page(vcpu), first_words())));
    parts
}

/// What a driver and its publisher have written by the time that a page is handed over.
fn first_words() -> Vec<u8> {
    let mut page = vec![0; size_of::<abi::pvsched_page>()];
    let mut word = |offset: usize, value: u64| {
        page[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    };
    word(0, abi::PVSCHED_PAGE_HEADER);
    word(8, abi::PVSCHED_GUEST_PUBLISHING.into());
    word(usize::from(CURRENT[0]), IDLE.into());
    word(TIMER, abi::PVSCHED_TIMER_KNOWN);
    page
}

fn handler() -> Vec<u8> {
    let mov_word = |offset: [u8; 2], value: u32| {
        // mov dword [offset], value
        [&[0x66, 0xc7, 0x06][..], &offset, &value.to_le_bytes()].concat()
    };
    [
        // inc dword ss:[0]
        vec![0x36, 0x66, 0xff, 0x06, 0, 0],
        // mov eax, [ticket]; mov [ack], eax
        [&[0x66, 0xa1][..], &TICKET, &[0x66, 0xa3], &ACK].concat(),
        mov_word(CURRENT, REAL_TIME),
        // mov ecx, WORK; dec ecx; jnz to the dec
        [&[0x66, 0xb9][..], &WORK.to_le_bytes()].concat(),
        vec![0x66, 0x49, 0x75, 0xfc],
        mov_word(CURRENT, IDLE),
        // The end of the interrupt, to the x2APIC: mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr
        vec![0x66, 0xb9, 0x0b, 0x08, 0, 0],
        vec![0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, 0x0f, 0x30],
        // iret
        vec![0xcf],
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lies_on_something_else() {
        let mut parts: Vec<_> = image(MAX_VCPUS)
            .into_iter()
            .map(|(at, bytes)| (at, at + bytes.len() as u64))
            .chain((0..MAX_VCPUS).map(|vcpu| {
                let (base, size) = stack(vcpu);
                (base, base + size)
            }))
            .collect();
        parts.sort_unstable();
        for pair in parts.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        assert!(parts.last().unwrap().1 <= MEMORY);
    }

    #[test]
    fn words_lie_where_the_page_has_them() {
        use abi::pvsched_page as page;
        use std::mem::offset_of;
        let offset = |bytes: [u8; 2]| usize::from(u16::from_le_bytes(bytes));
        assert_eq!(offset(CURRENT), offset_of!(page, current_task));
        assert_eq!(offset(ACK), offset_of!(page, ack));
        assert_eq!(offset(TICKET), offset_of!(page, ticket));
        assert_eq!(TIMER, offset_of!(page, timer));
    }
}
