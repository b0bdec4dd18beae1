// SPDX-License-Identifier: GPL-2.0-only
//! The native build of the policy's arithmetic, `bpf/policy.h`.

use bolero::{check, TypeGenerator};
use scx_pvsched::abi;
use scx_pvsched::policy::arithmetic::{
    average, boost_key, charge, debt_add, debt_repay, enter_base, enter_vtime, guest_weight,
    key_rank, lead, most_ahead, rank, resume, reweigh, slice, spent, timer_delay, timer_rank,
    weight, PV_GUEST_WEIGHT_DFL, PV_GUEST_WEIGHT_IDLE, PV_GUEST_WEIGHT_MAX, PV_OWED_MAX_NS,
    PV_RANK_MAX, PV_RANK_NONE, PV_STARVATION_NS, PV_TIME_MAX, PV_WEIGHT_DFL, PV_WEIGHT_MAX,
};

const MS: u64 = 1_000_000;
/// The tunables' bounds of src/scheduler/options.rs, in ns.
const SLICES: (u64, u64) = (MS / 10, 100 * MS);

fn within(value: u64, (low, high): (u64, u64)) -> u64 {
    low + value % (high - low + 1)
}

/// How far `a` is before `b`; virtual time wraps around.
fn gap(a: u64, b: u64) -> i64 {
    b.wrapping_sub(a).cast_signed()
}

/// What may happen to one vCPU; the numbers are as the guest, the clocks or the queue make them.
#[derive(Clone, Debug, TypeGenerator)]
enum Step {
    /// It ran, ahead of its turn for an interrupt or not.
    Run { ns: u64, extra: bool },
    /// Time has passed without a boost.
    Wait { ns: u64 },
    /// The queue's virtual time is this.
    Queue { vtime: u64 },
    /// It is enqueued with so many who wait.
    Enter { waiting: u64 },
    /// Its guest says this.
    Say { task: u64, timer: u64 },
    /// It got another weight.
    Weigh { weight: u64 },
    /// Its guest's work changed.
    Reweigh { task: u64 },
}

/// A vCPU as the BPF programs keep it, beside the same in numbers that cannot overflow.
#[derive(Default)]
struct Vcpu {
    vtime: u64,
    queue: u64,
    weight: u64,
    guest_weight: u32,
    debt: u64,
    exact_debt: u128,
    spent: bool,
    keys: Vec<(u32, u64)>,
}

impl Vcpu {
    fn take(&mut self, step: &Step, budget: u64, slices: (u64, u64)) {
        match *step {
            Step::Run { ns, extra } => {
                let cost = charge(ns, self.weight);
                let exact = u128::from(ns.min(PV_TIME_MAX)) * u128::from(PV_WEIGHT_DFL)
                    / u128::from(self.weight.max(1));
                assert_eq!(u128::from(cost), exact, "{ns} ns at {}", self.weight);
                self.vtime = self.vtime.wrapping_add(cost);
                if extra {
                    self.debt = debt_add(self.debt, ns);
                    self.exact_debt = (self.exact_debt + u128::from(ns)).min(u64::MAX.into());
                }
            }
            Step::Wait { ns } => {
                self.debt = debt_repay(self.debt, ns);
                self.exact_debt = self.exact_debt.saturating_sub(ns.into());
            }
            Step::Queue { vtime } => self.queue = vtime,
            Step::Enter { waiting } => self.enter(waiting, slices),
            Step::Say { task, timer } => self.say(task, timer),
            Step::Weigh { weight } => self.weight = weight,
            Step::Reweigh { task } => self.reweigh(guest_weight(task)),
        }
        assert_eq!(u128::from(self.debt), self.exact_debt);
        self.judge(budget);
    }

    fn enter(&mut self, waiting: u64, (longest, shortest): (u64, u64)) {
        self.vtime = enter_vtime(self.vtime, self.queue, longest, most_ahead(waiting));
        let ahead = gap(self.queue, self.vtime);
        let most = u128::from(PV_STARVATION_NS) / (u128::from(waiting) + 1);
        assert!(
            ahead >= -longest.cast_signed() && i128::from(ahead) <= most.cast_signed(),
            "{ahead} ahead of the queue with {waiting} waiting"
        );
        let turn = slice(longest, shortest, waiting);
        assert!((shortest..=longest.max(shortest)).contains(&turn));
    }

