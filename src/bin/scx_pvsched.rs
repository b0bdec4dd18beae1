// SPDX-License-Identifier: GPL-2.0-only
//! The host scheduler's start-up and exit codes; see `scx_pvsched::scheduler`.

use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use libbpf_rs::PrintLevel;
use log::{debug, info, warn};
use scx_pvsched::scheduler::instance::Instance;
use scx_pvsched::scheduler::options::Options;
use scx_pvsched::scheduler::preflight::Host;
use scx_pvsched::scheduler::{monitor, stats};

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scx_pvsched: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if options.help_stats {
        stats::server_data().describe_meta(&mut std::io::stdout(), None)?;
        return Ok(());
    }
    let level = match options.verbose {
        0 => simplelog::LevelFilter::Info,
        1 => simplelog::LevelFilter::Debug,
        _ => simplelog::LevelFilter::Trace,
    };
    simplelog::TermLogger::init(
        level,
        simplelog::Config::default(),
        simplelog::TerminalMode::Stderr,
        simplelog::ColorChoice::Auto,
    )?;

    // libbpf explains on its "warning" level why the kernel refused a program.
    libbpf_rs::set_print(Some((
        if options.verbose > 1 { PrintLevel::Debug } else { PrintLevel::Warn },
        |level, text| match level {
            PrintLevel::Warn => warn!("{}", text.trim_end()),
            PrintLevel::Info | PrintLevel::Debug => debug!("{}", text.trim_end()),
        },
    )));

    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .context("cannot handle signals")?;

    if let Some(interval) = options.monitor {
        return monitor::run(Duration::from_secs_f64(interval), stop);
    }

    loop {
        Host::this()?.check()?;
        let mut object = MaybeUninit::uninit();
        let exit = Instance::start(options, &mut object)?.run(&stop)?;
        // sched_ext asks for this when CPUs came or went, for example.
        if stop.load(Ordering::Relaxed) || !exit.should_restart() {
            return Ok(());
        }
        info!("starting again, as the kernel asked");
    }
}
