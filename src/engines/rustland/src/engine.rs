// SPDX-License-Identifier: GPL-2.0-only
//! Has a policy decide, and keeps what it needs to know: who waits, and whose turn it is where.
//!
//! Nothing here reads a clock or calls the kernel, so that it can be tested without one: time comes
//! with the news, and what is to be done goes to a [`Backend`].
//!
//! Tasks wait here and nowhere else. A task is handed to the kernel when its turn begins, one for each
//! CPU, and until the kernel says that it runs the turn is *expected*. While nothing is handed to a CPU
//! the kernel lets what runs there go on; so the end of a turn is decided here, too, and when it is the
//! same task's turn again the kernel need not be told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use scx_pvsched::abi;
use scx_pvsched::policy::{
    Applied, Cpu, CpuId, Decision, End, Policy, Queue, Reaction, Task, TaskId, Turn, Weight, Why,
};

use crate::news::{Ends, News, Switch, Told};
use crate::world::{Arrived, Running, World};

/// How often an expected turn is asked for again. After that it has got lost: its task has left for another
/// scheduling class, for instance.
const AGAINS: u32 = 7;
/// How often a task whose turns get lost is handed over anew. Where the kernel has it, that does nothing.
const ANEWS: u32 = 1;

/// CPU time that a task is charged at most for what it had after its turn. One that was given another scheduling
/// class meanwhile may have had any.
const LATE_MAX: u64 = 20_000_000;

/// How much further ahead of its share a vCPU has to be than was told for that to be told.
const AHEAD_STEP: u64 = 4_000_000;

fn signed(positive: u64) -> i64 {
    i64::try_from(positive).unwrap_or(i64::MAX)
}

/// A task that wants a CPU, as the kernel hands it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub task: TaskId,
    /// Where it was last.
    pub cpu: CpuId,
    pub weight: Weight,
    /// How many CPUs its affinity allows.
    pub nr_allowed: u64,
    /// It has slept, or is new.
    pub woke: bool,
    /// For the kernel to tell it from a later arrival of the same task.
    pub number: u64,
}

/// A turn that is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispatch {
    pub task: TaskId,
    pub cpu: CpuId,
    /// Of two for one CPU the smaller goes first.
    pub order: u64,
    /// [`Arrival::number`].
    pub number: u64,
}

/// What a CPU is to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Look, if it has nothing to run.
    Look,
    /// End the turn that it gives.
    Preempt,
}

/// Carries out decisions.
pub trait Backend {
    /// Hands over a task. Returns whether there was room.
    fn dispatch(&mut self, turn: &Dispatch) -> bool;
    fn kick(&mut self, cpu: CpuId, how: Kick);
    /// Tells a guest what is done with its vCPU: the page's word. And the programs that put it ahead of its timers
    /// by how much it is ahead of its share.
    fn tell(&mut self, task: TaskId, applied: u64, boost: Applied, ahead: u64);
    /// What is known of a vCPU by now; `None` if it has gone.
    fn look(&mut self, task: TaskId) -> Option<Told>;
    /// The CPUs that a thread may run on; `None` if it has gone.
    fn affinity(&mut self, task: TaskId) -> Option<BTreeSet<CpuId>>;
    /// Whether anybody waits from now on.
    fn waiting(&mut self, anybody: bool);
}

/// For the statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub fair: u64,
    pub boosted: u64,
    pub preempted: u64,
}

/// See the [module](self).
pub struct Engine<B> {
    world: World,
    policy: Box<dyn Policy>,
    backend: B,
    anybody_waits: bool,
}

impl<B: Backend> Engine<B> {
    /// For these CPUs, on which nothing is known to run.
    pub fn new(policy: Box<dyn Policy>, cpus: Vec<Cpu>, backend: B) -> Self {
        let all = cpus.iter().map(|cpu| cpu.id).collect();
        Self {
            world: World {
                now: 0,
                cpus,
                all,
                tasks: BTreeMap::new(),
                known: HashMap::new(),
                queue: Queue::default(),
                turns: BTreeMap::new(),
                counts: Counts::default(),
                here: None,
            },
            policy,
            backend,
            anybody_waits: false,
        }
    }

