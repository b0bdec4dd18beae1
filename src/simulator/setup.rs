// SPDX-License-Identifier: GPL-2.0-only
//! A scenario becomes a world.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::guest::Work;
use super::scenario::Scenario;
use super::{Event, Simulator, Trace, World};
use crate::policy::{homes, Cpu, CpuId, Owner, Policy, Queue, Role, Task, TaskId, Vcpu, VmId};

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
    pub(super) fn new(scenario: &Scenario, policy: &'a mut dyn Policy) -> Self {
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
                (Owner::Vm(number), Some((vm, vcpu))) => Some(Vcpu {
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
}
