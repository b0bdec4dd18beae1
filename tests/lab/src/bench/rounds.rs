//! A run: all rounds, and what is kept of each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};

use super::contender::{Contender, Running};
use super::measure::{Measure, Outcome, Run, Scale, Scene};
use super::options::Options;
use super::record::{Failure, Record};
use super::report::Report;
use super::stage::Stage;
use super::{growth, programs, SETTLE};
use crate::chain::{sched_ext_ops, sched_ext_state, wait_detached};
use crate::demo::{cpu_model, first_line};

/// How often a measure is tried.
const TRIES: u32 = 2;

/// Measures everything here, in the host VM or on a machine that can itself, and leaves `report.json`
/// in `out`; also after each round, so that a machine that stops takes only that round with it.
///
/// # Errors
/// When scx_pvsched was ejected, or what is needed to measure fails. What fails of others is in the
/// report.
pub fn run(options: &Options, out: &Path) -> Result<()> {
    if let Some(ops) = sched_ext_ops() {
        bail!("the scheduler {ops} is attached; end it first");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed))
        .context("cannot handle signals")?;

    let mut bench = Bench::new(options, out, stop)?;
    programs::let_cgroups_have_weights()?;
    bench.warm_up()?;
    for round in bench.record.rounds_done + 1..=options.rounds() {
        bench.round(round)?;
        bench.record.rounds_done = round;
        bench.write()?;
    }
    if options.grows() && bench.record.growth.is_empty() {
        // Guests that do nothing would still have a part in it.
        bench.stage = Stage::new(options.guest_kernel);
        bench.record.growth = growth::measure(&bench.scale, &bench.arguments, &bench.stop)?;
        bench.write()?;
    }
    print!("{}", Report::new(&bench.record));
    let ours = bench
        .record
        .failures
        .iter()
        .find(|failure| failure.is_ours());
    if let Some(failure) = ours {
        bail!("{failure}");
    }
    Ok(())
}

struct Bench {
    measures: Vec<&'static Measure>,
    contenders: Vec<Contender>,
    arguments: Vec<String>,
    seed: usize,
    rounds: u32,
    scale: Scale,
    stage: Stage,
    record: Record,
    path: PathBuf,
    stop: Arc<AtomicBool>,
    /// Of this run, not of an earlier one that it goes on with.
    steps: u32,
    start: Instant,
}

