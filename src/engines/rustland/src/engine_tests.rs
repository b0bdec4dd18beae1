// SPDX-License-Identifier: GPL-2.0-only
//! A host that does as it is told, and a policy that does as the test says.

use std::cell::RefCell;
use std::rc::Rc;

use scx_pvsched::policy::{Host, Vcpu};

use super::*;

const MS: u64 = 1_000_000;

/// What was done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Dispatch(u32, u32, u64),
    Kick(u32, Kick),
    Tell(u32, u64),
    Waiting(bool),
}

#[derive(Default)]
struct Host2 {
    did: Vec<Did>,
    affinity: BTreeMap<u32, Vec<u32>>,
    /// What there is to know of vCPUs by now.
    known: BTreeMap<u32, Told>,
    full: bool,
}

impl Backend for Host2 {
    fn dispatch(&mut self, turn: &Dispatch) -> bool {
        if !self.full {
            self.did
                .push(Did::Dispatch(turn.task.0, turn.cpu.0, turn.number));
        }
        !self.full
    }
    fn kick(&mut self, cpu: CpuId, how: Kick) {
        self.did.push(Did::Kick(cpu.0, how));
    }
    fn tell(&mut self, task: TaskId, applied: u64, _: Applied, _: u64) {
        self.did.push(Did::Tell(task.0, applied));
    }
    fn look(&mut self, task: TaskId) -> Option<Told> {
        self.known.get(&task.0).copied()
    }
    fn affinity(&mut self, task: TaskId) -> Option<BTreeSet<CpuId>> {
        let cpus = self.affinity.get(&task.0)?;
        Some(cpus.iter().map(|cpu| CpuId(*cpu)).collect())
    }
    fn waiting(&mut self, anybody: bool) {
        self.did.push(Did::Waiting(anybody));
    }
}

/// Orders by number of the task, unless told otherwise; notes what it is told.
#[derive(Default)]
struct Script {
    orders: BTreeMap<u32, u64>,
    /// These take CPU 0 when they wake up.
    interrupts: BTreeSet<u32>,
    hint: Option<Reaction>,
    asked: Vec<(u32, Why)>,
    turns: Vec<(u32, u64, End)>,
    gone: Vec<u32>,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Script>>);

impl Policy for Shared {
    fn runnable(&mut self, task: &Task, why: Why, _: &Host) -> Decision {
        let mut script = self.0.borrow_mut();
        script.asked.push((task.id.0, why));
        let order = script.orders.get(&task.id.0).copied();
        let takes = script.interrupts.contains(&task.id.0);
        Decision::new(order.unwrap_or(u64::from(task.id.0)), 4 * MS)
            .interrupting(takes.then_some(CpuId(0)))
    }
    fn hint(&mut self, _: &Task, _: &Host) -> Reaction {
        self.0.borrow().hint.unwrap_or(Reaction::Stay)
    }
    fn stopped(&mut self, task: &Task, turn: &Turn, _: &Host) {
        let turn = (task.id.0, turn.ran, turn.end);
        self.0.borrow_mut().turns.push(turn);
    }
    fn gone(&mut self, task: &Task) {
        self.0.borrow_mut().gone.push(task.id.0);
    }
}

struct Bench {
    engine: Engine<Host2>,
    script: Rc<RefCell<Script>>,
    numbers: u64,
}

impl Bench {
    fn new(cpus: u32) -> Self {
        let shared = Shared::default();
        let script = Rc::clone(&shared.0);
        let cpu = |id| Cpu {
            id: CpuId(id),
            core: id as usize,
            cache: 0,
            running: None,
        };
        let cpus = (0..cpus).map(cpu).collect();
        Self {
            engine: Engine::new(Box::new(shared), cpus, Host2::default()),
            script,
            numbers: 0,
        }
    }

    fn arrival(&mut self, task: u32, woke: bool) -> Arrival {
        self.numbers += 1;
        Arrival {
            task: TaskId(task),
            cpu: CpuId(0),
            weight: Weight::DEFAULT,
            nr_allowed: self.engine.world.all.len() as u64,
            woke,
            number: self.numbers,
        }
    }

