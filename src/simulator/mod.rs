// SPDX-License-Identifier: GPL-2.0-only
//! Runs a policy in virtual time.
//!
//! [`simulate`] takes a [`Scenario`] and gives a [`Trace`]. It is a loop over events, without threads,
//! clocks or any chance but the scenario's seed: the same in, the same out. [`behaviours`] are what a
//! policy should keep, as checks of a trace.
//!
//! CPUs are all alike, and to switch or to move between them costs nothing, nor does a sibling slow
//! another one down. So it shows what a policy decides, not how fast a machine is.

pub mod behaviours;
mod guest;
pub mod scenario;
mod setup;
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::policy::{
    Applied, Cpu, Decision, End, Host, Policy, Queue, Reaction, Task, TaskId, Turn, VmId, Why,
};
use guest::{Step, Work};
use scenario::Scenario;
pub use trace::{Ahead, Response, Trace, Wait};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A VM dies.
    Dies(VmId),
    /// A job of a thread has something to do.
    Due(TaskId, usize),
    /// The step or the slice of what runs on a CPU is over, if it is still the turn of that number.
    Over(usize, u64),
}

/// A turn that goes on.
#[derive(Clone, Copy, Debug)]
struct Running {
    task: TaskId,
    began: u64,
    slice_ends: u64,
    /// Until when the thread's work is accounted for.
    ran_until: u64,
    applied: Applied,
    /// Since when the guest is told that.
    told_since: u64,
}

/// All but the policy.
struct World {
    now: u64,
    seq: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    cpus: Vec<Cpu>,
    running: Vec<Option<Running>>,
    /// Counts up with every change of what is to happen on a CPU.
    turns: Vec<u64>,
    tasks: BTreeMap<TaskId, Task>,
    works: BTreeMap<TaskId, Work>,
    waits_since: BTreeMap<TaskId, u64>,
    queue: Queue,
    trace: Trace,
    random: fastrand::Rng,
}

impl World {
    fn host(&self) -> Host<'_> {
        Host {
            now: self.now,
            cpus: &self.cpus,
            tasks: &self.tasks,
            queue: &self.queue,
            engine: None,
        }
    }

    /// What the guest on a CPU was told so far goes into the trace.
    fn note_told(&mut self, cpu: usize) {
        let now = self.now;
        let Some(running) = &mut self.running[cpu] else {
            return;
        };
        let began = std::mem::replace(&mut running.told_since, now);
        if running.applied.is_boost() && began < now {
            self.trace.ahead.push(Ahead {
                task: running.task,
                cpu: self.cpus[cpu].id,
                began,
                ended: now,
                applied: running.applied,
            });
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.events.push(Reverse((time, self.seq, event)));
        self.seq += 1;
    }
}

struct Simulator<'a> {
    world: World,
    policy: &'a mut dyn Policy,
    publishes: BTreeSet<VmId>,
}

/// What happens in `scenario` under `policy`.
pub fn simulate(scenario: &Scenario, policy: &mut dyn Policy) -> Trace {
    let mut simulator = Simulator::new(scenario, policy);
    for id in simulator.world.tasks.keys().copied().collect::<Vec<_>>() {
        if simulator.world.works[&id].step != Step::Halt {
            simulator.place(id, Why::Woke);
        }
    }
    while let Some(Reverse((time, _, event))) = simulator.world.events.pop() {
        if time >= scenario.duration {
            break;
        }
        simulator.pass(time);
        match event {
            Event::Dies(vm) => simulator.dies(vm),
            Event::Due(id, job) => simulator.due(id, job),
            Event::Over(cpu, turn) if simulator.world.turns[cpu] == turn => simulator.over(cpu),
            Event::Over(..) => {}
        }
    }
    simulator.finish(scenario.duration)
}

