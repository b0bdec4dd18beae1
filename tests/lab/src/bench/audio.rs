//! A task in a guest that has something ready at each period's end, as sound has to be: 64 frames at
//! 48 kHz are 1.33 ms, 256 frames 5.33 ms.

use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::time::TimeValLike;
use nix::time::{clock_gettime, clock_nanosleep, ClockId, ClockNanosleepFlags};
use serde::{Deserialize, Serialize};

use super::measure::{Better, Metric, Outcome, Results, Scene};
use super::needs;
use super::stage::Used;
use crate::guest::Guest;
use crate::hog::Hog;
use crate::priority::{set_policy, Policy};

const RATE: u64 = 48_000;

/// How many values of sound a period makes ready.
pub type Frames = u16;

/// Half of a CPU is the vCPU's share, and no scheduler that is fair gives it more. On emulated processors
/// to wake up takes several times as long as the work, and more than that share with [`SHORT`] periods; with
/// [`LONG`] ones there is something to win.
const SHORT: Frames = 64;
const LONG: Frames = 256;

fn period(frames: Frames) -> Duration {
    Duration::from_nanos(u64::from(frames) * 1_000_000_000 / RATE)
}

/// CPU time of the guest that each period takes.
fn work(frames: Frames) -> Duration {
    period(frames) / 20
}

const DURATION: Duration = Duration::from_secs(9);

const PRIORITY: i32 = 80;

/// For the program's start and end beside a busy guest.
const MARGIN: Duration = Duration::from_secs(60);

/// A tenth of the best peer's is asked for.
const MISSED: Metric = Metric::new("missed", "/min", Better::Lower).at_least(10.0);
/// Of the vCPU, on an idle host; a half is its share beside the host tasks.
const NEEDS: Metric = Metric::new("needs", "CPUs", Better::Lower);

/// What happened in the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Periods {
    /// All that went by.
    pub all: u64,
    /// Those at whose end nothing was ready.
    pub missed: u64,
}

impl Periods {
    /// A period's work was done this long after its begin; the task then goes on with the next one that
    /// has not begun.
    fn add(&mut self, took: Duration, period: Duration) -> u64 {
        let periods = u64::try_from(took.as_nanos() / period.as_nanos()).unwrap_or(u64::MAX);
        // What is not ready by its end has been missed, as have those that went by meanwhile.
        self.all += periods + 1;
        self.missed += periods;
        periods + 1
    }

    #[allow(clippy::cast_precision_loss)]
    fn missed_per_minute(&self, period: Duration) -> f64 {
        let minutes = self.all as f64 * period.as_secs_f64() / 60.0;
        self.missed as f64 / minutes
    }
}

/// Inside the guest: works in each period as a real-time task, and prints what came of it as JSON.
///
/// # Errors
/// When a period has no frames, or the task may not be a real-time one.
pub fn serve(frames: Frames, duration: Duration) -> Result<()> {
    let (period, work) = (period(frames), work(frames));
    ensure!(!period.is_zero(), "a period of no frames never ends");
    set_policy(0, Policy::Fifo(PRIORITY))?;
    let now = || clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from);
    let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let (mut periods, start) = (Periods::default(), now()?);
    let mut next = start + period;
    while next < start + duration {
        let at = nix::sys::time::TimeSpec::nanoseconds(i64::try_from(next.as_nanos())?);
        clock_nanosleep(
            ClockId::CLOCK_MONOTONIC,
            ClockNanosleepFlags::TIMER_ABSTIME,
            &at,
        )?;
        let end = used()? + work;
        while used()? < end {}
        let gone = periods.add(now()?.saturating_sub(next), period);
        next += period * u32::try_from(gone)?;
    }
    println!("{}", serde_json::to_string(&periods)?);
    Ok(())
}

fn run(guest: &Guest, frames: Frames, duration: Duration) -> Result<Periods> {
    let command = format!(
        "exec taskset -c 1 pvsched-lab periods {frames} {}",
        duration.as_millis()
    );
    let text = guest.exec(&command, duration + MARGIN)?.ok()?;
    let periods: Periods =
        serde_json::from_str(text.trim()).with_context(|| format!("the guest said {text:?}"))?;
    ensure!(periods.all > 0, "not a single period went by");
    Ok(periods)
}

pub fn short(scene: &mut Scene) -> Result<Outcome> {
    measure(scene, SHORT)
}

pub fn long(scene: &mut Scene) -> Result<Outcome> {
    measure(scene, LONG)
}

fn measure(scene: &mut Scene, frames: Frames) -> Result<Outcome> {
    let guest = scene.stage.guest(scene.contender)?;
    // One for each CPU, so that a vCPU's share is half of one.
    let hogs = Hog::start(scene.hogs() / 2)?;
    let duration = scene.scale.duration(DURATION);
    let run = |duration| run(guest, frames, duration);
    let (used, periods) = Used::during(guest, &hogs, || run(duration))?;
    let mut results: Results = vec![(MISSED, periods.missed_per_minute(period(frames)))];
    if scene.finds_needs() {
        results.push((NEEDS, needs::of(guest, || run(needs::WHOLE))?.0));
    }
    if scene.hogs() > 0 {
        results.extend(used.results());
    }
    Ok(results.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_last_as_long_as_their_sound() {
        assert_eq!(period(SHORT).as_micros(), 1333);
        assert_eq!(period(LONG).as_micros(), 5333);
    }

    #[test]
    fn a_period_that_is_late_takes_those_with_it_that_go_by_meanwhile() {
        let ms = Duration::from_millis;
        let mut periods = Periods::default();
        assert_eq!(periods.add(ms(9), ms(10)), 1);
        assert_eq!(periods, Periods { all: 1, missed: 0 });
        assert_eq!(periods.add(ms(25), ms(10)), 3);
        assert_eq!(periods, Periods { all: 4, missed: 2 });
        // Of 40 ms.
        assert!((periods.missed_per_minute(ms(10)) - 3000.0).abs() < 1e-6);
    }
}
