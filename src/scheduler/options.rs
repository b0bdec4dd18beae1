// SPDX-License-Identifier: GPL-2.0-only
//! The command line. Each tunable has the name of its BPF constant (`bpf/state.bpf.h`) or of its
//! field in what a VM may have (`struct pv_vm` of `bpf/intf.h`), in microseconds here and in
//! nanoseconds there; its default stands here.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::Parser;
use scx_utils::libbpf_clap_opts::LibbpfOpts;

use super::config::Groups;
use crate::handoff;

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

    /// How far boosts may carry a vCPU ahead of its fair share, in microseconds of CPU time
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(TASK_BUDGET_US))]
    pub task_budget_us: u64,

    /// How long a vCPU may be boosted for interrupts alone before it has to repay, in
    /// microseconds; such a boost begins only while it is ahead of its fair share by no more than
    /// that and two turns, unless urgent tasks came of its interrupts of late
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(IRQ_BUDGET_US))]
    pub irq_budget_us: u64,

    /// Boost for an interrupt of a guest that does not publish, in microseconds after it entered
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

fn parse_interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("an interval is a number of seconds from 0.1 to 3600".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn an_interval_must_be_a_sensible_number() {
        assert_eq!(parse_interval("0.5"), Ok(0.5));
        for bad in ["", "0", "-1", "NaN", "1e9", "soon"] {
            assert!(parse_interval(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
