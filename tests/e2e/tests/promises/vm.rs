//! What tests with a VM share.

use std::fs;

use anyhow::{Context, Result};
use pvsched_lab::chain::{ChainOptions, VmOptions};
use pvsched_lab::channel::Job;
use pvsched_lab::guest::Guest;
use pvsched_lab::kernels::Kernel;
use serde_json::Value;

/// A chain whose guest has the given kernel.
pub fn chain_with(kernel: Kernel) -> ChainOptions {
    ChainOptions {
        vm: VmOptions {
            kernel,
            ..VmOptions::default()
        },
        ..ChainOptions::default()
    }
}

/// A real-time task that never sleeps, on one CPU of a guest. It ends by itself, as nobody may be
/// able to end it: on that CPU nothing of lower priority runs any more.
pub fn endless_fifo(guest: &Guest, cpu: u32, priority: u32, seconds: u32) -> Result<Job> {
    let above = priority + 1;
    guest.spawn(&format!(
        "exec taskset -c {cpu} chrt -f {above} timeout -s KILL {seconds} \
         chrt -f {priority} sh -c 'while :; do :; done'"
    ))
}

/// A real-time task that works and sleeps many times a second.
pub fn periodic_fifo(guest: &Guest, cpu: u32, priority: u32, seconds: u32) -> Result<Job> {
    guest.spawn(&format!(
        "exec cyclictest -q -m -p {priority} -i 5000 -a {cpu} -t 1 -D {seconds} >/dev/null 2>&1"
    ))
}

/// Every vCPU in the scheduler's statistics, by VM and APIC id.
pub fn vcpus(stats: &Value) -> Vec<&Value> {
    let vms = stats["vms"].as_object().into_iter().flatten();
    vms.filter_map(|(_, vm)| vm["vcpus"].as_object())
        .flatten()
        .map(|(_, vcpu)| vcpu)
        .collect()
}

/// The sum of one statistic over all vCPUs.
pub fn sum(stats: &Value, name: &str) -> u64 {
    vcpus(stats)
        .iter()
        .filter_map(|vcpu| vcpu[name].as_u64())
        .sum()
}

/// User pages that the host's kernel holds pinned. Beside guests' pages nothing in the lab pins any
/// for long.
pub fn pinned_pages() -> Result<i64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let value = |name: &str| -> Result<i64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.with_context(|| format!("/proc/vmstat has no {name}"))?;
        Ok(value.trim().parse()?)
    };
    Ok(value("nr_foll_pin_acquired ")? - value("nr_foll_pin_released ")?)
}
