//! The guests that measures need. They stay up over all rounds, each is booted when it is first
//! needed and again when it has stopped, and those that are not measured idle.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::contender::{Contender, Running};
use super::measure::{Results, HOST_SHARE, VM_SHARE};
use super::requests;
use crate::chain::{Vm, VmOptions};
use crate::guest::Guest;
use crate::hog::{Hog, Work};
use crate::kernels::Kernel;
use crate::latency::GuestLoad;

/// Of the guest that is measured.
pub const VCPUS: u32 = 2;

/// Of the batch VM, so that both have four for each of two CPUs.
pub const BATCH_VCPUS: u32 = 6;

/// From the failure of a measurement to the end of its guest, if that was the cause.
const STOP: Duration = Duration::from_secs(5);

/// From a scheduler's start to all vCPUs that are handed over.
const ATTACH_LIMIT: Duration = Duration::from_secs(60);

const LOOK: Duration = Duration::from_millis(100);

/// All guests.
pub struct Stage {
    kernel: Kernel,
    /// One that knows of nothing.
    plain: Option<Guest>,
    /// One with device, driver and agent.
    cooperating: Option<Vm>,
    batch: Option<Guest>,
    /// How many had to be booted again.
    stops: u32,
}

impl Stage {
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            plain: None,
            cooperating: None,
            batch: None,
            stops: 0,
        }
    }

    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// How many guests stopped and were booted again.
    pub fn stops(&self) -> u32 {
        self.stops
    }

    /// Boots what is missing of what a contender needs; best while the kernel's scheduler runs.
    pub fn prepare(&mut self, contender: &Contender, batch: bool) -> Result<()> {
        if contender.cooperates() {
            if self.cooperating.is_none() {
                let vm = Vm::start(&VmOptions {
                    name: "cooperating".to_owned(),
                    vcpus: VCPUS,
                    kernel: self.kernel,
                    network: true,
                    ..VmOptions::default()
                })?;
                requests::serve(&vm.guest)?;
                self.cooperating = Some(vm);
            }
        } else if self.plain.is_none() {
            let guest = Guest::builder()
                .name("plain")
                .vcpus(VCPUS)
                .kernel(self.kernel)
                .network(true)
                .boot()?;
            requests::serve(&guest)?;
            self.plain = Some(guest);
        }
        if batch && self.batch.is_none() {
            let builder = Guest::builder().name("batch").vcpus(BATCH_VCPUS);
            self.batch = Some(builder.kernel(self.kernel).boot()?);
        }
        Ok(())
    }

    /// The guest that is measured.
    pub fn guest(&self, contender: &Contender) -> Result<&Guest> {
        let guest = if contender.cooperates() {
            self.cooperating.as_ref().map(|vm| &vm.guest)
        } else {
            self.plain.as_ref()
        };
        guest.context("this guest has not been booted")
    }

    /// The VM with device, driver and agent.
    pub fn cooperating(&mut self) -> Result<&mut Vm> {
        let vm = self.cooperating.as_mut();
        vm.context("this guest has not been booted")
    }

    pub fn batch(&self) -> Result<&Guest> {
        self.batch.as_ref().context("there is no batch VM")
    }

    /// Waits until scx_pvsched, if that is what runs, has KVM's hints, and the vCPUs of a guest that
    /// cooperates: both come after it has begun to schedule.
    pub fn wait_ready(&self, contender: &Contender, running: &Running) -> Result<()> {
        let Ok(scheduler) = running.pvsched() else {
            return Ok(());
        };
        let vcpus = u64::from(if contender.cooperates() { VCPUS } else { 0 });
        let start = Instant::now();
        loop {
            let stats = scheduler.stats()?;
            let hinted = stats["hint_sources"]
                .as_str()
                .is_some_and(|live| !live.is_empty());
            if hinted && stats["nr_vcpus"].as_u64() >= Some(vcpus) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < ATTACH_LIMIT,
                "{} of {vcpus} vCPUs were handed over within {ATTACH_LIMIT:?}, with{} hints from KVM",
                stats["nr_vcpus"],
                if hinted { "" } else { "out" }
            );
            std::thread::sleep(LOOK);
        }
    }

    /// After a failure: lets go of the guests that have stopped, and tells which.
    pub fn sweep(&mut self) -> Vec<&'static str> {
        let mut gone = Vec::new();
        let stopped = |guest: &Guest| guest.stops_within(STOP) || !answers(guest);
        if self.plain.as_ref().is_some_and(stopped) {
            self.plain = None;
            gone.push("plain");
        }
        if self
            .cooperating
            .as_ref()
            .is_some_and(|vm| stopped(&vm.guest))
        {
            self.cooperating = None;
            gone.push("cooperating");
        }
        if self.batch.as_ref().is_some_and(stopped) {
            self.batch = None;
            gone.push("batch");
        }
        self.stops += u32::try_from(gone.len()).unwrap_or(0);
        gone
    }
}

