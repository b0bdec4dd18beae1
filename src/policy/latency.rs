// SPDX-License-Identifier: GPL-2.0-only
//! The reference: the policy of the BPF scheduler, for any engine.
//!
//! Everybody gets CPU time by weight, in order of virtual time. A vCPU whose guest has something
//! urgent to do, or for which an interrupt waits, goes ahead of that, by rank, and is charged for it
//! like any other time. How far ahead of its share it may get is a budget.
//!
//! The parts are those of the BPF scheduler, whose reasons stand there: [`Latency::judge`] is
//! `boost_judge()` and [`Latency::charge`] `task_charge()` of `bpf/boost.bpf.h`, clocks are those of
//! `bpf/clock.bpf.h`, `runnable` is `enqueue()` of `bpf/main.bpf.c`. What it lacks: cgroups, boosts
//! ahead of a guest's timer, and directed yield.

use std::collections::BTreeMap;

use super::arithmetic as math;
use super::*;
use crate::abi;

/// The tunables of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Length of a fair turn when nobody else waits.
    pub slice: u64,
    /// Shortest fair turn.
    pub slice_min: u64,
    /// Boost for an interrupt of a guest that does not publish.
    pub irq_boost: u64,
    /// Longest time for which a CPU gives boosted turns only while others wait.
    pub guard: u64,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            slice: 4_000_000,
            slice_min: 1_000_000,
            irq_boost: 1_000_000,
            guard: 100_000_000,
        }
    }
}

/// A boosted turn is judged again after that long.
const BOOST_SLICE: u64 = 20_000_000;
/// An unknown interrupt is expected to wake somebody urgent if one of so many before it did.
const PROMISE: u8 = 16;
/// In the order of fair turns; boosted ones are before that.
const FAIR: u64 = 1 << 63;
/// Where clocks begin, so that what is owed at the start is not before 0.
const EPOCH: u64 = 1 << 40;

/// A virtual clock: that of all CPUs, or of one for tasks that are bound to some.
type Clock = Option<CpuId>;

/// What a vCPU is entitled to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Verdict {
    rank: u32,
    applied: Applied,
}

#[derive(Clone, Debug, Default)]
struct State {
    clock: Clock,
    /// What the order goes by, and what budgets go by: SCHED_IDLE work earns no credit for these.
    vtime: u64,
    base: u64,
    guest_weight: u32,
    /// In force while it runs.
    verdict: Verdict,
    /// It is ahead of its fair turn.
    extra: bool,
    /// When its turn began, and how much of it has been charged.
    running: Option<(u64, u64)>,
    irq_debt: u64,
    irq_debt_at: u64,
    task_spent: bool,
    irq_spent: bool,
    /// Rank of the interrupt that it was last seen to wait for, until that is taken.
    hinted: Option<u32>,
    promise: u8,
}

/// A turn that began while nobody waited, and costs nothing until somebody does.
#[derive(Clone, Copy, Debug)]
struct Alone {
    task: TaskId,
    since: u64,
    clock: u64,
    vtime: u64,
    base: u64,
}

#[derive(Clone, Debug, Default)]
struct CpuState {
    clock: u64,
    alone: Option<Alone>,
    /// Since when it has given boosted turns only.
    boosted_since: Option<u64>,
    guarded_until: u64,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Latency {
    tunables: Tunables,
    tasks: BTreeMap<TaskId, State>,
    cpus: BTreeMap<CpuId, CpuState>,
    clock: u64,
}

fn before(a: u64, b: u64) -> bool {
    a.wrapping_sub(b) > u64::MAX / 2
}

fn signed(positive: u64) -> i64 {
    i64::try_from(positive).unwrap_or(i64::MAX)
}

/// What its guest's work makes of a vCPU's weight.
fn guest_weight(task: &Task) -> u32 {
    let Some((vcpu, said)) = task.vcpu.and_then(|vcpu| Some((vcpu, vcpu.published?))) else {
        return math::PV_GUEST_WEIGHT_DFL;
    };
    let most = if said.pending.class() > said.current.class() {
        said.pending
    } else {
        said.current
    };
    let mut weight = math::guest_weight(most.0);
    if vcpu.interrupt.is_some() {
        weight = weight.max(math::PV_GUEST_WEIGHT_DFL);
    }
    math::clamp(
        weight,
        vcpu.limits.guest_weight.0,
        vcpu.limits.guest_weight.1,
    )
}

/// It wants long turns rather than early ones.
fn is_batch(task: &Task) -> bool {
    task.vcpu.is_some_and(|vcpu| {
        let said = vcpu.published.map(|said| said.current.class());
        vcpu.role == Role::Batch || said == Some(abi::PVSCHED_CLASS_BATCH)
    })
}

impl Latency {
    /// With other tunables than the default.
    #[must_use]
    pub fn new(tunables: Tunables) -> Self {
        Self {
            tunables,
            ..Self::default()
        }
    }

