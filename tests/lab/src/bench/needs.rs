//! How much of its CPUs something in a guest takes, with all that comes with it: interrupts, exits from
//! guest mode, what caches lost. A scheduler that is fair gives no vCPU more than its share, so where
//! this is more than that, no such scheduler can have it done in time.

use std::time::Duration;

use anyhow::{Context, Result};

use super::stage::{vcpu_times, VCPUS};
use crate::guest::Guest;
use crate::hog::Hog;

/// From the start of who counts to that of what is measured, ...
const FIRST: Duration = Duration::from_millis(500);

/// ... and to both at work: until then nothing is counted. A program takes up to a second to start beside
/// something urgent.
const SETTLE: Duration = Duration::from_secs(2);

/// How long what is left is counted.
const COUNTED: Duration = Duration::from_secs(3);

/// As long as something has to go on for its needs to be measured, with a second to spare.
pub const WHOLE: Duration = Duration::from_secs(6);

/// For the start and end of a program beside something urgent.
const MARGIN: Duration = Duration::from_secs(60);

/// Inside a guest: does work on this CPU as an ordinary task, and prints how much per second.
///
/// # Errors
/// When no thread can be started.
pub fn serve(duration: Duration) -> Result<()> {
    let hog = Hog::start(1)?;
    std::thread::sleep(SETTLE);
    let before = hog.progress();
    std::thread::sleep(duration);
    println!("{}", hog.progress().since(&before).rate());
    Ok(())
}

/// What ordinary tasks had, one for each of a guest's CPUs.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// CPUs that the vCPUs had.
    cpus: f64,
    /// Work per second of their time.
    work: f64,
}

impl Left {
    fn measure<T>(guest: &Guest, something: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let count = |cpu| {
            guest.spawn(&format!(
                "exec taskset -c {cpu} pvsched-lab spare {}",
                COUNTED.as_millis()
            ))
        };
        let jobs: Vec<_> = (0..VCPUS).map(count).collect::<Result<_>>()?;
        std::thread::sleep(FIRST);
        let sum = || Ok::<_, anyhow::Error>(vcpu_times(guest)?.iter().sum::<Duration>());
        let (start, before) = (std::time::Instant::now(), sum()?);
        let result = something()?;
        let cpus = (sum()?.saturating_sub(before)).as_secs_f64() / start.elapsed().as_secs_f64();
        let mut work = 0.0;
        for job in jobs {
            let text = job.wait(MARGIN)?.ok()?;
            let rate: f64 = text
                .trim()
                .parse()
                .with_context(|| format!("the guest said {text:?}"))?;
            work += rate / cpus;
        }
        Ok((Self { cpus, work }, result))
    }

    fn alone(guest: &Guest) -> Result<Self> {
        let sleep = || {
            std::thread::sleep(WHOLE);
            Ok(())
        };
        Ok(Self::measure(guest, sleep)?.0)
    }

    /// What was taken meanwhile, of what there was `before` and `after`: so a machine that slows down, or
    /// takes a while to be quick again, counts by half.
    fn taken(&self, before: &Self, after: &Self) -> f64 {
        self.cpus * (1.0 - self.work / f64::midpoint(before.work, after.work))
    }
}

/// CPUs of the guest that `something` takes, which goes on for [`WHOLE`]. The guest does nothing else
/// meanwhile, and the host is idle.
///
/// # Errors
/// When it fails, or the guest does.
pub fn of<T>(guest: &Guest, something: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let before = Left::alone(guest)?;
    let (beside, result) = Left::measure(guest, something)?;
    let after = Left::alone(guest)?;
    Ok((beside.taken(&before, &after), result))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_what_others_lost_of_the_time_that_all_had() {
        let left = |cpus, work| Left { cpus, work };
        let (before, after) = (left(2.0, 900.0), left(2.0, 1100.0));
        let taken = |cpus, work| left(cpus, work).taken(&before, &after);
        assert!(taken(2.0, 1000.0).abs() < 1e-9);
        // The host took half a CPU from both.
        assert!(taken(1.5, 1000.0).abs() < 1e-9);
        assert!((taken(2.0, 750.0) - 0.5).abs() < 1e-9);
    }
}
