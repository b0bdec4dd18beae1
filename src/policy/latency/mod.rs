// SPDX-License-Identifier: GPL-2.0-only
//! The reference: the policy of the BPF scheduler, for any engine.
//!
//! Everybody gets CPU time by weight, in order of virtual time. A vCPU whose guest has something
//! urgent to do, or for which an interrupt waits, goes ahead of that, by rank, and is charged for it
//! like any other time. How far ahead of its share it may get is a budget.
//!
//! The parts are those of the BPF scheduler, whose reasons stand there: `judge` is `boost_judge()` of
//! `bpf/boost.bpf.h` and `clock` is `bpf/clock.bpf.h`; [`Policy::runnable`] is `enqueue()` of
//! `bpf/main.bpf.c`. It lacks cgroups and directed yield. And it
//! differs where one queue for all and exact slices make things simpler: no tick looks at a turn, as its
//! slice is what is left of a budget; and one that has had boosted turns for too long goes behind the
//! first of the others itself.

mod clock;
mod judge;

use std::collections::BTreeMap;

use super::arithmetic as math;
use super::*;
use crate::abi;
use clock::Alone;
use judge::{guest_is_light, guest_weight, Charged, State, Verdict, GRACE};

/// The tunables of the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunables {
    /// Length of a fair turn when nobody else waits.
    pub slice: u64,
    /// Shortest fair turn.
    pub slice_min: u64,
    /// Boost for an interrupt of a guest that does not publish.
    pub irq_boost: u64,
    /// Longest time for which a CPU gives boosted turns only while others wait.
    pub guard: u64,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            slice: 4_000_000,
            slice_min: 1_000_000,
            irq_boost: 1_000_000,
            guard: 100_000_000,
        }
    }
}

/// In the order of fair turns; boosted ones are before that.
const FAIR: u64 = 1 << 63;

#[derive(Clone, Debug, Default)]
struct CpuState {
    clock: u64,
    alone: Option<Alone>,
    /// Since when it has given boosted turns only.
    boosted_since: Option<u64>,
    guarded_until: u64,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Latency {
    tunables: Tunables,
    tasks: BTreeMap<TaskId, State>,
    cpus: BTreeMap<CpuId, CpuState>,
    clock: u64,
}

/// It wants long turns rather than early ones.
fn is_batch(task: &Task) -> bool {
    task.vcpu.is_some_and(|vcpu| {
        let said = vcpu.published.map(|said| said.current.class());
        vcpu.role == Role::Batch || said == Some(abi::PVSCHED_CLASS_BATCH)
    })
}

impl Latency {
    /// With other tunables than the default.
    #[must_use]
    pub fn new(tunables: Tunables) -> Self {
        Self {
            tunables,
            ..Self::default()
        }
    }

    fn rank_on(&self, cpu: &Cpu) -> u32 {
        let t = cpu.running.and_then(|task| self.tasks.get(&task));
        t.map_or(0, |t| t.verdict.rank)
    }

    /// The CPU that a boosted task should interrupt: its last one, whose caches it knows, else where
    /// the least urgent runs; one in the middle of an interrupt only if there is no other, and where the
    /// engine is rather not.
    fn cpu_to_take(&self, task: &Task, rank: u32, host: &Host) -> Option<CpuId> {
        let guarded = |cpu: &Cpu| {
            let state = self.cpus.get(&cpu.id);
            state.is_some_and(|state| host.now < state.guarded_until)
        };
        let critical = |cpu: &Cpu| {
            let said = host.running(cpu.id).and_then(|task| task.vcpu?.published);
            said.is_some_and(|said| said.critical)
        };
        let cpus = host.cpus.iter().filter(|cpu| {
            task.allowed.contains(&cpu.id) && self.rank_on(cpu) < rank && !guarded(cpu)
        });
        let best = cpus.min_by_key(|cpu| {
            let interrupted = host.engine == Some(cpu.id);
            (
                critical(cpu),
                interrupted,
                cpu.id != task.last_cpu,
                self.rank_on(cpu),
            )
        });
        best.map(|cpu| cpu.id)
    }

