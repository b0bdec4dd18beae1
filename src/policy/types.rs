// SPDX-License-Identifier: GPL-2.0-only
//! What a policy is told, and what it answers. All times are nanoseconds of one clock.

use std::collections::{BTreeMap, BTreeSet};

use super::{arithmetic, Queue};
use crate::abi;

/// A task of the host, vCPU threads among them: its thread id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// A virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u32);

/// A physical CPU, by the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(pub u32);

/// Weight of a task in sched_ext's units: 1 to 10000, 100 at nice 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// That of nice 0.
    pub const DEFAULT: Self = Self(100);

    /// `None` out of range.
    #[must_use]
    pub fn new(weight: u32) -> Option<Self> {
        (1..=10_000).contains(&weight).then_some(Self(weight))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// How urgent a task of a guest is: an urgency word of `src/abi/page.h`, of which any is acceptable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Urgency(pub u64);

impl Urgency {
    /// Nothing said.
    pub const NONE: Self = Self(0);
    /// The guest's CPU has no work.
    pub const IDLE_CPU: Self = Self::of(abi::PVSCHED_CLASS_IDLE_CPU, 0, 0);
    /// SCHED_IDLE.
    pub const IDLE: Self = Self::of(abi::PVSCHED_CLASS_IDLE, 0, 0);
    /// SCHED_BATCH at nice 0.
    pub const BATCH: Self = Self::of(abi::PVSCHED_CLASS_BATCH, 0, 0);
    /// SCHED_NORMAL at nice 0.
    pub const NORMAL: Self = Self::of(abi::PVSCHED_CLASS_NORMAL, 0, 0);
    /// SCHED_DEADLINE.
    pub const DEADLINE: Self = Self::of(abi::PVSCHED_CLASS_DEADLINE, 0, 0);

    // `as` as `From` is not const; both widen.
    #[allow(clippy::cast_lossless)]
    const fn of(class: u32, prio: u8, nice: u8) -> Self {
        let nice = nice as u64 + abi::PVSCHED_NICE_OFFSET as u64;
        Self(
            (class as u64) << abi::PVSCHED_URGENCY_CLASS_SHIFT
                | (prio as u64) << abi::PVSCHED_URGENCY_PRIO_SHIFT
                | nice << abi::PVSCHED_URGENCY_NICE_SHIFT,
        )
    }

    /// SCHED_FIFO or SCHED_RR with a priority of 1 to 99; others count as the nearest.
    #[must_use]
    pub const fn realtime(prio: u8) -> Self {
        Self::of(abi::PVSCHED_CLASS_RT, prio, 0)
    }

    /// SCHED_NORMAL with a nice value of -20 to 19; others count as the nearest.
    #[must_use]
    pub fn nice(nice: i8) -> Self {
        let step = nice.clamp(-20, 19).wrapping_add(20).unsigned_abs();
        Self(Self::NORMAL.0 & !u64::from(abi::PVSCHED_URGENCY_FIELD_MASK) | u64::from(step))
    }

    /// `enum pvsched_class`; one that nobody knows says nothing.
    #[must_use]
    pub fn class(self) -> u32 {
        arithmetic::class(self.0)
    }

    /// 0 when it is not urgent, else the larger the sooner; `bpf/policy.h` says which is which.
    #[must_use]
    pub fn rank(self) -> u32 {
        arithmetic::rank(self.0)
    }
}

/// What a guest says of one of its CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Of the task on it.
    pub current: Urgency,
    /// Of the most urgent one that waits for it, where that is more urgent.
    pub pending: Urgency,
    /// It is in the middle of an interrupt, and may hold what others soon need.
    pub critical: bool,
}

/// An interrupt that waits for a vCPU, from when it comes in until the guest has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// When the first one came in that was not taken.
    pub since: u64,
    /// Of the task that it is for; `None` where nobody knows.
    pub urgency: Option<Urgency>,
}

