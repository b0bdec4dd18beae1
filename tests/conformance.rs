// SPDX-License-Identifier: GPL-2.0-only
//! What every policy keeps, and what `latency` keeps beyond that, in any scenario; and that the checks
//! notice policies that do not. A scenario that fails is made as small as it fails with.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use scx_pvsched::policy::latency::Latency;
use scx_pvsched::policy::*;
use scx_pvsched::simulator::behaviours::{check, Behaviour, Of, BEHAVIOURS};
use scx_pvsched::simulator::scenario::*;
use scx_pvsched::simulator::{simulate, Trace};

const SECOND: u64 = 1_000_000_000;

fn some_urgency() -> impl Strategy<Value = Urgency> {
    prop_oneof![
        (1u8..=99).prop_map(Urgency::realtime),
        Just(Urgency::DEADLINE)
    ]
}

/// An urgent task with little to do.
fn urgent_job() -> impl Strategy<Value = Job> {
    (
        some_urgency(),
        5 * MS..40 * MS,
        50 * US..300 * US,
        0..20 * MS,
    )
        .prop_map(|(urgency, period, run, first)| {
            let load = Load::Periodic {
                first,
                period,
                run,
                jitter: true,
            };
            Job { urgency, load }
        })
}

/// What else a guest does.
fn ordinary_jobs() -> impl Strategy<Value = Vec<Job>> {
    let busy = |urgency| Job {
        urgency,
        load: Load::Busy,
    };
    let interrupts = (100 * US..5 * MS, 5 * US..50 * US).prop_map(|(period, run)| Job {
        load: Load::Interrupts { period, run },
        ..Job::BUSY
    });
    let periodic = (5 * MS..100 * MS, 100 * US..20 * MS)
        .prop_map(|(period, run)| Job::periodic(Urgency::NORMAL, period, run));
    let greedy = (1u8..=99).prop_map(move |prio| busy(Urgency::realtime(prio)));
    let one = prop_oneof![
        4 => Just(Job::BUSY),
        1 => Just(busy(Urgency::IDLE)),
        1 => Just(busy(Urgency::BATCH)),
        1 => (0i8..10).prop_map(move |nice| busy(Urgency::nice(nice))),
        1 => greedy,
        2 => interrupts,
        2 => periodic,
    ];
    prop::collection::vec(one, 1..=2)
}

fn some_thread(jobs: impl Strategy<Value = Vec<Job>>) -> impl Strategy<Value = Thread> {
    (prop_oneof![Just(100u32), 50..=200u32], jobs).prop_map(|(weight, jobs)| Thread {
        weight: Weight::new(weight).expect("it is in range"),
        ..Thread::new(jobs)
    })
}

fn some_vcpu() -> impl Strategy<Value = GuestCpu> {
    let jobs = (prop::option::of(urgent_job()), ordinary_jobs())
        .prop_map(|(urgent, others)| urgent.into_iter().chain(others).collect());
    let role = prop_oneof![
        4 => Just(Role::None), 1 => Just(Role::Latency), 1 => Just(Role::Interrupt), 1 => Just(Role::Batch),
    ];
    (
        some_thread(jobs),
        role,
        prop_oneof![4 => Just(0u16), 1 => Just(1)],
    )
        .prop_map(|(thread, role, group)| GuestCpu {
            thread,
            role,
            group,
        })
}

fn some_vm() -> impl Strategy<Value = Vm> {
    let limits = (
        prop_oneof![3 => Just(arithmetic::PV_RANK_MAX), 1 => Just(0), 1 => 2..50u32],
        prop_oneof![2 => Just(100 * MS), 1 => 5 * MS..100 * MS],
        prop_oneof![2 => Just(10 * MS), 1 => MS..10 * MS],
    );
    let limits = limits.prop_map(|(rank_max, task_budget, irq_budget)| Limits {
        rank_max,
        task_budget,
        irq_budget,
        ..Limits::default()
    });
    let vcpus = prop::collection::vec(some_vcpu(), 1..=2);
    let dies = prop_oneof![4 => Just(None), 1 => (1..SECOND / 2).prop_map(Some)];
    (prop::bool::weighted(0.8), limits, vcpus, dies).prop_map(|(publishes, limits, vcpus, dies)| {
        Vm {
            publishes,
            limits,
            vcpus,
            dies,
        }
    })
}

prop_compose! {
    fn some_scenario()(
        seed: u64, caches in 1u32..=2, cores in 1u32..=2, threads in 1u32..=2, smt_isolate: bool,
        tasks in prop::collection::vec(some_thread(ordinary_jobs()), 0..4),
        vms in prop::collection::vec(some_vm(), 1..=3),
        bound in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) -> Scenario {
        let topology = Topology { caches, cores, threads };
        let mut scenario = Scenario { seed, duration: SECOND, topology, smt_isolate, tasks, vms };
        if let (Some(bound), false) = (bound, scenario.tasks.is_empty()) {
            let cpu = u32::try_from(bound.index(topology.len() as usize)).expect("it is small");
            scenario.tasks[0].affinity = vec![CpuId(cpu)];
        }
        scenario
    }
}

