// SPDX-License-Identifier: GPL-2.0-only
//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::roles::{CpuList, Role, CONFIG};

const AFTER_HELP: &str = "\
Exit codes:
  0  run, place: stopped by a signal; role: done; status, capacity: publishing, and a host scheduler has
     the pages
  1  failed; the message says what to try
  2  wrong usage
  3  status, capacity: publishing, but no host scheduler is attached
  4  status, capacity: the device is ready, but nobody publishes (start: pvsched-guest run)
  5  status, capacity: the device does not answer, or there is no protocol in common
  6  status, capacity: no device
  7  status, capacity: the driver is not loaded

While an agent publishes, `rmmod virtio_pvsched` says that the module is in use: stop the agent
first.";

/// Tells the host's scheduler what this guest's CPUs run.
#[derive(Debug, Parser)]
#[command(name = "pvsched-guest", version, after_long_help = AFTER_HELP)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand, PartialEq, Eq)]
pub enum Command {
    /// Publish until stopped; wait for driver and device if they are not there
    Run {
        /// Roles to declare whenever there is a device; `role --persist` writes it
        #[arg(long, default_value = CONFIG, value_name = "FILE")]
        config: PathBuf,
    },
    /// Tell the host what CPUs are for, and which it is to keep apart; or show what it was told
    Role(Change),
    /// Show what is published and what the host makes of it
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Schedule this guest's tasks until stopped: those that mostly sleep where they run soonest
    ///
    /// Replaces the kernel's scheduler for ordinary tasks, needs a kernel with sched_ext, and goes by what
    /// the host says of each CPU while `pvsched-guest run` publishes. Real-time tasks are not touched.
    Place {
        /// Print what was placed, once a second, and what libbpf has to say
        #[arg(long, short)]
        verbose: bool,
    },
    /// Show what the host has for each CPU: how much of a physical one it gets, and where
    Capacity {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A change of roles, or without one a question.
#[derive(Clone, Debug, Default, PartialEq, Eq, ClapArgs)]
pub struct Change {
    /// The CPUs, as in 1,4-7 [default: show all]
    #[arg(long, value_name = "LIST")]
    pub cpu: Option<CpuList>,
    /// What they are for
    #[arg(long, value_enum, requires = "cpu")]
    pub role: Option<Role>,
    /// Exclusion group: the host keeps CPUs of one group on different physical CPUs; 0 for none
    #[arg(long, requires = "cpu", value_name = "NUMBER")]
    pub group: Option<u16>,
    /// Write it to the configuration too, for `run` to declare it anew after a reboot
    #[arg(long, requires = "cpu")]
    pub persist: bool,
    /// The configuration
    #[arg(long, default_value = CONFIG, value_name = "FILE")]
    pub config: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_is_understood() {
        let parse = |line: &[&str]| Args::try_parse_from(line).map(|args| args.command).ok();
        let config = PathBuf::from(CONFIG);
        let run = Command::Run {
            config: config.clone(),
        };
        assert_eq!(parse(&["pvsched-guest", "run"]), Some(run));
        let change = Change {
            cpu: Some("1,2-3".parse().unwrap()),
            role: Some(Role::Batch),
            group: Some(9),
            persist: true,
            config,
        };
        let line = "pvsched-guest role --cpu 1,2-3 --role batch --group 9 --persist";
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(parse(&words), Some(Command::Role(change)));
        assert_eq!(parse(&["pvsched-guest", "role", "--role", "batch"]), None);
        assert_eq!(
            parse(&["pvsched-guest", "status"]),
            Some(Command::Status { json: false })
        );
        assert_eq!(
            parse(&["pvsched-guest", "status", "--json"]),
            Some(Command::Status { json: true })
        );
        assert_eq!(parse(&["pvsched-guest"]), None);
        assert_eq!(parse(&["pvsched-guest", "run", "--json"]), None);
    }
}
