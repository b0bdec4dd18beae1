// SPDX-License-Identifier: GPL-2.0-only
//! What is simulated: a host, its tasks, and VMs with scripted work.

use crate::policy::{CpuId, Limits, Owner, Role, TaskId, Urgency, VmId, Weight};

/// One millisecond.
pub const MS: u64 = 1_000_000;
/// One microsecond.
pub const US: u64 = 1_000;

/// What keeps a task, or a guest's CPU, at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// It never ends.
    Busy,
    /// Every `period` ns from `first` on, for `run` ns of CPU. In a guest a timer interrupt starts it.
    Periodic {
        /// When it starts for the first time.
        first: u64,
        /// From one start to the next; up to a quarter of it more or less by chance with `jitter`.
        period: u64,
        /// CPU time each.
        run: u64,
        /// Whether chance has a part in it.
        jitter: bool,
    },
    /// Device interrupts that wake nobody, for a vCPU only: on average every `period` ns, for `run` ns.
    Interrupts {
        /// Half of it at least, and one and a half of it at most.
        period: u64,
        /// CPU time each.
        run: u64,
    },
}

/// One task within a guest, or what a task of the host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Its class and priority in its guest. On the host it has no meaning.
    pub urgency: Urgency,
    /// When it has something to do.
    pub load: Load,
}

impl Job {
    /// An ordinary task that never sleeps.
    pub const BUSY: Self = Self {
        urgency: Urgency::NORMAL,
        load: Load::Busy,
    };

    /// A task that a timer wakes every `period` ns, for `run` ns.
    #[must_use]
    pub fn periodic(urgency: Urgency, period: u64, run: u64) -> Self {
        let load = Load::Periodic {
            first: period,
            period,
            run,
            jitter: true,
        };
        Self { urgency, load }
    }
}

/// A thread of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// By its nice value.
    pub weight: Weight,
    /// Its affinity; empty for all CPUs.
    pub affinity: Vec<CpuId>,
    /// What it does.
    pub jobs: Vec<Job>,
}

impl Thread {
    /// One of the default weight that may run anywhere.
    #[must_use]
    pub fn new(jobs: impl IntoIterator<Item = Job>) -> Self {
        Self {
            weight: Weight::DEFAULT,
            affinity: Vec::new(),
            jobs: jobs.into_iter().collect(),
        }
    }

    /// Whether it never sleeps.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.jobs.iter().any(|job| job.load == Load::Busy)
    }
}

/// A vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestCpu {
    /// Its thread, whose jobs are the guest's tasks.
    pub thread: Thread,
    /// What it is for.
    pub role: Role,
    /// Its exclusion group among those of the VM; 0 for none.
    pub group: u16,
}

impl From<Thread> for GuestCpu {
    fn from(thread: Thread) -> Self {
        Self {
            thread,
            role: Role::None,
            group: 0,
        }
    }
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Whether its guest says what it does.
    pub publishes: bool,
    /// What it may have.
    pub limits: Limits,
    /// Its CPUs.
    pub vcpus: Vec<GuestCpu>,
    /// When it dies.
    pub dies: Option<u64>,
}

impl Vm {
    /// One that publishes and may have what is the default.
    #[must_use]
    pub fn new(vcpus: impl IntoIterator<Item = GuestCpu>) -> Self {
        Self {
            publishes: true,
            limits: Limits::default(),
            vcpus: vcpus.into_iter().collect(),
            dies: None,
        }
    }
}

/// The host's CPUs, numbered so that those of a core follow each other, and cores of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Last-level caches.
    pub caches: u32,
    /// Cores that share one.
    pub cores: u32,
    /// CPUs of a core.
    pub threads: u32,
}

impl Topology {
    /// Cores of one CPU each, which share a cache.
    #[must_use]
    pub fn flat(cpus: u32) -> Self {
        Self {
            caches: 1,
            cores: cpus,
            threads: 1,
        }
    }

    /// How many CPUs there are.
    #[must_use]
    pub fn len(self) -> u32 {
        self.caches * self.cores * self.threads
    }

    /// Whether there is no CPU.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Of whatever is left to chance. The same scenario always gives the same trace.
    pub seed: u64,
    /// How long, in ns.
    pub duration: u64,
    /// The host's CPUs.
    pub topology: Topology,
    /// Whether exclusion groups are kept on different cores.
    pub smt_isolate: bool,
    /// Tasks of the host.
    pub tasks: Vec<Thread>,
    /// VMs.
    pub vms: Vec<Vm>,
}

impl Scenario {
    /// All threads in the order of their ids, from 1 on: those of the host, then the vCPUs.
    pub fn threads(&self) -> impl Iterator<Item = (TaskId, Owner, &Thread)> {
        let host = self.tasks.iter().map(|thread| (None, thread));
        let vms = (0..).zip(&self.vms).flat_map(|(number, vm)| {
            vm.vcpus
                .iter()
                .map(move |vcpu| (Some(VmId(number)), &vcpu.thread))
        });
        (1..).zip(host.chain(vms)).map(|(id, (vm, thread))| {
            let id = TaskId(id);
            (id, vm.map_or(Owner::Host(id), Owner::Vm), thread)
        })
    }

    /// The vCPUs with their VMs.
    pub fn vcpus(&self) -> impl Iterator<Item = (TaskId, &Vm, &GuestCpu)> {
        let first = u32::try_from(self.tasks.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1);
        let all = self
            .vms
            .iter()
            .flat_map(|vm| vm.vcpus.iter().map(move |vcpu| (vm, vcpu)));
        (first..)
            .zip(all)
            .map(|(id, (vm, vcpu))| (TaskId(id), vm, vcpu))
    }
}
