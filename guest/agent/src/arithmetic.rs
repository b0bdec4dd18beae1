// SPDX-License-Identifier: GPL-2.0-only
//! Tests of what the BPF programs are made of: `guest/bpf/urgency.h` and `ticket.h`, compiled
//! natively.

#[allow(
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
mod native {
    include!(concat!(env!("OUT_DIR"), "/arithmetic.rs"));
}

use native::pvsched_task;
use proptest::prelude::*;
use scx_pvsched::abi;

const POLICY_NORMAL: u32 = 0;

fn urgency(task: pvsched_task) -> u64 {
    // SAFETY: the function reads the task that it is given and nothing else.
    unsafe { native::pvsched_urgency(&task) }
}

fn more_urgent(a: u64, b: u64) -> bool {
    // SAFETY: the function computes with its arguments.
    unsafe { native::pvsched_more_urgent(a, b) }
}

fn urgent(word: u64) -> bool {
    // SAFETY: the function computes with its argument.
    unsafe { native::pvsched_urgent(word) }
}

fn hardirq_ack(acked: u64, earlier: u64, entered: u64) -> u64 {
    // SAFETY: the function computes with its arguments.
    unsafe { native::pvsched_hardirq_ack(acked, earlier, entered) }
}

fn fair(policy: u32, nice: i32) -> pvsched_task {
    pvsched_task {
        prio: 120 + nice,
        static_prio: 120 + nice,
        policy,
        ..Default::default()
    }
}

fn realtime(rt_prio: i32) -> pvsched_task {
    pvsched_task {
        prio: 99 - rt_prio,
        static_prio: 120,
        policy: 1,
        ..Default::default()
    }
}

fn class(word: u64) -> u32 {
    u32::try_from(word >> abi::PVSCHED_URGENCY_CLASS_SHIFT).unwrap()
}

fn any_task() -> impl Strategy<Value = pvsched_task> {
    (
        any::<i32>(),
        -1000i32..1000,
        any::<u32>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(prio, static_prio, policy, idle_cpu, stop)| pvsched_task {
            prio,
            static_prio,
            policy,
            idle_cpu,
            stop,
        })
}

proptest! {
    #[test]
    fn every_real_time_task_beats_every_normal_one(rt in 1i32..=99, nice in -20i32..=19) {
        let (rt, normal) = (urgency(realtime(rt)), urgency(fair(POLICY_NORMAL, nice)));
        prop_assert!(more_urgent(rt, normal));
        prop_assert!(urgent(rt) && !urgent(normal));
    }

    #[test]
    fn a_higher_real_time_priority_is_more_urgent(a in 1i32..=99, b in 1i32..=99) {
        prop_assert_eq!(more_urgent(urgency(realtime(a)), urgency(realtime(b))), a > b);
    }

    #[test]
    fn nice_values_give_no_precedence_but_are_published(a in -20i32..=19, b in -20i32..=19) {
        let (a_word, b_word) = (urgency(fair(POLICY_NORMAL, a)), urgency(fair(POLICY_NORMAL, b)));
        prop_assert!(!more_urgent(a_word, b_word));
        prop_assert_eq!(i32::try_from(a_word & 0xff).unwrap() - 20, a);
    }

    #[test]
    fn an_inherited_priority_makes_a_normal_task_real_time(rt in 1i32..=99, nice in -20i32..=19) {
        let boosted = pvsched_task { prio: 99 - rt, ..fair(POLICY_NORMAL, nice) };
        prop_assert_eq!(urgency(boosted), urgency(realtime(rt)));
    }

    #[test]
    fn no_task_makes_a_malformed_word(task in any_task()) {
        let word = urgency(task);
        let (nice, prio) = (word & 0xff, word >> 8 & 0xff);
        prop_assert!((abi::PVSCHED_CLASS_IDLE_CPU..=abi::PVSCHED_CLASS_DEADLINE).contains(&class(word)));
        prop_assert!(nice < 40);
        prop_assert_eq!(class(word) == abi::PVSCHED_CLASS_RT, prio != 0);
        prop_assert!(prio <= 99);
        prop_assert_eq!(word >> 24, 0);
    }

    #[test]
    fn urgency_is_a_strict_order(a in any_task(), b in any_task(), c in any_task()) {
        let (a, b, c) = (urgency(a), urgency(b), urgency(c));
        prop_assert!(!(more_urgent(a, b) && more_urgent(b, a)));
        prop_assert!(!(more_urgent(a, b) && more_urgent(b, c)) || more_urgent(a, c));
    }

    /// Interrupts are given one at a time and taken one at a time: each is echoed at its end.
    #[test]
    fn a_single_interrupt_is_echoed_at_once(acked in any::<u64>(), earlier in any::<u64>()) {
        prop_assert_eq!(hardirq_ack(acked, earlier, acked.wrapping_add(1)), acked.wrapping_add(1));
    }

    /// Two vectors pending when the first is entered: the first one's end must not echo both.
    #[test]
    fn an_interrupt_that_still_waits_is_not_echoed(acked in 0u64..1 << 40) {
        let entered = acked + 2;
        let first = hardirq_ack(acked, acked, entered);
        prop_assert_eq!(first, acked + 1);
        prop_assert_eq!(hardirq_ack(first, entered, entered), entered);
    }

    /// However many interrupts were merged into one, the next one catches up.
    #[test]
    fn merged_interrupts_hold_up_the_echo_for_one_interrupt(
        acked in 0u64..1 << 40, merged in 1u64..1000, later in 0u64..2,
    ) {
        let first = acked + merged;
        let echo = hardirq_ack(acked, acked, first);
        let second = first + later;
        let echo = hardirq_ack(echo, first, second);
        prop_assert!(second - echo <= later);
    }

    #[test]
    fn the_echo_never_runs_ahead_of_what_was_read(
        acked in any::<u64>(), earlier in any::<u64>(), ahead in 0u64..1 << 62,
    ) {
        let entered = acked.wrapping_add(ahead);
        let echo = hardirq_ack(acked, earlier, entered);
        prop_assert!(echo.wrapping_sub(acked) <= ahead);
    }
}

#[test]
fn classes_follow_the_kernels_policies() {
    assert_eq!(class(urgency(fair(0, 0))), abi::PVSCHED_CLASS_NORMAL);
    assert_eq!(class(urgency(fair(3, 0))), abi::PVSCHED_CLASS_BATCH);
    assert_eq!(class(urgency(fair(5, 0))), abi::PVSCHED_CLASS_IDLE);
    assert_eq!(class(urgency(fair(7, 0))), abi::PVSCHED_CLASS_NORMAL);
    assert_eq!(class(urgency(realtime(50))), abi::PVSCHED_CLASS_RT);
    let deadline = pvsched_task {
        prio: -1,
        ..fair(6, 0)
    };
    assert_eq!(class(urgency(deadline)), abi::PVSCHED_CLASS_DEADLINE);
    let stopper = pvsched_task {
        stop: true,
        ..realtime(99)
    };
    assert_eq!(class(urgency(stopper)), abi::PVSCHED_CLASS_DEADLINE);
    let idle = pvsched_task {
        idle_cpu: true,
        ..fair(0, 0)
    };
    assert_eq!(class(urgency(idle)), abi::PVSCHED_CLASS_IDLE_CPU);
}

#[test]
fn a_host_that_starts_over_is_followed() {
    assert_eq!(hardirq_ack(1000, 1000, 3), 3);
}
