// SPDX-License-Identifier: GPL-2.0-only
//! Policies in safe Rust: who runs next, where, and for how long.
//!
//! A policy implements [`Policy`]. It is told what happens to tasks, with all that is known about
//! them and the time, and answers with values. It starts no thread, reads no clock and touches no
//! CPU: an *engine* does what it decides. One is the simulator ([`crate::simulator`]), in virtual time;
//! another runs on a host (`src/engines/rustland`).
//!
//! An engine has one [`Queue`], ordered by what the policy says. A CPU that has nothing to run takes
//! the first task in it that may run there. So the order is the heart of a policy, and a CPU is
//! never idle while somebody who may run there waits, unless the policy binds him to another CPU.
//!
//! An engine may learn of things late, as one in another process does: all times are arguments, and a
//! turn says itself how long it was. It may be unable to interrupt a CPU, or to narrow a task to one.
//! What it must do is to keep [`Task::allowed`], to call in the order below, and to bound a turn by
//! its slice. Each decision is what such an engine hands on: a place in an order, a slice, a CPU or any.
//!
//! - [`arithmetic`]: weights, shares, budgets; the same text that the BPF scheduler is compiled from
//! - [`homes`]: CPUs for exclusion groups, which the engine sees to for every policy
//! - [`latency`]: the reference, the policy of the BPF scheduler
//! - [`round_robin`]: a small one to begin with
//!
//! A new policy is one file here, and a line in [`POLICIES`], by which all tests and the simulator
//! know it.

pub mod arithmetic;
pub mod homes;
pub mod latency;
mod queue;
pub mod round_robin;
mod types;

pub use queue::Queue;
pub use types::*;

/// Makes a policy that knows of no task yet.
pub type Make = fn() -> Box<dyn Policy>;

/// Every policy, by name.
pub const POLICIES: &[(&str, Make)] = &[
    ("latency", || Box::<latency::Latency>::default()),
    ("round-robin", || Box::<round_robin::RoundRobin>::default()),
];

/// Who runs next, where, and for how long.
///
/// For each task an engine calls [`runnable`](Self::runnable), [`started`](Self::started) and
/// [`stopped`](Self::stopped) in turns, and [`gone`](Self::gone) at the end, if it began. `host` is
/// how things are at that moment; the task itself is not in the queue while `runnable` is asked.
pub trait Policy {
    /// `task` wants a CPU: where does it wait, and for what?
    fn runnable(&mut self, task: &Task, why: Why, host: &Host) -> Decision;

    /// What is known of a vCPU that waits or runs has changed: an interrupt came in or was taken,
    /// or its guest published something else. By default one that waits is placed anew.
    fn hint(&mut self, task: &Task, host: &Host) -> Reaction {
        match host.running_on(task.id) {
            Some(_) => Reaction::Stay,
            None => Reaction::PlaceAgain,
        }
    }

    /// How far a vCPU is ahead of its share, in ns of CPU time; negative while it is owed time. The further it
    /// is ahead, the less is it put ahead of timers of its guest's.
    fn lead(&self, _task: &Task, _host: &Host) -> i64 {
        0
    }

    /// A turn of `task` on `cpu` begins, as `decision` says.
    fn started(&mut self, _task: &Task, _cpu: CpuId, _decision: &Decision, _host: &Host) {}

    /// The turn of `task` is over. If it wants to go on, [`Policy::runnable`] is asked next.
    fn stopped(&mut self, _task: &Task, _turn: &Turn, _host: &Host) {}

    /// `task` has ended, or its VM has. Its number may be another task's next.
    fn gone(&mut self, _task: &Task) {}
}