prop_compose! {
    /// A vCPU that does nothing but take interrupts, as its silent guest says.
    fn some_flood()(seed: u64, period in 50 * US..200 * US, cpus in 1u32..=2) -> Scenario {
        let load = Load::Interrupts { period, run: 20 * US };
        let role = Role::Interrupt;
        let thread = Thread::new([Job::BUSY, Job { load, ..Job::BUSY }]);
        let mut vm = Vm::new([GuestCpu { role, ..thread.into() }]);
        vm.publishes = false;
        Scenario {
            seed,
            duration: SECOND,
            topology: Topology::flat(cpus),
            smt_isolate: false,
            tasks: vec![Thread::new([Job::BUSY]); 2],
            vms: vec![vm],
        }
    }
}

fn run(scenario: &Scenario, policy: &mut dyn Policy) -> Trace {
    simulate(scenario, policy)
}

/// As many cases as `PROPTEST_CASES` says; a failure is shown whole, so that nothing need be kept.
fn config() -> Config {
    Config {
        failure_persistence: None,
        ..Config::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_policy_keeps_what_every_policy_promises(scenario in some_scenario()) {
        for (name, policy) in POLICIES {
            let kept = check(&scenario, &run(&scenario, &mut *policy()), Of::Every);
            prop_assert!(kept.is_ok(), "{name}: {}", kept.unwrap_err());
        }
    }

    #[test]
    fn latency_keeps_what_it_promises(scenario in some_scenario()) {
        let kept = check(&scenario, &run(&scenario, &mut Latency::default()), Of::Latency);
        prop_assert!(kept.is_ok(), "{}", kept.unwrap_err());
    }

    #[test]
    fn latency_bounds_a_flood_of_interrupts(scenario in some_flood()) {
        let kept = check(&scenario, &run(&scenario, &mut Latency::default()), Of::Latency);
        prop_assert!(kept.is_ok(), "{}", kept.unwrap_err());
    }

    #[test]
    fn the_same_scenario_gives_the_same_trace(scenario in some_scenario()) {
        for (_, policy) in POLICIES {
            let traces = [(); 2].map(|()| run(&scenario, &mut *policy()));
            prop_assert_eq!(&traces[0], &traces[1]);
        }
    }
}

/// A policy that sees something else than there is, or decides otherwise than it should.
struct Mutant {
    inner: Box<dyn Policy>,
    sees: fn(&mut Task),
    decides: fn(&mut Decision, &Task),
}

impl Mutant {
    fn seen(&self, task: &Task) -> Task {
        let mut task = task.clone();
        (self.sees)(&mut task);
        task
    }
}

impl Policy for Mutant {
    fn runnable(&mut self, task: &Task, why: Why, host: &Host) -> Decision {
        let mut decision = self.inner.runnable(&self.seen(task), why, host);
        (self.decides)(&mut decision, task);
        decision
    }

    fn hint(&mut self, task: &Task, host: &Host) -> Reaction {
        self.inner.hint(&self.seen(task), host)
    }

    fn started(&mut self, task: &Task, cpu: CpuId, decision: &Decision, host: &Host) {
        self.inner.started(&self.seen(task), cpu, decision, host);
    }

    fn stopped(&mut self, task: &Task, turn: &Turn, host: &Host) {
        self.inner.stopped(&self.seen(task), turn, host);
    }

    fn gone(&mut self, task: &Task) {
        self.inner.gone(task);
    }
}

fn behaviour(name: &str) -> &'static Behaviour {
    let one = BEHAVIOURS.iter().find(|one| one.name == name);
    one.expect("it is in the list")
}

fn is_noticed(name: &str, sees: fn(&mut Task), decides: fn(&mut Decision, &Task)) {
    is_noticed_in(some_scenario(), name, sees, decides);
}

