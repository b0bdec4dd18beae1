// SPDX-License-Identifier: GPL-2.0-only
//! The arithmetic of policy and statistics: the native build of `bpf/policy.h` and
//! `bpf/histogram.h`, the text that the BPF
//! programs are compiled from. The functions are thin, safe calls; what they mean stands there.

#[allow(
    non_camel_case_types,
    non_upper_case_globals,
    dead_code,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
mod native {
    include!(concat!(env!("OUT_DIR"), "/policy.rs"));
}

pub use native::{
    PV_BOOST_IRQ, PV_BOOST_NONE, PV_BOOST_TASK, PV_EARLY_MAX_NS, PV_FINE_BUCKETS,
    PV_FINE_VALUE_BITS, PV_GUEST_WEIGHT_DFL, PV_GUEST_WEIGHT_IDLE, PV_GUEST_WEIGHT_MAX,
    PV_LATELY_NS, PV_OWED_MAX_NS, PV_PART_MAX, PV_PART_ONE, PV_RANK_DEADLINE, PV_RANK_IRQ,
    PV_RANK_MAX, PV_RANK_NONE, PV_RANK_RT_BASE, PV_SHIFT_MAX, PV_STARVATION_NS, PV_TIME_MAX,
    PV_WEIGHT_DFL, PV_WEIGHT_MAX,
};

macro_rules! pure {
    ($($(#[$doc:meta])* $name:ident = $c:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name($($arg: $type),*) -> $out {
                // SAFETY: a pure function of integers; every value is allowed.
                unsafe { native::$c($($arg),*) }
            }
        )*
    };
}

