// SPDX-License-Identifier: GPL-2.0-only
//! Tests of what the BPF programs are made of: `guest/bpf/urgency.h`, `ticket.h`,
//! `timers.h`, `response.h` and `cost.h`, compiled natively.

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

/// The word, as count, microseconds until the timer was handled, and until the task ran.
fn response(before: u64, wanted: u64, woken: u64, now: u64) -> (u64, u64, u64) {
    // SAFETY: the function computes with its arguments.
    let word = unsafe { native::pvsched_response(before, wanted, woken, now) };
    let late = word >> abi::PVSCHED_RESPONSE_LATE_SHIFT;
    (
        word >> abi::PVSCHED_RESPONSE_COUNT_SHIFT,
        late & u64::from(abi::PVSCHED_RESPONSE_US_MAX),
        word & u64::from(abi::PVSCHED_RESPONSE_US_MAX),
    )
}

/// A CPU's timers, driven through the functions that the programs call.
struct Timers(native::pvsched_timers);

impl Timers {
    fn programmed(at: i64) -> Self {
        // SAFETY: plain integers, and all zero is how the map begins.
        let mut timers = Self(unsafe { std::mem::zeroed() });
        timers.program(at);
        timers
    }

    fn program(&mut self, at: i64) {
        // SAFETY: the function writes to the value that it is given.
        unsafe { native::pvsched_timer_programmed(&mut self.0, at) }
    }

    fn start(&mut self, timer: u64, expires: i64, urgency: u64, by_task: bool) {
        self.start_at(0, timer, expires, urgency, by_task);
    }

    fn start_at(&mut self, now: i64, timer: u64, expires: i64, urgency: u64, by_task: bool) {
        // SAFETY: as above.
        unsafe { native::pvsched_timer_started(&mut self.0, timer, expires, urgency, by_task, now) }
    }

    fn stop(&mut self, timer: u64) -> bool {
        // SAFETY: as above.
        unsafe { native::pvsched_timer_stopped(&mut self.0, timer) }
    }

    /// Urgency word without nice, and delay in microseconds; none if no timer is urgent.
    fn first(&self) -> Option<(u64, u64)> {
        // SAFETY: the function reads the value that it is given.
        let word = unsafe { native::pvsched_timer_word(&self.0) };
        assert_ne!(word & abi::PVSCHED_TIMER_KNOWN, 0);
        let urgency =
            word >> abi::PVSCHED_TIMER_URGENCY_SHIFT & u64::from(abi::PVSCHED_TIMER_URGENCY_MASK);
        (urgency != 0).then_some((urgency, word & u64::from(abi::PVSCHED_TIMER_DELAY_MASK)))
    }
}

/// Addresses as the kernel's stacks have them: 16 KiB apart.
fn stack(number: u64) -> u64 {
    0xffff_c900_0000_3d80 + (number << 14)
}

