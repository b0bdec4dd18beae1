//! What the scheduler decides can be watched: a trace of boosts is recorded by one command, and
//! whoever watches changes nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use nix::sys::signal::Signal;
use pvsched_e2e::{eventually, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::daemon::Daemon;
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::GuestLoad;
use serde_json::Value;

use crate::vm::periodic_fifo;

/// Of the guest's real-time task on vCPU 1.
const PRIORITY: u32 = 80;
/// How long is traced. That task wakes up 200 times a second.
const SPAN: Duration = Duration::from_secs(3);
/// Boosts from hint to running that a trace must show, of hundreds: wake-ups that meet a vCPU that runs
/// already need none, and a guest on emulated CPUs oversleeps.
const SEQUENCES: usize = 10;

/// A trace file, by track: its name, and what is on it in the order of the file.
struct Trace {
    tracks: BTreeMap<(String, String), Vec<Event>>,
    lost: Option<u64>,
}

struct Event {
    kind: String,
    name: String,
    at_us: f64,
    worth: Option<String>,
}

impl Trace {
    fn read(path: &Path) -> Result<Self> {
        let trace: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let events = trace["traceEvents"].as_array().context("no events")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut headings = BTreeMap::new();
        let mut names = BTreeMap::new();
        let mut tracks: BTreeMap<_, Vec<Event>> = BTreeMap::new();
        for event in events {
            let (pid, tid) = (event["pid"].as_u64(), event["tid"].as_u64());
            match event["name"].as_str() {
                Some("process_name") => {
                    headings.insert(pid, text(&event["args"]["name"]));
                }
                Some("thread_name") => {
                    let heading = headings.get(&pid).context("a track without a heading")?;
                    let name = (heading.clone(), text(&event["args"]["name"]));
                    tracks.entry(name.clone()).or_default();
                    names.insert((pid, tid), name);
                }
                _ if event["ph"] == "M" => {}
                _ => {
                    let track = names.get(&(pid, tid)).context("an event without a track")?;
                    let event = Event {
                        kind: text(&event["ph"]),
                        name: text(&event["name"]),
                        at_us: event["ts"].as_f64().context("an event without a time")?,
                        worth: event["args"]["worth"].as_str().map(str::to_owned),
                    };
                    tracks.entry(track.clone()).or_default().push(event);
                }
            }
        }
        Ok(Self {
            tracks,
            lost: trace["metadata"]["lost"].as_u64(),
        })
    }

    /// The track under this heading whose name begins so.
    fn track(&self, heading: &str, name: &str) -> Result<&[Event]> {
        self.tracks
            .iter()
            .find(|((under, track), _)| under == heading && track.starts_with(name))
            .map(|(_, events)| events.as_slice())
            .with_context(|| format!("no track {name} of {heading} in {:?}", self.tracks.keys()))
    }

    /// Each track goes forward in time, and each slice that begins has an end.
    fn check(&self) -> Result<()> {
        for (track, events) in &self.tracks {
            let (mut open, mut at_us) = (0, 0.0);
            for event in events {
                ensure!(
                    event.at_us >= at_us,
                    "{track:?} goes back to {}",
                    event.at_us
                );
                at_us = event.at_us;
                match event.kind.as_str() {
                    "B" => open += 1,
                    "E" => open -= 1,
                    kind => ensure!(kind == "i", "{track:?} has an event of kind {kind}"),
                }
                ensure!(open >= 0, "{track:?}: a slice ends that never began");
            }
            ensure!(open == 0, "{track:?}: {open} slices never end");
        }
        Ok(())
    }
}

fn has(events: &[Event], kind: &str, name: &str) -> bool {
    events
        .iter()
        .any(|event| event.kind == kind && event.name.starts_with(name))
}

/// How often an urgent hint for a vCPU that does not run was followed by a boost, and that by its
/// running under that boost; and the causes of those boosts.
fn sequences(vcpu: &[Event]) -> (usize, Vec<String>) {
    let (mut found, mut causes) = (0, Vec::new());
    let (mut hinted, mut begun, mut runs) = (false, None, false);
    for event in vcpu {
        match (event.kind.as_str(), event.name.as_str()) {
            ("i", name) if name.starts_with("hint: ") => {
                hinted |= event
                    .worth
                    .as_deref()
                    .is_some_and(|worth| worth != "nothing urgent");
            }
            ("i", name) if name.starts_with("boost begins: ") && hinted => {
                begun = name.strip_prefix("boost begins: ");
            }
            ("B", name) if name.starts_with("runs on CPU ") => runs = begun.is_some(),
            ("B", name) if name.starts_with("boost: ") => {
                if runs && begun == name.strip_prefix("boost: ") {
                    found += 1;
                    causes.extend(begun.map(str::to_owned));
                }
                (hinted, begun, runs) = (false, None, false);
            }
            ("B", "sleeps") => (hinted, begun, runs) = (false, None, false),
            _ => {}
        }
    }
    causes.sort();
    causes.dedup();
    (found, causes)
}

/// The one documented command; what it says, and its exit status.
fn trace(path: &Path, span: Duration) -> Result<(Option<i32>, String)> {
    let output = Command::new("scx_pvsched")
        .arg("--trace")
        .arg(path)
        .args(["--for", &span.as_secs().to_string()])
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// Names of the programs that record, as far as the kernel has them.
fn recording_programs() -> Result<Vec<String>> {
    let output = Command::new("bpftool")
        .args(["--json", "prog", "show"])
        .output()?;
    let programs: Value = serde_json::from_slice(&output.stdout).context("bpftool")?;
    let programs = programs.as_array().context("bpftool lists nothing")?;
    let names = programs
        .iter()
        .filter_map(|program| program["name"].as_str());
    Ok(names
        .filter(|name| name.starts_with("on_event_") || *name == "on_switch")
        .map(str::to_owned)
        .collect())
}

/// A tracer that has begun, and goes on until it is ended.
fn tracing(path: &Path) -> Result<Daemon> {
    let path = path.to_string_lossy();
    let words = ["--trace", &path, "--for", "3600"];
    let mut tracer = Daemon::start("tracer", "scx_pvsched", words)?;
    let log = tracer.log_path().to_owned();
    tracer.wait_until("tracing", margins::START, || {
        Ok(fs::read_to_string(&log)?
            .contains("tracing for")
            .then_some(()))
    })?;
    Ok(tracer)
}

#[test]
fn a_trace_shows_why_a_vcpu_runs_and_a_killed_tracer_leaves_nothing() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let guest = &chain.vm.guest;
        let load = GuestLoad::start(guest, 0..2)?;
        let hogs = Hog::start(4)?;
        let fifo = periodic_fifo(guest, 1, PRIORITY, 120)?;
        thread::sleep(Duration::from_secs(1));

        let folder = tempfile::tempdir()?;
        let path = folder.path().join("boosts.json");
        let (status, said) = trace(&path, SPAN)?;
        println!("{said}");
        ensure!(status == Some(0), "{status:?}: {said}");
        ensure!(said.contains("ui.perfetto.dev"), "{said}");
        println!("{} bytes", fs::metadata(&path)?.len());
        // For a person who wants to look at it.
        let _ = fs::copy(&path, "/out/boosts.json");
        check_boosts(&Trace::read(&path)?)?;

        let mut tracer = tracing(&path)?;
        ensure!(
            recording_programs()?.len() > 5,
            "{:?}",
            recording_programs()?
        );
        tracer.kill9()?;
        // The kernel frees programs after grace periods of RCU.
        eventually("no program records", margins::UNPINNED, || {
            Ok(recording_programs()?.is_empty().then_some(()))
        })?;
        chain.scheduler()?.check()?;
        let boosts =
            |chain: &mut Chain| anyhow::Ok(chain.scheduler()?.stats()?["boosts_task"].as_u64());
        let before = boosts(&mut chain)?;
        eventually("boosts go on", margins::AT_ONCE, || {
            Ok((boosts(&mut chain)? > before).then_some(()))
        })?;

        // A signal ends it early and well.
        let mut tracer = tracing(&path)?;
        let ended = tracer.stop(Signal::SIGINT, margins::AT_ONCE)?;
        ensure!(ended.success(), tracer.failure("ended badly"));
        Trace::read(&path)?.check()?;
        fifo.kill()?;
        // Detaching from KVM takes several grace periods of RCU tasks, which are long on busy emulated CPUs.
        drop((load, hogs));
        chain.stop_scheduler()
    })
}

