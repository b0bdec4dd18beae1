// SPDX-License-Identifier: GPL-2.0-only
//! Runs a policy in the simulator and shows who ran where: as text, and as a picture.
//!
//!     cargo run --example simulate -- --policy round-robin
//!     cargo run --example simulate -- --scenario flood --cpus 4 --svg flood.svg

mod picture;
mod scenarios;
mod text;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use scx_pvsched::policy::{Owner, TaskId, POLICIES};
use scx_pvsched::simulator::scenario::{Scenario, MS};
use scx_pvsched::simulator::{behaviours, simulate, Trace};

/// Run a vCPU policy in virtual time and show who ran where.
///
/// Exit status: 0 all went well; 1 the policy did not do what every policy promises; 2 wrong usage.
#[derive(Debug, Parser)]
#[command(max_term_width = 80)]
struct Options {
    /// The policy
    #[arg(long, default_value = "latency", value_parser = clap::builder::PossibleValuesParser::new(
        POLICIES.iter().map(|(name, _)| *name)))]
    policy: String,

    /// What there is to do
    #[arg(long, value_enum, default_value_t = scenarios::Kind::Urgent)]
    scenario: scenarios::Kind,

    /// Physical CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,

    /// VMs, of one vCPU each for each two physical CPUs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    vms: u32,

    /// Busy tasks of the host
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=64))]
    tasks: u32,

    /// How long, in ms; the statistics are of all of it
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    duration: u64,

    /// From when on is shown, in ms
    #[arg(long, default_value_t = 100)]
    from: u64,

    /// How much of it is shown, in ms
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    show: u64,

    /// Of what is left to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Write a picture there too
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What is shown of a trace.
struct View<'a> {
    title: String,
    scenario: &'a Scenario,
    trace: &'a Trace,
    from: u64,
    to: u64,
}

impl View<'_> {
    /// The threads with their owners and names, and a letter for each VM; host tasks are lower case.
    fn threads(&self) -> Vec<(TaskId, Owner, char, String)> {
        let letter =
            |first: u8, number: u32| char::from(first + u8::try_from(number % 26).unwrap_or(0));
        let mut vcpus = std::collections::BTreeMap::<_, u32>::new();
        let threads = self.scenario.threads().map(|(id, owner, _)| {
            let (letter, name) = match owner {
                Owner::Host(_) => (letter(b'a', id.0 - 1), format!("host task {}", id.0)),
                Owner::Vm(vm) => {
                    let number = vcpus.entry(vm).or_default();
                    *number += 1;
                    (
                        letter(b'A', vm.0),
                        format!("VM {} vCPU {}", vm.0 + 1, *number - 1),
                    )
                }
            };
            (id, owner, letter, name)
        });
        threads.collect()
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let scenario = scenarios::build(&options);
    let policy = POLICIES.iter().find(|(name, _)| *name == options.policy);
    let (name, policy) = policy.context("no such policy")?;
    let trace = simulate(&scenario, &mut *policy());

    let from = options.from.min(options.duration.saturating_sub(1)) * MS;
    let view = View {
        title: format!(
            "policy {name}, scenario {}: {} CPUs, {} VMs, {} host tasks",
            options.scenario, options.cpus, options.vms, options.tasks
        ),
        scenario: &scenario,
        trace: &trace,
        from,
        to: (from + options.show * MS).min(scenario.duration),
    };
    print!("{}", text::timeline(&view));
    if let Some(path) = &options.svg {
        let picture = picture::draw(&view).to_string();
        std::fs::write(path, picture)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("\npicture: {}", path.display());
    }
    behaviours::check(&scenario, &trace, behaviours::Of::Every).map_err(anyhow::Error::msg)
}
