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
