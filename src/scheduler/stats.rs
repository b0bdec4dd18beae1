// SPDX-License-Identifier: GPL-2.0-only
//! Every statistic, with its description: the same words for `--stats`, `--monitor`,
//! `--help-stats` and whoever else asks the statistics server.

use std::collections::BTreeMap;

use anyhow::Result;
use scx_stats::prelude::*;
use scx_stats_derive::Stats;
use serde::{Deserialize, Serialize};

use super::bpf::intf;
use crate::abi;
use crate::policy::homes::Declared;

/// One vCPU of a VM that was handed over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Stats)]
#[stat(desc = "one vCPU", _om_prefix = "vcpu_", _om_label = "apic_id")]
pub struct VcpuMetrics {
    #[stat(desc = "thread id")]
    pub tid: u32,
    #[stat(desc = "what the guest published last", _om_skip)]
    pub published: String,
    #[stat(desc = "what the host applied last", _om_skip)]
    pub applied: String,
    #[stat(desc = "role that the guest declared", _om_skip)]
    pub role: String,
    #[stat(desc = "exclusion group that the guest declared, 0 for none")]
    pub group: u32,
    #[stat(desc = "CPU that its group leaves it, -1 for any")]
    pub home: i32,
    #[stat(desc = "boosts for urgent guest tasks")]
    pub boosts_task: u64,
    #[stat(desc = "boosts for interrupts")]
    pub boosts_irq: u64,
    #[stat(desc = "times that a budget was spent")]
    pub throttles: u64,
    #[stat(desc = "protocol observe: boosts for urgent guest tasks that were not given")]
    pub would_task: u64,
    #[stat(desc = "protocol observe: boosts for interrupts that were not given")]
    pub would_irq: u64,
    #[stat(desc = "CPU time in microseconds")]
    pub ran_us: u64,
    #[stat(desc = "part of that in which a boost was in force, in microseconds")]
    pub boosted_us: u64,
    #[stat(desc = "time that it wanted a CPU and had none, in microseconds")]
    pub waited_us: u64,
    #[stat(desc = "from wanting a CPU to having one, of late, in microseconds")]
    pub wait_us: u64,
}

/// One VM that was handed over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Stats)]
#[stat(desc = "one VM", _om_prefix = "vm_", _om_label = "vm")]
pub struct VmMetrics {
    #[stat(desc = "name given by its VMM", _om_skip)]
    pub name: String,
    #[stat(desc = "protocol in use", _om_skip)]
    pub protocol: String,
    #[stat(desc = "highest class of its tasks that gets boosts", _om_skip)]
    pub class: String,
    #[stat(desc = "nice values of its tasks that count", _om_skip)]
    pub nice: String,
    #[stat(desc = "budget of boosts for tasks, in microseconds")]
    pub task_budget_us: u64,
    #[stat(desc = "budget of boosts for interrupts, in microseconds")]
    pub irq_budget_us: u64,
    #[stat(desc = "vCPUs by APIC id")]
    pub vcpus: BTreeMap<u32, VcpuMetrics>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Stats)]