    fn read(&self, clock: Clock) -> u64 {
        let own = clock.and_then(|cpu| self.cpus.get(&cpu));
        own.map_or(self.clock, |cpu| cpu.clock).max(EPOCH)
    }

    fn advance(&mut self, cpu: CpuId, to: u64) {
        let cpu = self.cpus.entry(cpu).or_default();
        cpu.clock = cpu.clock.max(to).max(EPOCH);
        self.clock = self.clock.max(to).max(EPOCH);
    }

    /// From now on `task` goes by the clock for where it is, and keeps what it is owed or ahead.
    /// Returns what that shows.
    fn go_by(&mut self, task: &Task, cpu: CpuId, host: &Host) -> u64 {
        let clock = (task.allowed.len() < host.cpus.len()).then_some(cpu);
        let to = self.read(clock);
        let mut t = self.tasks.remove(&task.id).unwrap_or(State {
            clock,
            vtime: to,
            base: to,
            guest_weight: math::PV_GUEST_WEIGHT_DFL,
            ..State::default()
        });
        if t.clock != clock {
            let from = self.read(t.clock);
            t.vtime = math::translate(t.vtime, from, to);
            t.base = math::translate(t.base, from, to);
            t.clock = clock;
        }
        self.tasks.insert(task.id, t);
        to
    }

    /// Charges what it has run of its turn so far; `weight` is what its guest makes of its weight now.
    fn charge(&mut self, task: &Task, ran: u64, weight: u32, now: u64) {
        let Some(clock) = self.tasks.get(&task.id).map(|t| self.read(t.clock)) else {
            return;
        };
        let Some(t) = self.tasks.get_mut(&task.id) else {
            return;
        };
        let Some((_, charged)) = &mut t.running else {
            return;
        };
        let ran = ran.saturating_sub(std::mem::replace(charged, ran.max(*charged)));
        let own = task.weight.get();
        // It may have worked until just now and only then become idle.
        let heavier = t.guest_weight.max(weight);
        t.vtime += math::charge(ran, math::weight(own, heavier));
        t.vtime = math::reweigh(t.vtime, clock, t.guest_weight, weight);
        t.guest_weight = weight;
        let for_budgets = heavier.max(math::PV_GUEST_WEIGHT_DFL);
        t.base += math::charge(ran, math::weight(own, for_budgets));
        t.settle(now);
    }

    /// The same for a turn that goes on.
    fn charge_running(&mut self, task: &Task, now: u64) {
        let began = self.tasks.get(&task.id).and_then(|t| t.running);
        if let Some((began, _)) = began {
            self.charge(task, now.saturating_sub(began), guest_weight(task), now);
        }
    }

    /// Somebody waits from now on, so that turns cost what they take.
    fn end_alone(&mut self, cpu: CpuId, host: &Host) {
        let alone = self.cpus.get_mut(&cpu).and_then(|cpu| cpu.alone.take());
        let Some(alone) = alone else { return };
        if let Some(task) = host.tasks.get(&alone.task) {
            self.charge_running(task, host.now);
        }
        self.advance(cpu, alone.clock + host.now.saturating_sub(alone.since));
        let clock = self.read(Some(cpu));
        if let Some(t) = self.tasks.get_mut(&alone.task) {
            t.vtime = math::refund(t.vtime, alone.vtime, clock);
            t.base = math::refund(t.base, alone.base, clock);
        }
    }

    /// How far it is ahead of its share.
    fn lead(&self, task: &Task, t: &State) -> i64 {
        let weight = math::weight(task.weight.get(), math::PV_GUEST_WEIGHT_DFL);
        math::lead(t.base, self.read(t.clock), weight)
    }