    /// Tasks that wake up at `now`. Returns what is done about it.
    fn wake(&mut self, now: u64, tasks: &[u32]) -> Vec<Did> {
        let arrivals: Vec<_> = tasks.iter().map(|task| self.arrival(*task, true)).collect();
        self.pass(now, arrivals, &[])
    }

    fn pass(&mut self, now: u64, arrivals: Vec<Arrival>, news: &[News]) -> Vec<Did> {
        self.engine.pass(now, arrivals, news);
        std::mem::take(&mut self.engine.backend().did)
    }

    /// The kernel tells that a CPU has gone over from one task to another.
    fn switch(
        &mut self,
        at: u64,
        cpu: u32,
        prev: Option<(u32, u64, Ends)>,
        next: Option<(u32, u64)>,
    ) -> Vec<Did> {
        let news = switch(at, cpu, prev, next);
        self.pass(at, Vec::new(), &[news])
    }
}

fn switch(at: u64, cpu: u32, prev: Option<(u32, u64, Ends)>, next: Option<(u32, u64)>) -> News {
    News::Switch(Switch {
        at,
        cpu: CpuId(cpu),
        prev: prev.map(|(task, exec, _)| (TaskId(task), exec)),
        ends: prev.map_or(Ends::Runnable, |(_, _, ends)| ends),
        next: next.map(|(task, exec)| (TaskId(task), exec)),
        idle: next.is_none(),
    })
}

fn told(at: u64, task: u32, home: Option<u32>, hint: bool) -> News {
    News::Vcpu(Told {
        at,
        task: TaskId(task),
        vcpu: Vcpu {
            vm: scx_pvsched::policy::VmId(1),
            published: None,
            interrupt: None,
            limits: scx_pvsched::policy::Limits::default(),
            role: scx_pvsched::policy::Role::None,
        },
        home: home.map(CpuId),
        observed: false,
        hint,
    })
}

#[test]
fn an_idle_cpu_gets_who_wakes_up_and_the_rest_waits_in_order() {
    let mut bench = Bench::new(1);
    let did = bench.wake(0, &[5, 7, 6]);
    let first = [
        Did::Dispatch(5, 0, 1),
        Did::Kick(0, Kick::Look),
        Did::Waiting(true),
    ];
    assert_eq!(did, first);
    bench.switch(MS, 0, None, Some((5, 100)));
    // It sleeps, and the first in order is next.
    let did = bench.switch(2 * MS, 0, Some((5, 100 + MS / 2, Ends::Sleeps)), None);
    assert_eq!(did, [Did::Dispatch(6, 0, 3), Did::Kick(0, Kick::Look)]);
    assert_eq!(bench.script.borrow().turns, [(5, MS / 2, End::Slept)]);
}

#[test]
fn a_turn_ends_with_its_slice_if_somebody_waits() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.switch(0, 0, None, Some((5, 0)));
    assert_eq!(bench.engine.next_look(), None);
    assert_eq!(bench.pass(10 * MS, Vec::new(), &[]), []);
    bench.script.borrow_mut().orders.insert(5, 9);
    // Somebody has come, and the slice is over.
    let did = bench.wake(11 * MS, &[6]);
    let taken = [
        Did::Dispatch(6, 0, 2),
        Did::Kick(0, Kick::Preempt),
        Did::Waiting(true),
    ];
    assert_eq!(did, taken);
    let asked = [(5, Why::Woke), (6, Why::Woke), (5, Why::TurnEnded)];
    assert_eq!(bench.script.borrow().asked, asked);
}

#[test]
fn who_is_first_again_goes_on_and_the_kernel_is_not_bothered() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5, 6]);
    bench.switch(0, 0, None, Some((5, 0)));
    assert_eq!(bench.engine.next_look(), Some(4 * MS));
    assert_eq!(bench.pass(4 * MS, Vec::new(), &[]), []);
    assert_eq!(bench.engine.next_look(), Some(8 * MS));
    bench.switch(6 * MS, 0, Some((5, 5 * MS, Ends::Sleeps)), None);
    // In all it is charged what it had, though the first turn was only estimated.
    let turns = [(5, 4 * MS, End::SliceEnded), (5, MS, End::Slept)];
    assert_eq!(bench.script.borrow().turns, turns);
}

