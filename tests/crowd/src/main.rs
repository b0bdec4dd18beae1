//! `pvsched-crowd`: a VMM of many small VMs, for measuring how scx_pvsched's costs grow.
//!
//! Every vCPU is one of KVM's, with a thread of its own and a shared page that is handed over as any
//! VMM's. Its guest halts, takes an interrupt, says in its page that a real-time task runs, works for
//! a moment, and halts again. When all are attached, a line of JSON tells how long that took; then
//! interrupts come at a steady rate, for one vCPU after the other, until standard input ends; another
//! line tells how many were sent and taken, and how often KVM gave up entering a guest.

mod guest;
mod vm;

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clap::Parser;
use kvm_ioctls::Kvm;
use scx_pvsched::handoff::DEFAULT_SOCKET;
use serde_json::json;

use vm::Vm;

/// Many small VMs, handed over to scx_pvsched.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// VMs
    #[arg(long, default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    vms: u32,
    /// vCPUs of each
    #[arg(long, default_value_t = 2, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(guest::MAX_VCPUS)))]
    vcpus: u32,
    /// Interrupts per second of all vCPUs together
    #[arg(long, default_value_t = 200, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// The scheduler's socket
    #[arg(long, default_value = DEFAULT_SOCKET, value_name = "SOCKET")]
    socket: PathBuf,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let kvm = Kvm::new().context("cannot use /dev/kvm")?;
    let (mut vms, mut registered, mut attached) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    for number in 0..cli.vms {
        let mut vm = Vm::new(&kvm, cli.vcpus).with_context(|| format!("VM {number}"))?;
        let times = vm
            .hand_over(&cli.socket, &format!("crowd-{number}"))
            .with_context(|| format!("VM {number}"))?;
        registered.push(times.registered);
        attached.extend(times.attached);
        vms.push(vm);
    }
    let us = |times: &[Duration]| -> Vec<_> {
        times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
    };
    println!(
        "{}",
        json!({
            "seconds": start.elapsed().as_secs_f64(),
            "register_us": us(&registered),
            "attach_us": us(&attached),
        })
    );
    let sent = interrupt(&vms, cli.rate)?;
    let taken: u64 = vms.iter().map(Vm::taken).sum::<Result<_>>()?;
    println!(
        "{}",
        json!({ "sent": sent, "taken": taken, "faults": vm::faults() })
    );
    for vm in &vms {
        ensure!(!vm.failed(), "a vCPU stopped; see above");
    }
    // Threads that are in the guest end with the process.
    Ok(())
}

/// Interrupts one vCPU after the other until standard input ends; gives how often.
fn interrupt(vms: &[Vm], rate: u32) -> Result<u64> {
    let (over, mut sent) = (AtomicBool::new(false), 0_u64);
    let interval = Duration::from_secs(1) / rate;
    let mut next = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Whatever comes of reading, there is nothing more to wait for.
            let _ = io::stdin().lock().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
        });
        // One VM after the other, so that neighbours in time are not of one VM.
        let vcpus = vms.iter().map(Vm::vcpus).max().unwrap_or_default();
        let mut all = (0..vcpus)
            .flat_map(|vcpu| vms.iter().map(move |vm| (vm, vcpu)))
            .cycle();
        while !over.load(Ordering::Relaxed) {
            let (vm, vcpu) = all.next().context("there is no vCPU")?;
            vm.interrupt(vcpu)?;
            sent += 1;
            next = (next + interval).max(Instant::now() - interval);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        Ok(sent)
    })
}
