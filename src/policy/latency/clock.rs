// SPDX-License-Identifier: GPL-2.0-only
//! Virtual clocks, and what turns cost: `bpf/clock.bpf.h`, and `task_charge()` of `bpf/boost.bpf.h`.

use super::judge::{guest_weight, Charged, State};
use super::math;
use super::*;

/// Where clocks begin, so that what is owed at the start is not before 0.
const EPOCH: u64 = 1 << 40;

/// A virtual clock: that of all CPUs, or of one for tasks that are bound to some.
pub(super) type Clock = Option<CpuId>;

/// A turn that began while nobody waited, and costs nothing until somebody does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alone {
    pub(super) task: TaskId,
    pub(super) since: u64,
    pub(super) clock: u64,
    pub(super) vtime: u64,
    pub(super) base: u64,
}

impl Latency {
    pub(super) fn read(&self, clock: Clock) -> u64 {
        let own = clock.and_then(|cpu| self.cpus.get(&cpu));
        own.map_or(self.clock, |cpu| cpu.clock).max(EPOCH)
    }

    pub(super) fn advance(&mut self, cpu: CpuId, to: u64) {
        let cpu = self.cpus.entry(cpu).or_default();
        cpu.clock = cpu.clock.max(to).max(EPOCH);
        self.clock = self.clock.max(to).max(EPOCH);
    }

    /// From now on `task` goes by the clock for where it is, and keeps what it is owed or ahead.
    /// Returns what that shows.
    pub(super) fn go_by(&mut self, task: &Task, cpu: CpuId, host: &Host) -> u64 {
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
            let owed = math::PV_OWED_MAX_NS.into();
            t.vtime = math::translate(t.vtime, from, to, owed);
            t.base = math::translate(t.base, from, to, owed);
            t.clock = clock;
        }
        self.tasks.insert(task.id, t);
        to
    }

    /// Charges what it has run of its turn so far; `weight` is what its guest makes of its weight now.
    pub(super) fn charge(&mut self, task: &Task, ran: u64, weight: u32, now: u64) {
        let Some(clock) = self.tasks.get(&task.id).map(|t| self.read(t.clock)) else {
            return;
        };
        let Some(t) = self.tasks.get_mut(&task.id) else {
            return;
        };
        let Some(turn) = &mut t.running else {
            return;
        };
        // What was charged of a turn that went on is what it could have had by then: somebody of no concern, such as
        // who decides, may have come between.
        let refund = turn.ran.saturating_sub(ran.max(turn.free));
        let ran = ran.saturating_sub(std::mem::replace(&mut turn.ran, ran));
        let own = task.weight.get();
        // It may have worked until just now and only then become idle.
        let heavier = t.guest_weight.max(weight);
        let for_budgets = heavier.max(math::PV_GUEST_WEIGHT_DFL);
        let costs = |ran, guest| math::charge(ran, math::weight(own, guest));
        t.vtime = (t.vtime + costs(ran, heavier)).saturating_sub(costs(refund, heavier));
        t.vtime = math::reweigh(t.vtime, clock, t.guest_weight, weight);
        t.guest_weight = weight;
        t.base = (t.base + costs(ran, for_budgets)).saturating_sub(costs(refund, for_budgets));
        t.settle(now);
    }

    /// The same for a turn that goes on.
    pub(super) fn charge_running(&mut self, task: &Task, now: u64) {
        let began = self.tasks.get(&task.id).and_then(|t| t.running);
        if let Some(Charged { began, .. }) = began {
            self.charge(task, now.saturating_sub(began), guest_weight(task), now);
        }
    }

    /// What a turn that nobody waits for has taken by now costs nothing, and clocks have moved on by it.
    pub(super) fn settle_alone(&mut self, cpu: CpuId, host: &Host) {
        let alone = self.cpus.get(&cpu).and_then(|cpu| cpu.alone);
        let Some(alone) = alone else { return };
        if let Some(task) = host.tasks.get(&alone.task) {
            self.charge_running(task, host.now);
        }
        self.advance(cpu, alone.clock + host.now.saturating_sub(alone.since));
        let clock = self.read(Some(cpu));
        let Some(t) = self.tasks.get_mut(&alone.task) else {
            return;
        };
        t.vtime = math::refund(t.vtime, alone.vtime, clock);
        t.base = math::refund(t.base, alone.base, clock);
        if let Some(turn) = &mut t.running {
            turn.free = turn.ran;
        }
        let settled = Alone {
            task: alone.task,
            since: host.now,
            clock,
            vtime: t.vtime,
            base: t.base,
        };
        self.cpus.entry(cpu).or_default().alone = Some(settled);
    }

    /// Somebody waits from now on, so that turns cost what they take, or the turn is over.
    pub(super) fn end_alone(&mut self, cpu: CpuId, host: &Host) {
        self.settle_alone(cpu, host);
        if let Some(cpu) = self.cpus.get_mut(&cpu) {
            cpu.alone = None;
        }
    }

    /// How far it is ahead of its share.
    pub(super) fn lead_of(&self, task: &Task, t: &State) -> i64 {
        let weight = math::weight(task.weight.get(), math::PV_GUEST_WEIGHT_DFL);
        math::lead(t.base, self.read(t.clock), weight)
    }

    /// Where it waits among those for a fair turn. One that was refused a boost has its turn when it
    /// may have that again, which is before it has its share.
    pub(super) fn queue_vtime(&self, task: &Task, t: &State) -> u64 {
        let Some(vcpu) = task.vcpu.filter(|_| t.refused) else {
            return t.vtime;
        };
        let weight = math::weight(task.weight.get(), math::PV_GUEST_WEIGHT_DFL);
        let resume = math::resume(vcpu.limits.task_budget, self.tunables.slice);
        let vtime = t.base.saturating_sub(math::charge(resume, weight));
        vtime.min(t.vtime)
    }
}