/// That a policy which is `latency` but for that does not keep a behaviour, in a scenario in which
/// `latency` does.
fn is_noticed_in(
    scenarios: impl Strategy<Value = Scenario>,
    name: &str,
    sees: fn(&mut Task),
    decides: fn(&mut Decision, &Task),
) {
    let behaviour = behaviour(name);
    let mut runner = TestRunner::new_with_rng(
        Config {
            cases: 3000,
            max_shrink_iters: 200,
            ..config()
        },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let result = runner.run(&scenarios, |scenario| {
        let inner = Box::<Latency>::default();
        let trace = run(
            &scenario,
            &mut Mutant {
                inner,
                sees,
                decides,
            },
        );
        (behaviour.check)(&scenario, &trace).map_err(TestCaseError::fail)
    });
    let Err(TestError::Fail(_, scenario)) = result else {
        panic!("{name}: not noticed, {result:?}");
    };
    let kept = (behaviour.check)(&scenario, &run(&scenario, &mut Latency::default()));
    assert_eq!(kept, Ok(()));
}

fn limits(task: &mut Task, change: impl Fn(&mut Limits)) {
    task.vcpu
        .iter_mut()
        .for_each(|vcpu| change(&mut vcpu.limits));
}

#[test]
fn a_policy_without_budgets_is_noticed() {
    let sees = |task: &mut Task| limits(task, |limits| limits.task_budget = u64::MAX);
    is_noticed(
        "shares CPU time by weight, and repays boosts",
        sees,
        |_, _| {},
    );
    let sees = |task: &mut Task| limits(task, |limits| limits.irq_budget = u64::MAX);
    is_noticed_in(
        some_flood(),
        "boosts for interrupts alone within their budget",
        sees,
        |_, _| {},
    );
}

#[test]
fn a_policy_without_caps_is_noticed() {
    let sees = |task: &mut Task| limits(task, |limits| limits.rank_max = arithmetic::PV_RANK_MAX);
    is_noticed("grants no VM a class that it may not have", sees, |_, _| {});
}

#[test]
fn a_policy_that_takes_all_urgent_tasks_for_alike_is_noticed() {
    let sees = |task: &mut Task| {
        let alike = |urgency: &mut Urgency| {
            if urgency.rank() > 0 {
                *urgency = Urgency::realtime(1);
            }
        };
        let Some(vcpu) = &mut task.vcpu else { return };
        if let Some(said) = &mut vcpu.published {
            alike(&mut said.current);
            alike(&mut said.pending);
        }
        if let Some(urgency) = vcpu.interrupt.as_mut().and_then(|one| one.urgency.as_mut()) {
            alike(urgency);
        }
    };
    is_noticed(
        "orders urgent tasks by class and priority, across VMs",
        sees,
        |_, _| {},
    );
}

#[test]
fn a_policy_that_does_not_listen_to_guests_is_noticed() {
    let sees = |task: &mut Task| {
        if let Some(vcpu) = &mut task.vcpu {
            (vcpu.published, vcpu.interrupt) = (None, None);
        }
    };
    is_noticed("runs urgent tasks of guests early", sees, |_, _| {});
}

#[test]
fn a_policy_without_weights_is_noticed() {
    let sees = |task: &mut Task| task.weight = Weight::DEFAULT;
    is_noticed(
        "shares CPU time by weight, and repays boosts",
        sees,
        |_, _| {},
    );
}

#[test]
fn a_policy_that_binds_tasks_to_cpus_for_nothing_is_noticed() {
    is_noticed(
        "leaves no CPU idle while somebody waits who may run there",
        |_| {},
        |decision, task| decision.cpu = task.allowed.first().copied(),
    );
}

#[test]
fn a_policy_that_forgets_where_a_task_may_run_is_noticed() {
    is_noticed(
        "uses only CPUs that a task may have, for one task at a time",
        |_| {},
        |decision, _| decision.cpu = Some(CpuId(0)),
    );
}

#[test]
fn a_policy_that_puts_the_last_first_is_noticed() {
    is_noticed(
        "lets nobody starve",
        |_| {},
        |decision, _| decision.order = u64::MAX - decision.order,
    );
}

/// What an engine has to see to, and no policy can spoil.
#[test]
fn an_engine_that_does_not_keep_groups_apart_or_forget_the_lost_is_noticed() {
    let member = || GuestCpu {
        group: 1,
        ..Thread::new([Job::BUSY]).into()
    };
    let mut vm = Vm::new([member(), member()]);
    vm.dies = Some(SECOND / 2);
    let scenario = Scenario {
        seed: 0,
        duration: SECOND,
        topology: Topology::flat(2),
        smt_isolate: false,
        tasks: vec![Thread::new([Job::BUSY])],
        vms: vec![vm],
    };
    let trace = run(&scenario, &mut Latency::default());
    check(&scenario, &trace, Of::Latency).unwrap();
    let with = |change: fn(&mut Turn)| {
        let mut trace = trace.clone();
        let first = trace
            .turns
            .iter_mut()
            .find(|turn| turn.task == TaskId(2))
            .unwrap();
        change(first);
        trace
    };
    let apart = behaviour("keeps vCPUs of an exclusion group on different CPUs");
    (apart.check)(&scenario, &with(|turn| turn.cpu = CpuId(1 - turn.cpu.0))).unwrap_err();
    let lost = behaviour("leaves nothing of a VM that is lost");
    (lost.check)(&scenario, &with(|turn| turn.began = SECOND / 4 * 3)).unwrap_err();
}

#[test]
fn the_example_of_the_readme_is_the_policy_that_is_tested() {
    let indented: String = include_str!("../src/policy/round_robin.rs")
        .lines()
        .map(|line| {
            if line.is_empty() {
                "\n".into()
            } else {
                format!("    {line}\n")
            }
        })
        .collect();
    assert!(include_str!("../README.md").contains(&indented));
}