#[stat(top, desc = "scx_pvsched", _om_prefix = "pvsched_")]
pub struct Metrics {
    #[stat(desc = "VMs that are handed over")]
    pub nr_vms: u64,
    #[stat(desc = "vCPUs whose page is pinned")]
    pub nr_vcpus: u64,
    #[stat(
        desc = "KVM functions that give hints; empty while KVM is not loaded",
        _om_skip
    )]
    pub hint_sources: String,
    #[stat(desc = "wake-ups that went straight to an idle CPU")]
    pub direct: u64,
    #[stat(desc = "enqueued for a fair turn")]
    pub enqueued_fair: u64,
    #[stat(desc = "vCPUs enqueued ahead of the fair turns")]
    pub enqueued_boost: u64,
    #[stat(desc = "per-CPU kernel threads served at once")]
    pub enqueued_kthread: u64,
    #[stat(desc = "hints: a vCPU's timer expired")]
    pub hints_timer: u64,
    #[stat(desc = "hints: an interrupt was accepted for a vCPU")]
    pub hints_irq: u64,
    #[stat(desc = "hints: KVM kicked a vCPU")]
    pub hints_kick: u64,
    #[stat(desc = "hints: KVM woke a halted vCPU")]
    pub hints_wake: u64,
    #[stat(desc = "hints of an interrupt that was known already")]
    pub hints_repeated: u64,
    #[stat(desc = "hints of a timer that is for no urgent task, as the guest says")]
    pub hints_idle: u64,
    #[stat(desc = "waiting vCPUs whose guest's urgent timer was about to expire")]
    pub hints_due: u64,
    #[stat(desc = "waiting vCPUs of light guest work put ahead to see what a timer has woken")]
    pub looks: u64,
    #[stat(desc = "waiting vCPUs of light guest work whose guest had got heavier work meanwhile")]
    pub asked: u64,
    #[stat(
        desc = "waiting vCPUs of light guest work put ahead as another of the VM waits for a lock"
    )]
    pub unstuck: u64,
    #[stat(
        desc = "hints for waiting vCPUs that were too far ahead of their share for mere interrupts"
    )]
    pub hints_ahead: u64,
    #[stat(desc = "hints for waiting vCPUs whose budget was spent")]
    pub hints_spent: u64,
    #[stat(desc = "hints for waiting vCPUs, posted to a CPU")]
    pub posted: u64,
    #[stat(desc = "posts lost because a CPU had too many")]
    pub dropped: u64,
    #[stat(desc = "waiting vCPUs moved ahead by a post")]
    pub moved: u64,
    #[stat(desc = "boosted vCPUs kept on the CPU when their turn ended")]
    pub held: u64,
    #[stat(desc = "interrupted turns that went on because the reason was gone")]
    pub resumed: u64,
    #[stat(desc = "CPUs asked to reschedule for somebody with a better claim")]
    pub preempted: u64,
    #[stat(desc = "boosts for urgent guest tasks")]
    pub boosts_task: u64,
    #[stat(desc = "boosts for interrupts")]
    pub boosts_irq: u64,
    #[stat(desc = "boosts whose end was seen when the vCPU left guest mode")]
    pub ended_exit: u64,
    #[stat(desc = "boosts whose end was seen at a tick")]
    pub ended_tick: u64,
    #[stat(desc = "times that a vCPU was too far ahead of its share for a boost")]
    pub throttled_task: u64,
    #[stat(desc = "times that a vCPU's budget for interrupt boosts was spent")]
    pub throttled_irq: u64,
    #[stat(desc = "fair turns given although boosted vCPUs waited")]
    pub guarded: u64,
    #[stat(desc = "vCPUs put ahead because another one spins for them (KVM's directed yield)")]
    pub yields_to: u64,
    #[stat(
        desc = "cgroups without a weight or quota of their own, as there are too many, they are too deep, or \
                were just removed"
    )]
    pub groups_missing: u64,
    #[stat(desc = "times that a task had to wait for the next period of its cgroup's cpu.max")]
    pub held_back: u64,
    #[stat(desc = "--partial: times that a task which is not scheduled here took a CPU")]
    pub released: u64,
    #[stat(desc = "--partial: vCPU threads that were given the policy SCHED_EXT")]
    pub nr_switched: u64,
    #[stat(desc = "--partial: vCPU threads left to the kernel's scheduler again, as they starved")]
    pub handed_back: u64,
    #[stat(desc = "--engine rustland: tasks whose affinity changed after it had given them a CPU")]
    pub bounced: u64,
    #[stat(
        desc = "--engine rustland: tasks it was not asked about, as there were too many at once"
    )]
    pub congested: u64,
    #[stat(desc = "--engine rustland: news for which there was no room")]
    pub lost: u64,
    #[stat(desc = "times that a guest's work changed a vCPU's weight")]
    pub reweighed: u64,
    #[stat(
        desc = "vCPUs that share a CPU (with --smt-isolate: a core) with one of their exclusion group, as too few are allowed"
    )]
    pub shared_placements: u64,
    #[stat(
        desc = "hint to vCPU thread running: count below 1, 2, 4, ... microseconds",
        _om_skip
    )]
    pub hint_to_running: Vec<u64>,
    #[stat(
        desc = "hint to guest entered: count below 1, 2, 4, ... microseconds",
        _om_skip
    )]
    pub hint_to_entered: Vec<u64>,
    #[stat(
        desc = "hint to taken by the guest: count below 1, 2, 4, ... microseconds",
        _om_skip
    )]
    pub hint_to_taken: Vec<u64>,
    #[stat(
        desc = "guest's urgent timer due to its handling there: count below 1, 2, 4, ... microseconds",
        _om_skip
    )]
    pub due_to_handled: Vec<u64>,
    #[stat(
        desc = "guest's urgent task due to its running there: count below 1, 2, 4, ... microseconds",
        _om_skip
    )]
    pub due_to_task: Vec<u64>,
    #[stat(desc = "VMs by number")]
    pub vms: BTreeMap<u32, VmMetrics>,
}

