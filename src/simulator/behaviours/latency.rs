// SPDX-License-Identifier: GPL-2.0-only
//! What `latency` promises beyond what every policy does.

use std::collections::{BTreeMap, BTreeSet};

use super::{budget, ensure, is_partitioned, may_run, threads};
use crate::policy::{arithmetic, Applied, CpuId, TaskId, Urgency};
use crate::simulator::scenario::{Load, Scenario, Thread, Vm, MS};
use crate::simulator::{Trace, Wait};

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

pub(super) fn shares_by_weight(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
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

pub(super) fn runs_urgent_tasks_early(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
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

pub(super) fn orders_by_rank(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
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
                // It had no CPU then; it may also have been late as it took an interrupt first.
                let waited = |wait: &Wait| {
                    wait.task == late.job.0 && wait.began < turn.began && turn.began < wait.ended
                };
                turn.began > late.due
                    && turn.applied == Applied::BoostTask
                    && may_run(trace, late.job.0, one.thread, turn.cpu)
                    && trace.waits.iter().any(waited)
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

/// To be ahead while nobody waits is no boost.
pub(super) fn keeps_the_irq_budget(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let cpus = (0..scenario.topology.len()).map(CpuId);
    let waits: BTreeMap<_, _> = cpus
        .map(|cpu| (cpu, somebody_waits(scenario, trace, cpu)))
        .collect();
    let is_waited_for = |cpu: CpuId, time: u64| {
        let waits = &waits[&cpu];
        let next = waits.partition_point(|(began, _)| *began <= time);
        next > 0 && time < waits[next - 1].1
    };
    for (id, vm, _) in scenario.vcpus() {
        let ahead = trace.ahead.iter().filter(|one| {
            one.task == id && one.applied == Applied::BoostIrq && is_waited_for(one.cpu, one.began)
        });
        let (mut debt, mut most, mut settled) = (0, 0, 0);
        for one in ahead {
            debt = arithmetic::debt_repay(debt, one.began - settled);
            debt = arithmetic::debt_add(debt, one.ended - one.began);
            (most, settled) = (debt.max(most), one.ended);
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

pub(super) fn keeps_caps(scenario: &Scenario, trace: &Trace) -> Result<(), String> {
    let vcpus = scenario.vcpus();
    for (id, _, _) in vcpus.filter(|(_, vm, _)| vm.limits.rank_max == 0) {
        let boosted = trace.ran_ahead(id, Applied::BoostTask);
        ensure(boosted == 0, || {
            format!("{id:?} was ahead for {} us", boosted / 1000)
        })?;
    }
    Ok(())
}
