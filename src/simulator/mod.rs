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
mod trace;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use crate::policy::{
    homes, Applied, Cpu, CpuId, Decision, End, Host, Policy, Queue, Reaction, Role, Task, TaskId,
    Turn, Vcpu, VmId, Why,
};
use guest::{Step, Work};
use scenario::Scenario;
pub use trace::{Response, Trace, Wait};

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

/// The CPUs for the vCPUs of exclusion groups.
fn homes_of(scenario: &Scenario, cpus: &[Cpu]) -> BTreeMap<TaskId, CpuId> {
    let cores = homes::Cores::new(cpus.iter().map(|cpu| (cpu.id.0, cpu.core, cpu.cache)));
    let numbers = (0..)
        .zip(&scenario.vms)
        .flat_map(|(vm, one)| one.vcpus.iter().map(move |_| vm));
    let members: Vec<_> = scenario
        .vcpus()
        .zip(numbers)
        .filter(|((_, _, vcpu), _)| vcpu.group != 0)
        .map(|((id, _, vcpu), vm)| homes::Member {
            id: (vm, id.0),
            group: homes::Group {
                vm: Some(vm),
                number: vcpu.group,
            },
            latency: vcpu.role == Role::Latency,
            allowed: allowed(&vcpu.thread.affinity, cpus)
                .iter()
                .map(|cpu| cpu.0)
                .collect(),
        })
        .collect();
    let placement = homes::place(&members, &BTreeMap::new(), &cores, scenario.smt_isolate);
    let homes = placement.homes.into_iter();
    homes
        .map(|((_, id), cpu)| (TaskId(id), CpuId(cpu)))
        .collect()
}

fn allowed(affinity: &[CpuId], cpus: &[Cpu]) -> BTreeSet<CpuId> {
    let all = cpus.iter().map(|cpu| cpu.id);
    all.filter(|cpu| affinity.is_empty() || affinity.contains(cpu))
        .collect()
}

impl<'a> Simulator<'a> {
    fn new(scenario: &Scenario, policy: &'a mut dyn Policy) -> Self {
        let topology = scenario.topology;
        let cpus: Vec<_> = (0..topology.len())
            .map(|id| {
                let core = id / topology.threads;
                Cpu {
                    id: CpuId(id),
                    core: core as usize,
                    cache: (core / topology.cores) as usize,
                    running: None,
                }
            })
            .collect();
        let mut world = World {
            now: 0,
            seq: 0,
            events: BinaryHeap::new(),
            running: vec![None; cpus.len()],
            turns: vec![0; cpus.len()],
            tasks: BTreeMap::new(),
            works: BTreeMap::new(),
            waits_since: BTreeMap::new(),
            queue: Queue::default(),
            trace: Trace {
                homes: homes_of(scenario, &cpus),
                ..Trace::default()
            },
            random: fastrand::Rng::with_seed(scenario.seed),
            cpus,
        };
        let vcpus: BTreeMap<_, _> = scenario
            .vcpus()
            .map(|(id, vm, vcpu)| (id, (vm, vcpu)))
            .collect();
        for ((id, owner, thread), next) in scenario.threads().zip((0..topology.len()).cycle()) {
            let mut allowed = allowed(&thread.affinity, &world.cpus);
            if let Some(home) = world.trace.homes.get(&id) {
                allowed = BTreeSet::from([*home]);
            }
            let last_cpu = allowed.iter().copied().find(|cpu| cpu.0 >= next);
            let Some(last_cpu) = last_cpu.or(allowed.first().copied()) else {
                world.trace.faults.push(format!("{id:?} may run nowhere"));
                continue;
            };
            let work = Work::new(&thread.jobs, vcpus.contains_key(&id));
            for job in 0..work.jobs() {
                if let Some(first) = work.first_due(job) {
                    world.at(first, Event::Due(id, job));
                }
            }
            let vcpu = match (owner, vcpus.get(&id)) {
                (crate::policy::Owner::Vm(number), Some((vm, vcpu))) => Some(Vcpu {
                    vm: number,
                    published: vm.publishes.then_some(work.published),
                    interrupt: None,
                    limits: vm.limits,
                    role: vcpu.role,
                }),
                _ => None,
            };
            let task = Task {
                id,
                weight: thread.weight,
                allowed,
                last_cpu,
                vcpu,
            };
            world.tasks.insert(id, task);
            world.works.insert(id, work);
        }
        for (number, vm) in (0..).zip(&scenario.vms) {
            if let Some(dies) = vm.dies {
                world.at(dies, Event::Dies(VmId(number)));
            }
        }
        let publishes = (0..).zip(&scenario.vms).filter(|(_, vm)| vm.publishes);
        Self {
            world,
            policy,
            publishes: publishes.map(|(number, _)| VmId(number)).collect(),
        }
    }

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