impl Metrics {
    /// Adds the counters of one CPU.
    pub fn add_cpu(&mut self, cpu: &intf::pv_stats) {
        self.direct += cpu.direct;
        self.enqueued_fair += cpu.enqueued_fair;
        self.enqueued_boost += cpu.enqueued_boost;
        self.enqueued_kthread += cpu.enqueued_kthread;
        self.hints_timer += cpu.hints[intf::pv_hint_source_PV_HINT_TIMER as usize];
        self.hints_irq += cpu.hints[intf::pv_hint_source_PV_HINT_IRQ as usize];
        self.hints_kick += cpu.hints[intf::pv_hint_source_PV_HINT_KICK as usize];
        self.hints_wake += cpu.hints[intf::pv_hint_source_PV_HINT_WAKE as usize];
        self.hints_repeated += cpu.hints_repeated;
        self.hints_idle += cpu.hints_idle;
        self.hints_due += cpu.hints_due;
        self.looks += cpu.looks;
        self.asked += cpu.asked;
        self.unstuck += cpu.unstuck;
        self.hints_ahead += cpu.hints_ahead;
        self.hints_spent += cpu.hints_spent;
        self.posted += cpu.posted;
        self.dropped += cpu.dropped;
        self.moved += cpu.moved;
        self.held += cpu.held;
        self.resumed += cpu.resumed;
        self.preempted += cpu.preempted;
        self.boosts_task += cpu.boosts_task;
        self.boosts_irq += cpu.boosts_irq;
        self.ended_exit += cpu.ended_exit;
        self.ended_tick += cpu.ended_tick;
        self.throttled_task += cpu.throttled_task;
        self.throttled_irq += cpu.throttled_irq;
        self.guarded += cpu.guarded;
        self.reweighed += cpu.reweighed;
        self.yields_to += cpu.yields_to;
        self.groups_missing += cpu.groups_missing;
        self.held_back += cpu.held_back;
        self.released += cpu.released;
        let [running, entered, taken, handled, task] = &cpu.stage;
        for (sum, part) in [
            (&mut self.hint_to_running, running),
            (&mut self.hint_to_entered, entered),
            (&mut self.hint_to_taken, taken),
            (&mut self.due_to_handled, handled),
            (&mut self.due_to_task, task),
        ] {
            sum.resize(part.len(), 0);
            for (sum, part) in sum.iter_mut().zip(part) {
                *sum += part;
            }
        }
    }

    /// Adds what an engine in user space counts.
    pub fn add_engine(&mut self, engine: &intf::pv_engine_stats) {
        self.enqueued_fair += engine.enqueued_fair;
        self.enqueued_boost += engine.enqueued_boost;
        self.preempted += engine.preempted;
        self.bounced += engine.bounced;
        self.congested += engine.congested;
        self.lost += engine.lost;
    }
}

/// The smallest bucket bound, in microseconds, below which `share` (0..=1) of a histogram's
/// samples lie; `None` for an empty one.
#[must_use]
pub fn quantile_us(histogram: &[u64], share: f64) -> Option<u64> {
    let total: u64 = histogram.iter().sum();
    if total == 0 {
        return None;
    }
    let mut sum = 0;
    for (bucket, count) in histogram.iter().enumerate() {
        sum += count;
        #[allow(clippy::cast_precision_loss)]
        if sum as f64 >= share * total as f64 {
            return Some(1 << bucket);
        }
    }
    Some(1 << (histogram.len() - 1))
}

