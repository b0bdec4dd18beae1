//! Everything at once, at random and for long: guests, bursts of tasks, cgroups, policies, CPUs that
//! come and go, all under one scheduler that has to stay steady. Runs inside the host VM.

mod action;
mod cgroups;
mod guests;
mod host;
mod plan;
mod pool;
mod report;
mod watch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Error, Result};
use clap::Args;

use crate::chain::{sched_ext_enable_seq, Scheduler};
use crate::daemon::new_log;
use crate::kernel_log::KernelLog;
use action::{Action, Grants};
use plan::{Actor, Plan};
use pool::Pool;
pub use report::Report;
use watch::{Held, Watch};

/// How the kernel tells that a scheduler ended because a CPU goes, of which its own program learns first,
/// or comes. It starts again.
pub const CPU_EXITS: [&str; 2] = ["unregistered from BPF", "unregistered from the main kernel"];

/// Beyond the mix itself, for its beginning and end: guests that boot, others that power off.
const AROUND: Duration = Duration::from_secs(400);

/// From the end of the mix to a scheduler that is there and knows of no VM.
const SETTLES: Duration = Duration::from_secs(120);

/// What to mix.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// How long
    #[arg(long, default_value_t = 30, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub minutes: u32,
    /// Repeats a mix: the same one makes the same actions [default: a random one]
    #[arg(long, default_value_t = random_seed(), hide_default_value = true, value_name = "N")]
    pub seed: u64,
}

/// Short enough to be typed.
fn random_seed() -> u64 {
    fastrand::u64(..1_000_000)
}

impl Options {
    /// A mix of so many minutes that has not been seen before.
    pub fn random(minutes: u32) -> Self {
        Self {
            minutes,
            seed: random_seed(),
        }
    }

    /// As words of a command line.
    pub fn arguments(&self) -> Vec<String> {
        let words = [
            ("--minutes", self.minutes.to_string()),
            ("--seed", self.seed.to_string()),
        ];
        words
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect()
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(60) * self.minutes
    }

    /// The longest that a run may take.
    pub fn limit(&self) -> Duration {
        self.duration() + AROUND
    }
}

/// How an action went.
#[derive(Debug)]
enum Outcome {
    Done,
    /// It is not possible just now, for instance since whom it is for has gone.
    Refused,
}

/// One that carries out the steps of an actor.
trait Hand {
    fn act(&mut self, action: Action) -> Result<Outcome>;

    /// Puts back what it has changed.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What the actors share.
struct Mix {
    start: Instant,
    end: Instant,
    /// What was done when, for a look at what went before a failure.
    log: File,
    stopped: AtomicBool,
    pool: Pool,
    guests: Mutex<guests::Counts>,
    /// Of each action, how often it was done, and how often refused.
    actions: Mutex<BTreeMap<&'static str, (u32, u32)>>,
    failures: Mutex<Vec<Error>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only numbers and texts, which a panic leaves whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mix {
    fn new(duration: Duration) -> Result<Self> {
        let (_, log) = new_log("steady")?;
        let start = Instant::now();
        Ok(Self {
            start,
            end: start + duration,
            log,
            stopped: AtomicBool::new(false),
            pool: Pool::default(),
            guests: Mutex::default(),
            actions: Mutex::default(),
            failures: Mutex::default(),
        })
    }

    fn note(&self, action: Action, outcome: &Outcome, began: Instant) -> Result<()> {
        let line = format!(
            "{:8.2} s  {action:?}: {outcome:?} after {:.2?}\n",
            began.duration_since(self.start).as_secs_f64(),
            began.elapsed()
        );
        // A line in one piece, also when several write.
        (&self.log).write_all(line.as_bytes())?;
        let mut actions = lock(&self.actions);
        let (done, refused) = actions.entry(action.name()).or_default();
        match outcome {
            Outcome::Done => *done += 1,
            Outcome::Refused => *refused += 1,
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || Instant::now() >= self.end
    }

    /// Waits; false once the mix is over.
    fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.is_over() {
            let left = until.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(200)));
        }
        !self.is_over()
    }