/// What the host's configuration lets a VM have. Any value is acceptable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A higher rank counts as this one.
    pub rank_max: u32,
    /// Range of what a guest's nice values may make of a weight, in 1024ths.
    pub guest_weight: (u32, u32),
    /// How far boosts may carry a vCPU ahead of its share.
    pub task_budget: u64,
    /// How long a vCPU may be boosted for interrupts alone before it has to repay.
    pub irq_budget: u64,
}

impl Default for Limits {
    /// What the scheduler grants where nothing is configured.
    fn default() -> Self {
        Self {
            rank_max: arithmetic::PV_RANK_MAX,
            guest_weight: (
                arithmetic::PV_GUEST_WEIGHT_IDLE,
                arithmetic::PV_GUEST_WEIGHT_DFL,
            ),
            task_budget: 100_000_000,
            irq_budget: 10_000_000,
        }
    }
}

/// What a guest's administrator says that a vCPU is for: `enum pvsched_role`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Nothing said.
    #[default]
    None,
    /// Latency-critical work.
    Latency,
    /// It handles interrupts that others wait for.
    Interrupt,
    /// Throughput only, nobody waits for it.
    Batch,
}

impl Role {
    /// From `pvsched_page.role`, of which other bits than the role's do not matter. A number that is
    /// none says nothing.
    #[must_use]
    pub fn of_word(word: u32) -> Self {
        match word & abi::PVSCHED_ROLE_MASK {
            abi::PVSCHED_ROLE_LATENCY => Self::Latency,
            abi::PVSCHED_ROLE_INTERRUPT => Self::Interrupt,
            abi::PVSCHED_ROLE_BATCH => Self::Batch,
            _ => Self::None,
        }
    }

    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Latency => "latency",
            Self::Interrupt => "interrupt",
            Self::Batch => "batch",
        }
    }
}

/// What makes a task a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// Its VM.
    pub vm: VmId,
    /// `None` where the guest publishes nothing.
    pub published: Option<Published>,
    /// Those not taken yet.
    pub interrupt: Option<Interrupt>,
    /// What its VM may have.
    pub limits: Limits,
    /// What it is for.
    pub role: Role,
}

/// What is known of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its name in all calls.
    pub id: TaskId,
    /// By its nice value and cgroups on the host.
    pub weight: Weight,
    /// Where it may run, at least one: its affinity, or the one CPU that its exclusion group leaves.
    pub allowed: BTreeSet<CpuId>,
    /// Where it ran last, or will first; one of `allowed` unless that has just changed.
    pub last_cpu: CpuId,
    /// `None` for a task that is no vCPU.
    pub vcpu: Option<Vcpu>,
}

/// Whose work a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// An ordinary task of the host.
    Host(TaskId),
    /// That of a VM.
    Vm(VmId),
}

impl Task {
    /// Whose work it is.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.vcpu
            .map_or(Owner::Host(self.id), |vcpu| Owner::Vm(vcpu.vm))
    }

    /// Whether an interrupt waits for it.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.vcpu.is_some_and(|vcpu| vcpu.interrupt.is_some())
    }
}

/// A physical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its number.
    pub id: CpuId,
    /// CPUs of one core have the same number here,
    pub core: usize,
    /// and those of one last-level cache here.
    pub cache: usize,
    /// Whose turn it is.
    pub running: Option<TaskId>,
}

/// How things are.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The time.
    pub now: u64,
    /// All CPUs, in order of their numbers.
    pub cpus: &'a [Cpu],
    /// All tasks that exist.
    pub tasks: &'a BTreeMap<TaskId, Task>,
    /// Those that wait.
    pub queue: &'a Queue,
    /// The CPU on which the engine itself was last, if it takes time of one: whoever has his turn there is
    /// interrupted whenever there is something to decide.
    pub engine: Option<CpuId>,
}

