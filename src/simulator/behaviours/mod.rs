// SPDX-License-Identifier: GPL-2.0-only
//! What a policy keeps: one list, each a check of what happened in a scenario.
//!
//! A check is given the scenario and its trace and nothing of the policy, so it may be asked of the
//! trace of any engine. It holds for every scenario, and says nothing where a scenario has no
//! occasion for it.

mod latency;

use std::collections::BTreeMap;

use super::scenario::{Scenario, Thread, Vm, MS};
use super::Trace;
use crate::policy::{arithmetic, CpuId, Limits, TaskId, Urgency};

/// Whose promise it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// That of every policy.
    Every,
    /// That of `latency`.
    Latency,
}

/// One behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// What a policy does.
    pub name: &'static str,
    /// Whose promise it is.
    pub of: Of,
    /// Whether it was so, and if not, where it was not.
    pub check: fn(&Scenario, &Trace) -> Result<(), String>,
}

/// All of them.
pub const BEHAVIOURS: &[Behaviour] = &[
    Behaviour {
        name: "uses only CPUs that a task may have, for one task at a time",
        of: Of::Every,
        check: uses_cpus_rightly,
    },
    Behaviour {
        name: "leaves no CPU idle while somebody waits who may run there",
        of: Of::Every,
        check: conserves_work,
    },
    Behaviour {
        name: "lets nobody starve",
        of: Of::Every,
        check: lets_nobody_starve,
    },
    Behaviour {
        name: "keeps vCPUs of an exclusion group on different CPUs",
        of: Of::Every,
        check: keeps_groups_apart,
    },
    Behaviour {
        name: "leaves nothing of a VM that is lost",
        of: Of::Every,
        check: forgets_lost_vms,
    },
    Behaviour {
        name: "shares CPU time by weight, and repays boosts",
        of: Of::Latency,
        check: latency::shares_by_weight,
    },
    Behaviour {
        name: "runs urgent tasks of guests early",
        of: Of::Latency,
        check: latency::runs_urgent_tasks_early,
    },
    Behaviour {
        name: "orders urgent tasks by class and priority, across VMs",
        of: Of::Latency,
        check: latency::orders_by_rank,
    },
    Behaviour {
        name: "boosts for interrupts alone within their budget",
        of: Of::Latency,
        check: latency::keeps_the_irq_budget,
    },
    Behaviour {
        name: "grants no VM a class that it may not have",
        of: Of::Latency,
        check: latency::keeps_caps,
    },
];

/// Checks all behaviours that are promised by everybody, and with `of` those that are by `latency` too.
///
/// # Errors
/// The first that was not kept, by name, and where it was not.
pub fn check(scenario: &Scenario, trace: &Trace, of: Of) -> Result<(), String> {
    let mut promised = BEHAVIOURS
        .iter()
        .filter(|one| one.of == Of::Every || one.of == of);
    promised.try_for_each(|one| {
        (one.check)(scenario, trace).map_err(|what| format!("it {}? {what}", one.name))
    })
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(what())
    }
}

fn may_run(trace: &Trace, id: TaskId, thread: &Thread, cpu: CpuId) -> bool {
    let home = trace.homes.get(&id);
    home.is_none_or(|home| *home == cpu)
        && (thread.affinity.is_empty() || thread.affinity.contains(&cpu))
}

fn uses_cpus_rightly(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    ensure(trace.faults.is_empty(), || trace.faults.join(", "))?;
    let threads: BTreeMap<_, _> = scenario
        .threads()
        .map(|(id, _, thread)| (id, thread))
        .collect();
    let (mut of_cpu, mut of_task) = (BTreeMap::new(), BTreeMap::new());
    for turn in &trace.turns {
        let allowed = threads.get(&turn.task);
        let allowed = allowed.is_some_and(|thread| may_run(trace, turn.task, thread, turn.cpu));
        ensure(allowed, || format!("not in {turn:?}"))?;
        let ended = turn.began + turn.ran;
        let before = of_cpu
            .insert(turn.cpu, ended)
            .max(of_task.insert(turn.task, ended));
        ensure(before.is_none_or(|ended| ended <= turn.began), || {
            format!("{turn:?} begins before another one has ended")
        })?;
    }
    Ok(())
}

