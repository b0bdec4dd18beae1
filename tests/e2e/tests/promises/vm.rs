//! What tests with a VM share.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use pvsched_e2e::{eventually, host, margins};
use pvsched_lab::chain::{ChainOptions, Scheduler, Vm, VmOptions};
use pvsched_lab::channel::Job;
use pvsched_lab::guest::Guest;
use pvsched_lab::hog::{Hog, Work};
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

/// Waits until a scheduler that was started after a VM has that.
pub fn wait_attached(scheduler: &Scheduler, vm: &Vm, vcpus: u32) -> Result<()> {
    let attached = eventually("the vCPUs are handed over", margins::START, || {
        let handed_over = scheduler.stats()?["nr_vcpus"].as_u64();
        Ok((handed_over >= Some(vcpus.into())).then_some(()))
    });
    if attached.is_err() {
        vm.guest.check()?;
    }
    attached.with_context(|| vm.device.failure("stood by"))?;
    Ok(())
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

/// What the vCPUs of a guest and busy host tasks used while something went on. Shares are of what
/// they all got, since the lab's own processes need some CPU time too.
pub struct Used {
    /// CPU time of each vCPU and of each host task, in seconds.
    pub vcpus: Vec<f64>,
    pub host: Vec<f64>,
    pub work: Work,
}

impl Used {
    /// Measures it, and passes on what came of it.
    pub fn during<T>(
        guest: &Guest,
        hogs: &Hog,
        something: impl FnOnce() -> Result<T>,
    ) -> Result<(Self, T)> {
        let threads = guest.vcpu_threads()?;
        let times = || -> Result<Vec<Duration>> {
            let time = |tid: &u32| host::cpu_time(guest.pid(), *tid);
            threads.iter().map(time).collect()
        };
        let (before, hogs_before) = (times()?, hogs.progress());
        let result = something()?;
        let work = hogs.progress().since(&hogs_before);
        let vcpus = times()?
            .iter()
            .zip(&before)
            .map(|(after, before)| (*after - *before).as_secs_f64())
            .collect();
        let host = work
            .threads
            .iter()
            .map(|(_, cpu)| cpu.as_secs_f64())
            .collect();
        Ok((Self { vcpus, host, work }, result))
    }

    /// CPU time of all vCPUs, of that of all.
    pub fn part_of_vcpus(&self) -> f64 {
        let vcpus: f64 = self.vcpus.iter().sum();
        vcpus / (vcpus + self.host.iter().sum::<f64>())
    }

    /// What each would have got if all had got the same.
    #[allow(clippy::cast_precision_loss)]
    fn fair(&self) -> f64 {
        let all = self.vcpus.iter().chain(&self.host);
        all.clone().sum::<f64>() / all.count() as f64
    }

    /// What a vCPU got, of its fair share; on average.
    #[allow(clippy::cast_precision_loss)]
    pub fn share_of_vcpu(&self) -> f64 {
        self.vcpus.iter().sum::<f64>() / self.vcpus.len() as f64 / self.fair()
    }

    /// What the host task that got the least got, of its fair share.
    pub fn least_share_of_host(&self) -> f64 {
        self.host.iter().copied().fold(f64::INFINITY, f64::min) / self.fair()
    }
}

/// User pages that the host's kernel holds pinned. Beside guests' pages nothing in the lab pins any
/// for long, but its file system does for a moment: what is expected has to be waited for.
pub fn pinned_pages() -> Result<i64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    let value = |name: &str| -> Result<i64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.with_context(|| format!("/proc/vmstat has no {name}"))?;
        Ok(value.trim().parse()?)
    };
    Ok(value("nr_foll_pin_acquired ")? - value("nr_foll_pin_released ")?)
}

/// Waits until no page is pinned: those of an earlier test's VM, or of this one's.
pub fn nothing_pinned() -> Result<()> {
    let mut pinned = 0;
    let none = eventually("no page stays pinned", margins::UNPINNED, || {
        pinned = pinned_pages()?;
        Ok((pinned == 0).then_some(()))
    });
    none.map(|_| ())
        .with_context(|| format!("{pinned} pages are pinned"))
}
