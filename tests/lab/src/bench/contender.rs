//! A scheduler in the comparison: how it starts, how it is known to run, and how it ends.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Result};
use nix::sys::signal::Signal;

use super::peers::Peer;
use crate::chain::{sched_ext_ops, sched_ext_state, wait_detached, Scheduler};
use crate::daemon::Daemon;
use crate::demo::first_line;

/// From start to scheduling, on a machine that is slow just now.
const START_LIMIT: Duration = Duration::from_secs(60);

/// For one that was asked to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What can be compared.
#[derive(Clone, Debug)]
pub enum Contender {
    /// The kernel's own scheduler.
    Kernel,
    Peer(Peer),
    /// Another build of scx_pvsched, with the same options.
    Base(PathBuf, Vec<String>),
    /// scx_pvsched with these options.
    Pvsched(Vec<String>),
}

/// One that schedules.
pub enum Running {
    Kernel,
    Peer(Peer, Daemon),
    Pvsched(Scheduler),
}

/// The name of scx_pvsched among the contenders.
pub const OURS: &str = "scx_pvsched";

/// The name of another build of it.
pub const BASE: &str = "base";

impl Contender {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Peer(peer) => peer.package,
            Self::Base(..) => BASE,
            Self::Pvsched(_) => OURS,
        }
    }

    /// What it says of itself.
    pub fn version(&self) -> Result<String> {
        let (program, argument) = match self {
            Self::Kernel => (PathBuf::from("uname"), "-r"),
            Self::Peer(peer) => (peer.program(), "--version"),
            Self::Base(program, _) => (program.clone(), "--version"),
            Self::Pvsched(_) => (PathBuf::from(OURS), "--version"),
        };
        first_line(Command::new(program).arg(argument))
    }

    /// Starts it and waits until the kernel has it.
    pub fn start(&self) -> Result<Running> {
        ensure!(
            sched_ext_state() == "disabled",
            "sched_ext is {} before {} starts",
            sched_ext_state(),
            self.name()
        );
        Ok(match self {
            Self::Kernel => Running::Kernel,
            Self::Pvsched(arguments) => Running::Pvsched(Scheduler::start(arguments)?),
            Self::Base(program, arguments) => {
                Running::Pvsched(Scheduler::start_program(program, arguments)?)
            }
            Self::Peer(peer) => {
                let none: [&str; 0] = [];
                let mut daemon = Daemon::start(peer.package, peer.program(), none)?;
                daemon.wait_until("scheduling", START_LIMIT, || {
                    Ok(is_attached(*peer).then_some(()))
                })?;
                Running::Peer(*peer, daemon)
            }
        })
    }
}

fn is_attached(peer: Peer) -> bool {
    sched_ext_state() == "enabled" && sched_ext_ops().is_some_and(|ops| ops.starts_with(peer.ops))
}

impl Running {
    /// Fails, with its log, if it no longer schedules, for instance because it was ejected.
    pub fn check(&mut self) -> Result<()> {
        match self {
            Self::Kernel => ensure!(
                sched_ext_state() == "disabled",
                "sched_ext is {} where the kernel's scheduler is to be measured",
                sched_ext_state()
            ),
            Self::Pvsched(scheduler) => scheduler.check()?,
            Self::Peer(peer, daemon) => {
                let runs = daemon.ended()?.is_none() && is_attached(*peer);
                ensure!(runs, daemon.failure("no longer schedules"));
            }
        }
        Ok(())
    }

    /// Ends it; the kernel's own scheduler is back when this returns.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::Kernel => Ok(()),
            Self::Pvsched(scheduler) => scheduler.stop(),
            Self::Peer(_, mut daemon) => {
                daemon.stop(Signal::SIGINT, STOP_LIMIT)?;
                wait_detached()
            }
        }
    }
}