/// A policy charges for a turn that somebody waits for, and cannot know that nobody does any longer.
#[test]
fn a_turn_that_somebody_waited_for_is_followed_by_a_new_one() {
    let mut bench = Bench::new(2);
    bench.wake(0, &[5, 6, 7]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.switch(0, 1, None, Some((6, 0)));
    bench.switch(MS, 1, Some((6, MS, Ends::Sleeps)), None);
    bench.switch(MS, 1, None, Some((7, 0)));
    assert_eq!(bench.engine.next_look(), Some(4 * MS));
    assert_eq!(bench.pass(4 * MS, Vec::new(), &[]), []);
    let turns = [(6, MS, End::Slept), (5, 4 * MS, End::SliceEnded)];
    assert_eq!(bench.script.borrow().turns, turns);
    // That one is nobody's loss, and the other CPU's was not from the start.
    assert_eq!(bench.engine.next_look(), None);
}

#[test]
fn who_waits_is_placed_again_when_it_may_only_run_elsewhere() {
    let mut bench = Bench::new(2);
    bench.wake(0, &[5, 6, 7]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.switch(0, 1, None, Some((6, 0)));
    bench.script.borrow_mut().orders.insert(5, 9);
    // It has to make room for 7, and before the kernel hands it over it is bound to the other CPU.
    bench.pass(4 * MS, Vec::new(), &[]);
    let asked = |bench: &Bench| {
        let script = bench.script.borrow();
        let of_5 = script.asked.iter().filter(|(task, _)| *task == 5);
        of_5.map(|(_, why)| *why).collect::<Vec<_>>()
    };
    let mut expected = vec![Why::Woke, Why::TurnEnded];
    assert_eq!(asked(&bench), expected);
    let mut bound = bench.arrival(5, false);
    bound.nr_allowed = 1;
    bound.cpu = CpuId(1);
    bench.pass(4 * MS, vec![bound.clone()], &[]);
    expected.push(Why::TurnEnded);
    assert_eq!(asked(&bench), expected);
    // Where it waits for what it did before there is nothing to ask.
    bench.pass(4 * MS, vec![bound], &[]);
    assert_eq!(asked(&bench), expected);
}

#[test]
fn who_is_interrupted_waits_and_is_not_dispatched_before_it_arrives() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.script.borrow_mut().interrupts.insert(3);
    let did = bench.wake(MS, &[3]);
    let taken = [
        Did::Dispatch(3, 0, 2),
        Did::Kick(0, Kick::Preempt),
        Did::Waiting(true),
    ];
    assert_eq!(did, taken);
    bench.switch(MS, 0, Some((5, MS, Ends::Runnable)), Some((3, 0)));
    // The kernel has not yet handed it over.
    assert_eq!(
        bench.switch(2 * MS, 0, Some((3, MS, Ends::Sleeps)), None),
        []
    );
    let arrival = bench.arrival(5, false);
    let did = bench.pass(2 * MS, vec![arrival], &[]);
    let next = [
        Did::Dispatch(5, 0, 3),
        Did::Kick(0, Kick::Look),
        Did::Waiting(false),
    ];
    assert_eq!(did, next);
    let asked = [(5, Why::Woke), (3, Why::Woke), (5, Why::Interrupted)];
    assert_eq!(bench.script.borrow().asked, asked);
}

/// The engine itself interrupts a turn, ends it, and the kernel goes on with it for a moment.
#[test]
fn a_turn_that_is_over_does_not_begin_again_by_itself() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.script.borrow_mut().interrupts.insert(3);
    bench.wake(MS, &[3]);
    assert_eq!(bench.switch(MS, 0, None, Some((5, MS))), []);
    bench.switch(MS, 0, Some((5, MS, Ends::Runnable)), Some((3, 0)));
    bench.switch(2 * MS, 0, Some((3, MS, Ends::Sleeps)), None);
    let turns = [(5, MS, End::Interrupted), (3, MS, End::Slept)];
    assert_eq!(bench.script.borrow().turns, turns);
}

