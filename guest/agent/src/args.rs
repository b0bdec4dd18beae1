// SPDX-License-Identifier: GPL-2.0-only
//! The command line.

use clap::{Parser, Subcommand};

const AFTER_HELP: &str = "\
Exit codes:
  0  run: stopped by a signal; status: publishing, and a host scheduler has the pages
  1  failed; the message says what to try
  2  wrong usage
  3  status: publishing, but no host scheduler is attached
  4  status: the device is ready, but nobody publishes (start: pvsched-guest run)
  5  status: the device does not answer, or there is no protocol in common
  6  status: no device
  7  status: the driver is not loaded

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
    Run,
    /// Show what is published and what the host makes of it
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
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
    fn both_commands_are_understood() {
        let parse = |line: &[&str]| Args::try_parse_from(line).map(|args| args.command).ok();
        assert_eq!(parse(&["pvsched-guest", "run"]), Some(Command::Run));
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
