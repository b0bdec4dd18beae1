//! The benchmark: what ordinary work gets from scx_pvsched, from the kernel's scheduler and from
//! other sched_ext schedulers, side by side in one boot.
//!
//! Each round runs every load once under every scheduler, in an order that goes on by one from
//! round to round. Emulated processors are slow and noisy: only ratios within a round mean
//! anything, and only medians of several rounds are told.
//!
//! [`peers`] builds the other schedulers, [`contender`] runs any of them, [`load`] names the
//! loads, [`report`] says what came of it, and [`machine`] whether the machine was left alone.

mod compile;
mod contender;
pub mod echo;
mod load;
pub mod machine;
mod messages;
pub mod peers;
mod programs;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clap::Args;
use serde_json::{json, Value};

use crate::chain::{sched_ext_ops, sched_ext_state};
use crate::demo::{cpu_model, first_line};
use crate::paths;
use contender::Contender;
use load::{Load, Scale, LOADS};
use peers::Peers;
use report::{Failure, Report, Sample};

/// About how long a load takes on two emulated processors.
const LOAD_GUESS: Duration = Duration::from_secs(6);

/// About how long it takes to start a scheduler and to stop it.
const SWITCH_GUESS: Duration = Duration::from_secs(5);

/// From a scheduler's start to its first load.
const SETTLE: Duration = Duration::from_secs(1);

/// What to measure; the same on the machine and inside the host VM.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Rounds; each runs every load once under every scheduler
    #[arg(long, default_value_t = 5, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Only loads with this in their name; may be given several times
    #[arg(long, value_name = "NAME")]
    pub only: Vec<String>,
    /// The sched_ext schedulers to compare with, by their crates' names; none if empty
    #[arg(long, default_value = "scx_bpfland", value_name = "NAMES")]
    pub peers: Peers,
    /// Another build of scx_pvsched, by its path in the checkout: what a change is worth
    #[arg(long, value_name = "PROGRAM")]
    pub base: Option<PathBuf>,
    /// A third of the work and a single round: to see that all of it runs
    #[arg(long)]
    pub quick: bool,
    /// More options for scx_pvsched, in one word
    #[arg(
        long,
        default_value = "",
        value_name = "OPTIONS",
        allow_hyphen_values = true
    )]
    pub scheduler_args: String,
}

impl Options {
    /// The command line that says the same.
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--rounds={}", self.rounds),
            format!("--peers={}", self.peers),
            format!("--scheduler-args={}", self.scheduler_args),
        ];
        arguments.extend(self.only.iter().map(|name| format!("--only={name}")));
        let base = self.base.iter();
        arguments.extend(base.map(|program| format!("--base={}", program.display())));
        arguments.extend(self.quick.then(|| "--quick".to_owned()));
        arguments
    }

    fn rounds(&self) -> u32 {
        if self.quick {
            1
        } else {
            self.rounds
        }
    }

    fn loads(&self) -> Result<Vec<&'static Load>> {
        let wanted =
            |load: &&Load| self.only.is_empty() || self.only.iter().any(|n| load.name.contains(n));
        let loads: Vec<_> = LOADS.iter().filter(wanted).collect();
        let names: Vec<_> = LOADS.iter().map(|load| load.name).collect();
        ensure!(
            !loads.is_empty(),
            "no load has one of {:?} in its name; there are {}",
            self.only,
            names.join(", ")
        );
        Ok(loads)
    }

    /// The schedulers in the order of the first round.
    fn contenders(&self) -> Vec<Contender> {
        let peers = self.peers.0.iter().copied().map(Contender::Peer);
        let arguments = self.scheduler_args.split_whitespace().map(str::to_owned);
        let arguments: Vec<_> = arguments.collect();
        let base = self.base.as_ref().map(|program| {
            Contender::Base(Path::new(paths::CHECKOUT).join(program), arguments.clone())
        });
        [Contender::Kernel]
            .into_iter()
            .chain(peers)
            .chain(base)
            .chain([Contender::Pvsched(arguments)])
            .collect()
    }

    /// About how long all of it takes without the boot of the host VM.
    ///
    /// # Errors
    /// When no load is to be run.
    pub fn estimate(&self) -> Result<Duration> {
        let loads = u32::try_from(self.loads()?.len())?;
        let contenders = u32::try_from(self.contenders().len())?;
        Ok((LOAD_GUESS * loads + SWITCH_GUESS) * contenders * self.rounds())
    }
}