pure! {
    /// Rank of an urgency word; 0 when it is not urgent.
    rank = pv_rank(urgency: u64) -> u32;
    /// The class of an urgency word, `enum pvsched_class`.
    class = pv_class(urgency: u64) -> u32;
    /// What a VM that may have at most `max` has of a rank.
    cap_rank = pv_cap_rank(rank: u32, max: u32) -> u32;
    /// Rank of the task that a guest's next timer interrupts are for; 0 when it is not urgent.
    timer_rank = pv_timer_rank(timer: u64) -> u32;
    /// From a guest's next timer interrupt to the first urgent one, in ns.
    timer_delay = pv_timer_delay(timer: u64) -> u64;
    /// Key of a boosted vCPU in its queue; the smallest goes first.
    boost_key = pv_boost_key(rank: u32, now: u64) -> u64;
    /// The rank that a key was made from.
    key_rank = pv_key_rank(key: u64) -> u32;
    /// What an urgency word makes of a vCPU's weight, in 1024ths.
    guest_weight = pv_guest_weight(urgency: u64) -> u32;
    /// A number brought into a range; the upper end counts where the range is empty.
    clamp = pv_clamp(value: u32, min: u32, max: u32) -> u32;
    /// The weight of a task with `weight` in sched_ext's units, of which its guest makes `guest`.
    weight = pv_weight(weight: u32, guest: u32) -> u64;
    /// Virtual time of a vCPU of whose weight its guest makes `to` instead of `from`.
    reweigh = pv_reweigh(vtime: u64, queue_vtime: u64, from: u32, to: u32) -> u64;
    /// Virtual time that `ran` ns cost at `weight`.
    charge = pv_charge(ran: u64, weight: u64) -> u64;
    /// CPU time in ns that a task got beyond its fair share.
    lead = pv_lead(vtime: u64, queue_vtime: u64, weight: u64) -> i64;
    /// Virtual time that `time` ns cost a task of average weight, which cgroups halve `shift` times.
    usual_charge = pv_usual_charge(time: u64, shift: i32) -> u64;
    /// What is left of a part in a cgroup of that weight, in which weights of `sum` want to run.
    part_of = pv_part_of(part: u64, weight: i64, sum: i64) -> u64;
    /// A weight, as far as cgroups leave it.
    weight_in = pv_weight_in(weight: u64, part: u64) -> u64;
    /// What a cgroup may use when periods begin, in ns; negative is debt.
    renew = pv_renew(left: i64, quota: u64, burst: u64, periods: u64) -> i64;
    /// Virtual time of a task of whose weight cgroups leave another part.
    rescale = pv_rescale(vtime: u64, queue_vtime: u64, from: u64, to: u64) -> u64;
    /// How far ahead a task may be sent in the fair queue, in virtual time.
    most_ahead = pv_most_ahead(waiting: u64) -> u64;
    /// Virtual time at which a task enters the fair queue.
    enter_vtime = pv_enter_vtime(vtime: u64, queue_vtime: u64, credit: u64, ahead: u64) -> u64;
    /// Virtual time for budgets, at which a task enters the fair queue.
    enter_base = pv_enter_base(vtime: u64, queue_vtime: u64, credit: u64) -> u64;
    /// Virtual time for budgets of a vCPU that waits by `vtime`, with what its guest makes of its weight.
    owed_base = pv_owed_base(base: u64, vtime: u64, weight: u32) -> u64;
    /// Virtual time of a task that goes by another clock from now on.
    translate = pv_translate(vtime: u64, from: u64, to: u64, owed: u64) -> u64;
    /// Virtual time after a turn that cost nobody anything.
    refund = pv_refund(vtime: u64, start: u64, clock: u64) -> u64;
    /// Whether a task has slept for so long that it is owed a slice.
    is_rested = pv_is_rested(vtime: u64, queue_vtime: u64, slice: u64, weight: u64) -> bool;
    /// In how many ns a turn ends for a task that wakes up; `u64::MAX` is not early.
    ends_in = pv_ends_in(vtime: u64, current: u64, margin: u64, ran: u64, min: u64, rested: bool)
        -> u64;
    /// Length of a fair turn in ns.
    slice = pv_slice(slice: u64, min: u64, waiting: u64) -> u64;
    /// A debt that grew by `boosted` ns.
    debt_add = pv_debt_add(debt: u64, boosted: u64) -> u64;
    /// A debt that shrank by `unboosted` ns.
    debt_repay = pv_debt_repay(debt: u64, unboosted: u64) -> u64;
    /// A moving average with one more sample.
    average = pv_average(average: u64, sample: u64) -> u64;
    /// How long before a guest's timer its vCPU is put ahead, in ns.
    early = pv_early(enter: u64, lead: i64, budget: u64) -> u64;
    /// A part of what a vCPU wanted of late, and all of that is `total`, in ns.
    fade = pv_fade(part: u64, total: u64) -> u64;
    /// 1024ths of the host's fastest CPU that a vCPU got of one with the capacity `cpu`.
    capacity = pv_capacity(ran: u64, waited: u64, cpu: u32) -> u64;
    /// Sixteenths of tasks that wait for a CPU.
    load = pv_load(own: u32, shared: u32, cpus: u32) -> u64;
    /// The page's word for it, with the wait for a CPU in ns.
    capacity_word = pv_capacity_word(capacity: u64, load: u64, wait: u64) -> u64;
    /// The bucket of a histogram with eight to each power of two.
    fine_bucket = pv_fine_bucket(value: u64) -> u32;
    /// The least number in such a bucket.
    fine_least = pv_fine_least(bucket: u32) -> u64;
    /// How much of a debt may be left when a spent budget counts again.
    resume = pv_resume(budget: u64, turn: u64) -> u64;
    /// Whether a budget counts as spent.
    spent = pv_spent(spent: bool, debt: u64, budget: u64, resume: u64) -> bool;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::abi;

    const MS: u64 = 1_000_000;
    const NOT_EARLY: u64 = u64::MAX;

    fn urgency(class: u32, prio: u8, nice: u8) -> u64 {
        u64::from(class) << abi::PVSCHED_URGENCY_CLASS_SHIFT
            | u64::from(prio) << abi::PVSCHED_URGENCY_PRIO_SHIFT
            | u64::from(nice)
    }

    /// Of any task, and of any vCPU whatever its guest says.
    fn any_weight() -> impl Strategy<Value = u64> {
        (1u32..=10_000, 1u32..=PV_GUEST_WEIGHT_MAX).prop_map(|(host, guest)| weight(host, guest))
    }

    /// Whether virtual time `a` is before `b`; it wraps around.
    fn before(a: u64, b: u64) -> bool {
        a.wrapping_sub(b) > u64::MAX / 2
    }

    proptest! {
        #[test]
        fn any_word_of_a_guest_has_a_rank_in_range(word: u64) {
            prop_assert!(rank(word) <= PV_RANK_MAX);
            prop_assert!(timer_rank(word) <= PV_RANK_MAX);
        }

        #[test]
        fn a_number_is_in_a_bucket_an_eighth_wide(bits in 0u32..=64, any: u64) {
            let value = any & 1u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1);
            let bucket = fine_bucket(value);
            let (least, next) = (fine_least(bucket), fine_least(bucket + 1));
            prop_assert!(bucket < PV_FINE_BUCKETS && least <= value && least < next);
            if value < 1 << PV_FINE_VALUE_BITS {
                prop_assert!(value < next && (next - least) * 8 <= least.max(8));
            }
        }

        #[test]
        fn a_timer_is_as_urgent_as_its_task(
            class in 0u32..=255, prio: u8, delay: u32,
        ) {
            let task = urgency(class, prio, 0);
            let word = abi::PVSCHED_TIMER_KNOWN | u64::from(delay)
                | task >> abi::PVSCHED_URGENCY_PRIO_SHIFT << abi::PVSCHED_TIMER_URGENCY_SHIFT;
            prop_assert_eq!(timer_rank(word), rank(task));
            prop_assert_eq!(timer_delay(word), u64::from(delay) * 1000);
        }

        #[test]
        fn a_cap_lowers_what_is_above_it_and_nothing_else(word: u64, other: u64, max in 0..=PV_RANK_MAX) {
            let (rank, other) = (rank(word), rank(other));
            prop_assert_eq!(cap_rank(rank, max), rank.min(max));
            prop_assert_eq!(cap_rank(rank, PV_RANK_MAX), rank);
            prop_assert_eq!(cap_rank(rank, PV_RANK_NONE), PV_RANK_NONE);
            // Who goes first among those with the same cap stays, but for ties at the cap.
            prop_assert!(rank > other || cap_rank(rank, max) <= cap_rank(other, max));
        }

        #[test]
        fn rank_is_monotone_in_urgency(a in 1u8..=99, b in 1u8..=99, nice in 0u8..40) {
            let (rt_a, rt_b) =
                (rank(urgency(abi::PVSCHED_CLASS_RT, a, nice)), rank(urgency(abi::PVSCHED_CLASS_RT, b, nice)));
            prop_assert_eq!(a.cmp(&b), rt_a.cmp(&rt_b));
            prop_assert!(rt_a > PV_RANK_IRQ);
            prop_assert!(rt_a < rank(urgency(abi::PVSCHED_CLASS_DEADLINE, 0, nice)));
            for class in [abi::PVSCHED_CLASS_NONE, abi::PVSCHED_CLASS_IDLE_CPU, abi::PVSCHED_CLASS_IDLE,
                          abi::PVSCHED_CLASS_BATCH, abi::PVSCHED_CLASS_NORMAL, 7, 255] {
                prop_assert_eq!(rank(urgency(class, a, nice)), PV_RANK_NONE);
            }
        }

        #[test]
        fn the_more_urgent_goes_first_and_equals_in_order_of_arrival(
            a in 1..=PV_RANK_MAX, b in 1..=PV_RANK_MAX, t in 0u64..1 << 57, later in 1000u64..1 << 40,
        ) {
            prop_assert_eq!(key_rank(boost_key(a, t)), a);
            if a > b {
                prop_assert!(boost_key(a, t + later) < boost_key(b, t));
            }
            prop_assert!(boost_key(a, t) < boost_key(a, t + later));
        }

        #[test]
        fn a_heavier_task_is_charged_less(ran in 0u64..1 << 40, w in any_weight(), more in 1u64..10_000) {
            prop_assert!(charge(ran, w + more) <= charge(ran, w));
            prop_assert_eq!(charge(ran, PV_WEIGHT_DFL.into()), ran);
        }

        #[test]
        fn any_word_of_a_guest_makes_a_weight_in_range(word: u64) {
            prop_assert!((PV_GUEST_WEIGHT_IDLE..=PV_GUEST_WEIGHT_MAX).contains(&guest_weight(word)));
        }

        /// Each step of nice is worth 10 % of a CPU that two tasks share, so the ratio is 1.25:
        /// include/linux/sched/prio.h says so, and the kernel's table is within 4 % of it.
        #[test]
        fn nice_values_weigh_what_the_kernel_makes_of_them(nice in 0u8..39) {
            let of = |nice| f64::from(guest_weight(urgency(abi::PVSCHED_CLASS_NORMAL, 0, nice)));
            let step = of(nice) / of(nice + 1);
            prop_assert!((1.18..=1.30).contains(&step), "{}", step);
            prop_assert_eq!(
                guest_weight(urgency(abi::PVSCHED_CLASS_BATCH, 0, nice)),
                guest_weight(urgency(abi::PVSCHED_CLASS_NORMAL, 0, nice))
            );
        }

        #[test]
        fn urgent_work_and_silence_leave_the_weight_as_it_is(prio: u8, nice: u8) {
            for class in [abi::PVSCHED_CLASS_NONE, abi::PVSCHED_CLASS_RT, abi::PVSCHED_CLASS_DEADLINE, 7, 255] {
                prop_assert_eq!(guest_weight(urgency(class, prio, nice)), PV_GUEST_WEIGHT_DFL);
            }
            for class in [abi::PVSCHED_CLASS_IDLE_CPU, abi::PVSCHED_CLASS_IDLE] {
                prop_assert_eq!(guest_weight(urgency(class, prio, nice)), PV_GUEST_WEIGHT_IDLE);
            }
            prop_assert_eq!(
                guest_weight(urgency(abi::PVSCHED_CLASS_NORMAL, prio, 20)), PV_GUEST_WEIGHT_DFL
            );
        }

        /// In time of CPU, a vCPU of another weight is as far ahead or behind as it was.
        #[test]
        fn a_new_weight_takes_nothing_and_gives_nothing(
            queue: u64, ran in 0u64..1 << 33, ahead: bool,
            from in PV_GUEST_WEIGHT_IDLE..=PV_GUEST_WEIGHT_MAX,
            to in PV_GUEST_WEIGHT_IDLE..=PV_GUEST_WEIGHT_MAX,
        ) {
            let used = charge(ran, weight(100, from));
            let vtime = if ahead { queue.wrapping_add(used) } else { queue.wrapping_sub(used) };
            let of = |vtime, guest| lead(vtime, queue, weight(100, guest));
            let (was, is) = (of(vtime, from), of(reweigh(vtime, queue, from, to), to));
            // Rounding loses less than a unit of vtime on the way there and one on the way back.
            let unit = i64::from(from.max(to)) / 1024 + 2;
            prop_assert!((was - is).abs() <= 2 * unit, "{} became {}", was, is);
        }

        #[test]
        fn lead_undoes_charge(ran in 0u64..1 << 33, w in any_weight(), queue: u64) {
            let lead = lead(queue.wrapping_add(charge(ran, w)), queue, w);
            let ran = i64::try_from(ran).unwrap();
            // The charge rounds down, by less than one unit of vtime.
            let unit = i64::try_from(w / u64::from(PV_WEIGHT_DFL)).unwrap();
            prop_assert!(lead <= ran && ran - lead <= unit + 1);
        }

        #[test]
        fn a_task_enters_neither_far_behind_nor_far_ahead(
            vtime: u64, queue: u64, slice in MS / 10..100 * MS, waiting in 0u64..100_000,
        ) {
            let ahead = most_ahead(waiting);
            let at = enter_vtime(vtime, queue, slice, ahead);
            prop_assert!(!before(at, queue.wrapping_sub(slice)));
            prop_assert!(!before(queue.wrapping_add(PV_STARVATION_NS / (waiting + 1)), at));
            // Within the limits it stays where it is.
            prop_assert_eq!(enter_vtime(at, queue, slice, ahead), at);
        }

        #[test]
        fn a_debt_is_not_forgiven_and_no_credit_is_saved_up(
            vtime: u64, queue: u64, slice in MS / 10..100 * MS,
        ) {
            let at = enter_base(vtime, queue, slice);
            prop_assert!(!before(at, queue.wrapping_sub(slice)));
            prop_assert!(at == vtime || before(vtime, at));
        }

        /// Two cgroups of which one has several tasks and the other one share by their own weights.
        #[test]
        fn budgets_owe_a_vcpu_no_more_than_its_queue_unless_its_guest_makes_it_light(
            base in 0..PV_TIME_MAX, vtime in 0..PV_TIME_MAX, weight in 1..PV_GUEST_WEIGHT_MAX,
        ) {
            let at = owed_base(base, vtime, weight);
            if weight < PV_GUEST_WEIGHT_DFL {
                prop_assert_eq!(at, base);
            } else {
                prop_assert_eq!(at, base.max(vtime));
            }
        }

        #[test]
        fn tasks_share_what_is_their_cgroups(
            weights in prop::array::uniform2(1i64..=10_000), tasks in 1i64..50,
        ) {
            let one = i64::from(PV_WEIGHT_DFL);
            let [many, single] = [tasks, 1].map(|n| (n, one * n));
            let get = |(n, sum): (i64, i64), cpu_weight: i64| {
                let part = part_of(PV_PART_ONE.into(), cpu_weight * 1024, sum);
                weight_in(PV_WEIGHT_DFL.into(), part) * u64::try_from(n).unwrap()
            };
            let (all, other) = (get(many, weights[0]), get(single, weights[1]));
            let (exact, is) = (weights[0] as f64 / weights[1] as f64, all as f64 / other as f64);
            // 1 of 10000 and 50 tasks leave a weight of 20, and half a unit is 2.5 % of that.
            prop_assert!((is / exact - 1.0).abs() < 0.03, "{is} instead of {exact}");
        }

        #[test]
        fn of_a_quota_nothing_is_lost_but_what_is_beyond_the_burst(
            left in -1_000_000_000i64..1_000_000_000, quota in 1u64..1_000_000_000,
            burst in 0u64..1_000_000_000, periods in 0u64..1_000_000,
        ) {
            let exact = i128::from(left) + i128::from(quota) * i128::from(periods);
            let most = i128::from(quota + burst);
            prop_assert_eq!(i128::from(renew(left, quota, burst, periods)), exact.min(most));
        }

        #[test]
        fn no_quota_overflows(left: i64, quota: u64, burst: u64, periods: u64) {
            let most = i64::try_from(2 * PV_TIME_MAX).unwrap();
            prop_assert!((-most..=most).contains(&renew(left, quota, burst, periods)));
        }

        #[test]
        fn no_sums_make_a_part_or_weight_of_nothing(
            part in 0..=PV_PART_MAX, weight: i64, sum: i64, own in 0..=PV_WEIGHT_MAX,
        ) {
            let weight = weight.rem_euclid(10_000 * 1024);
            let left = part_of(part.max(1), weight, sum);
            prop_assert!((1..=PV_PART_MAX).contains(&left));
            prop_assert!(weight_in(own.into(), left) >= 1);
        }

        #[test]
        fn time_costs_more_the_less_weight_cgroups_leave(time in 0..PV_TIME_MAX, shift in -12i32..=12) {
            prop_assert_eq!(usual_charge(time, 0), time);
            let (less, more) = (usual_charge(time, shift), usual_charge(time, shift + 1));
            let most = i32::try_from(PV_SHIFT_MAX).unwrap();
            if (-most..most).contains(&shift) {
                prop_assert!(more / 2 == less, "{less} and {more}");
            } else {
                prop_assert_eq!(more, less);
            }
        }

        #[test]
        fn with_another_part_a_task_is_as_far_ahead_in_time(
            queue: u64, ahead in -1_000_000_000i64..1_000_000_000, from in 1u64..=PV_PART_MAX,
            to in 1u64..=PV_PART_MAX,
        ) {
            let at = rescale(queue.wrapping_add_signed(ahead), queue, from, to);
            let gap = i128::from(at.wrapping_sub(queue).cast_signed());
            let exact = i128::from(ahead) * i128::from(from) / i128::from(to);
            let most = i128::from(PV_TIME_MAX);
            prop_assert!((gap - exact.clamp(-most, most)).abs() <= most / i128::from(from) + 2,
                "{gap}, not {exact}");
        }

        #[test]
        fn by_another_clock_a_task_is_as_far_ahead_or_behind(
            from: u64, gap in 0..PV_TIME_MAX, behind: bool, to: u64, owed in 0..PV_TIME_MAX,
        ) {
            let signed = |gap: u64| if behind { gap.wrapping_neg() } else { gap };
            let vtime = from.wrapping_add(signed(gap));
            let apart = to.wrapping_sub(from).min(from.wrapping_sub(to));
            let expected = if apart > owed { to } else { from }.wrapping_add(signed(gap));
            prop_assert_eq!(translate(vtime, from, to, owed), expected);
        }

        #[test]
        fn a_free_turn_neither_costs_nor_earns(
            start: u64, cost in 0..PV_TIME_MAX, passed in 0..PV_TIME_MAX, ahead in 0..PV_TIME_MAX,
        ) {
            let clock = start.wrapping_sub(ahead).wrapping_add(passed);
            let at = refund(start.wrapping_add(cost), start, clock);
            // What it was ahead it still is, but for the time in which nobody else wanted the CPU.
            prop_assert_eq!(at.wrapping_sub(clock), ahead.saturating_sub(passed));
        }

        #[test]
        fn a_turn_shrinks_with_those_who_wait_down_to_the_minimum(
            slice_ns in MS / 10..100 * MS, min in MS / 10..10 * MS, waiting in 0u64..10_000,
        ) {
            let turn = slice(slice_ns, min, waiting);
            prop_assert!(turn >= min && turn <= slice_ns.max(min));
            prop_assert!(slice(slice_ns, min, waiting + 1) <= turn);
        }

        #[test]
        fn a_debt_is_never_negative_and_never_wraps(debt: u64, a: u64, b: u64) {
            prop_assert!(debt_add(debt, a) >= debt);
            prop_assert!(debt_repay(debt, b) <= debt);
            prop_assert!(debt_repay(debt_add(debt, a), a) <= debt);
        }

        #[test]
        fn an_average_lies_between_what_it_is_made_of(before in 1u64..1 << 40, sample in 1u64..1 << 40) {
            let next = average(before, sample);
            // Each of the two divisions rounds down by less than one.
            prop_assert!(next + 1 >= before.min(sample) && next <= before.max(sample) + 1);
            prop_assert_eq!(average(0, sample), sample);
        }

        #[test]
        fn the_further_ahead_the_less_early_and_never_too_late(
            enter: u64, lead: i64, more in 0i64..1 << 40, budget: u64,
        ) {
            let before = early(enter, lead, budget);
            let most = u64::from(PV_EARLY_MAX_NS);
            prop_assert!((enter.min(most)..=most).contains(&before));
            prop_assert!(early(enter, lead.saturating_add(more), budget) <= before);
        }

        #[test]
        fn who_shares_a_weight_with_many_has_to_sleep_for_longer(
            clock: u64, slept in 0u64..1 << 40, one in any_weight(), other in any_weight(),
        ) {
            let rested = |weight, slept| is_rested(clock.wrapping_sub(slept), clock, 4 * MS, weight);
            prop_assert!(!rested(one.min(other), slept) || rested(one.max(other), slept));
            prop_assert!(!rested(one, slept) || rested(one, slept + 1));
            prop_assert!(!rested(one, charge(4 * MS, one)));
            prop_assert!(rested(one, charge(4 * MS, one) + 1));
        }

        #[test]
        fn a_turn_lasts_its_least_and_ends_for_a_better_claim(
            current: u64, behind in 0u64..1 << 40, more in 0u64..1 << 40, margin in 1u64..1 << 40,
            ran in 0u64..4 * MS, rested: bool,
        ) {
            let vtime = current.wrapping_sub(behind);
            let left = |vtime, margin, rested| ends_in(vtime, current, margin, ran, MS, rested);
            let ends = left(vtime, margin, rested);
            prop_assert_eq!(ends == NOT_EARLY, behind <= margin || ran < MS && !rested);
            prop_assert!(ends == NOT_EARLY || ends == MS.saturating_sub(ran));
            prop_assert!(left(vtime.wrapping_sub(more), margin, rested) <= ends);
            prop_assert!(left(vtime, margin, true) <= ends);
            // Nothing to be better by: at once.
            prop_assert_eq!(left(vtime, 0, rested), if behind > 0 { 0 } else { NOT_EARLY });
        }

        #[test]
        fn one_that_is_owed_time_gets_there_twelve_times_as_early(enter in 0u64..MS / 3, budget: u64) {
            prop_assert_eq!(early(enter, 0, budget), 12 * enter);
            prop_assert_eq!(early(enter, i64::try_from(budget / 4 + 1).unwrap(), budget), enter);
        }

        #[test]
        fn a_capacity_is_the_part_that_a_vcpu_got_of_its_cpu(ran: u64, waited: u64, cpu: u32) {
            let most = u64::from(cpu.min(1024));
            prop_assert!(capacity(ran, waited, cpu) <= most);
            prop_assert_eq!(capacity(0, 0, cpu), most);
            prop_assert!(capacity(ran, waited.saturating_add(MS), cpu) <= capacity(ran, waited, cpu));
            let (ran, waited) = (ran % (1 << 40) + 1, waited % (1 << 40));
            prop_assert!(capacity(ran, ran, cpu).abs_diff(most / 2) <= 1);
            prop_assert!((capacity(ran, waited, 1024) * (ran + waited)).abs_diff(1024 * ran) <= ran + waited);
        }

        #[test]
        fn what_was_long_ago_fades_and_the_parts_stay_in_proportion(part: u64, rest: u64) {
            let (part, rest) = (part >> 1, rest >> 1);
            let (total, most) = (part + rest, u64::from(PV_LATELY_NS));
            let (faded, other) = (fade(part, total), fade(rest, total));
            prop_assert!(faded + other <= total.min(most));
            if total > most {
                // Each is less than one in what both were divided by.
                let divisor = u128::from(total / most + 1);
                prop_assert!(u128::from(part) - u128::from(faded) * divisor < divisor);
            }
        }

        #[test]
        fn a_page_never_shows_more_than_its_words_have_room_for(
            part: u64, load_16ths: u64, wait: u64,
        ) {
            let word = capacity_word(part, load_16ths, wait);
            prop_assert_eq!(word & 0xffff, part.min(1024));
            prop_assert_eq!(word >> 16 & 0xffff, load_16ths.min(0xffff));
            prop_assert_eq!(word >> 32, (wait / 1000).min(u64::from(u32::MAX)));
        }

        #[test]
        fn a_cpu_of_many_has_its_part_of_those_who_wait(
            own in 0u32..100_000, shared in 0u32..100_000, cpus: u32,
        ) {
            let waiting = load(own, shared, cpus);
            prop_assert_eq!(waiting, u64::from(own) * 16 + u64::from(shared) * 16 / u64::from(cpus.max(1)));
        }

        #[test]
        fn a_spent_budget_stays_spent_until_repaid(debt: u64, budget: u64, resume: u64) {
            let resume = resume.min(budget);
            prop_assert_eq!(spent(false, debt, budget, resume), debt > budget);
            prop_assert_eq!(spent(true, debt, budget, resume), debt > resume);
        }

        #[test]
        fn a_spent_budget_counts_again_a_turn_later(debt: u64, budget: u64, turn: u64) {
            let least = resume(budget, turn);
            prop_assert!(least <= budget && least >= budget / 2);
            prop_assert_eq!(budget - least, turn.min(budget / 2));
            prop_assert!(!spent(true, debt.min(least), budget, least));
        }

        /// One CPU shared by any weights, where the task furthest behind always runs: nobody's
        /// use is further from its share than two turns.
        #[test]
        fn shares_converge_to_the_weights(weights in prop::collection::vec(10u64 * 1024..1000 * 1024, 2..6)) {
            let turn = 4 * MS;
            let mut vtime = vec![0u64; weights.len()];
            let mut ran = vec![0u64; weights.len()];
            for _ in 0..2000 {
                let next = (0..vtime.len()).min_by_key(|&i| vtime[i]).unwrap();
                vtime[next] += charge(turn, weights[next]);
                ran[next] += turn;
            }
            let total: u64 = weights.iter().sum();
            for (ran, weight) in ran.iter().zip(&weights) {
                let fair = 2000 * turn * weight / total;
                prop_assert!(ran.abs_diff(fair) <= 2 * turn * weights.len() as u64, "{} of {}", ran, fair);
            }
        }
    }
}