#[test]
fn what_was_estimated_too_high_is_not_charged_twice() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.script.borrow_mut().interrupts.insert(3);
    bench.wake(3 * MS, &[3]);
    // Of the 3 ms somebody of no concern had one.
    bench.switch(3 * MS, 0, Some((5, 2 * MS, Ends::Runnable)), Some((3, 0)));
    let arrival = bench.arrival(5, false);
    bench.pass(3 * MS, vec![arrival], &[]);
    bench.switch(4 * MS, 0, Some((3, MS, Ends::Sleeps)), None);
    bench.switch(4 * MS, 0, None, Some((5, 2 * MS)));
    bench.switch(7 * MS, 0, Some((5, 5 * MS, Ends::Sleeps)), None);
    let of_5: u64 = bench
        .script
        .borrow()
        .turns
        .iter()
        .filter(|(task, ..)| *task == 5)
        .map(|(_, ran, _)| ran)
        .sum();
    assert_eq!(of_5, 5 * MS);
}

#[test]
fn nor_where_one_turn_followed_the_other() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5, 6]);
    bench.switch(0, 0, None, Some((5, 0)));
    // It had 5 ms of these 12.
    bench.pass(4 * MS, Vec::new(), &[]);
    bench.pass(8 * MS, Vec::new(), &[]);
    bench.switch(12 * MS, 0, Some((5, 5 * MS, Ends::Sleeps)), None);
    bench.wake(12 * MS, &[5]);
    bench.switch(12 * MS, 0, None, Some((6, 0)));
    bench.switch(13 * MS, 0, Some((6, MS, Ends::Sleeps)), Some((5, 5 * MS)));
    bench.switch(23 * MS, 0, Some((5, 15 * MS, Ends::Sleeps)), None);
    let script = bench.script.borrow();
    let of_5 = script.turns.iter().filter(|(task, ..)| *task == 5);
    assert_eq!(of_5.map(|(_, ran, _)| ran).sum::<u64>(), 15 * MS);
}

/// Else those who make room after each turn would have more than those who have many in a row.
#[test]
fn what_a_task_had_after_its_turn_is_charged_with_the_next_one() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5, 6]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.script.borrow_mut().orders.insert(5, 9);
    bench.pass(4 * MS, Vec::new(), &[]);
    // The CPU has not turned to 6 at once.
    bench.switch(6 * MS, 0, Some((5, 6 * MS, Ends::Runnable)), Some((6, 0)));
    let arrival = bench.arrival(5, false);
    bench.pass(6 * MS, vec![arrival], &[]);
    bench.switch(7 * MS, 0, Some((6, MS, Ends::Sleeps)), None);
    bench.switch(7 * MS, 0, None, Some((5, 6 * MS)));
    bench.switch(8 * MS, 0, Some((5, 7 * MS, Ends::Sleeps)), None);
    let turns = [
        (5, 4 * MS, End::SliceEnded),
        (6, MS, End::Slept),
        (5, 3 * MS, End::Slept),
    ];
    assert_eq!(bench.script.borrow().turns, turns);
    // Another scheduling class's time is none of a turn.
    bench.wake(8 * MS, &[5, 6]);
    bench.switch(8 * MS, 0, None, Some((6, MS)));
    bench.switch(9 * MS, 0, Some((6, 2 * MS, Ends::Sleeps)), None);
    bench.switch(9 * MS, 0, None, Some((5, 7 * MS)));
    bench.wake(9 * MS, &[6]);
    bench.pass(13 * MS, Vec::new(), &[]);
    let late = 1000 * MS;
    bench.switch(late, 0, Some((5, late, Ends::Runnable)), Some((6, 2 * MS)));
    let arrival = bench.arrival(5, false);
    bench.pass(late, vec![arrival], &[]);
    bench.switch(late, 0, Some((6, 3 * MS, Ends::Sleeps)), None);
    bench.switch(late, 0, None, Some((5, late)));
    bench.switch(late + MS, 0, Some((5, late + MS, Ends::Sleeps)), None);
    let last = bench.script.borrow().turns.last().copied();
    assert_eq!(last, Some((5, MS + LATE_MAX, End::Slept)));
}