/// Measures everything here, in the host VM, and leaves `report.json` in `out`; also after each
/// round, so that a machine that stops takes only that round with it.
///
/// # Errors
/// When scx_pvsched fails, or what is needed to measure. What fails of others is in the report.
pub fn measure(options: &Options, out: &Path) -> Result<()> {
    if let Some(ops) = sched_ext_ops() {
        bail!("the scheduler {ops} is attached; end it first");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .context("cannot handle signals")?;

    let mut bench = Bench {
        loads: options.loads()?,
        contenders: options.contenders(),
        scale: Scale {
            cpus: std::thread::available_parallelism()?.get(),
            quick: options.quick,
        },
        samples: Vec::new(),
        failures: Vec::new(),
        steps: 0,
        start: Instant::now(),
    };
    programs::let_cgroups_have_weights()?;
    bench.warm_up()?;
    let path = out.join("report.json");
    let environment = bench.environment(options)?;
    for round in 1..=options.rounds() {
        bench.round(round, options.rounds(), &stop)?;
        let report = Report::new(environment.clone(), &bench.samples, &bench.failures);
        let text = serde_json::to_string_pretty(&report.json())?;
        fs::write(&path, text + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let report = Report::new(environment, &bench.samples, &bench.failures);
    print!("{report}");
    let ours = bench.failures.iter().find(|failure| failure.is_ours());
    if let Some(failure) = ours {
        bail!("{failure}");
    }
    Ok(())
}

struct Bench {
    loads: Vec<&'static Load>,
    contenders: Vec<Contender>,
    scale: Scale,
    samples: Vec<Sample>,
    failures: Vec<Failure>,
    steps: usize,
    start: Instant,
}

/// `count` things from that with number `first` on, in a circle.
fn circle(first: usize, count: usize) -> impl Iterator<Item = usize> {
    (first..first + count).map(move |index| index % count)
}

impl Bench {
    fn round(&mut self, round: u32, rounds: u32, stop: &AtomicBool) -> Result<()> {
        let steps = self.contenders.len() * usize::try_from(rounds)?;
        for index in circle(usize::try_from(round - 1)?, self.contenders.len()) {
            let contender = self.contenders[index].clone();
            self.contend(round, &contender, stop)
                .with_context(|| format!("round {round}, {}", contender.name()))?;
            self.steps += 1;
            let elapsed = self.start.elapsed();
            let done = u32::try_from(self.steps)?;
            let left = elapsed / done * u32::try_from(steps.saturating_sub(self.steps))?;
            eprintln!(
                "bench: [{done}/{steps}, {} s, {} s left]",
                elapsed.as_secs(),
                left.as_secs()
            );
        }
        Ok(())
    }

    /// What a load does for the first time takes longer: its programs come over 9p.
    fn warm_up(&self) -> Result<()> {
        let scale = Scale {
            quick: true,
            ..self.scale
        };
        for load in &self.loads {
            (load.run)(&scale).with_context(|| load.name)?;
        }
        Ok(())
    }

    /// All loads under one scheduler. One that fails is told, and started anew for the next load.
    fn contend(&mut self, round: u32, contender: &Contender, stop: &AtomicBool) -> Result<()> {
        let mut running = None;
        for load in self.loads.clone() {
            ensure!(!stop.load(Ordering::Relaxed), "interrupted");
            if running.is_none() {
                match contender.start() {
                    Ok(started) => running = Some(started),
                    Err(error) => {
                        self.fail(round, contender, None, &error);
                        return Ok(());
                    }
                }
                std::thread::sleep(SETTLE);
            }
            let start = Instant::now();
            let results = (load.run)(&self.scale);
            // A scheduler that was ejected would have left its numbers to the kernel's.
            if let Some(Err(error)) = running.as_mut().map(contender::Running::check) {
                self.fail(round, contender, Some(load), &error);
                running = None;
                continue;
            }
            let results = results.with_context(|| load.name)?;
            let texts: Vec<_> = results
                .iter()
                .map(|(metric, value)| format!("{} {value:.4} {}", metric.name, metric.unit))
                .collect();
            eprintln!(
                "bench: round {round}, {}, {} ({} s): {}",
                contender.name(),
                load.name,
                start.elapsed().as_secs(),
                texts.join(", ")
            );
            for (metric, value) in results {
                self.samples.push(Sample {
                    round,
                    scheduler: contender.name(),
                    load: load.name,
                    metric,
                    value,
                });
            }
        }
        if let Some(Err(error)) = running.map(contender::Running::stop) {
            self.fail(round, contender, None, &error);
        }
        ensure!(
            sched_ext_state() == "disabled",
            "sched_ext is {} after {}",
            sched_ext_state(),
            contender.name()
        );
        Ok(())
    }

    fn fail(
        &mut self,
        round: u32,
        contender: &Contender,
        load: Option<&Load>,
        error: &anyhow::Error,
    ) {
        let failure = Failure {
            round,
            scheduler: contender.name(),
            load: load.map(|load| load.name),
            reason: format!("{error:#}"),
        };
        eprintln!("bench: {failure}");
        self.failures.push(failure);
    }

    fn environment(&self, options: &Options) -> Result<Value> {
        let versions: Vec<_> = self
            .contenders
            .iter()
            .map(|contender| Ok((contender.name().to_owned(), json!(contender.version()?))))
            .collect::<Result<_>>()?;
        let loads: Vec<_> = self
            .loads
            .iter()
            .map(|load| (load.name.to_owned(), json!(load.about)))
            .collect();
        Ok(json!({
            "versions": Value::Object(versions.into_iter().collect()),
            "host": {
                "kernel": first_line(std::process::Command::new("uname").arg("-r"))?,
                "cpus": self.scale.cpus,
                "cpu_model": cpu_model(),
                "topology": topology()?,
            },
            "loads": Value::Object(loads.into_iter().collect()),
            "rounds": options.rounds(),
            "quick": options.quick,
            "scheduler_args": options.scheduler_args,
        }))
    }
}

/// The CPUs that share a core, and those that share a last-level cache.
fn topology() -> Result<Value> {
    let mut cores = Vec::new();
    let mut caches = Vec::new();
    for entry in fs::read_dir("/sys/devices/system/cpu")? {
        let path = entry?.path();
        let read = |file: &str| {
            let text = fs::read_to_string(path.join(file)).ok()?;
            Some(text.trim_end().to_owned())
        };
        cores.extend(read("topology/thread_siblings_list"));
        caches.extend(
            (0..=4)
                .rev()
                .find_map(|index| read(&format!("cache/index{index}/shared_cpu_list"))),
        );
    }
    for list in [&mut cores, &mut caches] {
        list.sort();
        list.dedup();
    }
    Ok(json!({ "cores": cores, "last_level_caches": caches }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &[String]) -> Options {
        let program = "bench".to_owned();
        Cli::try_parse_from([&program].into_iter().chain(line))
            .unwrap()
            .options
    }

    #[test]
    fn a_command_line_can_be_passed_on() {
        let line = [
            "--rounds=2",
            "--only=hackbench",
            "--only=mixed",
            "--peers=",
            "--quick",
            "--base=target/base/scx_pvsched",
            "--scheduler-args=--slice-us 2000",
        ];
        for line in [&line[..], &[]] {
            let line: Vec<_> = line.iter().map(|word| (*word).to_owned()).collect();
            let options = parse(&line);
            let again = parse(&options.arguments());
            assert_eq!(format!("{options:?}"), format!("{again:?}"));
        }
    }

    #[test]
    fn loads_are_picked_by_a_part_of_their_name() {
        let names = |only: &[&str]| {
            let line: Vec<_> = only.iter().map(|name| format!("--only={name}")).collect();
            let loads = parse(&line).loads()?;
            Ok::<_, anyhow::Error>(loads.iter().map(|load| load.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["mixed"]).unwrap(), ["mixed"]);
        assert_eq!(names(&[]).unwrap().len(), LOADS.len());
        assert!(names(&["hackbench"]).unwrap().len() > 1);
        assert!(names(&["no such load"]).is_err());
    }

    #[test]
    fn every_scheduler_is_first_once_in_as_many_rounds() {
        let orders: Vec<Vec<_>> = (0..3).map(|round| circle(round, 3).collect()).collect();
        assert_eq!(orders, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }

    #[test]
    fn the_kernels_scheduler_and_ours_are_always_compared() {
        let line = ["--peers=".to_owned()];
        let names: Vec<_> = parse(&line)
            .contenders()
            .iter()
            .map(Contender::name)
            .collect();
        assert_eq!(names, ["kernel", "scx_pvsched"]);
    }
}
