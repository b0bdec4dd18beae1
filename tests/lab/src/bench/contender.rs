//! A scheduler in the comparison: how it starts, how it is known to run, and how it ends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;

use super::peers::{Peer, PEERS};
use crate::chain::{sched_ext_ops, sched_ext_state, wait_detached, Scheduler};
use crate::daemon::Daemon;
use crate::demo::first_line;
use crate::guest::Guest;
use crate::paths;
use crate::priority::{set_policy, Policy};
use crate::process;

/// From start to scheduling. For some the kernel's verifier takes more than a minute of an emulated processor
/// on a machine that is slow just now.
const START_LIMIT: Duration = Duration::from_secs(240);

/// For one that was asked to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What operators give vCPU threads. Any real-time priority comes before all ordinary tasks.
const CHRT_PRIORITY: i32 = 1;

/// What can be compared.
#[derive(Clone, Debug)]
pub enum Contender {
    /// The kernel's own scheduler, and no host task beside the guest.
    Floor,
    /// The kernel's own scheduler.
    Kernel,
    /// The same, with the vCPU threads given a real-time policy by `chrt -f`.
    Chrt,
    Peer(Peer),
    /// Another build of scx_pvsched, with the same options.
    Base(PathBuf, Vec<String>),
    /// scx_pvsched, with a guest that knows nothing of it.
    Unmodified(Vec<String>),
    /// scx_pvsched with its engine in user space, and a guest with driver and agent.
    Engine(Vec<String>),
    /// scx_pvsched with these options, and a guest with driver and agent.
    Pvsched(Vec<String>),
}

/// One that schedules.
pub enum Running {
    Kernel,
    Chrt(RealTime),
    Peer(Peer, Daemon),
    Pvsched(Scheduler),
}

/// The name of scx_pvsched among the contenders.
pub const OURS: &str = "scx_pvsched";

/// The name of another build of it.
pub const BASE: &str = "base";

pub const FLOOR: &str = "floor";
pub const KERNEL: &str = "kernel";
pub const CHRT: &str = "chrt";
pub const UNMODIFIED: &str = "unmodified";

/// scx_pvsched with its engine in user space, by the name that the kernel shows.
pub const ENGINE: &str = "pvsched_rustland";

impl Contender {
    /// All there are but another build of ours, in the order of reports.
    pub fn all(arguments: &[String]) -> Vec<Self> {
        let peers = PEERS.iter().copied().map(Self::Peer);
        let engine = ["--engine", "rustland"].map(str::to_owned);
        [Self::Floor, Self::Kernel, Self::Chrt]
            .into_iter()
            .chain(peers)
            .chain([
                Self::Unmodified(arguments.to_vec()),
                Self::Engine(arguments.iter().cloned().chain(engine).collect()),
                Self::Pvsched(arguments.to_vec()),
            ])
            .collect()
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Floor => FLOOR,
            Self::Kernel => KERNEL,
            Self::Chrt => CHRT,
            Self::Peer(peer) => peer.package,
            Self::Base(..) => BASE,
            Self::Unmodified(_) => UNMODIFIED,
            Self::Engine(_) => ENGINE,
            Self::Pvsched(_) => OURS,
        }
    }

    /// Whether its guest is to have driver and agent.
    pub fn cooperates(&self) -> bool {
        matches!(self, Self::Pvsched(_) | Self::Base(..) | Self::Engine(_))
    }

    /// What it says of itself.
    pub fn version(&self) -> Result<String> {
        let (program, argument) = match self {
            Self::Floor | Self::Kernel | Self::Chrt => (PathBuf::from("uname"), "-r"),
            Self::Peer(peer) => (peer.program(), "--version"),
            Self::Base(program, _) => (program.clone(), "--version"),
            Self::Unmodified(_) | Self::Engine(_) | Self::Pvsched(_) => {
                (PathBuf::from(OURS), "--version")
            }
        };
        first_line(Command::new(program).arg(argument))
    }

    /// Starts it and waits until the kernel has it. `guest` is whose vCPUs are to be real-time
    /// threads, where that is what it is about.
    pub fn start(&self, guest: Option<&Guest>) -> Result<Running> {
        ensure!(
            sched_ext_state() == "disabled",
            "sched_ext is {} before {} starts",
            sched_ext_state(),
            self.name()
        );
        Ok(match self {
            Self::Floor | Self::Kernel => Running::Kernel,
            Self::Chrt => Running::Chrt(RealTime::give(
                guest.context("there is no VM whose threads to change")?,
            )?),
            Self::Unmodified(arguments) | Self::Engine(arguments) | Self::Pvsched(arguments) => {
                Running::Pvsched(Scheduler::start(arguments)?)
            }
            Self::Base(program, arguments) => {
                let program = Path::new(paths::CHECKOUT).join(program);
                Running::Pvsched(Scheduler::start_program(&program, arguments)?)
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
            Self::Kernel | Self::Chrt(_) => ensure!(
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

    /// Its processes: the one that was started, if there is one, and those that this has started.
    pub fn pids(&self) -> Vec<u32> {
        let pid = match self {
            Self::Kernel | Self::Chrt(_) => return Vec::new(),
            Self::Peer(_, daemon) => daemon.pid(),
            Self::Pvsched(scheduler) => scheduler.pid(),
        };
        [pid].into_iter().chain(process::children(pid)).collect()
    }

    /// scx_pvsched, for what only that tells.
    pub fn pvsched(&self) -> Result<&Scheduler> {
        match self {
            Self::Pvsched(scheduler) => Ok(scheduler),
            _ => anyhow::bail!("scx_pvsched is not what runs"),
        }
    }

    /// Ends it; the kernel's own scheduler is back when this returns.
    pub fn stop(self) -> Result<()> {
        match self {
            Self::Kernel => Ok(()),
            Self::Chrt(threads) => threads.take_back(),
            Self::Pvsched(scheduler) => scheduler.stop(),
            Self::Peer(_, mut daemon) => {
                daemon.stop(Signal::SIGINT, STOP_LIMIT)?;
                wait_detached()
            }
        }
    }
}

/// vCPU threads with a real-time policy.
pub struct RealTime(Vec<u32>);

impl RealTime {
    fn give(guest: &Guest) -> Result<Self> {
        let threads = Self(guest.vcpu_threads()?);
        for tid in &threads.0 {
            set_policy(*tid, Policy::Fifo(CHRT_PRIORITY))?;
        }
        Ok(threads)
    }

    fn take_back(self) -> Result<()> {
        self.0
            .iter()
            .try_for_each(|tid| set_policy(*tid, Policy::Other))
    }
}
