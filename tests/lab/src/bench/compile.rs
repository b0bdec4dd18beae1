//! A parallel compile, alone and beside somebody who types.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, Result};
use tempfile::TempDir;

use super::measure::{Results, Scale, MAX, P50, P99, TIME};
use super::programs::limited;
use crate::hog;
use crate::latency::Histogram;
use crate::process;

/// Files to compile, each about a second of an emulated processor: six seconds on two of them, of
/// which the end, where the last job runs alone, is a small part.
const FILES: u32 = 12;

/// Functions in each file.
const FUNCTIONS: u32 = 4;

/// As make's users do who want no CPU to wait for a disk: there is always somebody who waits.
const JOBS_PER_CPU: usize = 2;

/// How often the sleeper wakes up: a game's or a video's frame would be longer, an audio
/// buffer's about that.
const INTERVAL: Duration = Duration::from_millis(5);

pub fn compile(scale: &Scale) -> Result<Results> {
    let tree = tree(scale)?;
    Ok(vec![(TIME, make(tree.path(), scale)?.as_secs_f64())])
}

pub fn mixed(scale: &Scale) -> Result<Results> {
    let tree = tree(scale)?;
    let stop = AtomicBool::new(false);
    let (time, latency) = thread::scope(|scope| {
        let sleeper = scope.spawn(|| sleep_and_work(&stop));
        let time = make(tree.path(), scale);
        stop.store(true, Ordering::Relaxed);
        let latency = sleeper.join().map_err(|_| anyhow!("the sleeper panicked"));
        Ok::<_, anyhow::Error>((time?, latency?))
    })?;
    #[allow(clippy::cast_precision_loss)]
    let value = |us: u64| us as f64;
    Ok(vec![
        (TIME, time.as_secs_f64()),
        (P50, value(latency.p50())),
        (P99, value(latency.p99())),
        (MAX, value(latency.max())),
    ])
}

/// Wakes up again and again and does a little each time; gives how late each wake-up was.
fn sleep_and_work(stop: &AtomicBool) -> Histogram {
    let mut latency = Histogram::default();
    let mut state = 1;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        thread::sleep(INTERVAL);
        latency.record(start.elapsed().saturating_sub(INTERVAL));
        state = hog::unit(state);
    }
    latency
}

/// Sources and a makefile, the same every time.
fn tree(scale: &Scale) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let files = scale.count(FILES);
    for file in 0..files {
        fs::write(folder.path().join(format!("part{file}.c")), source(file))?;
    }
    let objects: Vec<_> = (0..files).map(|file| format!("part{file}.o")).collect();
    let makefile = format!(
        "all: {}\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\n",
        objects.join(" ")
    );
    fs::write(folder.path().join("Makefile"), makefile)?;
    Ok(folder)
}

fn source(file: u32) -> String {
    let mut text = String::new();
    for header in ["math", "stdio", "stdlib", "string", "sys/socket", "unistd"] {
        text += &format!("#include <{header}.h>\n");
    }
    text += "struct item { int key; double value; struct item *next; };\n";
    for function in 0..FUNCTIONS {
        let number = file * FUNCTIONS + function + 2;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "int visit_{number}(struct item *list, int n)\n\
             {{\n\
             \tint sum = 0;\n\
             \tfor (struct item *i = list; i; i = i->next) {{\n\
             \t\tif (i->key % {number} == n % 7)\n\
             \t\t\tsum += i->key * n;\n\
             \t\telse\n\
             \t\t\tsum ^= (int)(i->value * {number});\n\
             \t}}\n\
             \treturn sum;\n\
             }}"
        );
    }
    text
}

fn make(folder: &Path, scale: &Scale) -> Result<Duration> {
    let start = Instant::now();
    process::output(
        limited("make")
            .arg("--silent")
            .arg(format!("--jobs={}", JOBS_PER_CPU * scale.cpus))
            .arg("--directory")
            .arg(folder),
    )?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_the_same_every_time_and_differ_from_each_other() {
        assert_eq!(source(3), source(3));
        assert_ne!(source(3), source(4));
    }

    #[test]
    fn a_sleeper_tells_how_late_it_woke_up() {
        let stop = AtomicBool::new(false);
        let latency = thread::scope(|scope| {
            let sleeper = scope.spawn(|| sleep_and_work(&stop));
            thread::sleep(20 * INTERVAL);
            stop.store(true, Ordering::Relaxed);
            sleeper.join().unwrap()
        });
        // Never more often than its interval allows.
        let samples = latency.samples();
        assert!((1..=60).contains(&samples), "{latency:?}");
    }
}
