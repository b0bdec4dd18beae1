// SPDX-License-Identifier: GPL-2.0-only
//! What a thread does with its turns: a guest with one CPU, or a task of the host.
//!
//! A guest takes interrupts first, then runs the most urgent task that has something to do. It says
//! what it does as a guest with a driver does: when it switches tasks, and when it has taken an
//! interrupt.

use super::scenario::{Job, Load};
use crate::policy::{Interrupt, Published, Urgency};

/// CPU time that a guest needs to take a timer's interrupt.
const TIMER_IRQ: u64 = 10_000;

/// What a thread does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It takes interrupts.
    Irq,
    /// It does that job.
    Job(usize),
    /// Nothing: it sleeps.
    Halt,
}

#[derive(Clone, Debug)]
struct JobState {
    job: Job,
    /// CPU time that it wants.
    left: u64,
    /// When it was due, until it begins.
    due: Option<u64>,
    /// The same, while the guest has yet to take the interrupt that says so.
    ringing: Option<u64>,
    /// It has an interrupt that was not taken; more of them make no difference.
    pending: bool,
}

/// The work of a thread.
#[derive(Clone, Debug)]
pub(super) struct Work {
    jobs: Vec<JobState>,
    irq_left: u64,
    is_guest: bool,
    pub step: Step,
    pub published: Published,
    pub interrupt: Option<Interrupt>,
}

impl Work {
    pub fn new(jobs: &[Job], is_guest: bool) -> Self {
        let jobs = jobs.iter().map(|job| JobState {
            job: *job,
            left: if job.load == Load::Busy { u64::MAX } else { 0 },
            due: None,
            ringing: None,
            pending: false,
        });
        let mut work = Self {
            jobs: jobs.collect(),
            irq_left: 0,
            is_guest,
            step: Step::Halt,
            published: Published::default(),
            interrupt: None,
        };
        work.next_step();
        work
    }

    /// When a job has something to do for the first time.
    pub fn first_due(&self, job: usize) -> Option<u64> {
        match self.jobs[job].job.load {
            Load::Busy => None,
            Load::Periodic { first, .. } => Some(first),
            Load::Interrupts { period, .. } => Some(period),
        }
    }

    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// A job is due. Returns when the next time.
    pub fn due(&mut self, number: usize, now: u64, random: &mut fastrand::Rng) -> Option<u64> {
        let is_guest = self.is_guest;
        let state = self.jobs.get_mut(number)?;
        let urgency = state.job.urgency;
        let (next, urgency) = match state.job.load {
            Load::Busy => return None,
            Load::Periodic {
                period,
                run,
                jitter,
                ..
            } => {
                // One that has not done with the last time leaves this one out.
                let done = state.left == 0 && state.ringing.is_none();
                if !is_guest && done {
                    (state.left, state.due) = (run, Some(now));
                } else if is_guest {
                    state.ringing = state.ringing.or(done.then_some(now));
                    self.irq_left += if state.pending { 0 } else { TIMER_IRQ };
                    state.pending = true;
                }
                let spread = if jitter { period / 4 } else { 0 };
                (period - spread + random.u64(0..=2 * spread), Some(urgency))
            }
            Load::Interrupts { period, run } => {
                self.irq_left += if state.pending { 0 } else { run };
                state.pending = is_guest;
                (period / 2 + random.u64(0..=period), None)
            }
        };
        if is_guest {
            let more_urgent = |a: Option<Urgency>, b: Option<Urgency>| match (a, b) {
                (Some(a), Some(b)) => Some(if a.rank() >= b.rank() { a } else { b }),
                _ => a.filter(|a| a.rank() > 0).or(b.filter(|b| b.rank() > 0)),
            };
            let earlier = self.interrupt;
            self.interrupt = Some(Interrupt {
                since: earlier.map_or(now, |earlier| earlier.since),
                urgency: earlier.map_or(urgency, |earlier| more_urgent(earlier.urgency, urgency)),
            });
        }
        if matches!(self.step, Step::Halt) || !is_guest {
            self.next_step();
        }
        Some(now.saturating_add(next.max(1)))
    }

    /// CPU time until the present step is over.
    pub fn left(&self) -> u64 {
        match self.step {
            Step::Irq => self.irq_left,
            Step::Job(number) => self.jobs[number].left,
            Step::Halt => u64::MAX,
        }
    }

    /// An interrupt breaks in while the vCPU runs; and it is taken first when a turn begins.
    pub fn break_in(&mut self) {
        if self.irq_left > 0 {
            self.step = Step::Irq;
            self.published.critical = true;
        }
    }

    /// The present step goes on. Returns when its job was due, if it only begins.
    pub fn begin(&mut self) -> Option<(usize, u64)> {
        let Step::Job(number) = self.step else {
            return None;
        };
        Some((number, self.jobs[number].due.take()?))
    }

    /// `ran` ns of the present step; it is over if nothing is left.
    pub fn run(&mut self, ran: u64) {
        let left = match self.step {
            Step::Irq => &mut self.irq_left,
            Step::Job(number) => &mut self.jobs[number].left,
            Step::Halt => return,
        };
        if *left != u64::MAX {
            *left -= ran.min(*left);
        }
    }

    /// What comes after a step that is over.
    pub fn next_step(&mut self) {
        if self.irq_left == 0 && self.interrupt.take().is_some() {
            for state in &mut self.jobs {
                state.pending = false;
                if let (Some(due), Load::Periodic { run, .. }) =
                    (state.ringing.take(), state.job.load)
                {
                    (state.left, state.due) = (run, Some(due));
                }
            }
        }
        let ready = self
            .jobs
            .iter()
            .enumerate()
            .filter(|(_, state)| state.left > 0);
        let best = ready.max_by_key(|(number, state)| {
            let urgency = state.job.urgency;
            (urgency.rank(), urgency.class(), std::cmp::Reverse(*number))
        });
        let best = best.map(|(number, state)| (number, state.job.urgency));
        self.published = Published {
            current: best.map_or(Urgency::IDLE_CPU, |(_, urgency)| urgency),
            pending: Urgency::NONE,
            critical: self.irq_left > 0 && matches!(self.step, Step::Irq),
        };
        self.step = match best {
            _ if self.irq_left > 0 => Step::Irq,
            Some((number, _)) => Step::Job(number),
            None => Step::Halt,
        };
    }
}
