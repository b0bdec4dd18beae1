// SPDX-License-Identifier: GPL-2.0-only
//! What a policy keeps: one list, each a check of what happened in a scenario.
//!
//! A check is given the scenario and its trace and nothing of the policy, so it may be asked of the
//! trace of any engine. It holds for every scenario, and says nothing where a scenario has no
//! occasion for it.

use std::collections::{BTreeMap, BTreeSet};

use super::scenario::{Load, Scenario, Thread, Vm, MS};
use super::Trace;
use crate::policy::{arithmetic, Applied, CpuId, Limits, TaskId, Urgency};

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
        check: shares_by_weight,
    },
    Behaviour {
        name: "runs urgent tasks of guests early",
        of: Of::Latency,
        check: runs_urgent_tasks_early,
    },
    Behaviour {
        name: "orders urgent tasks by class and priority, across VMs",
        of: Of::Latency,
        check: orders_by_rank,
    },
    Behaviour {
        name: "boosts for interrupts alone within their budget",
        of: Of::Latency,
        check: keeps_the_irq_budget,
    },
    Behaviour {
        name: "grants no VM a class that it may not have",
        of: Of::Latency,
        check: keeps_caps,
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

/// Of what weight it is as long as it runs, if it is always the same: in 1024ths.
fn steady_weight(thread: &Thread, vm: Option<&Vm>) -> Option<u64> {
    let of = |urgency: Urgency| match vm {
        Some(vm) if vm.publishes => {
            let (least, most) = vm.limits.guest_weight;
            arithmetic::clamp(arithmetic::guest_weight(urgency.0), least, most)
        }
        _ => arithmetic::PV_GUEST_WEIGHT_DFL,
    };
    let first = of(thread.jobs.first()?.urgency);
    // While interrupts wait a light one counts as an ordinary one.
    let same = thread.jobs.iter().all(|job| of(job.urgency) == first);
    let quiet = thread.jobs.iter().all(|job| job.load == Load::Busy);
    (same && (quiet || first == arithmetic::PV_GUEST_WEIGHT_DFL))
        .then(|| arithmetic::weight(thread.weight.get(), first))
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

fn shares_by_weight(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    // Time for which nobody waits costs nobody his share, and where threads are bound to CPUs, not all
    // have the same to share.
    let always = scenario.threads().filter(|(_, _, thread)| thread.is_busy());
    let dies = scenario.vms.iter().any(|vm| vm.dies.is_some());
    if dies || is_partitioned(scenario, trace) || always.count() <= scenario.topology.len() as usize
    {
        return Ok(());
    }
    let steady = threads(scenario).filter(|(_, thread, _)| thread.is_busy());
    let mut busy: Vec<_> = steady
        .filter_map(|(id, thread, vm)| Some((id, steady_weight(thread, vm)?, vm)))
        .collect();
    // One to whom more than a CPU is due gets one, and the others the rest.
    let mut cpus = u64::from(scenario.topology.len());
    busy.sort_by_key(|(_, weight, _)| *weight);
    while let Some((_, weight, _)) = busy.last() {
        let weights: u64 = busy.iter().map(|(_, weight, _)| *weight).sum();
        if weight * cpus * 10 < weights * 9 {
            break;
        }
        busy.pop();
        cpus = cpus.saturating_sub(1);
    }
    for (number, (id, weight, vm)) in busy.iter().enumerate() {
        for (other, others, other_vm) in &busy[..number] {
            let (ran, others_ran) = (trace.ran(*id), trace.ran(*other));
            // All in time of the heavier one.
            let heavier = *weight.max(others);
            let of = |ran: u64, weight: u64| ran as f64 * heavier as f64 / weight as f64;
            let apart = (of(ran, *weight) - of(others_ran, *others)).abs();
            let slices = of(20 * MS, *weight).max(of(20 * MS, *others));
            let margin = of(budget(*vm), *weight) + of(budget(*other_vm), *others) + slices;
            let margin = margin + 0.02 * trace.ended as f64;
            ensure(apart <= margin, || {
                format!(
                    "{id:?} of weight {weight} got {} ms, {other:?} of weight {others} got {} ms",
                    ran / MS,
                    others_ran / MS
                )
            })?;
        }
    }
    Ok(())
}

/// An urgent task in a guest that says so.
struct Urgent<'a> {
    job: (TaskId, usize),
    thread: &'a Thread,
    rank: u32,
    period: u64,
    run: u64,
}

fn urgent(scenario: &Scenario) -> Vec<Urgent<'_>> {
    let mut all = Vec::new();
    for (id, vm, vcpu) in scenario.vcpus().filter(|(_, vm, _)| vm.publishes) {
        for (number, job) in vcpu.thread.jobs.iter().enumerate() {
            let rank = arithmetic::cap_rank(job.urgency.rank(), vm.limits.rank_max);
            if let Load::Periodic { period, run, .. } = job.load {
                let job = (id, number);
                let thread = &vcpu.thread;
                all.extend((rank > 0).then_some(Urgent {
                    job,
                    thread,
                    rank,
                    period,
                    run,
                }));
            }
        }
    }
    all
}

/// Whether an urgent task on it never sleeps.
fn is_endless(thread: &Thread) -> bool {
    let mut jobs = thread.jobs.iter();
    jobs.any(|job| job.load == Load::Busy && job.urgency.rank() > 0)
}

