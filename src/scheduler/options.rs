// SPDX-License-Identifier: GPL-2.0-only
//! The command line. Each tunable has the name of its BPF constant (`bpf/state.bpf.h`) or of its
//! field in what a VM may have (`struct pv_vm` of `bpf/intf.h`), in microseconds here and in
//! nanoseconds there; its default stands here.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use scx_utils::libbpf_clap_opts::LibbpfOpts;

use super::config::Groups;
use crate::handoff;
use crate::policy::POLICIES;

/// What `--task-budget-us` may be.
pub const TASK_BUDGET_US: RangeInclusive<u64> = 0..=10_000_000;
/// What `--irq-budget-us` may be.
pub const IRQ_BUDGET_US: RangeInclusive<u64> = 0..=1_000_000;

/// scx_pvsched: a sched_ext host scheduler that knows what its virtual machines are doing.
///
/// Replaces the host's scheduler while it runs. Guests that publish what they run are put ahead
/// for their real-time work, within their fair share. Exits on SIGINT and SIGTERM and gives the
/// host back to the kernel's scheduler; reads its configuration again on SIGHUP.
///
/// Exit status: 0 stopped as asked; 1 an error, or ejected by the kernel; 2 wrong usage.
#[derive(Debug, Clone, Parser)]
#[command(version, max_term_width = 80)]
pub struct Options {
    /// Length of a fair turn when nobody else waits, in microseconds
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    pub slice_us: u64,

    /// Shortest fair turn, however many tasks wait, in microseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    pub slice_min_us: u64,

    /// How far boosts may carry a vCPU ahead of its fair share, in microseconds of CPU time; at that
    /// limit it may be boosted again once it has repaid what a turn is long (--slice-us)
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(TASK_BUDGET_US))]
    pub task_budget_us: u64,

    /// How long a vCPU may be boosted for interrupts alone before it has to repay, in
    /// microseconds; such a boost begins only while it is ahead of its fair share by no more than
    /// that and two turns, unless urgent tasks came of its interrupts of late
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(IRQ_BUDGET_US))]
    pub irq_budget_us: u64,

    /// Boost for an interrupt of a guest that does not publish, in microseconds after it entered; it
    /// ends at the first exit or tick after that
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub irq_boost_us: u64,

    /// Longest time for which a CPU gives boosted turns only while others wait, in microseconds
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1000..=1_000_000))]
    pub guard_us: u64,

    /// What each VM may have, in TOML; /etc/scx_pvsched.toml if there is one. Read again on SIGHUP
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Between whose vCPUs the exclusion groups that guests declare hold
    #[arg(long, value_enum, default_value_t = Groups::Own, value_name = "WHOSE")]
    pub groups: Groups,

    /// Keep vCPUs of one exclusion group on different cores, not only on different CPUs
    #[arg(long)]
    pub smt_isolate: bool,

    /// Schedule vCPU threads only, and what else has the policy SCHED_EXT. All other tasks stay with
    /// the kernel's scheduler, and come first
    #[arg(long)]
    pub partial: bool,

    /// What decides: BPF programs, or a policy in user space, for which scx_pvsched_rustland has to be
    /// installed beside this program
    #[arg(long, value_enum, default_value_t = Engine::Bpf)]
    pub engine: Engine,

    /// The policy, where a user-space engine decides [default: latency]
    #[arg(long, value_name = "NAME", value_parser = policy_names())]
    pub policy: Option<String>,

    /// Handoff socket for VMMs
    #[arg(long, value_name = "PATH", default_value = handoff::DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// Print statistics every INTERVAL seconds while scheduling
    #[arg(long, value_name = "INTERVAL", value_parser = parse_interval)]
    pub stats: Option<f64>,

    /// Do not schedule: print the statistics of the running instance every INTERVAL seconds
    #[arg(long, value_name = "INTERVAL", value_parser = parse_interval)]
    pub monitor: Option<f64>,

    /// Do not schedule: measure for SECONDS how long interrupts wait until their vCPU is in guest
    /// mode, under whatever scheduler runs
    #[arg(long, value_name = "SECONDS", value_parser = parse_interval)]
    pub measure: Option<f64>,

    /// Do not schedule: record what the running instance decides, and what each CPU and vCPU does
    /// meanwhile, into FILE, which <https://ui.perfetto.dev> opens; at most 512 MiB
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// How long --trace records, unless SIGINT ends it earlier
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 10.0, value_parser = parse_interval, requires = "trace")]
    pub trace_seconds: f64,

    /// Describe every statistic and exit
    #[arg(long)]
    pub help_stats: bool,

    /// Say more; twice for libbpf's messages too
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Length of the kernel's dump on an abnormal exit, in bytes; 0 for the kernel's default
    #[arg(long, default_value_t = 0)]
    pub exit_dump_len: u32,

    #[command(flatten, next_help_heading = "Libbpf options")]
    pub libbpf: LibbpfOpts,
}

