// SPDX-License-Identifier: GPL-2.0-only
//! Round robin among VMs, interrupts first.

use std::collections::BTreeMap;

use super::*;

/// One turn a round for each VM, and for each task of the host.
#[derive(Default)]
pub struct RoundRobin {
    /// The latest of each.
    rounds: BTreeMap<Owner, u64>,
    now: u64,
}

impl Policy for RoundRobin {
    fn runnable(&mut self, task: &Task, why: Why, host: &Host) -> Decision {
        let round = self.rounds.entry(task.owner()).or_default();
        if matches!(why, Why::Woke | Why::TurnEnded) {
            *round = self.now.max(*round + 1);
        }
        // Interrupts may bring a VM four turns ahead of the others.
        if task.is_interrupted() && *round < self.now + 4 {
            let other = host.running(task.last_cpu);
            let may_take = other.is_none_or(|other| !other.is_interrupted());
            return Decision::new(0, 500_000)
                .interrupting(may_take.then_some(task.last_cpu))
                .applied(Applied::BoostIrq);
        }
        Decision::new(*round, 3_000_000)
    }

    fn started(&mut self, _: &Task, _: CpuId, decision: &Decision, _: &Host) {
        self.now = self.now.max(decision.order);
    }

    fn gone(&mut self, task: &Task) {
        self.rounds.remove(&task.owner());
    }
}
