// SPDX-License-Identifier: GPL-2.0-only
//! The host scheduler's start-up and exit codes; see `scx_pvsched::scheduler`.

use std::io::IsTerminal;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use libbpf_rs::PrintLevel;
use log::{debug, info, warn};
use nix::sys::signal::{SigSet, Signal};
use scx_pvsched::scheduler::config::ConfigFile;
use scx_pvsched::scheduler::instance::{Asked, Instance};
use scx_pvsched::scheduler::options::{Engine, Options};
use scx_pvsched::scheduler::preflight::Host;
use scx_pvsched::scheduler::user_space::UserSpace;
use scx_pvsched::scheduler::{measure, monitor, stats, trace};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = options.check() {
        error.exit();
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for text in kept().drain(..) {
                eprint!("{text}");
            }
            eprintln!("scx_pvsched: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What libbpf warned of. It says why the kernel refused a program, which matters when that ends
/// us; it also warns of things that are as they should be, which would only alarm.
static KEPT: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<String>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep_libbpf(_: PrintLevel, text: String) {
    kept().push(text);
}

fn log_libbpf(level: PrintLevel, text: String) {
    match level {
        PrintLevel::Warn => warn!("{}", text.trim_end()),
        PrintLevel::Info | PrintLevel::Debug => debug!("{}", text.trim_end()),
    }
}

fn on_signals(signals: &[i32], asked: &Arc<AtomicBool>) -> Result<()> {
    for signal in signals {
        flag::register(*signal, Arc::clone(asked)).context("cannot handle signals")?;
    }
    Ok(())
}

/// Leaves these signals to a thread that does nothing else, from here on for this one and those that it
/// starts. The kernel gives up on checking a program whose loader is sent a signal, and on a busy host
/// checking takes so long that a few requests to reload are enough to end the loader's patience.
fn divert(signals: &[i32]) -> Result<()> {
    const CANNOT: &str = "cannot leave signals to a thread of their own";
    let thread = thread::Builder::new().name("signals".to_owned());
    thread
        .spawn(|| loop {
            thread::park();
        })
        .context(CANNOT)?;
    let mut set = SigSet::empty();
    for signal in signals {
        set.add(Signal::try_from(*signal).context(CANNOT)?);
    }
    set.thread_block().context(CANNOT)
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
        // By itself it goes by TERM alone, which a service or a redirection may have as well.
        if std::io::stderr().is_terminal() {
            simplelog::ColorChoice::Auto
        } else {
            simplelog::ColorChoice::Never
        },
    )?;

    libbpf_rs::set_print(Some((
        if options.verbose > 1 {
            PrintLevel::Debug
        } else {
            PrintLevel::Warn
        },
        if options.verbose > 0 {
            log_libbpf
        } else {
            keep_libbpf
        },
    )));

    let asked = Asked::default();
    if let Some(interval) = options.monitor {
        on_signals(&[SIGINT, SIGTERM, SIGHUP], &asked.stop)?;
        return monitor::run(Duration::from_secs_f64(interval), asked.stop);
    }
    if let Some(seconds) = options.measure {
        on_signals(&[SIGINT, SIGTERM, SIGHUP], &asked.stop)?;
        let report = measure::run(Duration::from_secs_f64(seconds), &asked.stop)?;
        report.write(&mut std::io::stdout().lock())?;
        return Ok(());
    }
    if let Some(path) = &options.trace {
        on_signals(&[SIGINT, SIGTERM, SIGHUP], &asked.stop)?;
        let duration = Duration::from_secs_f64(options.trace_seconds);
        let summary = trace::run(path, duration, &asked.stop)?;
        println!("{}: {summary}", path.display());
        return Ok(());
    }
    on_signals(&[SIGINT, SIGTERM], &asked.stop)?;
    on_signals(&[SIGHUP], &asked.reload)?;
    divert(&[SIGINT, SIGTERM, SIGHUP])?;

    let mut config = ConfigFile::open(options)?;
    loop {
        Host::this()?.check()?;
        let restart = match options.engine {
            Engine::Bpf => {
                let mut object = MaybeUninit::uninit();
                let instance = Instance::start(options, config.config(), &mut object)?;
                instance.run(&asked, &mut config)?.should_restart()
            }
            Engine::Rustland => {
                UserSpace::start(options, config.config())?.run(options, &asked, &mut config)?
            }
        };
        // sched_ext asks for this when CPUs came or went, for example.
        if asked.stop.load(Ordering::Relaxed) || !restart {
            return Ok(());
        }
        kept().clear();
        info!("starting again, as the kernel asked");
    }
}