    /// Whether it has so much better a claim than who runs on its CPU that it need not wait. Nobody
    /// reminds a policy later, so one that may interrupt soon waits like those that may not.
    fn outranks_current(&self, task: &Task, at: u64, host: &Host) -> bool {
        let Some(other) = host.running(task.last_cpu) else {
            return false;
        };
        let Some(o) = self.tasks.get(&other.id) else {
            return false;
        };
        let Charged {
            began, ran: paid, ..
        } = o.running.unwrap_or(Charged::since(host.now));
        let ran = host.now.saturating_sub(began).saturating_sub(paid);
        let vtime = o.vtime + math::charge(ran, math::weight(other.weight.get(), o.guest_weight));
        let latency = task.vcpu.is_some_and(|vcpu| vcpu.role == Role::Latency);
        let weight = math::weight(task.weight.get(), math::PV_GUEST_WEIGHT_DFL);
        let margin = if latency {
            0
        } else {
            math::charge(self.tunables.slice / 2, weight)
        };
        let turn = host.now.saturating_sub(began);
        let ends_in = math::ends_in(at, vtime, margin, turn, self.tunables.slice_min, false);
        !is_batch(task) && o.verdict.rank == 0 && ends_in == 0
    }

    fn guard_is_due(&self, cpu: CpuId, now: u64) -> bool {
        let since = self.cpus.get(&cpu).and_then(|cpu| cpu.boosted_since);
        since.is_some_and(|since| now.saturating_sub(since) > self.tunables.guard)
    }
}

/// The vtime of the first that waits for a fair turn on `cpu`.
fn first_vtime(cpu: CpuId, host: &Host) -> Option<u64> {
    let may_run = |task: &TaskId| {
        let task = host.tasks.get(task);
        task.is_some_and(|task| task.allowed.contains(&cpu))
    };
    let mut queue = host.queue.iter();
    let (_, first) = queue.find(|(task, first)| first.order & FAIR != 0 && may_run(task))?;
    Some(first.order & !FAIR)
}

/// Whether there is an idle CPU for `task`, and nobody who goes there first: nobody has to wait.
fn has_cpu(task: &Task, decision: &Decision, host: &Host) -> bool {
    let idle = host.cpus.iter().filter(|cpu| cpu.running.is_none());
    idle.filter(|cpu| task.allowed.contains(&cpu.id))
        .any(|cpu| {
            let first = host.queue.first(cpu.id, host.tasks);
            first.is_none_or(|(_, first)| decision.order < first.order)
        })
}

impl Policy for Latency {
    fn runnable(&mut self, task: &Task, why: Why, host: &Host) -> Decision {
        for cpu in &task.allowed {
            self.settle_alone(*cpu, host);
        }
        let clock = self.go_by(task, task.last_cpu, host);
        let waiting = host.waiting_per_cpu();
        let credit = match why {
            Why::Woke => self.tunables.slice,
            _ => math::PV_OWED_MAX_NS.into(),
        };
        if let Some(t) = self.tasks.get_mut(&task.id) {
            // Its guest may have got more to do than what it was weighed by.
            let weight = guest_weight(task).max(t.guest_weight);
            t.vtime = math::reweigh(t.vtime, clock, t.guest_weight, weight);
            t.guest_weight = weight;
            // What is worth waiting for at most there is too long for the watchdogs of some engines.
            let thrice = 3 * waiting + 2;
            t.vtime = math::enter_vtime(t.vtime, clock, credit, math::most_ahead(thrice));
            t.base = math::enter_base(t.base, clock, credit);
        }
        let (verdict, left) = self.judge(task, host.now);
        let wakes = matches!(why, Why::Woke | Why::Hinted);
        let target = (verdict.rank > 0 && wakes)
            .then(|| self.cpu_to_take(task, verdict.rank, host))
            .flatten();
        let has_had_turn = why == Why::TurnEnded;
        let guard_is_due = has_had_turn && self.guard_is_due(task.last_cpu, host.now);
        let Some(mut t) = self.tasks.remove(&task.id) else {
            return Decision::new(FAIR | clock, self.tunables.slice_min);
        };
        t.settle(host.now);
        t.verdict = verdict;
        t.extra = verdict.rank > 0;
        let decision = if t.extra {
            // However urgent one is, the less urgent get a turn now and then, and so does the first of
            // those that wait for a fair one.
            let order = if guard_is_due {
                FAIR | first_vtime(task.last_cpu, host).unwrap_or(0)
            } else {
                math::boost_key(verdict.rank, host.now)
            };
            Decision::new(order, left).interrupting(target)
        } else {
            let slice = if is_batch(task) {
                self.tunables.slice
            } else {
                math::slice(self.tunables.slice, self.tunables.slice_min, waiting)
            };
            let vtime = self.queue_vtime(task, &t);
            let target = why == Why::Woke && self.outranks_current(task, vtime, host);
            Decision::new(FAIR | vtime, slice).interrupting(target.then_some(task.last_cpu))
        };
        self.tasks.insert(task.id, t);
        if decision.preempt.is_none() && !has_cpu(task, &decision, host) {
            for cpu in &task.allowed {
                self.end_alone(*cpu, host);
            }
        }
        decision.applied(verdict.applied)
    }