    /// What a vCPU is entitled to now, and for how long at most.
    fn judge(&mut self, task: &Task, now: u64) -> (Verdict, u64) {
        let none = (Verdict::default(), 0);
        let Some(vcpu) = task.vcpu else {
            return none;
        };
        let Some(mut t) = self.tasks.remove(&task.id) else {
            return none;
        };
        let lead = self.lead(task, &t);
        let wanted = t.wants(&vcpu, lead, self.tunables.slice);
        let limits = vcpu.limits;
        let ahead = lead.max(0).unsigned_abs();
        t.task_spent = math::spent(t.task_spent, ahead, limits.task_budget, 0);
        let debt = t.irq_debt_at(now);
        t.irq_spent = math::spent(t.irq_spent, debt, limits.irq_budget, limits.irq_budget / 2);
        let for_irq = wanted.applied == Applied::BoostIrq;
        let (verdict, left) = if wanted.rank == 0 {
            none
        } else if t.task_spent || for_irq && t.irq_spent {
            let applied = Applied::Throttled;
            (Verdict { rank: 0, applied }, 0)
        } else {
            let mut left = signed(limits.task_budget)
                .saturating_sub(lead)
                .max(0)
                .unsigned_abs();
            if for_irq {
                left = left.min(limits.irq_budget.saturating_sub(debt));
                if vcpu.published.is_none() {
                    left = left.min(self.tunables.irq_boost);
                }
            }
            (wanted, left.min(BOOST_SLICE))
        };
        self.tasks.insert(task.id, t);
        (verdict, left)
    }

    fn rank_on(&self, cpu: &Cpu) -> u32 {
        let t = cpu.running.and_then(|task| self.tasks.get(&task));
        t.map_or(0, |t| t.verdict.rank)
    }

    /// The CPU that a boosted task should interrupt: its last one, whose caches it knows, else where
    /// the least urgent runs; one in the middle of an interrupt only if there is no other.
    fn cpu_to_take(&self, task: &Task, rank: u32, host: &Host) -> Option<CpuId> {
        let guarded = |cpu: &Cpu| {
            let state = self.cpus.get(&cpu.id);
            state.is_some_and(|state| host.now < state.guarded_until)
        };
        let critical = |cpu: &Cpu| {
            let said = host.running(cpu.id).and_then(|task| task.vcpu?.published);
            said.is_some_and(|said| said.critical)
        };
        let cpus = host.cpus.iter().filter(|cpu| {
            task.allowed.contains(&cpu.id) && self.rank_on(cpu) < rank && !guarded(cpu)
        });
        let best =
            cpus.min_by_key(|cpu| (critical(cpu), cpu.id != task.last_cpu, self.rank_on(cpu)));
        best.map(|cpu| cpu.id)
    }

    /// Whether it has so much better a claim than who runs on its CPU that it need not wait.
    fn outranks_current(&self, task: &Task, t: &State, host: &Host) -> bool {
        let Some(other) = host.running(task.last_cpu) else {
            return false;
        };
        let Some(o) = self.tasks.get(&other.id) else {
            return false;
        };
        let (began, charged) = o.running.unwrap_or((host.now, 0));
        let ran = host.now.saturating_sub(began).saturating_sub(charged);
        let vtime = o.vtime + math::charge(ran, math::weight(other.weight.get(), o.guest_weight));
        let latency = task.vcpu.is_some_and(|vcpu| vcpu.role == Role::Latency);
        let margin = if latency { 0 } else { self.tunables.slice / 2 };
        !is_batch(task) && o.verdict.rank == 0 && before(t.vtime + margin, vtime)
    }

    fn guard_is_due(&self, cpu: CpuId, now: u64) -> bool {
        let since = self.cpus.get(&cpu).and_then(|cpu| cpu.boosted_since);
        since.is_some_and(|since| now.saturating_sub(since) > self.tunables.guard)
    }
}

/// The vtime of the first that waits for a fair turn on `cpu`.
fn first_vtime(cpu: CpuId, host: &Host) -> Option<u64> {
    let may_run = |task: &TaskId| {
        let task = host.tasks.get(task);
        task.is_some_and(|task| task.allowed.contains(&cpu))
    };
    let mut fair = host
        .queue
        .iter()
        .filter(|(_, decision)| decision.order & FAIR != 0);
    let (_, first) = fair.find(|(task, _)| may_run(task))?;
    Some(first.order & !FAIR)
}

impl State {
    /// The debt of interrupt boosts; it grows in extra turns only.
    fn irq_debt_at(&self, now: u64) -> u64 {
        let elapsed = now.saturating_sub(self.irq_debt_at);
        if self.verdict.applied == Applied::BoostIrq && self.extra && self.running.is_some() {
            math::debt_add(self.irq_debt, elapsed)
        } else {
            math::debt_repay(self.irq_debt, elapsed)
        }
    }

    /// Before anything changes that the debt depends on.
    fn settle(&mut self, now: u64) {
        self.irq_debt = self.irq_debt_at(now);
        self.irq_debt_at = now;
    }

