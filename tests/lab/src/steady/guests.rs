//! Guests that come and go.

use std::time::Duration;

use anyhow::{bail, Context, Error, Result};

use super::action::{Action, Kind, Work};
use super::pool::{Sort, Task};
use super::{cgroups, host, lock, Hand, Mix, Outcome};
use crate::chain::{Vm, VmOptions};
use crate::channel::Job;
use crate::guest::Guest;

const MEMORY_MIB: u32 = 192;

/// For a boot, of which there may be two, on a host where all that the mix does goes on.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// For a guest that was asked to power off.
const END_LIMIT: Duration = Duration::from_secs(60);

/// What became of guests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of those without device and driver, how many came up.
    pub bare: u32,
    /// Those with device and driver that came up, by name.
    pub with_device: Vec<String>,
    /// What went wrong in guests: nested emulation lets some hang or stop.
    pub faults: Vec<String>,
}

impl Counts {
    pub fn up(&self) -> usize {
        self.with_device.len() + self.bare as usize
    }
}

enum Machine {
    WithDevice(Box<Vm>),
    Bare(Box<Guest>),
}

struct Running {
    machine: Machine,
    tasks: Vec<Task>,
    _work: Job,
}

impl Running {
    fn guest(&self) -> &Guest {
        match &self.machine {
            Machine::WithDevice(vm) => &vm.guest,
            Machine::Bare(guest) => guest,
        }
    }
}

/// Where one guest after the other runs.
pub struct Place<'a> {
    mix: &'a Mix,
    place: u8,
    number: u32,
    running: Option<Running>,
}

impl<'a> Place<'a> {
    pub fn new(mix: &'a Mix, place: u8) -> Self {
        Self {
            mix,
            place,
            number: 0,
            running: None,
        }
    }

    fn name(&self) -> String {
        format!("steady-{}-{}", self.place, self.number)
    }

    fn fault(&self, error: &Error) {
        let fault = format!("{}: {error:#}", self.name());
        // The report has the first line only.
        eprintln!("{fault}");
        lock(&self.mix.guests).faults.push(fault);
    }

    fn boot(&mut self, kind: Kind) -> Result<Outcome> {
        self.number += 1;
        let name = self.name();
        match start(&name, kind) {
            Ok(running) => {
                self.mix.pool.add(running.tasks.iter().copied());
                self.running = Some(running);
                let mut counts = lock(&self.mix.guests);
                if kind.device {
                    counts.with_device.push(name);
                } else {
                    counts.bare += 1;
                }
                Ok(Outcome::Done)
            }
            Err(error) => {
                self.fault(&error);
                Ok(Outcome::Refused)
            }
        }
    }

    /// Ends the guest in the given way.
    fn finish(&mut self, action: Action) -> Result<Outcome> {
        let Some(mut running) = self.running.take() else {
            return Ok(Outcome::Refused);
        };
        self.mix.pool.remove(running.guest().pid());
        if let Err(error) = running.guest().check() {
            self.fault(&error);
            return Ok(Outcome::Refused);
        }
        match action {
            Action::Shutdown => {
                // At once, and not after its share of a small quota.
                cgroups::to_root(running.guest().pid())?;
                for task in &running.tasks {
                    host::calm(*task)?;
                }
                if let Err(error) = running.guest().poweroff(END_LIMIT) {
                    self.fault(&error);
                }
            }
            Action::KillVmm => running.guest().kill(),
            Action::KillDevice => match &mut running.machine {
                Machine::WithDevice(vm) => vm.device.kill9()?,
                Machine::Bare(_) => bail!("a guest without a device has none to kill"),
            },
            other => bail!("{other:?} does not end a guest"),
        }
        Ok(Outcome::Done)
    }
}

fn start(name: &str, kind: Kind) -> Result<Running> {
    let machine = if kind.device {
        Machine::WithDevice(Box::new(Vm::start(&VmOptions {
            name: name.to_owned(),
            vcpus: kind.vcpus,
            memory_mib: MEMORY_MIB,
            boot_limit: Some(BOOT_LIMIT),
            ..VmOptions::default()
        })?))
    } else {
        let guest = Guest::builder().name(name).vcpus(kind.vcpus);
        let guest = guest.memory_mib(MEMORY_MIB).boot_limit(BOOT_LIMIT);
        Machine::Bare(Box::new(guest.boot()?))
    };
    let guest = match &machine {
        Machine::WithDevice(vm) => &vm.guest,
        Machine::Bare(guest) => guest,
    };
    let work = match kind.work {
        Work::RealTime => "exec chrt -f 50 pvsched-lab burn 3 27",
        Work::Ordinary => "exec pvsched-lab burn 20 20",
        Work::Idle => "exec chrt -i 0 pvsched-lab burn 20 20",
    };
    let work = guest.spawn(work)?;
    let pid = guest.pid();
    let threads = guest.vcpu_threads().context("the threads of its vCPUs")?;
    let vcpus = threads.into_iter().map(|tid| (tid, Sort::Vcpu));
    let tasks = vcpus
        .chain([(pid, Sort::Vmm)])
        .map(|(tid, sort)| Task { pid, tid, sort })
        .collect();
    Ok(Running {
        machine,
        tasks,
        _work: work,
    })
}

impl Hand for Place<'_> {
    fn act(&mut self, action: Action) -> Result<Outcome> {
        match action {
            Action::Boot(kind) => self.boot(kind),
            other => self.finish(other),
        }
    }

    fn end(&mut self) -> Result<()> {
        self.finish(Action::Shutdown).map(drop)
    }
}
