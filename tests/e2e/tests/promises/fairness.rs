//! A boost moves a guest's work earlier and never makes it bigger.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::hog::Hog;

use crate::vm::{endless_fifo, sum, Used};

const DURATION: Duration = Duration::from_secs(10);
const HOGS: usize = 4;

#[test]
fn a_guest_that_always_wants_a_boost_gets_no_more_than_its_share() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let guest = &chain.vm.guest;
        // The last one started takes the agent's CPU, too; they end by themselves.
        let greedy = [
            endless_fifo(guest, 1, 50, 25)?,
            endless_fifo(guest, 0, 50, 25)?,
        ];
        let hogs = Hog::start(HOGS)?;
        // Until all run, and the budgets for running ahead are spent.
        thread::sleep(Duration::from_secs(4));
        let (used, ()) = Used::during(guest, &hogs, || {
            thread::sleep(DURATION);
            Ok(())
        })?;
        drop(hogs);
        let stats = chain.scheduler()?.stats()?;
        for task in greedy {
            task.wait(Duration::from_secs(60))?;
        }

        let (greed, least) = (used.share_of_vcpu(), used.least_share_of_host());
        println!("guest {greed:.3} of its share, the least of the host's tasks {least:.3}");
        ensure!(
            sum(&stats, "boosts_task") > 0 && sum(&stats, "throttles") > 0,
            "the guest was never boosted, or never stopped being it: {stats}"
        );
        ensure!(
            greed <= margins::GREEDY_GUEST_SHARE && least >= margins::BESIDE_GREEDY_GUEST_SHARE,
            "each vCPU got {greed:.2} of its fair share (at most {:.2}), one of the host's tasks \
             {least:.2} (at least {:.2}); vCPUs {:.2?} s, host's tasks {:.2?} s",
            margins::GREEDY_GUEST_SHARE,
            margins::BESIDE_GREEDY_GUEST_SHARE,
            used.vcpus,
            used.host
        );
        // Not by halting, either: a guest that wants its share has it.
        ensure!(
            greed >= 0.5,
            "each vCPU got only {greed:.2} of its fair share"
        );
        Ok(())
    })
}