/// The contenders' numbers in the order of a round: from another one on each time, and by turns in
/// both directions, so that nobody always has the same one before it.
fn order(round: usize, count: usize) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).map(|index| (round + index) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

impl Bench {
    fn new(options: &Options, out: &Path, stop: Arc<AtomicBool>) -> Result<Self> {
        let scale = Scale {
            cpus: std::thread::available_parallelism()?.get(),
            quick: options.is_brief(),
        };
        let (measures, contenders) = (options.measures()?, options.contenders()?);
        let setup = setup(options, &measures, &contenders, scale)?;
        let path = out.join("report.json");
        let record = if options.resume {
            let record = Record::resume(&path, &setup)?;
            eprintln!("bench: goes on after {} rounds", record.rounds_done);
            record
        } else {
            Record::new(setup)
        };
        Ok(Self {
            measures,
            contenders,
            arguments: options
                .scheduler_args
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            seed: options.seed,
            rounds: options.rounds(),
            scale,
            stage: Stage::new(options.guest_kernel),
            record,
            path,
            stop,
            steps: 0,
            start: Instant::now(),
        })
    }

    fn go_on(&self) -> Result<()> {
        ensure!(
            !self.stop.load(Ordering::Relaxed),
            "interrupted; --resume goes on after the last finished round"
        );
        Ok(())
    }

    /// What is there of the report. A reader sees the one before or this one, nothing between.
    fn write(&mut self) -> Result<()> {
        self.record.guest_stops = self.stage.stops();
        let text = serde_json::to_string_pretty(&Report::new(&self.record).json()?)?;
        let new = self.path.with_extension("json.new");
        fs::write(&new, text + "\n").with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &self.path)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn round(&mut self, round: u32) -> Result<()> {
        let from_zero = usize::try_from(round - 1)?;
        let all = u32::try_from(self.contenders.len())?;
        let order = order(from_zero + self.seed, self.contenders.len());
        for (done, index) in (all * (round - 1) + 1..).zip(order) {
            let contender = self.contenders[index].clone();
            self.contend(round, &contender)
                .with_context(|| format!("round {round}, {}", contender.name()))?;
            self.steps += 1;
            let elapsed = self.start.elapsed();
            let left = elapsed / self.steps * (all * self.rounds - done);
            eprintln!(
                "bench: [{done}/{}, {} s, {} s left]",
                all * self.rounds,
                elapsed.as_secs(),
                left.as_secs()
            );
        }
        Ok(())
    }

    /// What a load does for the first time takes longer: its programs come over 9p. And guests boot
    /// best while nothing else runs.
    fn warm_up(&mut self) -> Result<()> {
        let scale = Scale {
            quick: true,
            ..self.scale
        };
        for measure in &self.measures {
            self.go_on()?;
            if let Run::Host(run) = measure.run {
                run(&scale).with_context(|| measure.name)?;
            }
        }
        for contender in self.contenders.clone() {
            self.prepare(&contender)?;
        }
        Ok(())
    }

    /// The guests that this contender's measures need.
    fn prepare(&mut self, contender: &Contender) -> Result<()> {
        self.go_on()?;
        let concerned = |measure: &&&Measure| measure.has_guest() && measure.concerns(contender);
        if self.measures.iter().any(|measure| concerned(&measure)) {
            let batch = self.measures.iter().any(|measure| measure.needs_batch());
            self.stage.prepare(contender, batch)?;
        }
        Ok(())
    }

    /// All measures under one contender. What fails is told and tried once again, with the contender
    /// started anew.
    fn contend(&mut self, round: u32, contender: &Contender) -> Result<()> {
        let mut running = None;
        let measures = self.measures.clone();
        for measure in measures.into_iter().filter(|m| m.concerns(contender)) {
            for attempt in 1..=TRIES {
                self.go_on()?;
                let start = Instant::now();
                let error = match self.cell(&mut running, round, contender, measure) {
                    Ok(outcome) => {
                        self.keep(round, contender, measure, outcome, start.elapsed());
                        break;
                    }
                    Err(error) => error,
                };
                let started = running.is_some();
                let ejected = running
                    .as_mut()
                    .is_some_and(|running| running.check().is_err());
                self.fail(round, contender, Some(measure), attempt, ejected, &error);
                self.clear(running.take())?;
                if !started && attempt == TRIES {
                    // It would take as long to fail for each of the others.
                    return Ok(());
                }
            }
        }
        if let Some(Err(error)) = running.map(Running::stop) {
            self.fail(round, contender, None, 1, false, &error);
        }
        ensure!(
            sched_ext_state() == "disabled",
            "sched_ext is {} after {}",
            sched_ext_state(),
            contender.name()
        );
        Ok(())
    }

    /// After a failure: the kernel's scheduler, and no guest that has stopped.
    fn clear(&mut self, running: Option<Running>) -> Result<()> {
        // One that has ended already cannot be stopped; what it said is told.
        if let Some(Err(error)) = running.map(Running::stop) {
            eprintln!("bench: {error:#}");
        }
        wait_detached()?;
        for guest in self.stage.sweep() {
            eprintln!("bench: the guest {guest} stopped, and is booted again");
        }
        Ok(())
    }

    fn cell(
        &mut self,
        running: &mut Option<Running>,
        round: u32,
        contender: &Contender,
        measure: &Measure,
    ) -> Result<Outcome> {
        if running.is_none() {
            self.prepare(contender)?;
            let started = contender.start(self.stage.guest(contender).ok())?;
            let started = running.insert(started);
            if self.stage.guest(contender).is_ok() {
                self.stage.wait_ready(contender, started)?;
            }
            std::thread::sleep(SETTLE);
        }
        let running = running.as_mut().context("it has just been started")?;
        let mut scene = Scene {
            stage: &mut self.stage,
            contender,
            running,
            scale: self.scale,
            round: usize::try_from(round - 1)?,
            rounds: usize::try_from(self.rounds)?,
        };
        let outcome = match measure.run {
            Run::Host(run) => run(&self.scale)?.into(),
            Run::Guest(run) => scene.of_guest(run)?,
            Run::Scheduler(run) | Run::Ours(run) => run(&mut scene)?,
        };
        // A scheduler that was ejected would have left its numbers to the kernel's.
        running.check()?;
        Ok(outcome)
    }

    fn keep(
        &mut self,
        round: u32,
        contender: &Contender,
        measure: &Measure,
        outcome: Outcome,
        took: Duration,
    ) {
        let texts: Vec<_> = outcome
            .results
            .iter()
            .map(|(metric, value)| format!("{} {value:.4} {}", metric.name, metric.unit))
            .collect();
        eprintln!(
            "bench: round {round}, {}, {} ({} s): {}",
            contender.name(),
            measure.name,
            took.as_secs(),
            texts.join(", ")
        );
        self.record
            .add(round, contender.name(), measure.name, outcome);
    }

    fn fail(
        &mut self,
        round: u32,
        contender: &Contender,
        measure: Option<&Measure>,
        attempt: u32,
        ejected: bool,
        error: &anyhow::Error,
    ) {
        let failure = Failure {
            round,
            contender: contender.name().to_owned(),
            measure: measure.map(|measure| measure.name.to_owned()),
            attempt,
            ejected,
            reason: format!("{error:#}"),
        };
        eprintln!("bench: {failure}");
        self.record.failures.push(failure);
    }
}

/// What is compared, where and how.
fn setup(
    options: &Options,
    measures: &[&'static Measure],
    contenders: &[Contender],
    scale: Scale,
) -> Result<Value> {
    let versions: Vec<_> = contenders
        .iter()
        .map(|contender| Ok((contender.name().to_owned(), json!(contender.version()?))))
        .collect::<Result<_>>()?;
    let about: Vec<_> = measures
        .iter()
        .map(|measure| (measure.name.to_owned(), json!(measure.about)))
        .collect();
    let tool = |program| first_line(Command::new(program).arg("--version"));
    Ok(json!({
        "versions": Value::Object(versions.into_iter().collect()),
        "qemu": tool("qemu-system-x86_64").unwrap_or_default(),
        "host": {
            "kernel": first_line(Command::new("uname").arg("-r"))?,
            "cpus": scale.cpus,
            "cpu_model": cpu_model(),
            "topology": topology()?,
        },
        "guest_kernel": options.guest_kernel.to_string(),
        "measures": Value::Object(about.into_iter().collect()),
        "rounds": options.rounds(),
        "quick": options.is_brief(),
        "seed": options.seed,
        "scheduler_args": options.scheduler_args,
    }))
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
    use super::*;

    #[test]
    fn everybody_has_a_turn_in_each_round_and_another_one_begins() {
        for count in 1..12 {
            let firsts: std::collections::BTreeSet<_> = (0..2 * count)
                .map(|round| {
                    let order = order(round, count);
                    let mut all = order.clone();
                    all.sort_unstable();
                    assert_eq!(all, (0..count).collect::<Vec<_>>());
                    order[0]
                })
                .collect();
            assert!(firsts.len() >= count.div_ceil(2), "{count}: {firsts:?}");
        }
    }
}