    /// What carries out the decisions.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    pub fn counts(&self) -> Counts {
        self.world.counts
    }

    /// From now on it runs on that CPU.
    pub fn runs_here(&mut self, cpu: CpuId) {
        self.world.here = Some(cpu);
    }

    /// Decides on what has happened by `now`: what was told, in that order, and who wants a CPU.
    pub fn pass(&mut self, now: u64, arrivals: impl IntoIterator<Item = Arrival>, news: &[News]) {
        let mut order = Vec::new();
        let mut arrived = Arrived::default();
        for arrival in arrivals {
            order.push(arrival.task);
            // A later one of the same task replaces it.
            arrived.arrivals.insert(arrival.task, arrival);
        }
        if !order.is_empty() {
            arrived.expect(news);
        }
        for (at, news) in news.iter().enumerate() {
            match news {
                News::Switch(switch) => {
                    arrived.at = at;
                    self.switched(switch, &mut arrived);
                }
                News::Vcpu(told) => self.told(told),
            }
        }
        self.world.now = self.world.now.max(now);
        for task in order {
            if let Some(arrival) = arrived.arrivals.remove(&task) {
                self.arrived(&arrival);
            }
        }
        self.look_for_lost();
        for cpu in self.world.all.clone() {
            self.dispatch(cpu, Kick::Look);
            if self.ends_at(cpu).is_some_and(|end| end <= self.world.now) {
                self.end_turn(cpu, End::SliceEnded);
            }
        }
        let waits = !self.world.queue.is_empty();
        if waits != self.anybody_waits {
            self.anybody_waits = waits;
            self.backend.waiting(waits);
        }
    }

    /// When there is something to do though nothing happens: a turn ends for which somebody waits, or
    /// one that is expected has to be asked for again.
    pub fn next_look(&self) -> Option<u64> {
        let turns = self.world.turns.iter();
        let look = turns.filter_map(|(cpu, turn)| match turn.exec {
            Some(_) => self.ends_at(*cpu),
            None => Some(turn.ask_again_at()),
        });
        look.min()
    }

    /// When the turn on a CPU ends. One that nobody waits for goes on. If somebody did wait for it, a new one
    /// begins, as for the policy the two are not the same; but not before one that waits, and that the kernel has
    /// not yet handed over, can be given the CPU.
    fn ends_at(&self, cpu: CpuId) -> Option<u64> {
        let turn = self
            .world
            .turns
            .get(&cpu)
            .filter(|turn| turn.exec.is_some())?;
        let world = &self.world;
        let nobody_waits = || world.queue.first(cpu, &world.tasks).is_none();
        let ends = world.first(cpu).is_some() || turn.contested && nobody_waits();
        ends.then_some(turn.began + turn.slice)
    }

    /// A task that did not get a CPU waits for all of those that it may have.
    fn contest(&mut self, id: TaskId) {
        if !self.world.queue.contains(id) {
            return;
        }
        let Some(task) = self.world.tasks.get(&id) else {
            return;
        };
        for cpu in &task.allowed {
            if let Some(turn) = self.world.turns.get_mut(cpu) {
                turn.contested = true;
            }
        }
    }

    fn switched(&mut self, switch: &Switch, arrived: &mut Arrived) {
        let cpu = switch.cpu;
        self.world.now = self.world.now.max(switch.at);
        let was_over = switch
            .prev
            .filter(|(task, exec)| self.lost_cpu(*task, cpu, *exec, switch.ends));
        let next = switch.next.map(|(task, _)| task);
        let turn = self.world.turns.get_mut(&cpu);
        if let Some(turn) = turn.filter(|turn| turn.exec.is_some()) {
            let task = turn.task;
            let mut ends = switch.idle || next.is_some_and(|next| next != task);
            let mut end = None;
            if let Some((prev, exec)) = switch.prev.filter(|(prev, _)| *prev == task) {
                if let Some((_, now)) = &mut turn.exec {
                    *now = exec;
                }
                end = match switch.ends {
                    Ends::Runnable => None,
                    Ends::Sleeps => Some(End::Slept),
                    Ends::Dies => Some(End::Gone),
                };
                ends |= end.is_some() && prev == task;
            }
            if ends {
                self.stop(cpu, end);
                if let Some(arrival) = arrived.take(task) {
                    self.arrived(&arrival);
                }
            }
        }
        if let Some((task, _)) = switch.prev.filter(|_| switch.ends == Ends::Dies) {
            self.gone(task);
        }
        if let Some((task, exec)) = switch.next {
            self.started(task, cpu, exec, switch.at);
        }
        // What is told next may be that it is urgent.
        let arrival = was_over.and_then(|(task, _)| arrived.take(task));
        if let Some(arrival) = arrival {
            self.arrived(&arrival);
        }
    }

    /// The kernel tells of a task that its turn is over, which may have been known.
    /// Returns whether it was.
    fn lost_cpu(&mut self, task: TaskId, cpu: CpuId, exec: u64, ends: Ends) -> bool {
        let Some(known) = self.world.known.get_mut(&task) else {
            return false;
        };
        if let Some(assumed) = known.assumed.take() {
            // It had the CPU until the kernel was told, which is a large part of a short turn.
            let late = exec.saturating_sub(assumed).min(LATE_MAX);
            known.overcharged += signed(assumed.saturating_sub(exec)) - signed(late);
        }
        let was_over = known.still_on == Some(cpu);
        if was_over {
            known.still_on = None;
            if ends != Ends::Runnable {
                known.end = End::Slept;
                self.world.queue.remove(task);
            }
        }
        was_over
    }

    /// A task runs.
    fn started(&mut self, task: TaskId, cpu: CpuId, exec: u64, at: u64) {
        let known = self.world.known.get(&task);
        if known.is_some_and(|known| known.handed && at <= known.arrived) {
            // That is over: it wants a CPU again. This news was held up by a CPU that had begun to tell something.
            return;
        }
        if let Some(known) = self.world.known.get_mut(&task) {
            known.lost = 0;
        }
        let known = self.world.known.get(&task);
        if known.is_some_and(|known| known.still_on == Some(cpu)) {
            // Whoever came between has gone, and the next task is not there yet.
            return;
        }
        if let Some(turn) = self.world.turns.get_mut(&cpu) {
            if turn.task == task {
                // Else it goes on after somebody of no concern.
                if turn.exec.is_none() {
                    turn.exec = Some((exec, exec));
                    turn.began = self.world.now;
                }
                return;
            }
        }
        // Nobody here has decided that now: it came late, from another CPU's queue, or the kernel had too
        // many tasks at once to ask about.
        if let Some(elsewhere) = self.world.runs_on(task) {
            self.stop(elsewhere, Some(End::Interrupted));
        }
        let interrupts = self.interrupts_on(cpu);
        self.make_room(cpu);
        let asked = self.world.known.contains_key(&task);
        let waited = self.world.queue.iter().find(|(one, _)| *one == task);
        self.world.queue.remove(task);
        if !self.world.tasks.contains_key(&task) {
            let new = Task {
                id: task,
                weight: Weight::DEFAULT,
                allowed: self.world.all.clone(),
                last_cpu: cpu,
                vcpu: None,
            };
            self.world.tasks.insert(task, new);
        }
        let known = self.world.known.entry(task).or_default();
        let end = std::mem::replace(&mut known.end, End::Interrupted);
        let mut decision = waited.map_or(known.decision, |(_, decision)| decision);
        if !asked || waited.is_none() && end == End::Slept {
            let why = Why::Woke;
            decision = self
                .policy
                .runnable(&self.world.tasks[&task], why, &self.world.host());
        }
        self.begin(task, cpu, decision, Some((exec, exec)), Kick::Look);
        // The CPU was on its way to the one before as it was told to end that turn, too.
        let first = self.world.first(cpu);
        if first
            .is_some_and(|(first, other)| interrupts == Some(first) && other.order < decision.order)
        {
            self.end_turn(cpu, End::Interrupted);
        }
    }

    /// Who is expected on a CPU, if he was to interrupt somebody for that.
    fn interrupts_on(&self, cpu: CpuId) -> Option<TaskId> {
        let expected = self.world.turns.get(&cpu)?;
        let known = self.world.known.get(&expected.task)?;
        let interrupts = expected.exec.is_none() && known.decision.preempt.is_some();
        interrupts.then_some(expected.task)
    }

    /// The turn of a task on a CPU begins, or is expected to.
    fn begin(
        &mut self,
        task: TaskId,
        cpu: CpuId,
        decision: Decision,
        exec: Option<(u64, u64)>,
        kick: Kick,
    ) {
        let turn = Running {
            task,
            began: self.world.now,
            exec,
            slice: decision.slice(),
            applied: decision.applied,
            contested: false,
            kick,
            asked: self.world.now,
            again: 0,
        };
        self.world.turns.insert(cpu, turn);
        self.world.set_running(cpu, Some(task));
        let known = self.world.known.entry(task).or_default();
        known.decision = decision;
        known.handed = false;
        known.still_on = None;
        known.queued_for = None;
        if let Some(task) = self.world.tasks.get_mut(&task) {
            task.last_cpu = cpu;
            self.policy.started(
                &self.world.tasks[&turn.task],
                cpu,
                &decision,
                &self.world.host(),
            );
        }
    }

    /// The turn on a CPU has been overtaken by events. If it has not begun, its task still waits for that CPU.
    fn make_room(&mut self, cpu: CpuId) {
        let Some(turn) = self.world.turns.get(&cpu).copied() else {
            return;
        };
        self.stop(cpu, Some(End::Interrupted));
        if turn.exec.is_some() || !self.world.tasks.contains_key(&turn.task) {
            return;
        }
        let known = self.world.known.entry(turn.task).or_default();
        known.queued_for = Some(cpu);
        // The kernel goes by that one.
        let order = known.decision.order;
        let mut decision = self.enqueue(turn.task, Why::Interrupted);
        decision.order = order;
        self.world.queue.insert(turn.task, decision);
    }

    /// The turn on a CPU is over. By default it was used up, or else cut short.
    fn stop(&mut self, cpu: CpuId, end: Option<End>) {
        let Some(running) = self.world.turns.remove(&cpu) else {
            return;
        };
        self.world.set_running(cpu, None);
        let (before, after) = running.exec.unwrap_or_default();
        let had = after.saturating_sub(before);
        let used_up = had >= running.slice - running.slice / 8;
        let end = end.unwrap_or(if used_up {
            End::SliceEnded
        } else {
            End::Interrupted
        });
        let known = self.world.known.entry(running.task).or_default();
        known.end = end;
        // Where the turn before was estimated, and too high, this one may seem to be less than none.
        let ran = signed(had) - signed(before.saturating_sub(after)) - known.overcharged;
        known.overcharged = (-ran).max(0);
        let turn = Turn {
            task: running.task,
            cpu,
            began: running.began,
            ran: ran.max(0).unsigned_abs(),
            applied: running.applied,
            end,
        };
        if let Some(task) = self.world.tasks.get(&running.task) {
            self.policy.stopped(task, &turn, &self.world.host());
        }
    }

    /// The turn on a CPU is over, and the kernel has not yet said how much CPU time it was.
    fn stop_early(&mut self, cpu: CpuId, end: Option<End>) {
        let now = self.world.now;
        if let Some(turn) = self.world.turns.get_mut(&cpu) {
            if let Some((before, after)) = &mut turn.exec {
                *after = (*after).max(*before + now.saturating_sub(turn.began));
                let (task, after) = (turn.task, *after);
                self.world.known.entry(task).or_default().assumed = Some(after);
            }
        }
        self.stop(cpu, end);
    }

    /// Ends the turn on a CPU, and gives it to whoever is next, who may be the same.
    fn end_turn(&mut self, cpu: CpuId, end: End) {
        let Some(turn) = self.world.turns.get(&cpu).copied() else {
            return;
        };
        if turn.exec.is_none() {
            self.make_room(cpu);
        } else {
            self.look(turn.task);
            self.stop_early(cpu, Some(end));
            self.world.known.entry(turn.task).or_default().still_on = Some(cpu);
            let why = match end {
                End::Interrupted => Why::Interrupted,
                _ => Why::TurnEnded,
            };
            self.enqueue(turn.task, why);
        }
        self.dispatch(cpu, Kick::Preempt);
        self.contest(turn.task);
    }

    /// What was told of a vCPU is from before its turn, in which it may have taken its interrupts.
    fn look(&mut self, id: TaskId) {
        let task = self.world.tasks.get_mut(&id);
        let Some(vcpu) = task.and_then(|task| task.vcpu.as_mut()) else {
            return;
        };
        if let Some(told) = self.backend.look(id) {
            *vcpu = told.vcpu;
        }
    }

    fn gone(&mut self, task: TaskId) {
        self.world.queue.remove(task);
        self.world.known.remove(&task);
        if let Some(task) = self.world.tasks.remove(&task) {
            self.policy.gone(&task);
        }
    }

    /// A task wants a CPU.
    fn arrived(&mut self, arrival: &Arrival) {
        let id = arrival.task;
        if let Some(cpu) = self.world.runs_on(id) {
            self.stop_early(cpu, None);
        }
        let decided = self.world.queue.contains(id);
        let all = &self.world.all;
        let mut allowed = match usize::try_from(arrival.nr_allowed) {
            Ok(1) => [arrival.cpu].into(),
            Ok(fewer) if fewer < all.len() => {
                let affinity = self.backend.affinity(id).unwrap_or_default();
                affinity.intersection(all).copied().collect()
            }
            _ => all.clone(),
        };
        if allowed.is_empty() {
            allowed.insert(arrival.cpu);
        }
        let known = self.world.known.entry(id).or_default();
        known.number = arrival.number;
        known.handed = true;
        known.arrived = self.world.now;
        known.still_on = None;
        known.queued_for = None;
        if let Some(home) = known.home.filter(|home| allowed.contains(home)) {
            allowed = [home].into();
        }
        let why = match known.end {
            End::Slept | End::Gone => Why::Woke,
            _ if arrival.woke => Why::Woke,
            End::SliceEnded | End::Hinted => Why::TurnEnded,
            End::Interrupted => Why::Interrupted,
        };
        let task = self.world.tasks.entry(id).or_insert_with(|| Task {
            id,
            weight: arrival.weight,
            allowed: BTreeSet::new(),
            last_cpu: arrival.cpu,
            vcpu: None,
        });
        let moved = task.allowed != allowed;
        task.weight = arrival.weight;
        task.allowed = allowed;
        task.last_cpu = arrival.cpu;
        // Where it waits was decided when its turn was ended here, unless it has to wait somewhere else. Whom it
        // was to interrupt then, it could not yet.
        if !decided || moved || arrival.woke {
            self.place(id, why);
        } else if self.interrupts(id) {
            self.place(id, Why::Hinted);
        } else {
            self.reconsider(id);
        }
    }

    /// Whether somebody who waits was decided to interrupt another.
    fn interrupts(&self, id: TaskId) -> bool {
        let mut queue = self.world.queue.iter();
        queue.any(|(one, decision)| one == id && decision.preempt.is_some())
    }

    /// What is known of a vCPU is told when it has lost its CPU, and where it waits may have been decided before:
    /// an interrupt that it has not taken by then would wait for a whole round of fair turns.
    fn reconsider(&mut self, id: TaskId) {
        let handed = self.world.known.get(&id).is_some_and(|known| known.handed);
        let task = self
            .world
            .tasks
            .get(&id)
            .filter(|task| handed && task.vcpu.is_some() && self.world.queue.contains(id));
        let Some(task) = task else { return };
        if self.policy.hint(task, &self.world.host()) == Reaction::PlaceAgain {
            self.place(id, Why::Hinted);
        }
    }

    /// Where does it wait, and for what?
    fn enqueue(&mut self, id: TaskId, why: Why) -> Decision {
        self.world.queue.remove(id);
        let task = &self.world.tasks[&id];
        let mut decision = self.policy.runnable(task, why, &self.world.host());
        if decision.cpu.is_some_and(|cpu| !task.allowed.contains(&cpu)) {
            decision.cpu = None;
        }
        if decision.applied.is_boost() {
            self.world.counts.boosted += 1;
        } else {
            self.world.counts.fair += 1;
        }
        self.world.queue.insert(id, decision);
        decision
    }

    /// It waits from now on, or gets a CPU.
    fn place(&mut self, id: TaskId, why: Why) {
        let decision = self.enqueue(id, why);
        // Another one may be the first for that CPU.
        while let Some(cpu) = self.free_cpu(id, &decision) {
            if !self.dispatch(cpu, Kick::Look) || !self.world.queue.contains(id) {
                return;
            }
        }
        let may = matches!(why, Why::Woke | Why::Hinted);
        let allowed = &self.world.tasks[&id].allowed;
        let can = |cpu: &CpuId| allowed.contains(cpu) && self.world.can_be_given(id, *cpu);
        if let Some(cpu) = decision.preempt.filter(|cpu| may && can(cpu)) {
            self.world.counts.preempted += 1;
            self.end_turn(cpu, End::Interrupted);
        }
        self.contest(id);
    }

    /// The free CPU that suits a task best: its last one; else one with the same cache, of an idle core.
    fn free_cpu(&self, id: TaskId, decision: &Decision) -> Option<CpuId> {
        let (task, cpus) = (&self.world.tasks[&id], &self.world.cpus);
        let last = cpus.iter().find(|cpu| cpu.id == task.last_cpu);
        let key = |cpu: &&Cpu| {
            let mut siblings = cpus.iter().filter(|other| other.core == cpu.core);
            let alone = siblings.all(|other| other.running.is_none());
            let near = last.is_some_and(|last| last.cache == cpu.cache);
            (cpu.id != task.last_cpu, !near, !alone)
        };
        let free = cpus.iter().filter(|cpu| {
            cpu.running.is_none()
                && task.allowed.contains(&cpu.id)
                && decision.cpu.is_none_or(|only| only == cpu.id)
        });
        free.min_by_key(key).map(|cpu| cpu.id)
    }

    /// A CPU without a turn gets the first that may run there. Returns whether there was one.
    fn dispatch(&mut self, cpu: CpuId, kick: Kick) -> bool {
        if self.world.turns.contains_key(&cpu) {
            return false;
        }
        let Some((id, decision)) = self.world.first(cpu) else {
            return false;
        };
        let known = self.world.known.entry(id).or_default();
        if known.still_on == Some(cpu) {
            let exec = known.assumed.take().map(|exec| (exec, exec));
            self.world.queue.remove(id);
            self.tell(id, cpu, decision.applied);
            self.begin(id, cpu, decision, exec, kick);
            return true;
        }
        let turn = Dispatch {
            task: id,
            cpu,
            order: decision.order,
            number: known.number,
        };
        if known.queued_for != Some(cpu) && !self.backend.dispatch(&turn) {
            return false;
        }
        self.world.queue.remove(id);
        self.tell(id, cpu, decision.applied);
        self.begin(id, cpu, decision, None, kick);
        self.backend.kick(cpu, kick);
        true
    }

    /// What the guest of a vCPU is told.
    fn tell(&mut self, id: TaskId, cpu: CpuId, applied: Applied) {
        let Some(vcpu) = self.world.tasks.get(&id).and_then(|task| task.vcpu) else {
            return;
        };
        let others = self.world.first(cpu).is_some();
        let lead = self.policy.lead(&self.world.tasks[&id], &self.world.host());
        let ahead = lead.max(0).unsigned_abs();
        let known = self.world.known.entry(id).or_default();
        let mut word = u64::from(match applied {
            _ if known.observed => abi::PVSCHED_APPLIED_OBSERVED,
            Applied::Baseline => abi::PVSCHED_APPLIED_BASELINE,
            Applied::BoostTask => abi::PVSCHED_APPLIED_BOOST_TASK,
            Applied::BoostIrq => abi::PVSCHED_APPLIED_BOOST_IRQ,
            Applied::Throttled => abi::PVSCHED_APPLIED_THROTTLED,
        });
        // Only what somebody else waits for is worth an exit of the guest.
        let is_light = vcpu
            .published
            .is_some_and(|said| said.current.class() <= abi::PVSCHED_CLASS_IDLE);
        if others && applied.is_boost() {
            word |= u64::from(abi::PVSCHED_APPLIED_NOTIFY);
        }
        if others && !is_light && !known.observed {
            word |= u64::from(abi::PVSCHED_APPLIED_NOTIFY_LIGHT);
        }
        let is_told = known
            .told
            .is_some_and(|(told, before)| told == word && ahead.abs_diff(before) < AHEAD_STEP);
        if !is_told {
            known.told = Some((word, ahead));
            self.backend.tell(id, word, applied, ahead);
        }
    }

    /// What is known of a vCPU has changed.
    fn told(&mut self, told: &Told) {
        self.world.now = self.world.now.max(told.at);
        let id = told.task;
        let known = self.world.known.entry(id).or_default();
        let moved = known.home != told.home;
        known.home = told.home;
        known.observed = told.observed;
        if told.hint {
            // It tells of a thing once for each time that it was told something.
            known.told = None;
        }
        let all = &self.world.all;
        let task = self.world.tasks.entry(id).or_insert_with(|| Task {
            id,
            weight: Weight::DEFAULT,
            allowed: all.clone(),
            last_cpu: *all.first().unwrap_or(&CpuId(0)),
            vcpu: None,
        });
        task.vcpu = Some(told.vcpu);
        if let Some(home) = told.home.filter(|_| moved) {
            task.allowed = [home].into();
            task.last_cpu = home;
        }
        let runs = self.world.runs_on(id);
        let waits = self.world.queue.contains(id);
        if let Some(cpu) = runs.filter(|cpu| moved && told.home.is_some_and(|home| home != *cpu)) {
            self.end_turn(cpu, End::Hinted);
            return;
        }
        if waits && moved {
            self.place(id, Why::Hinted);
            return;
        }
        if !told.hint && runs.is_none() {
            self.reconsider(id);
            return;
        }
        if !(waits || runs.is_some()) {
            return;
        }
        let task = &self.world.tasks[&id];
        match (self.policy.hint(task, &self.world.host()), runs) {
            (Reaction::Stay, _) | (Reaction::Tell(_), None) => {}
            (Reaction::Tell(applied), Some(cpu)) => {
                if let Some(turn) = self.world.turns.get_mut(&cpu) {
                    turn.applied = applied;
                }
                self.tell(id, cpu, applied);
            }
            (Reaction::PlaceAgain, Some(cpu)) => self.end_turn(cpu, End::Hinted),
            (Reaction::PlaceAgain, None) => self.place(id, Why::Hinted),
        }
    }

    /// Asks again for turns that do not begin, and in the end gives them up. Their tasks are handed over anew, as
    /// nobody else would see to one of which the kernel did not take notice.
    fn look_for_lost(&mut self) {
        let now = self.world.now;
        let mut lost = Vec::new();
        for (cpu, turn) in &mut self.world.turns {
            if turn.exec.is_some() || now < turn.ask_again_at() {
                continue;
            }
            if turn.again == AGAINS {
                lost.push((*cpu, turn.task));
                continue;
            }
            turn.again += 1;
            turn.asked = now;
            self.backend.kick(*cpu, turn.kick);
        }
        for (cpu, task) in lost {
            self.stop(cpu, Some(End::Interrupted));
            let known = self.world.known.entry(task).or_default();
            if known.lost < ANEWS && self.world.tasks.contains_key(&task) {
                known.lost += 1;
                known.handed = true;
                self.enqueue(task, Why::Interrupted);
            }
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