    fn fail(&self, error: Error) {
        // At once, as guests may take minutes to end.
        eprintln!("failed after {:.1?}: {error:#}", self.start.elapsed());
        lock(&self.failures).push(error);
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn play(&self, plan: Plan, mut hand: impl Hand) {
        for step in plan {
            if !self.pause(step.pause) {
                break;
            }
            let began = Instant::now();
            let acted = hand.act(step.action);
            if let Err(error) = acted.and_then(|outcome| self.note(step.action, &outcome, began)) {
                self.fail(error.context(format!("{:?}", step.action)));
                break;
            }
        }
        if let Err(error) = hand.end() {
            self.fail(error.context("at the end of the mix"));
        }
    }

    fn act(&self, actor: Actor, seed: u64, operator: host::Operator) {
        let plan = Plan::new(seed, actor);
        match actor {
            Actor::Guest(place) => self.play(plan, guests::Place::new(self, place)),
            Actor::Tasks => match host::Tasks::start(&self.pool) {
                Ok(tasks) => self.play(plan, tasks),
                Err(error) => self.fail(error),
            },
            Actor::Policies => self.play(plan, host::Policies(&self.pool)),
            Actor::Cgroups => match cgroups::Cgroups::new(&self.pool) {
                Ok(cgroups) => self.play(plan, cgroups),
                Err(error) => self.fail(error),
            },
            Actor::Cpus => self.play(plan, host::HotPlug),
            Actor::Operator => self.play(plan, operator),
        }
    }
}

/// Runs the mix, and checks what has to hold.
///
/// # Errors
/// When something does not hold, or the lab itself fails.
pub fn run(options: &Options) -> Result<Report> {
    let log = KernelLog::mark()?;
    let report = mix(options);
    let complaints = log.complaints(&CPU_EXITS)?;
    if !complaints.is_empty() {
        let complained = format!("the kernel complained:\n{}", complaints.join("\n"));
        return match report {
            Ok(report) => bail!("{complained}\n{report}"),
            Err(error) => Err(error.context(complained)),
        };
    }
    let report = report?;
    let problems = report.problems();
    ensure!(problems.is_empty(), "{}\n{report}", problems.join("\n"));
    Ok(report)
}

fn mix(options: &Options) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("scx_pvsched.toml");
    host::Operator::write(&config, Grants::Defaults)?;
    let mut scheduler =
        Scheduler::start(&["--verbose", "--config", &config.display().to_string()])?;
    let before = Held::without_vms(&mut scheduler, SETTLES)?;
    let starts = sched_ext_enable_seq();

    let mix = Mix::new(options.duration())?;
    let pid = scheduler.pid();
    let watch = thread::scope(|scope| {
        for actor in Actor::all() {
            let operator = host::Operator::new(&config, pid);
            let mix = &mix;
            scope.spawn(move || mix.act(actor, options.seed, operator));
        }
        let mut watch = Watch::default();
        if let Err(error) = watch.until_over(&mut scheduler, &mix) {
            mix.fail(error);
        }
        watch
    });
    let Mix {
        guests,
        actions,
        failures,
        ..
    } = mix;
    if let Some(error) = std::mem::take(&mut *lock(&failures)).into_iter().next() {
        return Err(error).with_context(|| {
            format!(
                "seed {}, after {:.0?}; the scheduler's log ends so:\n{}",
                options.seed,
                watch.seen,
                scheduler.log_end()
            )
        });
    }
    let after = Held::without_vms(&mut scheduler, SETTLES)?;
    let restarts = sched_ext_enable_seq() - starts;
    scheduler.stop()?;
    let (actions, guests) = (lock(&actions).clone(), lock(&guests).clone());
    Ok(Report {
        options: options.clone(),
        actions,
        guests,
        watch,
        restarts,
        before,
        after,
    })
}
