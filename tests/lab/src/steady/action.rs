//! What can be done in a mix.

use std::fmt;

/// What a guest is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub vcpus: u32,
    /// With device, driver and agent, or with nothing of ours.
    pub device: bool,
    pub work: Work,
}

/// What goes on in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A periodic real-time task.
    RealTime,
    /// Ordinary tasks that are busy and sleep by turns.
    Ordinary,
    /// A busy SCHED_IDLE task.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Other,
    Batch,
    Idle,
    Fifo,
    RoundRobin,
}

/// CPUs of the host VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cpus {
    Zero,
    One,
    Both,
}

/// A cgroup of the mix: a slice, a scope, or a scope in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub slice: Option<u8>,
    pub scope: Option<u8>,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(slice) = self.slice {
            write!(f, "steady-{slice}.slice/")?;
        }
        self.scope
            .map_or(Ok(()), |scope| write!(f, "steady-{scope}.scope"))
    }
}

/// A configuration of the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grants {
    Defaults,
    NormalOnly,
    SmallBudgets,
    ByName,
    /// No configuration: it has to change nothing.
    Broken,
}

/// One thing that is done. Whom it is done to is a number, of which the remainder counts: how many
/// there are depends on how fast the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Boot(Kind),
    /// The guest powers off.
    Shutdown,
    /// Its VMM is killed.
    KillVmm,
    /// The device beside its VMM is killed, and then the VMM.
    KillDevice,
    Hackbench {
        groups: u32,
        loops: u32,
    },
    /// A host task is killed, and another one takes its place.
    Replace {
        whom: u32,
    },
    SetPolicy {
        whom: u32,
        policy: Policy,
    },
    SetNice {
        whom: u32,
        nice: i32,
    },
    SetAffinity {
        whom: u32,
        cpus: Cpus,
    },
    MakeGroup(Group),
    RemoveGroup(Group),
    SetWeight(Group, u32),
    /// Microseconds that it may run in each period, and those of the period.
    SetQuota(Group, Option<(u32, u32)>),
    SetIdle(Group, bool),
    SetCpus(Group, Cpus),
    /// Into a scope, or back to the root.
    Move {
        whom: u32,
        to: Option<Group>,
    },
    Offline,
    Online,
    Reload(Grants),
}

impl Action {
    /// For counts, and in messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Boot(_) => "boot",
            Self::Shutdown => "shutdown",
            Self::KillVmm => "kill VMM",
            Self::KillDevice => "kill device",
            Self::Hackbench { .. } => "hackbench",
            Self::Replace { .. } => "replace task",
            Self::SetPolicy { .. } => "policy",
            Self::SetNice { .. } => "nice",
            Self::SetAffinity { .. } => "affinity",
            Self::MakeGroup(_) => "make cgroup",
            Self::RemoveGroup(_) => "remove cgroup",
            Self::SetWeight(..) => "cpu.weight",
            Self::SetQuota(..) => "cpu.max",
            Self::SetIdle(..) => "cpu.idle",
            Self::SetCpus(..) => "cpuset.cpus",
            Self::Move { .. } => "move task",
            Self::Offline => "CPU off",
            Self::Online => "CPU on",
            Self::Reload(_) => "reload",
        }
    }
}