    fn say(&mut self, task: u64, timer: u64) {
        let (task_rank, timer_rank) = (rank(task), timer_rank(timer));
        assert!(task_rank <= PV_RANK_MAX && timer_rank <= PV_RANK_MAX);
        assert!(timer_delay(timer) <= u64::from(u32::MAX) * 1000);
        // With any bit that is not of the class or the priority changed it is as urgent as before.
        let known = 0xff_ff00;
        assert_eq!(rank(task & known), task_rank);
        let urgent = abi::PVSCHED_CLASS_RT << abi::PVSCHED_URGENCY_CLASS_SHIFT;
        if task & known < urgent.into() {
            assert_eq!(task_rank, PV_RANK_NONE);
        }
        for rank in [task_rank, timer_rank] {
            let key = boost_key(rank, task ^ timer);
            assert_eq!(key_rank(key), rank);
            assert!(key_rank(timer) <= PV_RANK_MAX);
            for (other, theirs) in &self.keys {
                if rank > *other {
                    assert!(key < *theirs, "rank {rank} is behind {other}");
                }
            }
            self.keys.push((rank, key));
        }
        // Every pair of the last few.
        if self.keys.len() > 8 {
            self.keys.drain(..2);
        }
    }

    /// It is as far ahead or behind as before, on the same side.
    fn reweigh(&mut self, to: u32) {
        assert!((PV_GUEST_WEIGHT_IDLE..=PV_GUEST_WEIGHT_MAX).contains(&to));
        let from = self.guest_weight;
        let before = i128::from(gap(self.queue, self.vtime));
        let before = before.clamp(-i128::from(PV_TIME_MAX), PV_TIME_MAX.into());
        self.vtime = reweigh(self.vtime, self.queue, from, to);
        self.guest_weight = to;
        let exact = before * i128::from(from) / i128::from(to);
        // Beyond half of what virtual time can tell, ahead looks like behind.
        if exact.unsigned_abs() < 1 << 63 {
            assert_eq!(i128::from(gap(self.queue, self.vtime)), exact);
        }
    }

    fn judge(&mut self, budget: u64) {
        let ahead = gap(self.queue, self.vtime);
        let lead = lead(self.vtime, self.queue, self.weight);
        // As much as the virtual time says, with the same sign, and cut where numbers end.
        let gap = i128::from(ahead).clamp(-i128::from(PV_TIME_MAX), PV_TIME_MAX.into());
        let weight = i128::from(self.weight.min(PV_WEIGHT_MAX.into()));
        assert_eq!(i128::from(lead), gap * weight / i128::from(PV_WEIGHT_DFL));

        let was_spent = self.spent;
        self.spent = spent(was_spent, self.debt, budget, budget / 2);
        if self.spent {
            assert!(self.debt > budget / 2 && (was_spent || self.debt > budget));
        } else {
            assert!(self.debt <= budget);
        }
    }
}

#[test]
fn whatever_happens_to_a_vcpu_its_numbers_stay_sound() {
    check!()
        .with_type::<(u64, u64, u64, Vec<Step>)>()
        .with_iterations(20_000)
        .for_each(|(budget, longest, shortest, steps)| {
            let slices = (within(*longest, SLICES), within(*shortest, SLICES));
            let mut vcpu = Vcpu {
                weight: PV_WEIGHT_DFL.into(),
                guest_weight: PV_GUEST_WEIGHT_DFL,
                ..Vcpu::default()
            };
            for step in steps {
                vcpu.take(step, *budget, slices);
            }
        });
}

#[test]
fn the_more_urgent_word_has_the_higher_rank() {
    check!()
        .with_type::<(u64, u64)>()
        .with_iterations(20_000)
        .for_each(|(a, b)| {
            let byte = |word: &u64, shift: u32| (word >> shift).to_le_bytes()[0];
            let class = |word: &u64| u32::from(byte(word, abi::PVSCHED_URGENCY_CLASS_SHIFT));
            let urgency = |word: &u64| match class(word) {
                abi::PVSCHED_CLASS_RT => {
                    (1, byte(word, abi::PVSCHED_URGENCY_PRIO_SHIFT).clamp(1, 99))
                }
                abi::PVSCHED_CLASS_DEADLINE => (2, 0),
                _ => (0, 0),
            };
            // Random words are rarely urgent, so these are made so, too.
            let rt = |word: &u64| {
                word & !0xff_0000
                    | u64::from(abi::PVSCHED_CLASS_RT) << abi::PVSCHED_URGENCY_CLASS_SHIFT
            };
            for (a, b) in [(*a, *b), (rt(a), rt(b)), (rt(a), *b)] {
                assert_eq!(rank(a).cmp(&rank(b)), urgency(&a).cmp(&urgency(&b)));
            }
        });
}

