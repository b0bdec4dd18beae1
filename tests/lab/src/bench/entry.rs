//! How long interrupts of a busy guest wait until it has been entered: `scx_pvsched --measure`, which
//! tells it of any scheduler.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use super::measure::{Better, Metric, Outcome, Scene};
use super::stage::Used;
use crate::hog::Hog;

const DURATION: Duration = Duration::from_secs(9);

/// Not a multiple of the tick, and seldom enough for a guest that gets a third of a CPU.
const PING: Duration = Duration::from_millis(19);

const ENTRY_P50: Metric = Metric::new("entry p50", "us", Better::Lower);
const ENTRY_P99: Metric = Metric::new("entry p99", "us", Better::Lower).at_least(3.0);
const ENTRY_MAX: Metric = Metric::new("entry max", "us", Better::Lower);

/// A line of what it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waits {
    number: u32,
    p50: u32,
    p99: u32,
    longest: u32,
}

fn parse(report: &str, kind: &str) -> Result<Waits> {
    let line = report.lines().find_map(|line| line.strip_prefix(kind));
    let numbers: Vec<u32> = line
        .with_context(|| format!("no line for {kind}: {report}"))?
        .split_whitespace()
        .map(|word| {
            word.parse()
                .with_context(|| format!("no numbers: {report}"))
        })
        .collect::<Result<_>>()?;
    let [number, p50, _, p99, longest] = numbers[..] else {
        anyhow::bail!("not five numbers for {kind}: {report}");
    };
    Ok(Waits {
        number,
        p50,
        p99,
        longest,
    })
}

/// The measuring process; ended however this one ends.
struct Measuring(Child);

impl Measuring {
    /// Starts it and waits until it has begun.
    fn start(duration: Duration) -> Result<Self> {
        let mut child = Command::new("scx_pvsched")
            .arg("--measure")
            .arg(format!("{:.1}", duration.as_secs_f64()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start scx_pvsched --measure")?;
        let log = child.stderr.take().context("it has a log")?;
        let measuring = Self(child);
        let mut said = String::new();
        for line in BufReader::new(log).lines() {
            let line = line?;
            if line.contains("measuring") {
                return Ok(measuring);
            }
            said += &line;
        }
        anyhow::bail!("scx_pvsched --measure does not begin: {said}")
    }

    fn report(mut self) -> Result<String> {
        let mut text = String::new();
        let mut out = self.0.stdout.take().context("it has an output")?;
        out.read_to_string(&mut text)?;
        ensure!(self.0.wait()?.success(), "scx_pvsched --measure failed");
        Ok(text)
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let guest = scene.stage.guest(scene.contender)?;
    let duration = scene.scale.duration(DURATION);
    let hogs = Hog::start(scene.hogs())?;
    let (_, report) = Used::during(guest, &hogs, || {
        let measuring = Measuring::start(duration)?;
        guest.network()?.ping(PING, duration)?;
        measuring.report()
    })?;
    let waits = parse(&report, "interrupt")?;
    ensure!(waits.number >= 20, "only {} interrupts", waits.number);
    Ok(vec![
        (ENTRY_P50, f64::from(waits.p50)),
        (ENTRY_P99, f64::from(waits.p99)),
        (ENTRY_MAX, f64::from(waits.longest)),
    ]
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_interrupts_is_read() {
        let report = "waits, us      number      p50      p90      p99      max\n\
                      timer             100        1        2        3        4\n\
                      interrupt          50        5        6        7        8\n";
        let waits = Waits {
            number: 50,
            p50: 5,
            p99: 7,
            longest: 8,
        };
        assert_eq!(parse(report, "interrupt").unwrap(), waits);
        assert!(parse("waits, us\n", "interrupt").is_err());
        assert!(parse("interrupt 1 2 3\n", "interrupt").is_err());
    }
}