impl VcpuMetrics {
    /// From what the BPF programs keep of a vCPU's thread.
    #[must_use]
    pub fn new(tid: u32, task: &intf::pv_task, home: Option<u32>) -> Self {
        let declared = Declared::from(task.role);
        Self {
            tid,
            published: describe_urgency(task.urgency),
            applied: describe_applied(task.applied).to_owned(),
            role: declared.role.name().to_owned(),
            group: declared.group.into(),
            home: home.and_then(|cpu| cpu.try_into().ok()).unwrap_or(-1),
            boosts_task: task.boosts_task,
            boosts_irq: task.boosts_irq,
            throttles: task.throttles,
            would_task: task.would_task,
            would_irq: task.would_irq,
            ran_us: task.ran / 1000,
            boosted_us: task.ran_boosted / 1000,
            waited_us: task.waited / 1000,
            wait_us: task.wait / 1000,
        }
    }
}

/// An urgency word of `src/abi/page.h` in the words of chrt(1).
#[must_use]
pub fn describe_urgency(urgency: u64) -> String {
    let field = |shift: u32| (urgency >> shift) & u64::from(abi::PVSCHED_URGENCY_FIELD_MASK);
    let class = field(abi::PVSCHED_URGENCY_CLASS_SHIFT);
    let prio = field(abi::PVSCHED_URGENCY_PRIO_SHIFT);
    let nice = i64::try_from(field(abi::PVSCHED_URGENCY_NICE_SHIFT)).unwrap_or(0)
        - i64::from(abi::PVSCHED_NICE_OFFSET);
    match u32::try_from(class).unwrap_or(u32::MAX) {
        abi::PVSCHED_CLASS_NONE => "nothing".into(),
        abi::PVSCHED_CLASS_IDLE_CPU => "idle".into(),
        abi::PVSCHED_CLASS_IDLE => "SCHED_IDLE".into(),
        abi::PVSCHED_CLASS_BATCH => format!("batch {nice:+}"),
        abi::PVSCHED_CLASS_NORMAL => format!("normal {nice:+}"),
        abi::PVSCHED_CLASS_RT => format!("rt {prio}"),
        abi::PVSCHED_CLASS_DEADLINE => "deadline".into(),
        _ => "unknown".into(),
    }
}

/// What is applied to the vCPUs of a VM whose protocol is `observe`.
pub const OBSERVED: &str = "observed";

/// An applied word of `src/abi/page.h`.
#[must_use]
pub fn describe_applied(applied: u64) -> &'static str {
    match u32::try_from(applied & u64::from(abi::PVSCHED_APPLIED_MASK)).unwrap_or(u32::MAX) {
        abi::PVSCHED_APPLIED_NONE => "none",
        abi::PVSCHED_APPLIED_BASELINE => "baseline",
        abi::PVSCHED_APPLIED_BOOST_TASK => "boost: task",
        abi::PVSCHED_APPLIED_BOOST_IRQ => "boost: irq",
        abi::PVSCHED_APPLIED_THROTTLED => "throttled",
        abi::PVSCHED_APPLIED_OBSERVED => OBSERVED,
        _ => "unknown",
    }
}

/// The statistics server's description of itself; each request is answered by the main loop.
#[must_use]
pub fn server_data() -> StatsServerData<(), Metrics> {
    StatsServerData::new()
        .add_meta(VcpuMetrics::meta())
        .add_meta(VmMetrics::meta())
        .add_meta(Metrics::meta())
        .add_stats(
            "top",
            Box::new(|_, (request, response)| answer(request, response)),
        )
}

type Request = crossbeam::channel::Sender<()>;
type Response = crossbeam::channel::Receiver<Metrics>;

fn answer(request: &Request, response: &Response) -> Result<serde_json::Value> {
    request.send(())?;
    response.recv()?.to_json()
}

#[cfg(test)]
mod tests {
    use super::super::bpf::MapValue;
    use super::*;

    /// The fields that a client gets, and those that have a description.
    fn assert_described(value: &impl Serialize, meta: &StatsMeta) {
        let value = serde_json::to_value(value).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().collect();
        assert!(!fields.is_empty());
        for field in fields {
            let described = meta
                .fields
                .get(field)
                .and_then(|field| field.attrs.desc.as_ref())
                .is_some_and(|text| text.len() > 3);
            assert!(described, "{field} of {} is not described", meta.name);
        }
    }

    #[test]
    fn every_statistic_is_described() {
        assert_described(&Metrics::default(), &Metrics::meta());
        assert_described(&VmMetrics::default(), &VmMetrics::meta());
        assert_described(&VcpuMetrics::default(), &VcpuMetrics::meta());
        let mut text = Vec::new();
        server_data().describe_meta(&mut text, None).unwrap();
        let text = String::from_utf8(text).unwrap();
        for meta in [Metrics::meta(), VmMetrics::meta(), VcpuMetrics::meta()] {
            for name in meta.fields.keys() {
                assert!(text.contains(name), "--help-stats has no {name}:\n{text}");
            }
        }
    }

