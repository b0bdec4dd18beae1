// SPDX-License-Identifier: GPL-2.0-only
//! The queue that tasks wait in, for engines.

use std::collections::{BTreeMap, HashMap};

use super::{CpuId, Decision, Task, TaskId};

/// Tasks that wait, the first first.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    /// By order, and by arrival.
    waiting: BTreeMap<(u64, u64), (TaskId, Decision)>,
    places: HashMap<TaskId, (u64, u64)>,
    arrivals: u64,
}

impl Queue {
    /// `task` waits; if it did before, there no longer.
    pub fn insert(&mut self, task: TaskId, decision: Decision) {
        self.remove(task);
        let place = (decision.order, self.arrivals);
        self.arrivals += 1;
        self.places.insert(task, place);
        self.waiting.insert(place, (task, decision));
    }

    /// `task` no longer waits. Returns whether it did.
    pub fn remove(&mut self, task: TaskId) -> bool {
        let place = self.places.remove(&task);
        place.is_some_and(|place| self.waiting.remove(&place).is_some())
    }

    /// The first that may run on `cpu`; it no longer waits.
    pub fn take(
        &mut self,
        cpu: CpuId,
        tasks: &BTreeMap<TaskId, Task>,
    ) -> Option<(TaskId, Decision)> {
        let first = self.first(cpu, tasks)?;
        self.remove(first.0);
        Some(first)
    }

    /// The first that may run on `cpu`.
    #[must_use]
    pub fn first(&self, cpu: CpuId, tasks: &BTreeMap<TaskId, Task>) -> Option<(TaskId, Decision)> {
        self.iter().find(|(task, decision)| {
            decision.cpu.is_none_or(|only| only == cpu)
                && tasks
                    .get(task)
                    .is_some_and(|task| task.allowed.contains(&cpu))
        })
    }

    /// All of them, the first first.
    pub fn iter(&self) -> impl Iterator<Item = (TaskId, Decision)> + '_ {
        self.waiting.values().copied()
    }

    /// Whether `task` waits.
    #[must_use]
    pub fn contains(&self, task: TaskId) -> bool {
        self.places.contains_key(&task)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
