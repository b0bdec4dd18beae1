// SPDX-License-Identifier: GPL-2.0-only
//! What the kernel tells, as values of a policy.

use anyhow::{bail, Result};
use scx_pvsched::policy::arithmetic::{PV_RANK_DEADLINE, PV_RANK_IRQ, PV_RANK_RT_BASE};
use scx_pvsched::policy::{CpuId, Interrupt, Limits, Published, Role, TaskId, Urgency, Vcpu, VmId};
use scx_pvsched::scheduler::bpf::{intf, MapValue};

/// Numbers of VMs that nobody has handed over: those of their processes, with this bit.
const UNNAMED: u32 = 1 << 31;

/// How a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The task would go on.
    Runnable,
    Sleeps,
    Dies,
}

/// A CPU has gone over to another task. Tasks that come before all others, such as real-time ones,
/// are none here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    pub at: u64,
    pub cpu: CpuId,
    /// Who has lost the CPU, with the CPU time that it has had so far.
    pub prev: Option<(TaskId, u64)>,
    pub ends: Ends,
    /// Who has it now, the same way.
    pub next: Option<(TaskId, u64)>,
    /// Nobody has.
    pub idle: bool,
}

/// What is known of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub at: u64,
    pub task: TaskId,
    pub vcpu: Vcpu,
    /// The one CPU that its exclusion group leaves it.
    pub home: Option<CpuId>,
    /// It is to have no effect.
    pub observed: bool,
    /// The policy is to be asked at once.
    pub hint: bool,
}

/// One piece of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Switch(Switch),
    Vcpu(Told),
}

/// A thread id; `None` for 0, which is no thread's.
fn task(tid: i32) -> Option<TaskId> {
    u32::try_from(tid).ok().filter(|tid| *tid != 0).map(TaskId)
}

/// What an interrupt's rank says of the task that it is for.
fn urgency(rank: u32) -> Option<Urgency> {
    match rank {
        0..=PV_RANK_IRQ => None,
        PV_RANK_DEADLINE.. => Some(Urgency::DEADLINE),
        rank => u8::try_from(rank - PV_RANK_RT_BASE)
            .ok()
            .map(Urgency::realtime),
    }
}

impl TryFrom<intf::pv_news_switch> for Switch {
    type Error = anyhow::Error;

    fn try_from(news: intf::pv_news_switch) -> Result<Self> {
        Ok(Self {
            at: news.at,
            cpu: CpuId(news.cpu.try_into()?),
            prev: task(news.prev).map(|task| (task, news.prev_exec)),
            ends: match news.end {
                intf::pv_news_end_PV_END_RUNNABLE => Ends::Runnable,
                intf::pv_news_end_PV_END_SLEEPS => Ends::Sleeps,
                intf::pv_news_end_PV_END_DEAD => Ends::Dies,
                other => bail!("no turn ends by {other}"),
            },
            next: task(news.next).map(|task| (task, news.next_exec)),
            idle: news.idle != 0,
        })
    }
}

impl TryFrom<intf::pv_news_vcpu> for Told {
    type Error = anyhow::Error;

    fn try_from(news: intf::pv_news_vcpu) -> Result<Self> {
        let Some(task) = task(news.tid) else {
            bail!("no vCPU has the thread id {}", news.tid);
        };
        let observed = news.observe != 0;
        let published = Published {
            current: Urgency(news.current_task),
            pending: Urgency(news.pending_task),
            critical: news.critical != 0,
        };
        let interrupt = Interrupt {
            since: news.hint_at,
            urgency: urgency(news.hint_rank),
        };
        let vcpu = Vcpu {
            vm: VmId(match news.vm {
                0 => news.tgid | UNNAMED,
                vm => vm,
            }),
            published: (news.publishes != 0 && !observed).then_some(published),
            interrupt: (news.hint_at != 0 && !observed).then_some(interrupt),
            limits: Limits {
                rank_max: news.rank_max,
                guest_weight: (news.weight_min, news.weight_max),
                task_budget: news.task_budget_ns,
                irq_budget: news.irq_budget_ns,
            },
            role: Role::of_word(news.role),
        };
        Ok(Self {
            at: news.at,
            task,
            vcpu,
            home: u32::try_from(news.home).ok().map(CpuId),
            observed,
            hint: news.hint != 0,
        })
    }
}

impl News {
    /// From a record of the ring.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let what = bytes
            .get(8..12)
            .and_then(|what| what.try_into().ok())
            .map_or(0, u32::from_ne_bytes);
        match what {
            intf::pv_news_PV_NEWS_SWITCH => intf::pv_news_switch::from_bytes(bytes)?
                .try_into()
                .map(Self::Switch),
            intf::pv_news_PV_NEWS_VCPU => intf::pv_news_vcpu::from_bytes(bytes)?
                .try_into()
                .map(Self::Vcpu),
            other => bail!("there is no news of kind {other}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use scx_pvsched::policy::arithmetic::rank;

    use super::*;

    #[test]
    fn an_interrupt_is_worth_what_its_rank_says() {
        for prio in [1, 50, 99] {
            let urgent = Urgency::realtime(prio);
            assert_eq!(urgency(rank(urgent.0)), Some(urgent));
        }
        assert_eq!(urgency(PV_RANK_DEADLINE), Some(Urgency::DEADLINE));
        assert_eq!(urgency(PV_RANK_IRQ), None);
    }

    #[test]
    fn records_are_told_apart_and_nonsense_is_refused() {
        let switch = intf::pv_news_switch {
            at: 7,
            what: intf::pv_news_PV_NEWS_SWITCH,
            cpu: 1,
            prev: 0,
            next: 12,
            next_exec: 9,
            ..intf::pv_news_switch::zeroed()
        };
        let expected = Switch {
            at: 7,
            cpu: CpuId(1),
            prev: None,
            ends: Ends::Runnable,
            next: Some((TaskId(12), 9)),
            idle: false,
        };
        let parsed = News::parse(&switch.to_bytes()).unwrap();
        assert_eq!(parsed, News::Switch(expected));
        for wrong in [
            intf::pv_news_switch { cpu: -1, ..switch },
            intf::pv_news_switch { end: 9, ..switch },
            intf::pv_news_switch { what: 9, ..switch },
        ] {
            assert!(News::parse(&wrong.to_bytes()).is_err(), "{wrong:?}");
        }
        assert!(News::parse(&[0; 5]).is_err());
    }

    #[test]
    fn what_an_observed_vm_says_has_no_effect() {
        let said = intf::pv_news_vcpu {
            what: intf::pv_news_PV_NEWS_VCPU,
            tid: 5,
            tgid: 4,
            publishes: 1,
            hint_at: 3,
            home: -1,
            ..intf::pv_news_vcpu::zeroed()
        };
        let of = |observe| {
            let told = News::parse(&intf::pv_news_vcpu { observe, ..said }.to_bytes());
            let Ok(News::Vcpu(told)) = told else {
                panic!("{told:?}")
            };
            (
                told.vcpu.published.is_some(),
                told.vcpu.interrupt.is_some(),
                told.home,
            )
        };
        assert_eq!(of(0), (true, true, None));
        assert_eq!(of(1), (false, false, None));
    }
}