    /// What a vCPU wants, whatever its budgets.
    fn wants(&mut self, vcpu: &Vcpu, lead: i64, slice: u64) -> Verdict {
        let capped = |urgency: Urgency| math::cap_rank(urgency.rank(), vcpu.limits.rank_max);
        let interrupt = vcpu.interrupt.map(|interrupt| {
            let rank = interrupt.urgency.map(capped);
            // Of a timer that is known to be for nothing urgent there is no haste.
            let known_idle = interrupt.urgency.is_some_and(|urgency| urgency.rank() == 0);
            (rank.unwrap_or(0).max(math::PV_RANK_IRQ), known_idle)
        });
        let said = vcpu.published.unwrap_or_default();
        let rank = capped(said.current).max(capped(said.pending));
        if rank > 0 && self.hinted == Some(math::PV_RANK_IRQ) {
            self.promise = PROMISE;
        }
        match (interrupt, self.hinted) {
            (None, Some(rank)) => {
                if rank == math::PV_RANK_IRQ {
                    self.promise = self.promise.saturating_sub(1);
                }
                self.hinted = None;
            }
            (Some((rank, _)), _) => self.hinted = Some(rank),
            (None, None) => {}
        }
        if rank > 0 {
            // A timer may be for somebody more urgent than who runs.
            let rank = rank.max(interrupt.map_or(0, |(rank, _)| rank));
            let applied = Applied::BoostTask;
            return Verdict { rank, applied };
        }
        let applied = Applied::BoostIrq;
        if let Some((rank, known_idle)) = interrupt {
            let allowance = signed(vcpu.limits.irq_budget.saturating_add(2 * slice));
            let published = vcpu.published.is_some();
            let is_worth = rank > math::PV_RANK_IRQ
                || match vcpu.role {
                    Role::Interrupt => true,
                    Role::Batch => false,
                    Role::None | Role::Latency => {
                        self.promise > 0 || lead <= 0 || published && lead <= allowance
                    }
                };
            if is_worth && !known_idle {
                return Verdict { rank, applied };
            }
        }
        // It may hold a lock for which another one spins.
        if said.critical {
            let rank = math::PV_RANK_IRQ;
            return Verdict { rank, applied };
        }
        Verdict::default()
    }
}

impl Policy for Latency {
    fn runnable(&mut self, task: &Task, why: Why, host: &Host) -> Decision {
        for cpu in host
            .cpus
            .iter()
            .filter(|cpu| task.allowed.contains(&cpu.id))
        {
            self.end_alone(cpu.id, host);
        }
        let clock = self.go_by(task, task.last_cpu, host);
        let waiting = host.waiting_per_cpu();
        let credit = match why {
            Why::Woke => self.tunables.slice,
            _ => math::PV_OWED_MAX_NS.into(),
        };
        if let Some(t) = self.tasks.get_mut(&task.id) {
            t.vtime = math::enter_vtime(t.vtime, clock, credit, waiting);
            t.base = math::enter_base(t.base, clock, credit);
        }
        let (verdict, left) = self.judge(task, host.now);
        let wakes = matches!(why, Why::Woke | Why::Hinted);
        let target = (verdict.rank > 0 && wakes)
            .then(|| self.cpu_to_take(task, verdict.rank, host))
            .flatten();
        let has_had_turn = why == Why::TurnEnded;
        let guard_is_due = has_had_turn && self.guard_is_due(task.last_cpu, host.now);
        let Some(mut t) = self.tasks.remove(&task.id) else {
            return Decision::new(FAIR | clock, self.tunables.slice_min);
        };
        t.settle(host.now);
        t.verdict = verdict;
        t.extra = verdict.rank > 0;
        let decision = if t.extra {
            // However urgent one is, the less urgent get a turn now and then, and so does the first of
            // those that wait for a fair one.
            let order = if guard_is_due {
                FAIR | first_vtime(task.last_cpu, host).unwrap_or(0)
            } else {
                math::boost_key(verdict.rank, host.now)
            };
            Decision::new(order, left).interrupting(target)
        } else {
            let slice = if is_batch(task) {
                self.tunables.slice
            } else {
                math::slice(self.tunables.slice, self.tunables.slice_min, waiting)
            };
            let target = why == Why::Woke && self.outranks_current(task, &t, host);
            Decision::new(FAIR | t.vtime, slice).interrupting(target.then_some(task.last_cpu))
        };
        self.tasks.insert(task.id, t);
        decision.applied(verdict.applied)
    }