fn conserves_work(_: &Scenario, trace: &Trace) -> Result<(), String> {
    ensure(trace.wasted == 0, || {
        format!("for {} us it did", trace.wasted / 1000)
    })
}

/// Each thread with its VM.
fn threads(scenario: &Scenario) -> impl Iterator<Item = (TaskId, &Thread, Option<&Vm>)> {
    let vms: BTreeMap<_, _> = scenario.vcpus().map(|(id, vm, _)| (id, vm)).collect();
    let all = scenario.threads();
    all.map(move |(id, _, thread)| (id, thread, vms.get(&id).copied()))
}

/// How far boosts may carry a vCPU ahead of its share.
fn budget(vm: Option<&Vm>) -> u64 {
    vm.map_or(0, |vm| {
        vm.limits.task_budget.min(Limits::default().task_budget)
    })
}

/// SCHED_IDLE work may wait for as long as it takes.
fn lets_nobody_starve(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let budgets: u64 = threads(scenario).map(|(_, _, vm)| budget(vm)).sum();
    let weight = |thread: &Thread| u64::from(thread.weight.get());
    let weights: u64 = scenario
        .threads()
        .map(|(_, _, thread)| weight(thread))
        .sum();
    for (id, thread, vm) in threads(scenario) {
        let is_light =
            |vm: &Vm| vm.publishes && thread.jobs.iter().any(|job| job.urgency == Urgency::IDLE);
        // Until others have had what they may have ahead, a round at the lowest weight is over, and
        // its own lead is repaid.
        let rounds = (budget(vm) + 20 * MS) * weights / weight(thread);
        // Those who are not bound to its CPU may be owed time that they had no occasion to use elsewhere.
        let owed = if is_partitioned(scenario, trace) {
            weights * u64::from(arithmetic::PV_OWED_MAX_NS) / 100
        } else {
            0
        };
        let bound = 100 * MS + budgets + rounds + owed;
        let wait = trace.longest_wait(id);
        ensure(wait <= bound || vm.is_some_and(is_light), || {
            format!("{id:?} waited for {} ms, not {}", wait / MS, bound / MS)
        })?;
    }
    Ok(())
}

fn keeps_groups_apart(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let mut first = 0;
    let vcpus: Vec<_> = scenario.vcpus().collect();
    for vm in &scenario.vms {
        let own = &vcpus[first..first + vm.vcpus.len()];
        first += vm.vcpus.len();
        for (number, (id, _, vcpu)) in own.iter().enumerate() {
            let group: Vec<_> = own
                .iter()
                .filter(|other| vcpu.group != 0 && other.2.group == vcpu.group)
                .collect();
            let free = group
                .iter()
                .all(|(_, _, one)| one.thread.affinity.is_empty());
            if !free || group.len() > scenario.topology.len() as usize {
                continue;
            }
            for (other, _, _) in own[..number]
                .iter()
                .filter(|one| one.2.group == vcpu.group && vcpu.group != 0)
            {
                let of = |id| {
                    trace
                        .turns
                        .iter()
                        .filter(move |turn| turn.task == id)
                        .map(|turn| turn.cpu)
                };
                let shared = of(*id).find(|cpu| of(*other).any(|one| one == *cpu));
                ensure(shared.is_none(), || {
                    format!("{id:?} and {other:?} shared {shared:?}")
                })?;
            }
        }
    }
    Ok(())
}

fn forgets_lost_vms(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    for (id, vm, _) in scenario.vcpus() {
        let Some(dies) = vm.dies.filter(|dies| *dies < trace.ended) else {
            continue;
        };
        let turns = trace.turns.iter().filter(|turn| turn.task == id);
        let waits = trace.waits.iter().filter(|wait| wait.task == id);
        let last = turns
            .map(|turn| turn.began + turn.ran)
            .chain(waits.map(|wait| wait.ended))
            .max();
        ensure(last.is_none_or(|last| last <= dies), || {
            format!("{id:?} died at {dies} and was there until {last:?}")
        })?;
    }
    Ok(())
}

/// Whether there are threads that may not run on every CPU.
fn is_partitioned(scenario: &Scenario, trace: &Trace) -> bool {
    let mut threads = scenario.threads();
    threads.any(|(id, _, thread)| !thread.affinity.is_empty() || trace.homes.contains_key(&id))
}