/// The kernel keeps who was handed over, and does not tell that it waits there.
#[test]
fn who_was_handed_over_and_has_to_wait_is_not_forgotten() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.script.borrow_mut().orders.insert(5, 9);
    bench.script.borrow_mut().interrupts.extend([6, 3]);
    let did = bench.wake(MS, &[6]);
    assert!(did.contains(&Did::Dispatch(6, 0, 2)), "{did:?}");
    // Before its turn begins somebody else is to go first.
    let did = bench.wake(MS, &[3]);
    assert_eq!(did, [Did::Dispatch(3, 0, 3), Did::Kick(0, Kick::Preempt)]);
    bench.switch(MS, 0, Some((5, MS, Ends::Runnable)), Some((3, 0)));
    let did = bench.switch(2 * MS, 0, Some((3, MS, Ends::Sleeps)), None);
    assert_eq!(did, [Did::Kick(0, Kick::Look)]);
    bench.switch(2 * MS, 0, None, Some((6, 0)));
    bench.switch(3 * MS, 0, Some((6, MS, Ends::Sleeps)), None);
    let last = bench.script.borrow().turns.last().copied();
    assert_eq!(last, Some((6, MS, End::Slept)));
}

/// The kernel has ended a turn by itself, and that is known before who has the CPU now.
#[test]
fn nor_is_who_finds_the_cpu_taken() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5, 6]);
    bench.switch(0, 0, None, Some((5, 0)));
    let arrival = bench.arrival(5, false);
    let did = bench.pass(MS, vec![arrival], &[]);
    assert_eq!(did, [Did::Dispatch(5, 0, 3), Did::Kick(0, Kick::Look)]);
    bench.switch(MS, 0, Some((5, MS, Ends::Runnable)), Some((9, 0)));
    // It is waited for as any other.
    assert_eq!(bench.engine.next_look(), Some(5 * MS));
    let did = bench.switch(2 * MS, 0, Some((9, MS, Ends::Sleeps)), None);
    assert_eq!(did, [Did::Kick(0, Kick::Look)]);
}

#[test]
fn a_bound_task_waits_for_its_cpu() {
    let mut bench = Bench::new(3);
    bench.engine.backend().affinity.insert(7, vec![1, 2]);
    let mut pinned = bench.arrival(4, true);
    pinned.nr_allowed = 1;
    pinned.cpu = CpuId(2);
    let mut bound = bench.arrival(7, true);
    bound.nr_allowed = 2;
    let mut other = bench.arrival(8, true);
    other.nr_allowed = 1;
    other.cpu = CpuId(2);
    let did = bench.pass(0, vec![pinned, bound, other], &[]);
    let dispatched: Vec<_> = did
        .into_iter()
        .filter(|did| matches!(did, Did::Dispatch(..)))
        .collect();
    // CPU 0 stays idle, as nobody may run there.
    let expected = [Did::Dispatch(4, 2, 1), Did::Dispatch(7, 1, 2)];
    assert_eq!(dispatched, expected);
}

#[test]
fn a_group_binds_a_vcpu_to_its_home() {
    let mut bench = Bench::new(2);
    bench.pass(0, Vec::new(), &[told(0, 5, Some(1), false)]);
    let did = bench.wake(0, &[5]);
    let home = [
        Did::Dispatch(5, 1, 1),
        Did::Tell(5, abi::PVSCHED_APPLIED_BASELINE.into()),
        Did::Kick(1, Kick::Look),
    ];
    assert_eq!(did, home);
}