    fn hint(&mut self, task: &Task, host: &Host) -> Reaction {
        let before = self.tasks.get(&task.id);
        let (was_light, was_refused) = (guest_is_light(before), before.is_some_and(|t| t.refused));
        if let Some(cpu) = host.running_on(task.id) {
            self.settle_alone(cpu, host);
        }
        self.charge_running(task, host.now);
        let (verdict, left) = self.judge(task, host.now);
        let Some(t) = self.tasks.get_mut(&task.id) else {
            return Reaction::Stay;
        };
        let Verdict { rank, applied, .. } = t.verdict;
        let again = if t.running.is_none() {
            // Worth a boost, or a better one, or a place as of one that is refused it; or its guest has
            // got more to do.
            verdict.rank > rank
                || t.refused && !was_refused
                || guest_weight(task) > t.guest_weight && !t.extra
        } else {
            t.settle(host.now);
            t.verdict = verdict;
            let waits = host
                .running_on(task.id)
                .and_then(|cpu| host.queue.first(cpu, host.tasks));
            waits.is_some_and(|(_, first)| {
                let first_rank = if first.order & FAIR == 0 {
                    math::key_rank(first.order)
                } else {
                    0
                };
                // Or it goes on for less, or for less time.
                let sooner = host.now + left + GRACE / 2 < t.until;
                let over = t.extra && (verdict.rank < rank || sooner);
                let has_become_light = !was_light && verdict.rank == 0 && guest_is_light(Some(t));
                over || has_become_light || rank > 0 && first_rank > verdict.rank
            })
        };
        if again {
            Reaction::PlaceAgain
        } else if t.extra && t.running.is_some() && applied != verdict.applied {
            Reaction::Tell(verdict.applied)
        } else {
            Reaction::Stay
        }
    }

    fn lead(&self, task: &Task, _: &Host) -> i64 {
        let t = self.tasks.get(&task.id);
        t.map_or(0, |t| self.lead_of(task, t))
    }

    fn started(&mut self, task: &Task, cpu: CpuId, decision: &Decision, host: &Host) {
        let clock = self.go_by(task, cpu, host);
        let first = first_vtime(cpu, host);
        let waits = host.queue.first(cpu, host.tasks).is_some();
        let now = host.now;
        let guard_is_due = self.guard_is_due(cpu, now);
        let in_fair_order = decision.order & FAIR != 0;
        let Some(t) = self.tasks.get_mut(&task.id) else {
            return;
        };
        t.settle(now);
        t.running = Some(Charged::since(now));
        t.until = now + decision.slice();
        t.has_finished = t.verdict.finishes;
        // One that was refused a boost waited for less than its share.
        let chosen = if t.refused && in_fair_order {
            decision.order & !FAIR
        } else {
            t.vtime
        };
        let weight = guest_weight(task);
        t.vtime = math::reweigh(t.vtime, clock, t.guest_weight, weight);
        t.guest_weight = weight;
        // An extra turn that nobody waits for is a fair one.
        t.extra &= waits;
        let extra = t.extra;
        let state = self.cpus.entry(cpu).or_default();
        state.alone = None;
        if extra {
            let since = state.boosted_since.filter(|_| !in_fair_order);
            state.boosted_since = since.or(Some(now));
            return;
        }
        state.boosted_since = None;
        if guard_is_due && in_fair_order {
            state.guarded_until = now + self.tunables.slice_min;
        }
        if waits {
            t.vtime = math::enter_base(t.vtime, clock, math::PV_OWED_MAX_NS.into());
            // A turn may begin out of order, and that is not how far the others have got.
            let chosen = chosen.min(t.vtime).min(first.unwrap_or(u64::MAX));
            self.advance(cpu, chosen);
            return;
        }
        let to = self.clock.max(state.clock);
        self.advance(cpu, to);
        let clock = self.read(Some(cpu));
        if let Some(t) = self.tasks.get_mut(&task.id) {
            t.vtime = math::enter_base(t.vtime, clock, 0);
            t.base = math::enter_base(t.base, clock, 0);
            let alone = Alone {
                task: task.id,
                since: now,
                clock,
                vtime: t.vtime,
                base: t.base,
            };
            self.cpus.entry(cpu).or_default().alone = Some(alone);
        }
    }