fn runs_urgent_tasks_early(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let all = urgent(scenario);
    // Behind one of at least its rank that never stops it waits as long as that one's budget lasts.
    if scenario.threads().any(|(_, _, thread)| is_endless(thread)) {
        return Ok(());
    }
    let weights: u64 = scenario
        .threads()
        .map(|(_, _, thread)| u64::from(thread.weight.get()))
        .sum();
    for one in &all {
        // It needs its share for more than that, and has it where all may run everywhere.
        let weight = u64::from(one.thread.weight.get());
        let share = one.period * weight * u64::from(scenario.topology.len()) / weights.max(1);
        let of_thread: u64 = all
            .iter()
            .filter(|other| other.job.0 == one.job.0)
            .map(|other| other.run)
            .sum();
        if is_partitioned(scenario, trace) || of_thread * 3 > share || trace.is_throttled(one.job.0)
        {
            continue;
        }
        let others: u64 = all
            .iter()
            .filter(|other| other.job != one.job)
            .map(|other| other.run)
            .sum();
        let Some(late) = trace.late(one.job, 90) else {
            continue;
        };
        ensure(late <= MS + others, || {
            format!(
                "{:?} of rank {} began {} us late",
                one.job,
                one.rank,
                late / 1000
            )
        })?;
    }
    Ok(())
}

fn orders_by_rank(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let all: BTreeMap<_, _> = urgent(scenario)
        .into_iter()
        .map(|one| (one.job, one))
        .collect();
    let responses: Vec<_> = trace
        .responses
        .iter()
        .filter(|one| all.contains_key(&one.job))
        .collect();
    // A response is in order of when it began, so that those who might be behind are near.
    for (number, late) in responses.iter().enumerate() {
        let one = &all[&late.job];
        // However urgent one is that never stops, others have a turn now and then.
        if is_endless(one.thread) || trace.is_throttled(late.job.0) {
            continue;
        }
        for early in responses[..number].iter().rev() {
            if early.started <= late.due {
                break;
            }
            let other = &all[&early.job];
            if other.rank >= one.rank || early.job.0 == late.job.0 {
                continue;
            }
            let turn = trace.turns.iter().find(|turn| {
                turn.task == early.job.0
                    && (turn.began..turn.began + turn.ran).contains(&early.started)
            });
            let overtook = turn.is_some_and(|turn| {
                turn.began > late.due
                    && turn.applied == Applied::BoostTask
                    && may_run(trace, late.job.0, one.thread, turn.cpu)
            });
            ensure(!overtook, || {
                format!(
                    "{:?} of rank {} waited from {} us on, {:?} of rank {} began at {} us",
                    late.job,
                    one.rank,
                    late.due / 1000,
                    early.job,
                    other.rank,
                    early.started / 1000
                )
            })?;
        }
    }
    Ok(())
}

/// When somebody waits who may run on a CPU, in order, as one time each.
fn somebody_waits(scenario: &Scenario, trace: &Trace, cpu: CpuId) -> Vec<(u64, u64)> {
    let able: BTreeSet<_> = scenario
        .threads()
        .filter(|(id, _, thread)| may_run(trace, *id, thread, cpu))
        .map(|(id, _, _)| id)
        .collect();
    let waits = trace.waits.iter().filter(|wait| able.contains(&wait.task));
    let mut waits: Vec<_> = waits.map(|wait| (wait.began, wait.ended)).collect();
    waits.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (began, ended) in waits {
        match merged.last_mut() {
            Some(last) if began <= last.1 => last.1 = last.1.max(ended),
            _ => merged.push((began, ended)),
        }
    }
    merged
}

/// A turn that begins while nobody waits is no boost.
fn keeps_the_irq_budget(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let cpus = (0..scenario.topology.len()).map(CpuId);
    let waits: BTreeMap<_, _> = cpus
        .map(|cpu| (cpu, somebody_waits(scenario, trace, cpu)))
        .collect();
    let is_waited_for = |cpu: CpuId, time: u64| {
        let waits = &waits[&cpu];
        let next = waits.partition_point(|(began, _)| *began <= time);
        next > 0 && time < waits[next - 1].1
    };
    for (id, vm, vcpu) in scenario.vcpus() {
        // What begins with an interrupt goes on for the task that it wakes, on that one's budget.
        if vcpu.thread.jobs.iter().any(|job| job.urgency.rank() > 0) {
            continue;
        }
        let turns = trace.turns.iter().filter(|turn| {
            turn.task == id
                && turn.applied == Applied::BoostIrq
                && is_waited_for(turn.cpu, turn.began)
        });
        let (mut debt, mut most, mut settled) = (0, 0, 0);
        for turn in turns {
            debt = arithmetic::debt_repay(debt, turn.began - settled);
            debt = arithmetic::debt_add(debt, turn.ran);
            (most, settled) = (debt.max(most), turn.began + turn.ran);
        }
        // The shortest slice may be longer than what is left.
        ensure(most <= vm.limits.irq_budget + MS, || {
            format!(
                "{id:?} was ahead for {} us more than it was not",
                most / 1000
            )
        })?;
    }
    Ok(())
}

fn keeps_caps(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    for (id, vm, _) in scenario
        .vcpus()
        .filter(|(_, vm, _)| vm.limits.rank_max == 0)
    {
        let boosted = trace.ran_as(id, Applied::BoostTask);
        ensure(boosted == 0 || vm.limits.rank_max > 0, || {
            format!("{id:?} was ahead for {} us", boosted / 1000)
        })?;
    }
    Ok(())
}
