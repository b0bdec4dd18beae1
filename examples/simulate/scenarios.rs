// SPDX-License-Identifier: GPL-2.0-only
//! Scenarios by name.

use std::fmt;

use clap::ValueEnum;
use scx_pvsched::policy::{Role, Urgency};
use scx_pvsched::simulator::scenario::{
    GuestCpu, Job, Load, Scenario, Thread, Topology, Vm, MS, US,
};

use crate::Options;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Each VM is busy, and has a FIFO task that a timer wakes
    Urgent,
    /// The same, and the guests say nothing of it
    Silent,
    /// The first VM claims to be urgent all the time
    Lie,
    /// The first VM is flooded with device interrupts
    Flood,
    /// The first VM has SCHED_IDLE work only
    Idle,
    /// The vCPUs of each VM are of one exclusion group
    Groups,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let value = self.to_possible_value().ok_or(fmt::Error)?;
        f.write_str(value.get_name())
    }
}

pub fn build(options: &Options) -> Scenario {
    let kind = options.scenario;
    let vm = |number: u32| {
        let prio = u8::try_from(10 + 10 * number.min(8)).unwrap_or(99);
        let period = (10 + 2 * u64::from(number)) * MS;
        let fifo = Job::periodic(Urgency::realtime(prio), period, 300 * US);
        let busy = |urgency| Job {
            urgency,
            load: Load::Busy,
        };
        let jobs = match kind {
            Kind::Lie if number == 0 => vec![busy(Urgency::realtime(99))],
            Kind::Flood if number == 0 => {
                let load = Load::Interrupts {
                    period: 150 * US,
                    run: 20 * US,
                };
                vec![Job::BUSY, Job { load, ..Job::BUSY }]
            }
            Kind::Idle if number == 0 => vec![busy(Urgency::IDLE)],
            Kind::Flood | Kind::Idle | Kind::Groups => vec![Job::BUSY],
            Kind::Urgent | Kind::Silent | Kind::Lie => vec![fifo, Job::BUSY],
        };
        let vcpu = GuestCpu {
            thread: Thread::new(jobs),
            role: Role::None,
            group: u16::from(kind == Kind::Groups),
        };
        let mut vm = Vm::new(vec![vcpu; options.cpus.div_ceil(2) as usize]);
        vm.publishes = kind != Kind::Silent;
        vm
    };
    Scenario {
        seed: options.seed,
        duration: options.duration * MS,
        topology: Topology::flat(options.cpus),
        smt_isolate: false,
        tasks: vec![Thread::new([Job::BUSY]); options.tasks as usize],
        vms: (0..options.vms).map(vm).collect(),
    }
}