/// Whether a guest still does what it is told.
fn answers(guest: &Guest) -> bool {
    guest.exec("true", Duration::from_secs(20)).is_ok()
}

/// CPU time that each vCPU of a guest has used so far.
pub fn vcpu_times(guest: &Guest) -> Result<Vec<Duration>> {
    let time = |tid: &u32| {
        let path = format!("/proc/{}/task/{tid}/schedstat", guest.pid());
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let ns = text.split(' ').next().unwrap_or_default();
        let ns = ns.parse().with_context(|| format!("{path}: {text}"))?;
        Ok(Duration::from_nanos(ns))
    };
    guest.vcpu_threads()?.iter().map(time).collect()
}

/// What the vCPUs of a guest and busy host tasks used while something went on, in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Used {
    pub vcpus: Vec<f64>,
    pub host: Vec<f64>,
    /// Work that the host tasks did per second.
    pub rate: f64,
}

impl Used {
    /// Keeps the guest's CPUs busy and measures what everybody used while `something` went on.
    pub fn during<T>(
        guest: &Guest,
        hogs: &Hog,
        something: impl FnOnce() -> Result<T>,
    ) -> Result<(Self, T)> {
        let _load = GuestLoad::start(guest, 0..VCPUS)?;
        std::thread::sleep(super::SETTLE);
        let (vcpus, progress) = (vcpu_times(guest)?, hogs.progress());
        let result = something()?;
        let work = hogs.progress().since(&progress);
        let times = vcpu_times(guest)?;
        guest.check()?;
        Ok((Self::new(&vcpus, &times, &work), result))
    }

    fn new(before: &[Duration], after: &[Duration], work: &Work) -> Self {
        let used =
            |(after, before): (&Duration, &Duration)| after.saturating_sub(*before).as_secs_f64();
        Self {
            vcpus: after.iter().zip(before).map(used).collect(),
            host: work
                .threads
                .iter()
                .map(|(_, cpu)| cpu.as_secs_f64())
                .collect(),
            rate: if work.threads.is_empty() {
                0.0
            } else {
                work.rate()
            },
        }
    }

    /// What the vCPUs and the host tasks got, of what they would have got if all had got the same;
    /// of what all got together, since the lab's own processes need some CPU time, too.
    #[allow(clippy::cast_precision_loss)]
    pub fn shares(&self) -> (f64, f64) {
        let all = self.vcpus.iter().chain(&self.host);
        let fair = all.clone().sum::<f64>() / all.count() as f64;
        let of = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64 / fair;
        (of(&self.vcpus), of(&self.host))
    }

    /// These, for the report.
    pub fn results(&self) -> Results {
        let (vcpus, host) = self.shares();
        vec![(HOST_SHARE, host), (VM_SHARE, vcpus)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_all_got() {
        let used = Used {
            vcpus: vec![1.0, 1.0],
            host: vec![0.25, 0.25, 0.25, 0.25],
            rate: 0.0,
        };
        let (vcpus, host) = used.shares();
        assert!((vcpus - 2.0).abs() < 1e-9 && (host - 0.5).abs() < 1e-9);
    }
}