/// The vCPU 5 runs, 6 waits for its CPU, and is to go first when that is decided again.
fn vcpu_before_a_task() -> Bench {
    let mut bench = Bench::new(1);
    bench.pass(0, Vec::new(), &[told(0, 5, None, false)]);
    bench.wake(0, &[5, 6]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.script.borrow_mut().orders.insert(5, 9);
    bench
}

#[test]
fn a_hint_ends_the_turn_if_the_policy_says_so() {
    let mut bench = vcpu_before_a_task();
    let stays = bench.pass(MS, Vec::new(), &[told(MS, 5, None, true)]);
    assert_eq!(stays, []);
    bench.script.borrow_mut().hint = Some(Reaction::PlaceAgain);
    let did = bench.pass(MS, Vec::new(), &[told(MS, 5, None, true)]);
    assert!(did.contains(&Did::Dispatch(6, 0, 2)), "{did:?}");
    assert_eq!(bench.script.borrow().turns, [(5, MS, End::Hinted)]);
}

/// What the guest says by now is read whenever somebody comes between.
#[test]
fn a_turn_that_the_engine_interrupts_is_judged_anew() {
    let mut bench = vcpu_before_a_task();
    bench.script.borrow_mut().hint = Some(Reaction::PlaceAgain);
    let did = bench.pass(MS, Vec::new(), &[told(MS, 5, None, false)]);
    assert!(did.contains(&Did::Dispatch(6, 0, 2)), "{did:?}");
}

/// An interrupt comes in for a vCPU whose turn has just ended: it is told of that, of the arrival and of the
/// interrupt at once.
#[test]
fn a_vcpu_that_is_hinted_as_it_loses_its_cpu_takes_it_back() {
    let mut bench = vcpu_before_a_task();
    bench.pass(4 * MS, Vec::new(), &[]);
    let arrival = bench.arrival(5, false);
    {
        let mut script = bench.script.borrow_mut();
        script.orders.insert(5, 1);
        script.interrupts.insert(5);
        script.hint = Some(Reaction::PlaceAgain);
    }
    let number = arrival.number;
    let news = [
        switch(4 * MS, 0, Some((5, 4 * MS, Ends::Runnable)), Some((6, 0))),
        told(4 * MS, 5, None, true),
    ];
    let did = bench.pass(4 * MS, vec![arrival], &news);
    assert!(did.contains(&Did::Dispatch(5, 0, number)), "{did:?}");
}

/// A CPU is told to end a turn that the kernel is just about to begin.
#[test]
fn who_interrupts_a_turn_that_had_not_begun_interrupts_it_again() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[6]);
    bench.script.borrow_mut().interrupts.insert(5);
    let did = bench.wake(0, &[5]);
    assert!(did.contains(&Did::Kick(0, Kick::Preempt)), "{did:?}");
    let did = bench.switch(0, 0, None, Some((6, 0)));
    assert_eq!(did, [Did::Kick(0, Kick::Preempt)]);
    bench.switch(MS, 0, Some((6, MS, Ends::Runnable)), Some((5, 0)));
    assert_eq!(bench.engine.world.cpus[0].running, Some(TaskId(5)));
}

/// Before it took over, the kernel's own scheduler switched between them, and all that comes at once.
#[test]
fn who_went_on_after_a_turn_that_was_told_late_is_not_forgotten() {
    let news = [
        switch(MS, 0, None, Some((5, 0))),
        switch(2 * MS, 0, Some((5, MS, Ends::Runnable)), Some((6, 0))),
        switch(3 * MS, 0, Some((6, MS, Ends::Runnable)), Some((5, MS))),
        switch(4 * MS, 0, Some((5, 2 * MS, Ends::Runnable)), Some((6, MS))),
    ];
    // The news need not end with a loss: a thread of the kernel's comes between unseen.
    for seen in [3, 4] {
        let mut bench = Bench::new(1);
        let arrival = bench.arrival(5, false);
        bench.pass(4 * MS, vec![arrival], &news[..seen]);
        let world = &bench.engine.world;
        let known = &world.known[&TaskId(5)];
        let is_there = known.handed || known.queued_for.is_some();
        let expected = world.turns.get(&CpuId(0));
        let expected = expected.is_some_and(|turn| turn.task == TaskId(5) && turn.exec.is_none());
        assert!(
            expected || is_there && world.queue.contains(TaskId(5)),
            "{seen} of the news: {known:?}"
        );
    }
}

