//! A boost moves a guest's work earlier and never makes it bigger.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{host, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::hog::Hog;

use crate::vm::{endless_fifo, sum};

const DURATION: Duration = Duration::from_secs(10);
const HOGS: usize = 4;

#[test]
fn a_guest_that_always_wants_a_boost_gets_no_more_than_its_share() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let guest = &chain.vm.guest;
        let threads = guest.vcpu_threads()?;
        let vcpu_time = || -> Result<Duration> {
            let times = threads.iter().map(|tid| host::cpu_time(guest.pid(), *tid));
            times.sum()
        };
        // The last one started takes the agent's CPU, too; they end by themselves.
        let greedy = [
            endless_fifo(guest, 1, 50, 25)?,
            endless_fifo(guest, 0, 50, 25)?,
        ];
        let hogs = Hog::start(HOGS)?;
        // Until all run, and the budgets for running ahead are spent.
        thread::sleep(Duration::from_secs(4));
        let (vcpus_before, hogs_before) = (vcpu_time()?, hogs.progress());
        thread::sleep(DURATION);
        let work = hogs.progress().since(&hogs_before);
        let vcpus = (vcpu_time()? - vcpus_before).as_secs_f64();
        drop(hogs);
        let stats = chain.scheduler()?.stats()?;
        for task in greedy {
            task.wait(Duration::from_secs(60))?;
        }

        // Of the time that they all got, since the lab's own processes need some too.
        let host: Vec<_> = work
            .threads
            .iter()
            .map(|(_, cpu)| cpu.as_secs_f64())
            .collect();
        let count = u32::try_from(threads.len() + host.len())?;
        let fair = (vcpus + host.iter().sum::<f64>()) / f64::from(count);
        let greed = vcpus / f64::from(u32::try_from(threads.len())?) / fair;
        let least = host.iter().copied().fold(f64::INFINITY, f64::min) / fair;
        println!("guest {greed:.3} of its share, the least of the host's tasks {least:.3}");
        ensure!(
            sum(&stats, "boosts_task") > 0 && sum(&stats, "throttles") > 0,
            "the guest was never boosted, or never stopped being it: {stats}"
        );
        ensure!(
            greed <= margins::GREEDY_GUEST_SHARE && least >= margins::BESIDE_GREEDY_GUEST_SHARE,
            "each vCPU got {greed:.2} of its fair share (at most {:.2}), one of the host's tasks \
             {least:.2} (at least {:.2}); vCPUs {vcpus:.2} s, host's tasks {host:.2?} s",
            margins::GREEDY_GUEST_SHARE,
            margins::BESIDE_GREEDY_GUEST_SHARE
        );
        // Not by halting, either: a guest that wants its share has it.
        ensure!(
            greed >= 0.5,
            "each vCPU got only {greed:.2} of its fair share"
        );
        Ok(())
    })
}
