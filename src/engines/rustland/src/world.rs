// SPDX-License-Identifier: GPL-2.0-only
//! What an [engine](crate::engine) keeps: of each task, of each CPU's turn, and of who has come since it last looked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use scx_pvsched::policy::{Applied, Cpu, CpuId, Decision, End, Host, Queue, Task, TaskId};

use crate::engine::{Arrival, Counts, Kick};
use crate::news::News;

/// An expected turn that has not begun within this time is asked for again, and then each time after
/// twice as long: the backend takes one decision whenever a CPU looks, and perhaps another CPU's.
const AGAIN: u64 = 500_000;

/// A turn that goes on, or is expected.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    pub task: TaskId,
    pub began: u64,
    /// CPU time that the task had had by then, and has had by now; `None` while it is expected.
    pub exec: Option<(u64, u64)>,
    pub slice: u64,
    pub applied: Applied,
    /// Somebody has waited for it.
    pub contested: bool,
    /// How its CPU was asked for it, when, and how often again.
    pub kick: Kick,
    pub asked: u64,
    pub again: u32,
}

impl Running {
    /// When it is to be asked for again, while it is expected.
    pub fn ask_again_at(&self) -> u64 {
        self.asked + (AGAIN << self.again)
    }
}

/// What is kept of a task beside what a policy sees.
#[derive(Clone, Debug)]
pub struct Known {
    /// Of its last turn.
    pub end: End,
    /// What it was last given a turn by.
    pub decision: Decision,
    pub number: u64,
    /// The kernel has handed it over since its last turn began.
    pub handed: bool,
    /// When that had been heard of.
    pub arrived: u64,
    /// Its turn there is over, and the kernel does not know that yet.
    pub still_on: Option<CpuId>,
    /// It waits in the kernel's queue for that CPU, from where it cannot be called back.
    pub queued_for: Option<CpuId>,
    /// CPU time that it was charged beyond what it had, as far as is known by now; negative if it had more.
    pub overcharged: i64,
    /// When its last turn ended before the kernel told: the CPU time it was taken to have had.
    pub assumed: Option<u64>,
    pub home: Option<CpuId>,
    pub observed: bool,
    /// What its guest was told last, and how far ahead of its share it was then; to be told again if `None`.
    pub told: Option<(u64, u64)>,
    /// How many of its turns have got lost since the last one that began.
    pub lost: u32,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            end: End::Slept,
            decision: Decision::new(u64::MAX, 0),
            number: 0,
            handed: false,
            arrived: 0,
            still_on: None,
            queued_for: None,
            overcharged: 0,
            assumed: None,
            home: None,
            observed: false,
            told: None,
            lost: 0,
        }
    }
}

/// Who wants a CPU, until the news of how each has lost its last one.
#[derive(Default)]
pub struct Arrived {
    pub arrivals: HashMap<TaskId, Arrival>,
    /// Which of the news is the last that names each.
    pub last: HashMap<TaskId, usize>,
    /// The one that is looked at.
    pub at: usize,
}

impl Arrived {
    pub fn expect(&mut self, news: &[News]) {
        for (at, news) in news.iter().enumerate() {
            let News::Switch(switch) = news else { continue };
            for (task, _) in switch.prev.iter().chain(&switch.next) {
                if self.arrivals.contains_key(task) {
                    self.last.insert(*task, at);
                }
            }
        }
    }

    /// The arrival of a task whose turn is over by now. Not if it gets or loses a CPU again later on: the
    /// kernel's own scheduler gave it that, as there is news from before the kernel handed over any task.
    pub fn take(&mut self, task: TaskId) -> Option<Arrival> {
        let later = self.last.get(&task).is_some_and(|at| *at > self.at);
        (!later).then(|| self.arrivals.remove(&task)).flatten()
    }
}

/// All but the policy.
pub struct World {
    pub now: u64,
    pub cpus: Vec<Cpu>,
    pub all: BTreeSet<CpuId>,
    pub tasks: BTreeMap<TaskId, Task>,
    pub known: HashMap<TaskId, Known>,
    pub queue: Queue,
    pub turns: BTreeMap<CpuId, Running>,
    pub counts: Counts,
    /// Where this runs.
    pub here: Option<CpuId>,
}

impl World {
    pub fn host(&self) -> Host<'_> {
        Host {
            now: self.now,
            cpus: &self.cpus,
            tasks: &self.tasks,
            queue: &self.queue,
            engine: self.here,
        }
    }

    pub fn set_running(&mut self, cpu: CpuId, task: Option<TaskId>) {
        if let Some(cpu) = self.cpus.iter_mut().find(|one| one.id == cpu) {
            cpu.running = task;
        }
    }

    /// Whether the kernel has handed over a task, or has it on that CPU.
    pub fn can_be_given(&self, id: TaskId, cpu: CpuId) -> bool {
        self.known.get(&id).is_some_and(|known| {
            let is_there = [known.still_on, known.queued_for].contains(&Some(cpu));
            known.handed || is_there
        })
    }

    /// The first in the queue that can be given to a CPU.
    pub fn first(&self, cpu: CpuId) -> Option<(TaskId, Decision)> {
        self.queue.iter().find(|(id, decision)| {
            let task = self.tasks.get(id);
            self.can_be_given(*id, cpu)
                && decision.cpu.is_none_or(|only| only == cpu)
                && task.is_some_and(|task| task.allowed.contains(&cpu))
        })
    }

    pub fn runs_on(&self, task: TaskId) -> Option<CpuId> {
        let mut turns = self.turns.iter();
        turns
            .find(|(_, turn)| turn.task == task)
            .map(|(cpu, _)| *cpu)
    }
}