    #[test]
    fn every_counter_of_the_bpf_programs_is_a_statistic() {
        const WORD: usize = size_of::<u64>();
        let words = size_of::<intf::pv_stats>() / WORD;
        for word in 0..words {
            let mut bytes = vec![0; words * WORD];
            bytes[word * WORD] = 1;
            let cpu = intf::pv_stats::from_bytes(&bytes).unwrap();
            let mut metrics = Metrics::default();
            metrics.add_cpu(&intf::pv_stats::zeroed());
            let nothing = metrics.clone();
            metrics.add_cpu(&cpu);
            assert_ne!(
                metrics, nothing,
                "word {word} of struct pv_stats is shown nowhere"
            );
        }
    }

    /// The server as the scheduler runs it, and the client that others use: scxtop asks so.
    #[test]
    fn a_client_of_scx_stats_gets_all_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("stats");
        let server = StatsServer::new(server_data())
            .set_path(&socket)
            .launch()
            .unwrap();
        let (responses, requests) = server.channels();
        let vcpu = VcpuMetrics {
            published: "rt 90".into(),
            ..Default::default()
        };
        let vm = VmMetrics {
            vcpus: [(3, vcpu)].into(),
            ..Default::default()
        };
        let told = Metrics {
            hints_timer: u64::MAX,
            hint_to_running: vec![1, 2],
            vms: [(1, vm)].into(),
            ..Default::default()
        };
        let answer = told.clone();
        std::thread::spawn(move || {
            while requests.recv().is_ok() {
                if responses.send(answer.clone()).is_err() {
                    break;
                }
            }
        });
        let mut client = StatsClient::new()
            .set_path(&socket)
            .connect(Some(10_000))
            .unwrap();
        for target in [vec![], vec![("target".to_owned(), "top".to_owned())]] {
            assert_eq!(client.request::<Metrics>("stats", target).unwrap(), told);
        }
        let meta: serde_json::Value = client.request("stats_meta", vec![]).unwrap();
        assert!(
            meta.to_string().contains("a vCPU's timer expired"),
            "{meta}"
        );
        let unknown = vec![("target".to_owned(), "none".to_owned())];
        assert!(client.request::<Metrics>("stats", unknown).is_err());
    }

    #[test]
    fn counters_of_cpus_add_up() {
        let mut cpu = intf::pv_stats {
            direct: 3,
            ..intf::pv_stats::zeroed()
        };
        cpu.stage[0][4] = 7;
        let mut sum = Metrics::default();
        sum.add_cpu(&cpu);
        sum.add_cpu(&cpu);
        assert_eq!((sum.direct, sum.hint_to_running[4]), (6, 14));
    }

    #[test]
    fn quantiles_are_bucket_bounds() {
        assert_eq!(quantile_us(&[0, 0, 0], 0.5), None);
        assert_eq!(quantile_us(&[1, 8, 1], 0.5), Some(2));
        assert_eq!(quantile_us(&[1, 8, 1], 0.99), Some(4));
        assert_eq!(quantile_us(&[0, 0, 5], 1.0), Some(4));
    }

    #[test]
    fn words_of_a_page_are_told_like_chrt_does() {
        let urgency = |class: u32, prio: u64, nice: u64| {
            u64::from(class) << abi::PVSCHED_URGENCY_CLASS_SHIFT
                | prio << abi::PVSCHED_URGENCY_PRIO_SHIFT
                | nice
        };
        assert_eq!(
            describe_urgency(urgency(abi::PVSCHED_CLASS_RT, 90, 20)),
            "rt 90"
        );
        assert_eq!(
            describe_urgency(urgency(abi::PVSCHED_CLASS_NORMAL, 0, 15)),
            "normal -5"
        );
        assert_eq!(describe_urgency(0), "nothing");
        assert_eq!(describe_urgency(u64::MAX), "unknown");
        assert_eq!(
            describe_applied(u64::from(abi::PVSCHED_APPLIED_NOTIFY) | 2),
            "boost: task"
        );
    }
}
