// SPDX-License-Identifier: GPL-2.0-only
//! Start-up and exit codes of the vhost-user device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use log::{error, info, LevelFilter};
use scx_pvsched::device::backend::Backend;
use scx_pvsched::handoff::{Protocol, VmName, DEFAULT_SOCKET};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The pvsched virtio device as a vhost-user back-end
///
/// Lets the guest of one QEMU negotiate paravirtual scheduling, and hands its shared pages and vCPU
/// threads to scx_pvsched. Serves one QEMU after the other until it is stopped. Start it before
/// QEMU, as a user who may use KVM: QEMU's own, or root.
///
/// QEMU newer than 10.0 (11.1 is tested):
///
///   -object memory-backend-memfd,id=mem,size=SIZE,share=on -machine q35,memory-backend=mem
///   -chardev socket,id=pvsched,path=SOCKET_PATH
///   -device vhost-user-test-device-pci,chardev=pvsched,virtio-id=39,num_vqs=3,config_size=16
///   -qmp unix:QMP,server=on,wait=off
///
/// Exit codes: 0 stopped by SIGINT or SIGTERM, 1 could not serve, 2 wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 100, verbatim_doc_comment)]
struct Args {
    /// Socket to listen on for QEMU
    #[arg(short, long)]
    socket_path: PathBuf,

    /// QMP socket of that QEMU, of which the device is the only client
    #[arg(short, long)]
    qmp: PathBuf,

    /// Name of the VM, for the scheduler's log and statistics
    #[arg(short = 'n', long, default_value = "vm", value_parser = parse_name)]
    vm_name: VmName,

    /// What this VM is offered, the best first: latency (the host acts on what the guest says),
    /// observe (it only counts). The guest gets the first that its driver and the scheduler speak
    #[arg(short, long, value_name = "NAME", value_delimiter = ',', value_parser = parse_protocol,
          default_values = ["latency", "observe"])]
    protocol: Vec<Protocol>,

    /// Socket of the scheduler
    #[arg(long, default_value = DEFAULT_SOCKET)]
    handoff: PathBuf,

    /// Log what happens in detail
    #[arg(short, long)]
    verbose: bool,
}

fn parse_name(name: &str) -> Result<VmName, String> {
    VmName::new(name).map_err(|refusal| refusal.to_string())
}

fn parse_protocol(name: &str) -> Result<Protocol, String> {
    let known = Protocol::all();
    let names: Vec<_> = known.iter().map(|known| known.name.to_string()).collect();
    let found = known.into_iter().find(|known| known.name.as_str() == name);
    found.ok_or_else(|| format!("there is {}", names.join(", ")))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let level = if args.verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    env_logger::Builder::new()
        .filter_level(level)
        .parse_default_env()
        .init();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let path = &args.socket_path;
    let at = || format!("cannot listen on {}", path.display());
    let mut listener = Listener::new(path, true)
        .map_err(in_words)
        .with_context(at)?;
    let socket = path.clone();
    ctrlc::set_handler(move || {
        // Nothing else must be put in order: the scheduler sees its connection close.
        let _ = std::fs::remove_file(&socket);
        std::process::exit(0);
    })
    .context("cannot handle signals")?;
    loop {
        info!("waiting for QEMU on {}", path.display());
        serve(args, &mut listener)?;
    }
}

/// Serves one QEMU until it disconnects.
fn serve(args: &Args, listener: &mut Listener) -> Result<()> {
    let backend = Backend::new(
        &args.handoff,
        args.vm_name.clone(),
        &args.qmp,
        args.protocol.clone(),
    )
    .context("cannot start the handover")?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon =
        VhostUserDaemon::new("pvsched".into(), Arc::new(backend), memory).map_err(in_words)?;
    daemon
        .start(listener)
        .map_err(in_words)
        .context("cannot accept QEMU's connection")?;
    info!("QEMU has connected");
    match daemon.wait() {
        // The ways in which QEMU goes away.
        Ok(())
        | Err(DaemonError::HandleRequest(
            VhostUserError::Disconnected | VhostUserError::PartialMessage,
        )) => info!("QEMU has disconnected"),
        Err(error) => error!("QEMU's connection failed: {error}"),
    }
    Ok(())
}

/// For errors that are no `std::error::Error`.
fn in_words(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