fn check_boosts(trace: &Trace) -> Result<()> {
    trace.check()?;
    ensure!(trace.lost == Some(0), "{:?} records were lost", trace.lost);
    let times = || {
        let events = trace.tracks.values().flatten();
        events.map(|event| event.at_us)
    };
    let length_us = times().fold(0.0, f64::max) - times().fold(f64::INFINITY, f64::min);
    ensure!(
        length_us >= SPAN.as_secs_f64() * 1e6 * 0.8,
        "only {length_us:.0} us are traced"
    );

    let vcpu = trace.track("VM guest", "vCPU 1 ")?;
    let (found, causes) = sequences(vcpu);
    println!("{found} times from hint to running boosted, for {causes:?}");
    ensure!(
        found >= SEQUENCES,
        "only {found} times from hint to running boosted, for {causes:?}"
    );
    // What the guest told of its task.
    let task = format!("boost: task, rt {PRIORITY}");
    for (kind, name) in [
        ("B", task.as_str()),
        ("B", "waits"),
        ("B", "waits ahead: "),
        ("i", "guest entry"),
        ("i", "hint: timer"),
        ("i", "boost ends: "),
    ] {
        ensure!(has(vcpu, kind, name), "vCPU 1 has no {name:?}");
    }
    ensure!(has(
        trace.track("VM guest", "vCPU 0 ")?,
        "B",
        "runs on CPU "
    ));
    for cpu in ["CPU 0", "CPU 1"] {
        ensure!(
            has(trace.track("CPUs", cpu)?, "B", "hog-"),
            "{cpu} runs no host task"
        );
    }
    let cpus = ["CPU 0", "CPU 1"].map(|cpu| trace.track("CPUs", cpu));
    for (kind, name) in [("B", "guest vCPU 1"), ("i", "preempt for guest vCPU 1")] {
        let seen = cpus.iter().flatten().any(|events| has(events, kind, name));
        ensure!(seen, "no CPU has {name:?}");
    }
    Ok(())
}

#[test]
fn without_a_scheduler_there_is_no_trace() -> Result<()> {
    promise(|| {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("none.json");
        let (status, said) = trace(&path, SPAN)?;
        ensure!(
            status == Some(1) && said.contains("does not run"),
            "{status:?}: {said}"
        );
        ensure!(!path.exists(), "a file was written");
        Ok(())
    })
}