    fn stopped(&mut self, task: &Task, turn: &Turn, host: &Host) {
        let weight = match turn.end {
            // What a CPU that halts will do when it is woken, its guest cannot say.
            End::Slept | End::Gone => math::PV_GUEST_WEIGHT_DFL,
            End::SliceEnded | End::Interrupted | End::Hinted => guest_weight(task),
        };
        self.charge(task, turn.ran, weight, host.now);
        self.end_alone(turn.cpu, host);
        if let Some(t) = self.tasks.get_mut(&task.id) {
            t.settle(host.now);
            t.running = None;
            t.verdict = Verdict::default();
            t.extra = false;
            // Its VMM put it to sleep before it could.
            t.has_finished &= turn.end != End::Slept;
        }
        if host.queue.is_empty() {
            self.cpus.entry(turn.cpu).or_default().boosted_since = None;
        }
    }

    fn gone(&mut self, task: &Task) {
        self.tasks.remove(&task.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::scenario::{Job, Load, Scenario, Thread, Topology, Vm, MS};
    use crate::simulator::simulate;

    #[test]
    fn nothing_is_kept_of_a_task_that_is_gone() {
        let mut vm = Vm::new([
            Thread::new([Job::BUSY]).into(),
            Thread::new([Job::BUSY]).into(),
        ]);
        let scenario = |vm: &Vm| Scenario {
            seed: 0,
            duration: 100 * MS,
            topology: Topology::flat(1),
            smt_isolate: false,
            tasks: vec![Thread::new([Job::BUSY])],
            vms: vec![vm.clone()],
        };
        let known = |vm: &Vm| {
            let mut policy = Latency::default();
            simulate(&scenario(vm), &mut policy);
            policy.tasks.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(known(&vm), [1, 2, 3].map(TaskId));
        vm.dies = Some(50 * MS);
        assert_eq!(known(&vm), [TaskId(1)]);
    }

    /// Also where somebody comes all the time who might have had its CPU, and gets another one.
    #[test]
    fn what_a_bound_task_had_while_nobody_waited_is_not_held_against_it() {
        let busy_from = |first| Job {
            urgency: Urgency::NORMAL,
            load: Load::Periodic {
                first,
                period: 10_000 * MS,
                run: 10_000 * MS,
                jitter: false,
            },
        };
        let bound = |first| Thread {
            affinity: vec![CpuId(0)],
            ..Thread::new([busy_from(first)])
        };
        let comes_and_goes = Job::periodic(Urgency::NORMAL, 3 * MS, MS / 2);
        let scenario = Scenario {
            seed: 0,
            duration: 1400 * MS,
            topology: Topology::flat(2),
            smt_isolate: false,
            tasks: vec![bound(0), bound(1000 * MS), Thread::new([comes_and_goes])],
            vms: Vec::new(),
        };
        let trace = simulate(&scenario, &mut Latency::default());
        let of_second = trace.turns.iter().filter(|turn| turn.task == TaskId(2));
        let had = of_second.map(|turn| turn.ran).sum::<u64>();
        assert!(had.abs_diff(200 * MS) < 20 * MS, "{had} of 400 ms");
    }

    /// May run there only.
    fn task_on(cpu: CpuId, id: u32, vcpu: Option<Vcpu>) -> Task {
        Task {
            id: TaskId(id),
            weight: Weight::DEFAULT,
            allowed: [cpu].into(),
            last_cpu: cpu,
            vcpu,
        }
    }

    fn vcpu(current: Urgency, critical: bool, interrupt: Option<Interrupt>) -> Vcpu {
        Vcpu {
            vm: VmId(1),
            published: Some(Published {
                current,
                critical,
                ..Published::default()
            }),
            interrupt,
            limits: Limits::default(),
            role: Role::None,
        }
    }

    fn host<'a>(
        now: u64,
        cpus: &'a [Cpu],
        tasks: &'a BTreeMap<TaskId, Task>,
        queue: &'a Queue,
    ) -> Host<'a> {
        Host {
            now,
            cpus,
            tasks,
            queue,
            engine: None,
        }
    }

    fn one_cpu(id: CpuId, running: Option<TaskId>) -> [Cpu; 1] {
        [Cpu {
            id,
            core: 0,
            cache: 0,
            running,
        }]
    }

    /// What it may hold a lock for is over in moments. An interrupt that waits is worth all of its budget.
    #[test]
    fn a_vcpu_in_the_middle_of_an_interrupt_is_soon_looked_at_again() {
        let cpu = CpuId(0);
        let vcpu = |critical, interrupt| vcpu(Urgency::NORMAL, critical, interrupt);
        let waits = Interrupt {
            since: 0,
            urgency: None,
        };
        let cpus = one_cpu(cpu, None);
        let slice_of = |vcpu, end| {
            let task = task_on(cpu, 1, Some(vcpu));
            let tasks = BTreeMap::from([(task.id, task.clone())]);
            let queue = Queue::default();
            let host = host(MS, &cpus, &tasks, &queue);
            let mut policy = Latency::default();
            let decision = policy.runnable(&task, Why::TurnEnded, &host);
            policy.started(&task, cpu, &decision, &host);
            let turn = Turn {
                task: task.id,
                cpu,
                began: MS,
                ran: decision.slice(),
                applied: decision.applied,
                end,
            };
            policy.stopped(&task, &turn, &host);
            let next = policy.runnable(&task, Why::TurnEnded, &host);
            (decision.applied, decision.slice(), next.applied)
        };
        let ends = End::SliceEnded;
        let once = (Applied::BoostIrq, MS, Applied::Baseline);
        assert_eq!(slice_of(vcpu(true, None), ends), once);
        // Its VMM had to wait for something before it could finish.
        let twice = (Applied::BoostIrq, MS, Applied::BoostIrq);
        assert_eq!(slice_of(vcpu(true, None), End::Slept), twice);
        let budget = Limits::default().irq_budget;
        let interrupted = (Applied::BoostIrq, budget, Applied::BoostIrq);
        assert_eq!(slice_of(vcpu(false, Some(waits)), ends), interrupted);
        assert_eq!(slice_of(vcpu(true, Some(waits)), ends), interrupted);
        assert_eq!(slice_of(vcpu(false, None), ends).0, Applied::Baseline);
    }

    /// As it was put ahead for an interrupt, it had a long turn. All that is left of that is a task switch to finish.
    #[test]
    fn a_boosted_turn_is_cut_to_what_its_reason_is_worth_by_now() {
        let cpu = CpuId(0);
        let vcpu = |interrupt| vcpu(Urgency::NORMAL, true, interrupt);
        let task = |id, vcpu| task_on(cpu, id, vcpu);
        let waits = Interrupt {
            since: 0,
            urgency: None,
        };
        let mut policy = Latency::default();
        let (before, after) = (task(1, Some(vcpu(Some(waits)))), task(1, Some(vcpu(None))));
        let other = task(2, None);
        let cpus = one_cpu(cpu, Some(before.id));
        let tasks = BTreeMap::from([(before.id, before.clone()), (other.id, other.clone())]);
        let mut queue = Queue::default();
        queue.insert(other.id, Decision::new(FAIR, MS));
        let host = |now| host(now, &cpus, &tasks, &queue);
        let decision = policy.runnable(&before, Why::TurnEnded, &host(0));
        policy.started(&before, cpu, &decision, &host(0));
        assert_eq!(policy.hint(&before, &host(MS / 10)), Reaction::Stay);
        assert_eq!(policy.hint(&after, &host(MS / 5)), Reaction::PlaceAgain);
    }

    /// The engine, for one, which has just had that CPU to hear of the hint.
    #[test]
    fn what_comes_between_is_not_charged_to_a_turn_that_a_hint_came_in() {
        let cpu = CpuId(0);
        let task = |id, vcpu| task_on(cpu, id, vcpu);
        let vcpu = vcpu(Urgency::NORMAL, false, None);
        let (vcpu, other) = (task(1, Some(vcpu)), task(2, None));
        let cpus = one_cpu(cpu, Some(vcpu.id));
        let tasks = BTreeMap::from([(vcpu.id, vcpu.clone()), (other.id, other.clone())]);
        let nobody = Queue::default();
        let mut somebody = Queue::default();
        somebody.insert(other.id, Decision::new(FAIR, MS));
        let host = |now, queue| host(now, &cpus, &tasks, queue);
        let ahead_after = |alone: u64, hint: bool| {
            let mut policy = Latency::default();
            let now = alone + 2 * MS;
            let at_first = if alone > 0 { &nobody } else { &somebody };
            let decision = policy.runnable(&vcpu, Why::Woke, &host(0, at_first));
            policy.started(&vcpu, cpu, &decision, &host(0, at_first));
            policy.runnable(&other, Why::Woke, &host(alone, at_first));
            if hint {
                assert_eq!(policy.hint(&vcpu, &host(now, &somebody)), Reaction::Stay);
            }
            let turn = Turn {
                task: vcpu.id,
                cpu,
                began: 0,
                ran: alone / 10 * 9 + MS,
                applied: decision.applied,
                end: End::Interrupted,
            };
            policy.stopped(&vcpu, &turn, &host(now, &somebody));
            policy.lead(&vcpu, &host(now, &somebody))
        };
        let share = i64::try_from(MS).unwrap();
        assert_eq!(ahead_after(0, false), share);
        assert_eq!(ahead_after(0, true), share);
        // What it had while nobody waited stays free, and is nothing to get back.
        assert!((0..=share).contains(&ahead_after(1000 * MS, true)));
    }

    /// A turn lasts as long as nobody waits, and an engine need not end it before.
    #[test]
    fn an_urgent_vcpu_that_nobody_waits_for_is_not_ahead() {
        let cpu = CpuId(0);
        let urgent = vcpu(Urgency::realtime(50), false, None);
        let task = task_on(cpu, 1, Some(urgent));
        let mut policy = Latency::default();
        let queue = Queue::default();
        let cpus = one_cpu(cpu, Some(task.id));
        let tasks = BTreeMap::from([(task.id, task.clone())]);
        let host = |now| host(now, &cpus, &tasks, &queue);
        let decision = policy.runnable(&task, Why::Woke, &host(0));
        policy.started(&task, cpu, &decision, &host(0));
        // Longer than its budget.
        let later = host(1000 * MS);
        assert_eq!(policy.hint(&task, &later), Reaction::Stay);
        let (verdict, _) = policy.judge(&task, later.now);
        assert_eq!(verdict.applied, Applied::BoostTask);
        let clock = policy.go_by(&task, cpu, &later);
        assert_eq!(policy.tasks[&task.id].vtime, clock);
    }

    /// If it had to repay its whole budget before its next boost, it would wait for three times that.
    #[test]
    fn an_urgent_vcpu_that_wants_more_than_its_share_has_it_in_small_pieces() {
        let urgent = Job::periodic(Urgency::realtime(50), 10 * MS, 5 * MS);
        let vcpu = Thread::new([urgent, Job::BUSY]);
        let scenario = Scenario {
            seed: 0,
            duration: 4000 * MS,
            topology: Topology::flat(1),
            smt_isolate: false,
            tasks: vec![Thread::new([Job::BUSY]); 3],
            vms: vec![Vm::new([vcpu.into()])],
        };
        let trace = simulate(&scenario, &mut Latency::default());
        let vcpu = TaskId(4);
        assert!(trace.is_throttled(vcpu));
        let wait = trace.longest_wait(vcpu);
        assert!(wait < 50 * MS, "{} ms", wait / MS);
        let turns = trace.turns.iter().filter(|turn| turn.task == vcpu);
        let had = turns.map(|turn| turn.ran).sum::<u64>();
        let share = 1000 * MS;
        assert!(had >= share - 20 * MS, "{} ms", had / MS);
        assert!(had <= share + 110 * MS, "{} ms", had / MS);
    }

    /// The backend of the engine in user space is ejected when somebody has waited for 5 s.
    #[test]
    fn nobody_is_sent_so_far_away_that_a_watchdog_of_5_s_barks() {
        let idle = Job {
            urgency: Urgency::IDLE,
            load: Load::Busy,
        };
        let vcpu = Thread {
            weight: Weight::new(1).unwrap(),
            ..Thread::new([idle])
        };
        // What it is charged for a turn is 34 s.
        let scenario = Scenario {
            seed: 0,
            duration: 20_000 * MS,
            topology: Topology::flat(1),
            smt_isolate: false,
            tasks: vec![Thread::new([Job::BUSY]), Thread::new([Job::BUSY])],
            vms: vec![Vm::new([vcpu.into()])],
        };
        let trace = simulate(&scenario, &mut Latency::default());
        let longest = trace.waits.iter().map(|wait| wait.ended - wait.began).max();
        assert!(longest < Some(4000 * MS), "{longest:?}");
    }
}