    fn hint(&mut self, task: &Task, host: &Host) -> Reaction {
        let was_light = guest_is_light(self.tasks.get(&task.id));
        self.charge_running(task, host.now);
        let (verdict, _) = self.judge(task, host.now);
        let Some(t) = self.tasks.get_mut(&task.id) else {
            return Reaction::Stay;
        };
        let Verdict { rank, applied } = t.verdict;
        let again = if t.running.is_none() {
            // Worth a boost, or a better one; or its guest has got more to do.
            verdict.rank > rank || guest_weight(task) > t.guest_weight && !t.extra
        } else {
            t.settle(host.now);
            t.verdict = verdict;
            let waits = host
                .running_on(task.id)
                .and_then(|cpu| host.queue.first(cpu, host.tasks));
            waits.is_some_and(|(_, first)| {
                let first_rank = if first.order & FAIR == 0 {
                    math::key_rank(first.order)
                } else {
                    0
                };
                let over = t.extra && verdict.rank == 0;
                let has_become_light = !was_light && verdict.rank == 0 && guest_is_light(Some(t));
                over || has_become_light || rank > 0 && first_rank > verdict.rank
            })
        };
        if again {
            Reaction::PlaceAgain
        } else if t.extra && t.running.is_some() && applied != verdict.applied {
            Reaction::Tell(verdict.applied)
        } else {
            Reaction::Stay
        }
    }

    fn started(&mut self, task: &Task, cpu: CpuId, decision: &Decision, host: &Host) {
        let clock = self.go_by(task, cpu, host);
        let first = first_vtime(cpu, host);
        let waits = host.queue.first(cpu, host.tasks).is_some();
        let now = host.now;
        let guard_is_due = self.guard_is_due(cpu, now);
        let Some(t) = self.tasks.get_mut(&task.id) else {
            return;
        };
        t.settle(now);
        t.running = Some((now, 0));
        let chosen = t.vtime;
        t.guest_weight = {
            let weight = guest_weight(task);
            t.vtime = math::reweigh(t.vtime, clock, t.guest_weight, weight);
            weight
        };
        // An extra turn that nobody waits for is a fair one.
        t.extra &= waits;
        let extra = t.extra;
        let state = self.cpus.entry(cpu).or_default();
        state.alone = None;
        let in_fair_order = decision.order & FAIR != 0;
        if extra {
            let since = state.boosted_since.filter(|_| !in_fair_order);
            state.boosted_since = since.or(Some(now));
            return;
        }
        state.boosted_since = None;
        if guard_is_due && in_fair_order {
            state.guarded_until = now + self.tunables.slice_min;
        }
        if waits {
            t.vtime = math::enter_base(t.vtime, clock, math::PV_OWED_MAX_NS.into());
            // A turn may begin out of order, and that is not how far the others have got.
            let chosen = chosen.min(t.vtime).min(first.unwrap_or(u64::MAX));
            self.advance(cpu, chosen);
            return;
        }
        let to = self.clock.max(state.clock);
        self.advance(cpu, to);
        let clock = self.read(Some(cpu));
        if let Some(t) = self.tasks.get_mut(&task.id) {
            t.vtime = math::enter_base(t.vtime, clock, 0);
            t.base = math::enter_base(t.base, clock, 0);
            let alone = Alone {
                task: task.id,
                since: now,
                clock,
                vtime: t.vtime,
                base: t.base,
            };
            self.cpus.entry(cpu).or_default().alone = Some(alone);
        }
    }

    fn stopped(&mut self, task: &Task, turn: &Turn, host: &Host) {
        let weight = match turn.end {
            // What a CPU that halts will do when it is woken, its guest cannot say.
            End::Slept | End::Gone => math::PV_GUEST_WEIGHT_DFL,
            End::SliceEnded | End::Interrupted | End::Hinted => guest_weight(task),
        };
        self.charge(task, turn.ran, weight, host.now);
        self.end_alone(turn.cpu, host);
        if let Some(t) = self.tasks.get_mut(&task.id) {
            t.settle(host.now);
            t.running = None;
            t.verdict = Verdict::default();
            t.extra = false;
        }
        if host.queue.is_empty() {
            self.cpus.entry(turn.cpu).or_default().boosted_since = None;
        }
    }

    fn gone(&mut self, task: &Task) {
        self.tasks.remove(&task.id);
    }
}

/// Whether what its guest runs makes a vCPU lighter than its thread is.
fn guest_is_light(t: Option<&State>) -> bool {
    t.is_some_and(|t| t.guest_weight < math::PV_GUEST_WEIGHT_DFL)
}
