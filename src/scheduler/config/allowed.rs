// SPDX-License-Identifier: GPL-2.0-only
//! What one VM may have.

use std::fmt;
use std::ops::RangeInclusive;

use clap::ValueEnum;
use serde::Deserialize;

use super::super::bpf::intf;
use super::super::options::Options;
use super::known_protocols;
use crate::abi;
use crate::handoff::ProtocolName;
use crate::policy::arithmetic;

/// Nice values, from the one that weighs most.
pub(super) const NICE: RangeInclusive<i8> = -20..=19;
/// Real-time priorities of tasks.
pub(super) const RT_PRIO: RangeInclusive<u8> = 1..=99;

/// The highest scheduling class of guest tasks for which a vCPU is put ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// For no task.
    Normal,
    /// `SCHED_FIFO` and `SCHED_RR`, and what is above as if it were that.
    Rt,
    Deadline,
}

/// Between whose vCPUs the exclusion groups of a VM hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Groups {
    /// Nobody's: groups have no effect
    None,
    /// Its own; what another VM declares does not matter
    Own,
    /// Those of all VMs for which groups are shared, as if they were one
    Shared,
}

/// What a VM may have. Every value is within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    pub(super) class: Class,
    /// What a real-time priority above it counts as, where `class` is [`Class::Rt`].
    pub(super) rt_prio_max: u8,
    /// Nice values of guest tasks that change a vCPU's weight; others count as the nearest.
    pub(super) nice: RangeInclusive<i8>,
    pub(super) task_budget_us: u64,
    pub(super) irq_budget_us: u64,
    pub(super) groups: Groups,
    /// Whether the guest is told on which physical CPUs it runs, and how many tasks wait there.
    pub(super) placement: bool,
    pub(super) protocols: Vec<ProtocolName>,
}

impl Allowed {
    /// What the command line says, and for the rest what suits a VM that is trusted as any user is:
    /// all that its budgets bound, and no larger share than its threads have.
    #[must_use]
    pub fn by_options(options: &Options) -> Self {
        Self {
            class: Class::Deadline,
            rt_prio_max: *RT_PRIO.end(),
            nice: 0..=*NICE.end(),
            task_budget_us: options.task_budget_us,
            irq_budget_us: options.irq_budget_us,
            groups: options.groups,
            placement: true,
            protocols: known_protocols().iter().map(|known| known.name).collect(),
        }
    }

    /// Whether the VM may speak this protocol.
    #[must_use]
    pub fn may_speak(&self, protocol: &ProtocolName) -> bool {
        self.protocols.contains(protocol)
    }

    /// The highest rank (`bpf/policy.h`) that the VM's tasks may have.
    #[must_use]
    pub fn rank_max(&self) -> u32 {
        match self.class {
            Class::Normal => arithmetic::PV_RANK_NONE,
            Class::Rt => arithmetic::rank(
                u64::from(abi::PVSCHED_CLASS_RT) << abi::PVSCHED_URGENCY_CLASS_SHIFT
                    | u64::from(self.rt_prio_max) << abi::PVSCHED_URGENCY_PRIO_SHIFT,
            ),
            Class::Deadline => arithmetic::PV_RANK_DEADLINE,
        }
    }

    /// As the BPF programs read it.
    #[must_use]
    pub fn to_pv_vm(&self) -> intf::pv_vm {
        intf::pv_vm {
            task_budget_ns: self.task_budget_us * 1000,
            irq_budget_ns: self.irq_budget_us * 1000,
            rank_max: self.rank_max(),
            // Nice 19 is the end of the range: below it SCHED_IDLE counts as what it is.
            weight_min: if self.nice.end() == NICE.end() {
                arithmetic::PV_GUEST_WEIGHT_IDLE
            } else {
                weight_of_nice(*self.nice.end())
            },
            weight_max: weight_of_nice(*self.nice.start()),
            observe: 0,
            hide_placement: u32::from(!self.placement),
            rsvd: 0,
            // For the BPF programs to fill in.
            stuck_at: 0,
        }
    }

    #[must_use]
    pub fn groups(&self) -> Groups {
        self.groups
    }

    /// The highest class that is granted, in the words of the statistics.
    #[must_use]
    pub fn class_text(&self) -> String {
        match self.class {
            Class::Rt => format!("rt {}", self.rt_prio_max),
            Class::Normal | Class::Deadline => self.class.to_string(),
        }
    }

    /// The nice values that count, in the words of the statistics.
    #[must_use]
    pub fn nice_text(&self) -> String {
        format!("{}..{}", self.nice.start(), self.nice.end())
    }

    #[must_use]
    pub fn task_budget_us(&self) -> u64 {
        self.task_budget_us
    }

    #[must_use]
    pub fn irq_budget_us(&self) -> u64 {
        self.irq_budget_us
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal",
            Self::Rt => "rt",
            Self::Deadline => "deadline",
        })
    }
}

/// The kernel's weight of a task of that nice value; 1024 is that of nice 0.
fn weight_of_nice(nice: i8) -> u32 {
    let class = u64::from(abi::PVSCHED_CLASS_NORMAL) << abi::PVSCHED_URGENCY_CLASS_SHIFT;
    let index = nice.clamp(*NICE.start(), *NICE.end()) - NICE.start();
    arithmetic::guest_weight(class | u64::from(index.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn allowed() -> Allowed {
        Allowed::by_options(&Options::parse_from(["scx_pvsched"]))
    }

    #[test]
    fn without_a_configuration_a_vm_may_be_urgent_and_not_heavier() {
        let vm = allowed().to_pv_vm();
        assert_eq!(vm.rank_max, arithmetic::PV_RANK_MAX);
        assert_eq!((vm.weight_min, vm.weight_max), (3, 1024));
        assert_eq!(
            (vm.task_budget_ns, vm.irq_budget_ns),
            (100_000_000, 10_000_000)
        );
        assert_eq!(allowed().groups(), Groups::Own);
    }

    #[test]
    fn a_class_is_told_as_the_rank_of_its_most_urgent_task() {
        let rank = |class, rt_prio_max| {
            let mut allowed = allowed();
            (allowed.class, allowed.rt_prio_max) = (class, rt_prio_max);
            allowed.rank_max()
        };
        assert_eq!(rank(Class::Normal, 99), 0);
        assert_eq!(rank(Class::Rt, 1), 2);
        assert_eq!(rank(Class::Rt, 99), 100);
        assert_eq!(rank(Class::Deadline, 1), 101);
    }

    #[test]
    fn nice_values_become_the_kernels_weights() {
        let weights = |nice| {
            let mut allowed = allowed();
            allowed.nice = nice;
            let vm = allowed.to_pv_vm();
            (vm.weight_min, vm.weight_max)
        };
        assert_eq!(weights(-20..=18), (18, 88761));
        assert_eq!(weights(0..=0), (1024, 1024));
        assert_eq!(weights(5..=19), (3, 335));
    }
}
