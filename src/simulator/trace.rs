// SPDX-License-Identifier: GPL-2.0-only
//! What happened in a simulation.

use std::collections::BTreeMap;

use crate::policy::{Applied, CpuId, TaskId, Turn};

/// A time for which a task wanted a CPU and had none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Which one.
    pub task: TaskId,
    /// From when,
    pub began: u64,
    /// and until when: it ran, was gone, or the simulation ended.
    pub ended: u64,
    /// What its guest is told of the turn that it waited for.
    pub applied: Applied,
}

/// A time for which the guest of a vCPU that ran was told that it was ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Which one.
    pub task: TaskId,
    /// Where.
    pub cpu: CpuId,
    /// From when,
    pub began: u64,
    /// and until when.
    pub ended: u64,
    /// For what.
    pub applied: Applied,
}

/// What became of one start of a periodic job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The thread, and the number of the job among its jobs.
    pub job: (TaskId, usize),
    /// When it had something to do.
    pub due: u64,
    /// When it began to do it.
    pub started: u64,
}

/// Everything, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Turns; those that the end of the simulation cut off are among them.
    pub turns: Vec<Turn>,
    /// Parts of turns.
    pub ahead: Vec<Ahead>,
    /// Waits that took time.
    pub waits: Vec<Wait>,
    /// Of periodic jobs, those that began before the end.
    pub responses: Vec<Response>,
    /// Time for which a CPU was idle and a task waited that may run there.
    pub wasted: u64,
    /// What a policy said that cannot be.
    pub faults: Vec<String>,
    /// The CPU of each vCPU that has an exclusion group.
    pub homes: BTreeMap<TaskId, CpuId>,
    /// Calls of the policy.
    pub calls: u64,
    /// Until when.
    pub ended: u64,
}

impl Trace {
    /// CPU time of a task.
    #[must_use]
    pub fn ran(&self, task: TaskId) -> u64 {
        let turns = self.turns.iter().filter(|turn| turn.task == task);
        turns.map(|turn| turn.ran).sum()
    }

    /// The longest time for which a task had no CPU and wanted one.
    #[must_use]
    pub fn longest_wait(&self, task: TaskId) -> u64 {
        let waits = self.waits.iter().filter(|wait| wait.task == task);
        waits.map(|wait| wait.ended - wait.began).max().unwrap_or(0)
    }

    /// How late a job began: the least that `percent` of its starts do not exceed; `None` if it never did.
    #[must_use]
    pub fn late(&self, job: (TaskId, usize), percent: usize) -> Option<u64> {
        let responses = self.responses.iter().filter(|response| response.job == job);
        let mut late: Vec<_> = responses.map(|one| one.started - one.due).collect();
        late.sort_unstable();
        late.get((late.len() * percent).div_ceil(100).saturating_sub(1))
            .copied()
    }

    /// CPU time of a task for which its guest was told so.
    #[must_use]
    pub fn ran_ahead(&self, task: TaskId, applied: Applied) -> u64 {
        let ahead = self.ahead.iter();
        let ahead = ahead.filter(|one| one.task == task && one.applied == applied);
        ahead.map(|one| one.ended - one.began).sum()
    }

    /// Whether a task was ever refused a boost for its budget.
    #[must_use]
    pub fn is_throttled(&self, task: TaskId) -> bool {
        let mut waits = self.waits.iter().map(|wait| (wait.task, wait.applied));
        let mut turns = self.turns.iter().map(|turn| (turn.task, turn.applied));
        let throttled = (task, Applied::Throttled);
        waits.any(|one| one == throttled) || turns.any(|one| one == throttled)
    }
}
