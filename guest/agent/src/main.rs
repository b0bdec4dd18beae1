// SPDX-License-Identifier: GPL-2.0-only
//! The guest's agent: keeps the BPF program of the negotiated protocol loaded, and shows what is
//! published and what the host makes of it.

mod args;
#[cfg(test)]
mod arithmetic;
mod capacity;
mod driver;
mod place;
mod program;
mod roles;
mod run;
mod status;
mod uapi;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run { config } => run::run(&config).map(|()| ExitCode::SUCCESS),
        Command::Place { verbose } => place::run(verbose).map(|()| ExitCode::SUCCESS),
        Command::Role(change) => roles::command(&change).and_then(|text| print(&text)),
        Command::Status { json } => {
            status::read().and_then(|status| show(&status, json, status.exit_code()))
        }
        Command::Capacity { json } => {
            capacity::read().and_then(|capacity| show(&capacity, json, capacity.exit_code()))
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("pvsched-guest: {error:#}");
        ExitCode::FAILURE
    })
}

fn show<T: Display + Serialize>(what: &T, json: bool, exit_code: u8) -> Result<ExitCode> {
    let text = if json {
        serde_json::to_string_pretty(what)? + "\n"
    } else {
        what.to_string()
    };
    print(&text)?;
    Ok(ExitCode::from(exit_code))
}

fn print(text: &str) -> Result<ExitCode> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads may have read enough: `pvsched-guest status | head -1`.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