#[test]
fn an_average_stays_between_what_it_is_made_of() {
    check!()
        .with_type::<Vec<u64>>()
        .with_iterations(10_000)
        .for_each(|samples| {
            let mut value = 0;
            for sample in samples {
                let before = value;
                value = average(before, *sample);
                // Each of the two divisions rounds down by less than one.
                assert!(value <= before.max(*sample).saturating_add(1));
                assert!(before == 0 || value.saturating_add(1) >= before.min(*sample));
            }
        });
}

/// A task of a queue that one CPU serves.
#[derive(Clone, Debug, TypeGenerator)]
struct Sharer {
    weight: u16,
    /// What its guest says all the time; most values are not urgent.
    urgency: u64,
    urgent: bool,
}

/// What is simulated, and what a share may be off by: a boost's lead is at most the budget, which
/// is a two-hundredth of that.
const SPAN: u64 = 20_000 * MS;
const OFF: f64 = 0.02;
const TASK_BUDGET: u64 = 100 * MS;
/// sched_ext's least. Such a task gets a turn within PV_STARVATION_NS whatever it has used, which can
/// be more than its share, but not by what would count here.
const LEAST_WEIGHT: u64 = 1;
/// sched_ext's greatest.
const MOST_WEIGHT: u64 = 10_000;

/// CPU time that each gets, where the boosted go first as long as their budget lasts, and otherwise
/// whoever is furthest behind.
fn share(sharers: &[Sharer], weights: &[u64], overruns: &[u16]) -> Vec<u64> {
    let count = sharers.len();
    let waiting = count as u64 - 1;
    let (mut vtime, mut base) = (vec![0u64; count], vec![0u64; count]);
    let mut used = vec![0u64; count];
    let mut is_spent = vec![false; count];
    let (mut queue, mut now, mut turn) = (0u64, 0u64, 0usize);
    while now < SPAN {
        for i in 0..count {
            let lead = lead(base[i], queue, weights[i]);
            let lead = u64::try_from(lead).unwrap_or(0);
            is_spent[i] = spent(is_spent[i], lead, TASK_BUDGET, resume(TASK_BUDGET, 4 * MS));
        }
        let rank_of = |i: &usize| {
            let class = u64::from(abi::PVSCHED_CLASS_RT) << abi::PVSCHED_URGENCY_CLASS_SHIFT;
            let word = sharers[*i].urgency & 0xff00 | class;
            if sharers[*i].urgent && !is_spent[*i] {
                rank(word)
            } else {
                PV_RANK_NONE
            }
        };
        let boosted = (0..count)
            .filter(|i| rank_of(i) > PV_RANK_NONE)
            .min_by_key(|i| boost_key(rank_of(i), now));
        let next = boosted.unwrap_or_else(|| {
            let next = (0..count)
                .min_by_key(|i| gap(queue, vtime[*i]))
                .expect("nobody");
            if gap(queue, vtime[next]) > 0 {
                queue = vtime[next];
            }
            next
        });
        // Turns end at ticks, so they last longer than their slice.
        let overrun = overruns.get(turn % overruns.len().max(1)).unwrap_or(&0);
        let ran = slice(4 * MS, MS, waiting) + u64::from(*overrun) * 10;
        turn += 1;
        now += ran;
        used[next] += ran;
        let cost = charge(ran, weights[next]);
        vtime[next] = enter_vtime(
            vtime[next].wrapping_add(cost),
            queue,
            PV_OWED_MAX_NS.into(),
            most_ahead(waiting),
        );
        base[next] = enter_base(base[next].wrapping_add(cost), queue, PV_OWED_MAX_NS.into());
    }
    used
}

#[test]
fn shares_converge_to_the_weights_however_urgent_the_tasks_are() {
    check!()
        .with_type::<([Sharer; 8], u8, Vec<u16>)>()
        .with_iterations(2_000)
        .for_each(|(sharers, count, overruns)| {
            let sharers = &sharers[..2 + usize::from(count % 7)];
            let weights: Vec<u64> = sharers
                .iter()
                .map(|sharer| within(sharer.weight.into(), (LEAST_WEIGHT, MOST_WEIGHT)))
                .map(|host| weight(u32::try_from(host).expect("in range"), PV_GUEST_WEIGHT_DFL))
                .collect();
            let used = share(sharers, &weights, overruns);
            let total: u64 = used.iter().sum();
            let all: u64 = weights.iter().sum();
            for (used, weight) in used.iter().zip(&weights) {
                let (got, fair) = (part(*used, total), part(*weight, all));
                assert!(
                    (got - fair).abs() <= OFF,
                    "{got:.3} of the CPU instead of {fair:.3}: {weights:?}"
                );
            }
        });
}

#[allow(clippy::cast_precision_loss)]
fn part(value: u64, of: u64) -> f64 {
    value as f64 / of as f64
}
