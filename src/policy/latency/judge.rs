// SPDX-License-Identifier: GPL-2.0-only
//! What a vCPU is entitled to: `boost_judge()` of `bpf/boost.bpf.h`.

use super::clock::Clock;
use super::math;
use super::*;

/// A boosted turn is judged again after that long.
const BOOST_SLICE: u64 = 20_000_000;
/// What is in the middle of an interrupt or of a task switch has so long to finish that.
pub(super) const GRACE: u64 = 1_000_000;
/// An unknown interrupt is expected to wake somebody urgent if one of so many before it did.
const PROMISE: u8 = 16;

/// What a vCPU is entitled to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) rank: u32,
    pub(super) applied: Applied,
    /// For nothing but what it is in the middle of.
    pub(super) finishes: bool,
}

impl Verdict {
    fn new(rank: u32, applied: Applied) -> Self {
        Self {
            rank,
            applied,
            ..Self::default()
        }
    }
}

/// A turn that goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Charged {
    pub(super) began: u64,
    /// How much of it has been charged.
    pub(super) ran: u64,
    /// How much of that cost nothing in the end.
    pub(super) free: u64,
}

impl Charged {
    /// Nothing of it, so far.
    pub(super) fn since(began: u64) -> Self {
        Self {
            began,
            ..Self::default()
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) clock: Clock,
    /// What the order goes by, and what budgets go by: SCHED_IDLE work earns no credit for these.
    pub(super) vtime: u64,
    pub(super) base: u64,
    pub(super) guest_weight: u32,
    /// In force while it runs.
    pub(super) verdict: Verdict,
    /// It is ahead of its fair turn.
    pub(super) extra: bool,
    /// It has had a turn to finish what it was in the middle of, and no other since.
    pub(super) has_finished: bool,
    /// When its turn ends at the latest.
    pub(super) until: u64,
    pub(super) running: Option<Charged>,
    pub(super) irq_debt: u64,
    pub(super) irq_debt_at: u64,
    pub(super) task_spent: bool,
    /// It is urgent, and not ahead as that budget alone is spent.
    pub(super) refused: bool,
    pub(super) irq_spent: bool,
    /// Rank of the interrupt that it was last seen to wait for, until that is taken.
    pub(super) hinted: Option<u32>,
    pub(super) promise: u8,
}

fn signed(positive: u64) -> i64 {
    i64::try_from(positive).unwrap_or(i64::MAX)
}

/// What its guest's work makes of a vCPU's weight.
pub(super) fn guest_weight(task: &Task) -> u32 {
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

/// Whether what its guest runs makes a vCPU lighter than its thread is.
pub(super) fn guest_is_light(t: Option<&State>) -> bool {
    t.is_some_and(|t| t.guest_weight < math::PV_GUEST_WEIGHT_DFL)
}

impl Latency {
    /// What a vCPU is entitled to now, and for how long at most.
    pub(super) fn judge(&mut self, task: &Task, now: u64) -> (Verdict, u64) {
        let none = (Verdict::default(), 0);
        let Some(vcpu) = task.vcpu else {
            return none;
        };
        let Some(mut t) = self.tasks.remove(&task.id) else {
            return none;
        };
        let lead = self.lead_of(task, &t);
        let (wanted, most) = t.wants(&vcpu, lead, self.tunables.slice);
        let limits = vcpu.limits;
        let ahead = lead.max(0).unsigned_abs();
        let resume = math::resume(limits.task_budget, self.tunables.slice);
        t.task_spent = math::spent(t.task_spent, ahead, limits.task_budget, resume);
        let debt = t.irq_debt_at(now);
        t.irq_spent = math::spent(t.irq_spent, debt, limits.irq_budget, limits.irq_budget / 2);
        let for_irq = wanted.applied == Applied::BoostIrq;
        t.refused = wanted.rank > 0 && t.task_spent && !(for_irq && t.irq_spent);
        let (verdict, left) = if wanted.rank == 0 {
            none
        } else if t.task_spent || for_irq && t.irq_spent {
            let applied = Applied::Throttled;
            (Verdict::new(0, applied), 0)
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
            (wanted, left.min(most))
        };
        self.tasks.insert(task.id, t);
        (verdict, left)
    }
}

impl State {
    /// The debt of interrupt boosts; it grows in extra turns only.
    pub(super) fn irq_debt_at(&self, now: u64) -> u64 {
        let elapsed = now.saturating_sub(self.irq_debt_at);
        if self.verdict.applied == Applied::BoostIrq && self.extra && self.running.is_some() {
            math::debt_add(self.irq_debt, elapsed)
        } else {
            math::debt_repay(self.irq_debt, elapsed)
        }
    }

    /// Before anything changes that the debt depends on.
    pub(super) fn settle(&mut self, now: u64) {
        self.irq_debt = self.irq_debt_at(now);
        self.irq_debt_at = now;
    }

    /// What a vCPU wants, whatever its budgets, and for how long at most before it is looked at again.
    pub(super) fn wants(&mut self, vcpu: &Vcpu, lead: i64, slice: u64) -> (Verdict, u64) {
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
            return (Verdict::new(rank, applied), BOOST_SLICE);
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
                return (Verdict::new(rank, applied), BOOST_SLICE);
            }
        }
        // It may hold a lock for which another one spins. That is for moments, and does not always end in a way
        // that shows. Once, as it may be in the middle of the next one by then.
        if said.critical && !self.has_finished {
            let verdict = Verdict {
                finishes: true,
                ..Verdict::new(math::PV_RANK_IRQ, applied)
            };
            return (verdict, GRACE);
        }
        (Verdict::default(), 0)
    }
}
