//! What it costs a guest to publish: how much more often it leaves guest mode.

use std::thread;
use std::time::Duration;

use anyhow::{ensure, Result};
use pvsched_e2e::{host, margins, median, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::guest::Guest;
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::{Cyclictest, GuestLoad};

const ROUNDS: usize = 3;
const DURATION: Duration = Duration::from_secs(5);

/// Per second.
#[derive(Debug)]
struct Exits {
    all: f64,
    hypercalls: f64,
}

fn exits_during(guest: &Guest, something: impl FnOnce() -> Result<()>) -> Result<Exits> {
    let count = |what| host::kvm_statistic(guest.pid(), what);
    let (all, hypercalls) = (count("exits")?, count("hypercalls")?);
    something()?;
    let per_second = |after: u64, before| {
        u32::try_from(after - before).map(|n| f64::from(n) / DURATION.as_secs_f64())
    };
    Ok(Exits {
        all: per_second(count("exits")?, all)?,
        hypercalls: per_second(count("hypercalls")?, hypercalls)?,
    })
}

fn rest() -> Result<()> {
    thread::sleep(DURATION);
    Ok(())
}

#[test]
fn a_guest_in_a_steady_state_leaves_guest_mode_no_more_often_for_publishing() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let _load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
        let (mut ratios, mut hypercalls) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let published = exits_during(&chain.vm.guest, rest)?;
            chain.vm.stop_agent()?;
            let silent = exits_during(&chain.vm.guest, rest)?;
            chain.vm.start_agent()?;
            println!("exits per second: publishing {published:.1?}, silent {silent:.1?}");
            ratios.push(published.all / silent.all);
            hypercalls.push(published.hypercalls);
        }
        chain.scheduler()?.check()?;
        let (ratio, hypercalls) = (median(&ratios)?, median(&hypercalls)?);
        ensure!(
            ratio <= margins::EXITS_OF_SILENT && hypercalls <= margins::STEADY_HYPERCALLS,
            "{ratio:.2} times the exits of a silent guest (at most {}), {hypercalls:.1} \
             notifications per second (at most {})",
            margins::EXITS_OF_SILENT,
            margins::STEADY_HYPERCALLS
        );
        Ok(())
    })
}

#[test]
fn a_guest_notifies_a_busy_host_at_most_twice_for_each_urgent_turn() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let _load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
        let _hogs = Hog::start(4)?;
        let cyclictest = Cyclictest {
            duration: DURATION,
            ..Cyclictest::default()
        };
        let before = chain.scheduler()?.stats()?["boosts_task"].as_u64();
        let exits = exits_during(&chain.vm.guest, || {
            cyclictest.run(&chain.vm.guest).map(|_| ())
        })?;
        let after = chain.scheduler()?.stats()?["boosts_task"].as_u64();
        chain.scheduler()?.check()?;
        let turns = after
            .zip(before)
            .map_or(0, |(after, before)| after - before);
        let turns = f64::from(u32::try_from(turns)?) / DURATION.as_secs_f64();
        println!("exits per second: {exits:.1?}, urgent turns {turns:.1}");
        // Of 100 wake-ups a second. Without any, nothing would be shown.
        ensure!(turns >= 30.0, "only {turns:.1} urgent turns per second");
        ensure!(
            exits.hypercalls > 0.0 && exits.hypercalls <= 2.0 * turns,
            "{:.1} notifications per second for {turns:.1} urgent turns",
            exits.hypercalls
        );
        Ok(())
    })
}