/// Its guest takes interrupts while it runs, and nothing tells of that.
#[test]
fn a_vcpu_whose_turn_ends_is_placed_by_what_is_known_then() {
    let mut bench = vcpu_before_a_task();
    let News::Vcpu(mut now) = told(4 * MS, 5, None, false) else {
        unreachable!()
    };
    now.vcpu.interrupt = Some(scx_pvsched::policy::Interrupt {
        since: 3 * MS,
        urgency: None,
    });
    bench.engine.backend().known.insert(5, now);
    bench.pass(4 * MS, Vec::new(), &[]);
    let vcpu = bench.engine.world.tasks[&TaskId(5)].vcpu;
    assert_eq!(vcpu, Some(now.vcpu));
}

/// What a vCPU has not taken when it loses the CPU is known only then, and by then it has its place.
#[test]
fn news_of_a_vcpu_that_had_to_make_room_may_change_its_place() {
    let mut bench = vcpu_before_a_task();
    bench.pass(4 * MS, Vec::new(), &[]);
    bench.script.borrow_mut().hint = Some(Reaction::PlaceAgain);
    bench.script.borrow_mut().orders.insert(5, 1);
    bench.script.borrow_mut().interrupts.insert(5);
    let lost = switch(4 * MS, 0, Some((5, 4 * MS, Ends::Runnable)), Some((6, 0)));
    let arrival = bench.arrival(5, false);
    let did = bench.pass(4 * MS, vec![arrival], &[told(4 * MS, 5, None, false), lost]);
    assert!(did.contains(&Did::Dispatch(5, 0, 3)), "{did:?}");
    let last = bench.script.borrow().asked[2..].to_vec();
    assert_eq!(
        last,
        [(5, Why::TurnEnded), (5, Why::Hinted), (6, Why::Interrupted)]
    );
}

#[test]
fn a_turn_that_does_not_begin_is_given_up() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.wake(0, &[6]);
    bench.switch(0, 0, None, None);
    let mut asked = Vec::new();
    let mut dispatched = Vec::new();
    while let Some(at) = bench.engine.next_look().filter(|at| *at < 400 * MS) {
        asked.push(at);
        let did = bench.pass(at, Vec::new(), &[]).into_iter();
        dispatched.extend(did.filter(|did| matches!(did, Did::Dispatch(..))));
        if dispatched.len() == 2 {
            break;
        }
    }
    assert_eq!(asked[..3], [MS / 2, 3 * MS / 2, 7 * MS / 2]);
    // Once more, as the kernel may not have taken notice.
    assert_eq!(dispatched, [Did::Dispatch(5, 0, 1), Did::Dispatch(6, 0, 2)]);
}

#[test]
fn where_there_is_no_room_it_waits() {
    let mut bench = Bench::new(1);
    bench.engine.backend().full = true;
    assert_eq!(bench.wake(0, &[5]), [Did::Waiting(true)]);
    bench.engine.backend().full = false;
    let did = bench.pass(MS, Vec::new(), &[]);
    assert!(did.contains(&Did::Dispatch(5, 0, 1)), "{did:?}");
}

#[test]
fn a_task_that_runs_unasked_is_made_known() {
    let mut bench = Bench::new(1);
    bench.switch(0, 0, None, Some((9, 70)));
    assert_eq!(bench.script.borrow().asked, [(9, Why::Woke)]);
    bench.switch(MS, 0, Some((9, 70 + MS, Ends::Dies)), None);
    let script = bench.script.borrow();
    assert_eq!(script.turns, [(9, MS, End::Gone)]);
    assert_eq!(script.gone, [9]);
}

#[test]
fn nothing_is_kept_of_who_has_died() {
    let mut bench = Bench::new(1);
    bench.wake(0, &[5]);
    bench.switch(0, 0, None, Some((5, 0)));
    bench.switch(MS, 0, Some((5, MS, Ends::Dies)), None);
    let world = &bench.engine.world;
    assert!(world.tasks.is_empty() && world.known.is_empty() && world.turns.is_empty());
}

#[path = "engine_random_tests.rs"]
mod random;
