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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::Weight;

    #[test]
    fn the_first_that_may_run_there_is_taken() {
        let task = |id: u32, cpus: &[u32]| Task {
            id: TaskId(id),
            weight: Weight::DEFAULT,
            allowed: cpus.iter().map(|cpu| CpuId(*cpu)).collect::<BTreeSet<_>>(),
            last_cpu: CpuId(cpus[0]),
            vcpu: None,
        };
        let tasks = [
            task(1, &[0, 1]),
            task(2, &[1]),
            task(3, &[0, 1]),
            task(4, &[0, 1]),
        ];
        let tasks: BTreeMap<_, _> = tasks.into_iter().map(|task| (task.id, task)).collect();
        let mut queue = Queue::default();
        let mut insert = |id, order, cpu| {
            let mut decision = Decision::new(order, 0);
            decision.cpu = cpu;
            queue.insert(TaskId(id), decision);
        };
        insert(1, 9, None);
        insert(2, 3, None);
        insert(3, 5, Some(CpuId(1)));
        insert(4, 5, None);
        insert(1, 5, None);
        let mut order = |cpu| {
            let taken = std::iter::from_fn(|| queue.take(CpuId(cpu), &tasks));
            taken.map(|(TaskId(id), _)| id).collect::<Vec<_>>()
        };
        // Equals in order of arrival; task 2 may not run here, and task 3 shall not.
        assert_eq!(order(0), [4, 1]);
        assert_eq!(order(1), [2, 3]);
        assert!(queue.is_empty());
    }
}