impl Simulator<'_> {
    /// Time passes.
    fn pass(&mut self, to: u64) {
        let world = &mut self.world;
        let waits_beside_idle = world.cpus.iter().any(|cpu| {
            let may_run = |(id, _)| world.tasks[&id].allowed.contains(&cpu.id);
            cpu.running.is_none() && world.queue.iter().any(may_run)
        });
        if waits_beside_idle {
            world.trace.wasted += to - world.now;
        }
        world.now = to;
    }

    /// Does the work of a turn up to now. Returns whether that changed what the guest says.
    fn work(&mut self, cpu: usize) -> bool {
        let now = self.world.now;
        let Some(running) = &mut self.world.running[cpu] else {
            return false;
        };
        let id = running.task;
        let ran = now - std::mem::replace(&mut running.ran_until, now);
        let Some(work) = self.world.works.get_mut(&id) else {
            return false;
        };
        work.run(ran);
        let mut changed = false;
        while work.left() == 0 {
            work.next_step();
            changed = true;
        }
        self.tell(id) && changed
    }

    /// Brings what the policy sees of a vCPU up to date. Returns whether there is a change to hint at.
    fn tell(&mut self, id: TaskId) -> bool {
        let world = &mut self.world;
        let (Some(task), Some(work)) = (world.tasks.get_mut(&id), world.works.get(&id)) else {
            return false;
        };
        let Some(vcpu) = &mut task.vcpu else {
            return false;
        };
        let publishes = self.publishes.contains(&vcpu.vm);
        let before = *vcpu;
        vcpu.published = publishes.then_some(work.published);
        vcpu.interrupt = work.interrupt.map(|mut interrupt| {
            interrupt.urgency = interrupt.urgency.filter(|_| publishes);
            interrupt
        });
        // When a silent guest takes an interrupt, nobody tells.
        *vcpu != before && (publishes || vcpu.interrupt.is_some())
    }

    /// A thread wants a CPU.
    fn place(&mut self, id: TaskId, why: Why) {
        self.world.queue.remove(id);
        self.world.waits_since.entry(id).or_insert(self.world.now);
        self.world.trace.calls += 1;
        let task = &self.world.tasks[&id];
        let mut decision = self.policy.runnable(task, why, &self.world.host());
        if let Some(cpu) = decision.cpu.filter(|cpu| !task.allowed.contains(cpu)) {
            let fault = format!("{cpu:?} is no CPU for {id:?}");
            self.world.trace.faults.push(fault);
            decision.cpu = None;
        }
        self.world.queue.insert(id, decision);
        // That CPU may have become idle just now, with another one to go first.
        while let Some(cpu) = self.idle_cpu(id, &decision) {
            self.dispatch(cpu);
            if !self.world.queue.contains(id) {
                return;
            }
        }
        let may = matches!(why, Why::Woke | Why::Hinted);
        let target = decision
            .preempt
            .filter(|cpu| may && self.world.tasks[&id].allowed.contains(cpu));
        let cpu = target.and_then(|cpu| self.world.cpus.iter().position(|one| one.id == cpu));
        if let Some(cpu) = cpu {
            self.stop(cpu, End::Interrupted);
            self.dispatch(cpu);
        }
    }

    /// The idle CPU that suits a thread best: its last one; else one with the same cache, of an idle core.
    fn idle_cpu(&self, id: TaskId, decision: &Decision) -> Option<usize> {
        let (task, cpus) = (&self.world.tasks[&id], &self.world.cpus);
        let last = cpus.iter().find(|cpu| cpu.id == task.last_cpu);
        let key = |cpu: &Cpu| {
            let siblings = cpus.iter().filter(|other| other.core == cpu.core);
            let alone = siblings.clone().all(|other| other.running.is_none());
            let near = last.is_some_and(|last| last.cache == cpu.cache);
            (cpu.id != task.last_cpu, !near, !alone)
        };
        let idle = cpus.iter().enumerate().filter(|(_, cpu)| {
            cpu.running.is_none()
                && task.allowed.contains(&cpu.id)
                && decision.cpu.is_none_or(|only| only == cpu.id)
        });
        idle.min_by_key(|(_, cpu)| key(cpu))
            .map(|(number, _)| number)
    }

    /// A CPU without a turn takes the first that may run there.
    fn dispatch(&mut self, number: usize) {
        let world = &mut self.world;
        let cpu = world.cpus[number].id;
        if world.cpus[number].running.is_some() {
            return;
        }
        let Some((id, decision)) = world.queue.take(cpu, &world.tasks) else {
            return;
        };
        let now = world.now;
        let began = world.waits_since.remove(&id).unwrap_or(now);
        if began < now {
            let wait = Wait {
                task: id,
                began,
                ended: now,
                applied: decision.applied,
            };
            world.trace.waits.push(wait);
        }
        world.cpus[number].running = Some(id);
        world.running[number] = Some(Running {
            task: id,
            began: now,
            slice_ends: now + decision.slice(),
            ran_until: now,
            applied: decision.applied,
            told_since: now,
        });
        if let Some(task) = world.tasks.get_mut(&id) {
            task.last_cpu = cpu;
        }
        world.trace.calls += 1;
        self.policy
            .started(&self.world.tasks[&id], cpu, &decision, &self.world.host());
        self.go_on(number);
    }

    /// What runs on a CPU goes on, and is looked at when that is over.
    fn go_on(&mut self, cpu: usize) {
        let Some(running) = self.world.running[cpu] else {
            return;
        };
        let now = self.world.now;
        let Some(work) = self.world.works.get_mut(&running.task) else {
            return;
        };
        work.break_in();
        if let Some((job, due)) = work.begin() {
            let response = Response {
                job: (running.task, job),
                due,
                started: now,
            };
            self.world.trace.responses.push(response);
        }
        let left = work.left();
        self.tell(running.task);
        self.world.turns[cpu] += 1;
        let over = Event::Over(cpu, self.world.turns[cpu]);
        self.world
            .at(running.slice_ends.min(now.saturating_add(left)), over);
    }

    /// A turn is over; a thread that wants to go on is placed anew.
    fn stop(&mut self, cpu: usize, end: End) {
        self.work(cpu);
        self.world.note_told(cpu);
        let world = &mut self.world;
        let Some(running) = world.running[cpu].take() else {
            return;
        };
        world.cpus[cpu].running = None;
        world.turns[cpu] += 1;
        let halts = world.works[&running.task].step == Step::Halt;
        let turn = Turn {
            task: running.task,
            cpu: world.cpus[cpu].id,
            began: running.began,
            ran: world.now - running.began,
            applied: running.applied,
            end: if halts && end != End::Gone {
                End::Slept
            } else {
                end
            },
        };
        if turn.ran > 0 {
            world.trace.turns.push(turn);
        }
        world.trace.calls += 1;
        let task = &self.world.tasks[&running.task];
        self.policy.stopped(task, &turn, &self.world.host());
        let why = match turn.end {
            End::Slept | End::Gone => return,
            End::Interrupted => Why::Interrupted,
            End::SliceEnded | End::Hinted => Why::TurnEnded,
        };
        self.place(running.task, why);
    }

    fn over(&mut self, cpu: usize) {
        let told = self.work(cpu);
        let Some(running) = self.world.running[cpu] else {
            return;
        };
        if self.world.works[&running.task].step == Step::Halt {
            self.stop(cpu, End::Slept);
        } else if self.world.now >= running.slice_ends {
            self.stop(cpu, End::SliceEnded);
        } else {
            self.go_on(cpu);
            if told {
                self.hint(running.task);
            }
            return;
        }
        self.dispatch(cpu);
    }

    /// Something about a vCPU has changed.
    fn hint(&mut self, id: TaskId) {
        self.world.trace.calls += 1;
        let host = self.world.host();
        let on = host.running_on(id);
        let cpu = self.world.cpus.iter().position(|cpu| Some(cpu.id) == on);
        let reaction = self.policy.hint(&self.world.tasks[&id], &host);
        match (reaction, cpu) {
            (Reaction::Stay, _) | (Reaction::Tell(_), None) => {}
            (Reaction::Tell(applied), Some(cpu)) => {
                self.world.note_told(cpu);
                if let Some(running) = &mut self.world.running[cpu] {
                    running.applied = applied;
                }
            }
            (Reaction::PlaceAgain, Some(cpu)) => {
                self.stop(cpu, End::Hinted);
                self.dispatch(cpu);
            }
            (Reaction::PlaceAgain, None) => {
                if self.world.queue.contains(id) {
                    self.place(id, Why::Hinted);
                }
            }
        }
    }

    fn due(&mut self, id: TaskId, job: usize) {
        let host = self.world.host();
        let on = host.running_on(id);
        let cpu = self.world.cpus.iter().position(|cpu| Some(cpu.id) == on);
        if let Some(cpu) = cpu {
            self.work(cpu);
        }
        let world = &mut self.world;
        let Some(work) = world.works.get_mut(&id) else {
            return;
        };
        let slept = work.step == Step::Halt && cpu.is_none();
        let next = work.due(job, world.now, &mut world.random);
        let wants = work.step != Step::Halt;
        if let Some(next) = next {
            world.at(next, Event::Due(id, job));
        }
        let told = self.tell(id);
        if let Some(cpu) = cpu {
            self.go_on(cpu);
        }
        if slept && wants {
            self.place(id, Why::Woke);
        } else if told && !slept {
            self.hint(id);
        }
    }

    fn dies(&mut self, vm: VmId) {
        let of_vm = |task: &&Task| task.vcpu.is_some_and(|vcpu| vcpu.vm == vm);
        let ids: Vec<_> = self
            .world
            .tasks
            .values()
            .filter(of_vm)
            .map(|task| task.id)
            .collect();
        for id in ids {
            let cpu = self
                .world
                .cpus
                .iter()
                .position(|cpu| cpu.running == Some(id));
            if let Some(cpu) = cpu {
                self.stop(cpu, End::Gone);
            }
            self.world.queue.remove(id);
            if let Some(began) = self.world.waits_since.remove(&id) {
                let wait = Wait {
                    task: id,
                    began,
                    ended: self.world.now,
                    applied: Applied::Baseline,
                };
                self.world.trace.waits.push(wait);
            }
            self.world.works.remove(&id);
            if let Some(task) = self.world.tasks.remove(&id) {
                self.policy.gone(&task);
            }
            if let Some(cpu) = cpu {
                self.dispatch(cpu);
            }
        }
    }

    fn finish(mut self, end: u64) -> Trace {
        self.pass(end);
        for cpu in 0..self.world.cpus.len() {
            self.world.note_told(cpu);
        }
        let world = &mut self.world;
        for (cpu, running) in world.cpus.iter().zip(&world.running) {
            let Some(running) = running.filter(|running| running.began < end) else {
                continue;
            };
            world.trace.turns.push(Turn {
                task: running.task,
                cpu: cpu.id,
                began: running.began,
                ran: end - running.began,
                applied: running.applied,
                end: End::SliceEnded,
            });
        }
        for (task, began) in &world.waits_since {
            world.trace.waits.push(Wait {
                task: *task,
                began: *began,
                ended: end,
                applied: Applied::Baseline,
            });
        }
        world.trace.ended = end;
        self.world.trace
    }
}
