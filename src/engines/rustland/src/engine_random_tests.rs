// SPDX-License-Identifier: GPL-2.0-only
//! A host that does as it is told, and anything that may happen to it in any order.

use proptest::prelude::*;

use super::*;
use scx_pvsched::policy::latency::Latency;

/// A host of some CPUs that carries out what it is told, in the kernel's way.
struct Machine {
    engine: Engine<Host2>,
    /// Per CPU: who runs.
    running: Vec<Option<u32>>,
    /// Handed over to each CPU.
    handed: Vec<Vec<u32>>,
    /// Who waits for the engine, with the number of the arrival: it knows no other.
    asked: BTreeMap<u32, u64>,
    exec: BTreeMap<u32, u64>,
    /// Those that may run on one CPU only, and on which.
    bound: BTreeMap<u32, u32>,
    sleeping: BTreeSet<u32>,
    pending: Vec<Arrival>,
    news: Vec<News>,
    /// A CPU has begun to tell something, and nothing behind that can be read.
    is_held_up: bool,
    now: u64,
    numbers: u64,
}

impl Machine {
    fn new(cpus: u32, tasks: u32) -> Self {
        let cpu = |id| Cpu {
            id: CpuId(id),
            core: id as usize,
            cache: 0,
            running: None,
        };
        let list = (0..cpus).map(cpu).collect();
        Self {
            engine: Engine::new(Box::<Latency>::default(), list, Host2::default()),
            running: vec![None; cpus as usize],
            handed: vec![Vec::new(); cpus as usize],
            asked: BTreeMap::new(),
            exec: BTreeMap::new(),
            bound: BTreeMap::new(),
            sleeping: (1..=tasks).collect(),
            pending: Vec::new(),
            news: Vec::new(),
            is_held_up: false,
            now: 1 << 30,
            numbers: 0,
        }
    }

    fn arrive(&mut self, task: u32, woke: bool) {
        self.numbers += 1;
        self.asked.insert(task, self.numbers);
        let bound = self.bound.get(&task);
        self.pending.push(Arrival {
            task: TaskId(task),
            cpu: CpuId(bound.copied().unwrap_or(0)),
            weight: Weight::DEFAULT,
            nr_allowed: bound.map_or(self.running.len() as u64, |_| 1),
            woke,
            number: self.numbers,
        });
    }

    /// From now on a task that wants to run may do so on that CPU only.
    fn bind(&mut self, task: u32, cpu: u32) {
        self.bound.insert(task, cpu);
        for handed in &mut self.handed {
            handed.retain(|other| *other != task);
        }
        self.arrive(task, false);
        if let Some(was_on) = self.running.iter().position(|other| *other == Some(task)) {
            // The thread that moves it comes between, and that is one of no concern.
            self.running[was_on] = None;
            self.schedule(was_on, Ends::Sleeps);
        }
    }

    /// A CPU looks for the next task.
    fn schedule(&mut self, cpu: usize, ends: Ends) {
        let next = (!self.handed[cpu].is_empty()).then(|| self.handed[cpu].remove(0));
        let prev = self.running[cpu].take();
        if let Some(prev) = prev {
            match ends {
                Ends::Runnable => self.arrive(prev, false),
                _ => {
                    self.sleeping.insert(prev);
                }
            }
        }
        self.running[cpu] = next;
        let exec = |task: u32| self.exec.get(&task).copied().unwrap_or(0);
        let prev = prev.map(|prev| (prev, exec(prev), ends));
        let next = next.map(|next| (next, exec(next)));
        let cpu = u32::try_from(cpu).unwrap();
        self.news.push(switch(self.now, cpu, prev, next));
    }

