// SPDX-License-Identifier: GPL-2.0-only
//! The guest's agent: keeps the BPF program of the negotiated protocol loaded, and shows what is
//! published and what the host makes of it.

mod args;
#[cfg(test)]
mod arithmetic;
mod driver;
mod program;
mod roles;
mod run;
mod status;
mod uapi;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run { config } => run::run(&config).map(|()| ExitCode::SUCCESS),
        Command::Role(change) => roles::command(&change).and_then(|text| print(&text)),
        Command::Status { json } => show(json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pvsched-guest: {error:#}");
        ExitCode::FAILURE
    })
}

fn show(json: bool) -> Result<ExitCode> {
    let status = status::read()?;
    let text = if json {
        serde_json::to_string_pretty(&status)? + "\n"
    } else {
        status.to_string()
    };
    print(&text)?;
    Ok(ExitCode::from(status.exit_code()))
}

fn print(text: &str) -> Result<ExitCode> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads may have read enough: `pvsched-guest status | head -1`.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
