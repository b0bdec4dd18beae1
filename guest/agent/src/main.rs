// SPDX-License-Identifier: GPL-2.0-only
//! The guest's agent: keeps the BPF program of the negotiated protocol loaded, and shows what is
//! published and what the host makes of it.

mod args;
#[cfg(test)]
mod arithmetic;
mod driver;
mod program;
mod run;
mod status;
mod uapi;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Run => run::run().map(|()| ExitCode::SUCCESS),
        Command::Status { json } => show(json),
    };
    result.unwrap_or_else(|error| {
        eprintln!("pvsched-guest: {error:#}");
        ExitCode::FAILURE
    })
}

fn show(json: bool) -> Result<ExitCode> {
    let status = status::read()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{status}");
    }
    Ok(ExitCode::from(status.exit_code()))
}