/// What decides who runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// BPF programs, in the kernel
    Bpf,
    /// A policy in Rust, on scx_rustland_core
    Rustland,
}

fn policy_names() -> PossibleValuesParser {
    POLICIES.iter().map(|(name, _)| *name).into()
}

impl Options {
    /// The policy of a user-space engine.
    #[must_use]
    pub fn policy(&self) -> &str {
        self.policy.as_deref().unwrap_or(POLICIES[0].0)
    }

    /// Refuses what does not go together.
    ///
    /// # Errors
    /// Says what.
    pub fn check(&self) -> Result<(), clap::Error> {
        let conflict = |text: &str| Err(Self::command().error(ErrorKind::ArgumentConflict, text));
        match self.engine {
            Engine::Bpf if self.policy.is_some() => {
                conflict("--policy is for a user-space engine; add --engine rustland")
            }
            Engine::Rustland if self.partial => {
                conflict("--partial is for the BPF engine; --engine rustland schedules all tasks")
            }
            _ => Ok(()),
        }
    }

    /// Tunables that are not the default ones and mean nothing to the policy that was chosen.
    #[must_use]
    pub fn unused(&self) -> Vec<&'static str> {
        let default = Self::parse_from(["scx_pvsched"]);
        if self.engine == Engine::Bpf || self.policy() == "latency" {
            return Vec::new();
        }
        let tunables = [
            ("--slice-us", self.slice_us != default.slice_us),
            ("--slice-min-us", self.slice_min_us != default.slice_min_us),
            ("--irq-boost-us", self.irq_boost_us != default.irq_boost_us),
            ("--guard-us", self.guard_us != default.guard_us),
        ];
        let unused = tunables.into_iter().filter(|(_, changed)| *changed);
        unused.map(|(name, _)| name).collect()
    }
}

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("an interval is a number of seconds from 0.1 to 3600".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn what_an_engine_does_not_have_is_refused_or_named() {
        let options = |text: &str| Options::parse_from(text.split(' '));
        let refused = |text: &str| options(text).check().unwrap_err().to_string();
        assert!(refused("scx_pvsched --policy round-robin").contains("--engine rustland"));
        assert!(refused("scx_pvsched --engine rustland --partial").contains("--partial"));
        let rustland = options("scx_pvsched --engine rustland --guard-us 5000");
        assert!(rustland.check().is_ok() && rustland.unused().is_empty());
        assert_eq!(rustland.policy(), "latency");
        let other = options("scx_pvsched --engine rustland --policy round-robin --guard-us 5000");
        assert_eq!(other.unused(), ["--guard-us"]);
        let unknown = Options::try_parse_from(["scx_pvsched", "--policy", "fifo"]);
        assert!(unknown.unwrap_err().to_string().contains("latency"));
    }

    #[test]
    fn an_interval_must_be_a_sensible_number() {
        assert_eq!(parse_interval("0.5"), Ok(0.5));
        for bad in ["", "0", "-1", "NaN", "1e9", "soon"] {
            assert!(parse_interval(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
