//! The benchmark measures what it says, keeps it, and goes on where it was.

use std::fs;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::promise;
use pvsched_lab::bench::{self, Options};
use pvsched_lab::kernels::Kernel;
use serde_json::Value;

fn options() -> Options {
    Options {
        rounds: 1,
        only: vec!["wakeup".to_owned(), "decision".to_owned()],
        contenders: vec!["kernel".to_owned(), "scx_pvsched".to_owned()],
        engine: None,
        base: None,
        quick: true,
        brief: false,
        resume: false,
        seed: 0,
        guest_kernel: Kernel::Newest,
        scheduler_args: String::new(),
    }
}

fn median(report: &Value, measure: &str, metric: &str, contender: &str) -> Option<f64> {
    let results = report["results"].as_array()?;
    let row = results
        .iter()
        .find(|row| row["measure"] == measure && row["metric"] == metric)?;
    row["medians"][contender].as_f64()
}

#[test]
fn a_round_of_the_benchmark_measures_everybody_and_is_kept() -> Result<()> {
    promise(|| {
        let out = tempfile::tempdir()?;
        bench::run(&options(), out.path())?;
        let path = out.path().join("report.json");
        let report: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
        ensure!(report["rounds_done"] == 1, "{report}");
        for contender in ["kernel", "scx_pvsched"] {
            let p99 = median(&report, "wakeup", "wake-up p99", contender);
            let p99 = p99.with_context(|| format!("{contender} was not measured: {report}"))?;
            let host = median(&report, "wakeup", "host tasks", contender);
            println!("{contender}: p99 {p99} us, host tasks {host:?} of their share");
            // A wake-up takes time, and both are fair.
            ensure!(p99 > 0.0, "{report}");
            ensure!(
                host.is_some_and(|host| (0.8..1.2).contains(&host)),
                "{report}"
            );
        }
        let cost = median(&report, "decision", "BPF per switch", "scx_pvsched");
        ensure!(cost.is_some_and(|ns| ns > 0.0), "{report}");
        ensure!(
            median(&report, "decision", "BPF per switch", "kernel").is_none(),
            "the kernel's scheduler has no BPF programs: {report}"
        );
        let distributions = report["latencies"].as_array().map_or(0, Vec::len);
        ensure!(distributions == 2, "{distributions} distributions");
        Ok(())
    })
}

/// On a host VM whose time goes by as instructions are executed, so that a time may be asked for.
mod counted {
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;

    /// A computing task on CPU 0.
    struct Hog(Child);

    impl Hog {
        fn start() -> Result<Self> {
            let mut command = Command::new("taskset");
            command.args(["-c", "0", "sh", "-c", "while :; do :; done"]);
            Ok(Self(command.spawn()?))
        }
    }

    impl Drop for Hog {
        fn drop(&mut self) {
            // Fails only when it has ended.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The longest and the mean lateness in microseconds of a FIFO task's timers on CPU 1.
    fn lateness() -> Result<(u64, u64)> {
        let mut command = Command::new("cyclictest");
        command.args(["-q", "-m", "-p80", "-i1000", "-l1000", "-t1", "-a1"]);
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |name: &str| {
            let rest = text.split_once(name).map(|(_, rest)| rest)?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let (max, mean) = (number("Max:"), number("Avg:"));
        max.zip(mean)
            .with_context(|| format!("cyclictest said: {text}"))
    }

    #[test]
    fn processors_do_not_wait_for_each_others_turns() -> Result<()> {
        promise(|| {
            let hog = Hog::start()?;
            let (max, mean) = lateness()?;
            drop(hog);
            println!("a timer beside a busy processor: {mean} us late, {max} at most");
            // 26 and 45 with turns that are bounded; 500 and 1,700 with those that are not.
            ensure!(mean <= 100 && max <= 300);
            Ok(())
        })
    }

    #[test]
    fn the_same_work_takes_the_same_time() -> Result<()> {
        promise(|| {
            let time = || -> Result<Duration> {
                let start = Instant::now();
                let mut work = Command::new("taskset");
                work.args([
                    "-c",
                    "1",
                    "sh",
                    "-c",
                    "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done",
                ]);
                ensure!(work.status()?.success(), "the work failed");
                Ok(start.elapsed())
            };
            // The first one reads its programs.
            time()?;
            let (first, second) = (time()?, time()?);
            println!("{first:?}, then {second:?}");
            let ratio = first.as_secs_f64() / second.as_secs_f64();
            // 1.1603 and 1.1606 s were seen. A quiet machine may keep to this by time, too.
            ensure!((0.98..1.02).contains(&ratio), "{ratio}");
            Ok(())
        })
    }

    #[test]
    fn a_guests_task_wakes_up_several_times_as_soon() -> Result<()> {
        promise(|| {
            let out = tempfile::tempdir()?;
            let mut options = options();
            options.only = vec!["wakeup".to_owned()];
            bench::run(&options, out.path())?;
            let report = fs::read_to_string(out.path().join("report.json"))?;
            let report: Value = serde_json::from_str(&report)?;
            let of = |metric, contender| {
                median(&report, "wakeup", metric, contender)
                    .with_context(|| format!("{contender} has no {metric}: {report}"))
            };
            let kernel = of("wake-up p99", "kernel")?;
            let ours = of("wake-up p99", "scx_pvsched")?;
            let host = of("host tasks", "scx_pvsched")?;
            println!(
                "p99 {ours} us, {kernel} us under the kernel's; host tasks {host} of their share"
            );
            // Eight times is what the benchmark asks for; 64 and 208 times have been measured.
            ensure!(ours * 8.0 <= kernel);
            ensure!(host >= 0.97);
            Ok(())
        })
    }
}