fn short(urgency: u64) -> u64 {
    urgency >> abi::PVSCHED_URGENCY_PRIO_SHIFT
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

    /// Whatever happens to timers, the word is well-formed.
    #[test]
    fn no_sequence_of_timers_makes_a_malformed_word(
        events in prop::collection::vec((0u8..4, 0u64..40, any::<i64>(), any_task(), any::<bool>()), 0..60),
    ) {
        let mut timers = Timers::programmed(0);
        for (event, number, time, task, by_task) in events {
            match event {
                0 => timers.program(time),
                1 => drop(timers.stop(stack(number))),
                _ => timers.start(stack(number), time, urgency(task), by_task),
            }
            if let Some((short, _)) = timers.first() {
                prop_assert!(class(short << abi::PVSCHED_URGENCY_PRIO_SHIFT) > abi::PVSCHED_CLASS_IDLE);
            }
        }
    }

    /// A pair of timers always has room, whatever their addresses.
    #[test]
    fn of_two_urgent_timers_the_first_is_told(
        a in 0u64..1000, b in 0u64..1000, early in 1i64..1_000_000, later in 1i64..1_000_000,
    ) {
        prop_assume!(a != b);
        let mut timers = Timers::programmed(0);
        let (low, high) = (urgency(realtime(10)), urgency(realtime(80)));
        timers.start(stack(a), (early + later) * 1000, high, true);
        timers.start(stack(b), early * 1000, low, true);
        prop_assert_eq!(timers.first(), Some((short(low), early.unsigned_abs())));
        prop_assert!(timers.stop(stack(b)));
        prop_assert_eq!(timers.first(), Some((short(high), (early + later).unsigned_abs())));
    }

    /// Clocks that run backwards and waits of hours stay within their fields.
    #[test]
    fn no_times_make_a_malformed_response(
        before in any::<u64>(), wanted in any::<u64>(), woken in any::<u64>(), now in any::<u64>(),
    ) {
        let (count, late, total) = response(before, wanted, woken, now);
        prop_assert_eq!(count, ((before >> abi::PVSCHED_RESPONSE_COUNT_SHIFT) + 1) & 0xffff);
        prop_assert_eq!(late == 0, woken < wanted.saturating_add(1000));
        prop_assert_eq!(total == 0, now < wanted.saturating_add(1000));
    }

    /// However many ordinary timers there are, and however soon.
    #[test]
    fn an_urgent_timer_is_told_whatever_ordinary_ones_there_are(
        others in prop::collection::vec((1u64..1000, 0i64..2_000_000), 0..40), at in 0i64..2_000_000,
    ) {
        let mut timers = Timers::programmed(0);
        let rt = urgency(realtime(1));
        let (before, after) = others.split_at(others.len() / 2);
        let normal = urgency(fair(POLICY_NORMAL, 0));
        before.iter().for_each(|(number, time)| timers.start(stack(*number), *time, normal, true));
        timers.start(stack(0), at, rt, true);
        after.iter().for_each(|(number, time)| timers.start(stack(*number), *time, normal, true));
        prop_assert_eq!(timers.first(), Some((short(rt), at.unsigned_abs() / 1000)));
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
fn a_timer_is_told_from_its_start_to_its_end() {
    let mut timers = Timers::programmed(1_000_000);
    let rt = urgency(realtime(80));
    assert_eq!(timers.first(), None);
    timers.start(stack(1), 3_500_000, rt, true);
    assert_eq!(timers.first(), Some((short(rt), 2500)));
    timers.program(3_500_000);
    assert_eq!(timers.first(), Some((short(rt), 0)));
    assert!(timers.stop(stack(1)));
    assert_eq!(timers.first(), None);
    assert!(!timers.stop(stack(1)), "it has stopped before");
}

#[test]
fn a_timer_that_rearms_itself_stays_urgent_and_no_interrupt_makes_one_urgent() {
    let mut timers = Timers::programmed(0);
    let rt = urgency(realtime(80));
    timers.start(stack(1), 1_000_000, rt, true);
    timers.stop(stack(1));
    timers.start(stack(1), 2_000_000, urgency(fair(POLICY_NORMAL, 0)), false);
    assert_eq!(timers.first(), Some((short(rt), 2000)));
    timers.stop(stack(1));
    timers.start(stack(2), 2_000_000, rt, false);
    assert_eq!(timers.first(), None);
}

#[test]
fn without_urgent_timers_the_first_for_ordinary_work_is_told_and_none_for_idle_work() {
    let mut timers = Timers::programmed(0);
    let normal = urgency(fair(POLICY_NORMAL, 0));
    timers.start(stack(1), 1_000_000, urgency(fair(5, 0)), true);
    assert_eq!(timers.first(), None);
    timers.start(stack(2), 3_000_000, normal, true);
    timers.start(stack(3), 2_000_000, normal, true);
    assert_eq!(timers.first(), Some((short(normal), 2000)));
}

#[test]
fn the_next_owner_of_a_stack_does_not_inherit_its_urgency() {
    let mut timers = Timers::programmed(0);
    timers.start(stack(1), 1_000_000, urgency(realtime(80)), true);
    let normal = urgency(fair(POLICY_NORMAL, 0));
    timers.start(stack(1), 1_000_000, normal, true);
    assert_eq!(timers.first(), Some((short(normal), 1000)));
}

#[test]
fn a_timer_long_overdue_was_lost() {
    let mut timers = Timers::programmed(0);
    timers.start(stack(1), 1_000_000, urgency(realtime(80)), true);
    timers.program(1_001_000_000);
    assert_eq!(timers.first(), Some((short(urgency(realtime(80))), 0)));
    timers.program(1_001_000_001);
    assert_eq!(timers.first(), None);
}

/// As many as there is room for, and more, of timers nobody saw the end of.
#[test]
fn lost_timers_make_room() {
    let mut timers = Timers::programmed(0);
    let rt = urgency(realtime(99));
    (1..1000).for_each(|number| timers.start(stack(number), 1_000, rt, true));
    let now = 2_000_000_000;
    timers.program(now);
    let (at, low) = (now + 5_000_000, urgency(realtime(1)));
    timers.start_at(now, stack(0), at, low, true);
    assert_eq!(timers.first(), Some((short(low), 5000)));
}

#[test]
fn a_response_is_counted_and_told_in_its_two_parts() {
    let first = response(0, 1_000_000, 1_250_000, 1_400_999);
    assert_eq!(first, (1, 250, 400));
    let wrapped = response(u64::MAX, 5_000, 5_000, 7_000);
    assert_eq!(wrapped, (0, 0, 2));
}

#[test]
fn a_host_that_starts_over_is_followed() {
    assert_eq!(hardirq_ack(1000, 1000, 3), 3);
}

/// `pvsched_cost()` of a CPU in that state, which waited so many microseconds of late.
fn cost(state: u32, wait: u32, age: u64, runs: u32) -> u64 {
    let capacity = u64::from(wait) << abi::PVSCHED_CAPACITY_WAIT_SHIFT | 1024;
    // SAFETY: the function computes with its arguments.
    unsafe { native::pvsched_cost(u64::from(state) | 5 << 16, capacity, age, runs) }
}

#[test]
fn a_cpu_of_which_the_host_says_nothing_has_no_cost() {
    assert_eq!(cost(abi::PVSCHED_HOST_UNKNOWN, 0, 0, 0), u64::MAX);
    assert_eq!(cost(200, 0, 0, 0), u64::MAX);
}

#[test]
fn of_two_cpus_that_run_the_one_that_waits_less_as_a_rule_is_better() {
    let [good, bad] = [0, 12_000].map(|wait| {
        cost(
            abi::PVSCHED_HOST_RUNNING,
            wait,
            0,
            native::PVSCHED_RUNS_BUSY,
        )
    });
    // By more than it is worth to stay where the caches are warm.
    assert!(good + 1000 < bad);
}

#[test]
fn a_cpu_that_sleeps_and_gets_to_run_at_once_is_better_than_one_that_is_busy() {
    let sleeps = cost(
        abi::PVSCHED_HOST_SLEEPING,
        100,
        0,
        native::PVSCHED_RUNS_NOTHING,
    );
    let busy = cost(abi::PVSCHED_HOST_RUNNING, 0, 0, native::PVSCHED_RUNS_BUSY);
    let brief = cost(abi::PVSCHED_HOST_RUNNING, 0, 0, native::PVSCHED_RUNS_BRIEF);
    assert!(sleeps < busy && busy < brief);
}

proptest! {
    #[test]
    fn a_long_wait_costs_more_and_what_was_long_ago_less(
        state in 1u32..=3, wait in 0u32..=u32::MAX / 2, more: u32, age: u64, older: u64, runs in 0u32..3,
    ) {
        let (more, older) = (more / 2, age.saturating_add(older));
        prop_assert!(cost(state, wait, age, runs) <= cost(state, wait + more, age, runs));
        prop_assert!(cost(state, wait, older, runs) <= cost(state, wait, age, runs));
        prop_assert!(cost(state, wait, age, runs) >= cost(state, wait, age, native::PVSCHED_RUNS_NOTHING));
    }
}