impl Host<'_> {
    /// The task whose turn it is on a CPU.
    #[must_use]
    pub fn running(&self, cpu: CpuId) -> Option<&Task> {
        let cpu = self.cpus.iter().find(|one| one.id == cpu)?;
        self.tasks.get(&cpu.running?)
    }

    /// The CPU on which it is the task's turn.
    #[must_use]
    pub fn running_on(&self, task: TaskId) -> Option<CpuId> {
        let cpu = self.cpus.iter().find(|cpu| cpu.running == Some(task))?;
        Some(cpu.id)
    }

    /// How many tasks wait for each CPU, on average.
    #[must_use]
    pub fn waiting_per_cpu(&self) -> u64 {
        self.queue.len() as u64 / self.cpus.len().max(1) as u64
    }
}

/// Why a task is to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is new, or has slept.
    Woke,
    /// Its slice has ended, or the policy ended its turn, and it wants to go on.
    TurnEnded,
    /// Another one was to run there at once.
    Interrupted,
    /// It waits already, and the policy wanted to think again.
    Hinted,
}

/// What to do about a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing.
    Stay,
    /// What runs goes on, and its guest is told something else from now on.
    Tell(Applied),
    /// [`super::Policy::runnable`] is asked anew. If the task runs, its turn ends.
    PlaceAgain,
}

/// What the guest is told of it: `enum pvsched_applied`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Applied {
    /// Its turn like any other.
    #[default]
    Baseline,
    /// Ahead for an urgent task.
    BoostTask,
    /// Ahead for an interrupt.
    BoostIrq,
    /// It would be ahead, and its budget is spent.
    Throttled,
}

impl Applied {
    /// Whether it is ahead.
    #[must_use]
    pub fn is_boost(self) -> bool {
        matches!(self, Self::BoostTask | Self::BoostIrq)
    }
}

/// Where a task waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The smallest in the queue goes first, equals in order of arrival.
    pub order: u64,
    /// How long its turn may last, [`Decision::SLICE`].
    slice: u64,
    /// It runs there and nowhere else. It must be one of [`Task::allowed`].
    pub cpu: Option<CpuId>,
    /// If no CPU is idle, interrupt this one. Asked of a task that was interrupted itself, or whose
    /// turn has ended, it has no effect. An engine that cannot interrupt lets that turn end.
    pub preempt: Option<CpuId>,
    /// What the guest is told.
    pub applied: Applied,
}

impl Decision {
    /// What a slice may be; others count as the nearest.
    pub const SLICE: std::ops::RangeInclusive<u64> = 100_000..=100_000_000;

    /// A fair turn on any CPU that nobody is interrupted for.
    #[must_use]
    pub fn new(order: u64, slice: u64) -> Self {
        Self {
            order,
            slice: slice.clamp(*Self::SLICE.start(), *Self::SLICE.end()),
            cpu: None,
            preempt: None,
            applied: Applied::Baseline,
        }
    }

    /// The same for one that takes a CPU from whoever has it, if there is one to take.
    #[must_use]
    pub fn interrupting(mut self, cpu: Option<CpuId>) -> Self {
        self.preempt = cpu;
        self
    }

    /// The same for one that is told so.
    #[must_use]
    pub fn applied(mut self, applied: Applied) -> Self {
        self.applied = applied;
        self
    }

    /// How long the turn may last.
    #[must_use]
    pub fn slice(&self) -> u64 {
        self.slice
    }
}

/// Why a turn is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The task has nothing more to do.
    Slept,
    /// The slice is used up.
    SliceEnded,
    /// Another one was to run there at once.
    Interrupted,
    /// The policy wanted to think again.
    Hinted,
    /// The task is gone.
    Gone,
}

/// A turn that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Whose.
    pub task: TaskId,
    /// Where.
    pub cpu: CpuId,
    /// From when on.
    pub began: u64,
    /// CPU time in ns.
    pub ran: u64,
    /// What the guest was told last.
    pub applied: Applied,
    /// Why it is over.
    pub end: End,
}