    fn decide(&mut self) {
        for _ in 0..10 {
            let arrivals = std::mem::take(&mut self.pending);
            let news = if self.is_held_up {
                Vec::new()
            } else {
                std::mem::take(&mut self.news)
            };
            self.engine.pass(self.now, arrivals, &news);
            let did = std::mem::take(&mut self.engine.backend().did);
            for did in did {
                match did {
                    Did::Dispatch(task, cpu, number) => {
                        if self.asked.get(&task) == Some(&number) {
                            self.asked.remove(&task);
                            self.handed[cpu as usize].push(task);
                        }
                    }
                    Did::Kick(cpu, how) => {
                        let cpu = cpu as usize;
                        let goes_on = self.handed[cpu].is_empty();
                        let idle = self.running[cpu].is_none();
                        if !goes_on && (idle || how == Kick::Preempt) {
                            self.schedule(cpu, Ends::Runnable);
                        }
                    }
                    Did::Tell(..) | Did::Waiting(_) => {}
                }
            }
            if self.pending.is_empty() && (self.is_held_up || self.news.is_empty()) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// A task wakes up (0), or the one on a CPU sleeps (1) or has to leave (2), if there is one.
    fn happens(&mut self, what: u32, which: u32, tasks: u32) {
        let task = which % tasks + 1;
        let cpu = which as usize % self.running.len();
        match what {
            0 if self.sleeping.remove(&task) => self.arrive(task, true),
            1 if self.running[cpu].is_some() => self.schedule(cpu, Ends::Sleeps),
            // The kernel has its own reasons.
            2 if self.running[cpu].is_some() => self.schedule(cpu, Ends::Runnable),
            _ => {}
        }
    }

    fn pass_time(&mut self, ns: u64) {
        self.now += ns;
        for task in self.running.iter().flatten() {
            *self.exec.entry(*task).or_default() += ns;
        }
    }
}

proptest! {
    /// Whatever happens in whatever order: no CPU is idle while somebody waits, and nobody is lost.
    #[test]
    fn work_is_conserved(
        cpus in 1u32..=4, tasks in 1u32..=8,
        steps in prop::collection::vec((0u32..4, 0u32..8, 1u64..8_000_000), 1..200),
    ) {
        let mut machine = Machine::new(cpus, tasks);
        for (what, which, ns) in steps {
            machine.pass_time(ns);
            machine.happens(what, which, tasks);
            machine.decide();
            let runs = machine.running.iter().flatten().count();
            let awake = tasks as usize - machine.sleeping.len();
            prop_assert_eq!(runs, awake.min(cpus as usize), "of {} that want to", awake);
        }
    }

    /// Nor is anybody lost where news comes late, and who wants a CPU is known before.
    #[test]
    fn who_arrives_before_older_news_is_not_forgotten(
        cpus in 1u32..=3, tasks in 1u32..=6,
        steps in prop::collection::vec((0u32..6, 0u32..8, 1u64..2_000_000), 1..100),
    ) {
        let mut machine = Machine::new(cpus, tasks);
        for (what, which, ns) in steps {
            machine.pass_time(ns);
            match what {
                4 => machine.is_held_up = true,
                5 => machine.is_held_up = false,
                _ => machine.happens(what, which, tasks),
            }
            machine.decide();
        }
        machine.is_held_up = false;
        machine.decide();
        // What it takes to be expected is given up in time.
        for _ in 0..600 {
            machine.pass_time(MS);
            machine.decide();
        }
        let runs = machine.running.iter().flatten().count();
        let awake = tasks as usize - machine.sleeping.len();
        prop_assert_eq!(runs, awake.min(cpus as usize), "of {} that want to", awake);
        let world = &machine.engine.world;
        for task in (1..=tasks).filter(|task| !machine.sleeping.contains(task)) {
            let id = TaskId(task);
            let is_known = world.queue.contains(id) || world.runs_on(id).is_some();
            prop_assert!(is_known, "task {} is forgotten", task);
        }
    }

    /// Two tasks share a CPU, one has another to itself, and a fourth sleeps a lot. Then the one goes to
    /// the two, and has its part at once: nobody was the worse for what it had.
    #[test]
    fn a_task_that_had_a_cpu_to_itself_shares_another_at_once(
        alone in 1u64..3_000, period in 1u64..20, when in 0u64..20,
    ) {
        let mut machine = Machine::new(2, 4);
        machine.bound = [(1, 1), (2, 1), (3, 0)].into();
        for task in 1..=3 {
            machine.sleeping.remove(&task);
            machine.arrive(task, true);
        }
        let run = |machine: &mut Machine, ms: u64| {
            for half in 0..2 * ms {
                machine.decide();
                machine.pass_time(500_000);
                if half % (2 * period) == 0 && machine.sleeping.remove(&4) {
                    machine.arrive(4, true);
                }
                let on = machine.running.iter().position(|task| *task == Some(4));
                if let Some(cpu) = on {
                    machine.schedule(cpu, Ends::Sleeps);
                }
            }
        };
        run(&mut machine, alone + when);
        machine.bind(3, 1);
        run(&mut machine, 10);
        let before = machine.exec[&3];
        run(&mut machine, 1_000);
        let had = machine.exec[&3] - before;
        // A third, less what the fourth took of that CPU, and two thirds of the 100 ms by which clocks
        // may be apart and count as one.
        prop_assert!(had > 240 * MS, "it had {} of 1 s", had);
    }

    /// Tasks that never sleep have the same, to a slice.
    #[test]
    fn hogs_share(cpus in 1u32..=3, more in 1u32..=4) {
        let tasks = cpus + more;
        let mut machine = Machine::new(cpus, tasks);
        for task in std::mem::take(&mut machine.sleeping) {
            machine.arrive(task, true);
        }
        for _ in 0..4000 {
            machine.decide();
            machine.pass_time(500_000);
        }
        let each = 2_000 * MS * u64::from(cpus) / u64::from(tasks);
        for (task, exec) in &machine.exec {
            prop_assert!(
                exec.abs_diff(each) < 20 * MS, "task {} had {} of {}", task, exec, each
            );
        }
    }
}
