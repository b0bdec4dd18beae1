//! Guest CPUs that spin for each other get on although the host has not a CPU for each: those that are
//! waited for are put ahead for the interrupt, and by KVM's directed yield.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{host, margins, median, promise};
use pvsched_lab::chain::{Scheduler, Vm, VmOptions};
use pvsched_lab::guest::Guest;

use crate::vm::wait_attached;

const ROUNDS: usize = 3;
const DURATION: Duration = Duration::from_secs(6);
/// Two for each CPU of the host.
const VCPUS: u32 = 4;

/// Barriers per second: each waits until all vCPUs have been interrupted.
fn barriers(guest: &Guest) -> Result<f64> {
    let command = format!("pvsched-lab barriers {VCPUS} {}", DURATION.as_millis());
    let output = guest.exec(&command, DURATION + margins::COMMAND)?.ok()?;
    output
        .trim()
        .parse()
        .with_context(|| format!("not a rate: {output}"))
}

#[test]
fn a_guest_whose_cpus_spin_for_each_other_gets_on() -> Result<()> {
    promise(|| {
        let options = VmOptions {
            vcpus: VCPUS,
            ..VmOptions::default()
        };
        let vm = Vm::start(&options)?;
        let mut ratios = Vec::new();
        for round in 0..ROUNDS {
            let kernels = barriers(&vm.guest)?;
            let mut scheduler = Scheduler::start::<&str>(&[])?;
            wait_attached(&scheduler, &vm, VCPUS)?;
            let ours = barriers(&vm.guest)?;
            let stats = scheduler.stats()?;
            host::ensure_all_were_asked_about()?;
            scheduler.check()?;
            scheduler.stop()?;
            println!(
                "round {round}: {kernels:.0} a second under the kernel's scheduler, {ours:.0} under \
                 scx_pvsched; boosts_irq {}, yields_to {}, hints_ahead {}",
                stats["boosts_irq"], stats["yields_to"], stats["hints_ahead"]
            );
            ensure!(
                stats["yields_to"].as_u64() > Some(0),
                "no vCPU gave its turn for another"
            );
            ratios.push(ours / kernels);
        }
        let ratio = median(&ratios)?;
        ensure!(
            ratio >= margins::BARRIERS_OF_KERNELS,
            "{ratio:.2} times as many barriers as under the kernel's scheduler, at least {:.2}",
            margins::BARRIERS_OF_KERNELS
        );
        Ok(())
    })
}
