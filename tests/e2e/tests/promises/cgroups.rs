//! Weights of cgroups, as libvirt and systemd set them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{margins, promise};
use pvsched_lab::chain::Scheduler;
use pvsched_lab::daemon::Daemon;

use crate::host::times;

const ROOT: &str = "/sys/fs/cgroup";
const SETTLE: Duration = Duration::from_secs(1);
const DURATION: Duration = Duration::from_secs(8);

/// A cgroup whose children have weights; it goes when this is dropped, and has to be empty then.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(parent: &Path, name: &str, weight: u32) -> Result<Self> {
        write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        let path = parent.join(name);
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        let cgroup = Self(path);
        cgroup.set_weight(weight)?;
        Ok(cgroup)
    }

    fn set_weight(&self, weight: u32) -> Result<()> {
        write(&self.0.join("cpu.weight"), &weight.to_string())
    }

    /// Busy processes in it.
    fn busy<const N: usize>(&self) -> Result<[Daemon; N]> {
        let procs = self.0.join("cgroup.procs");
        let script = format!("echo $$ >{} && while :; do :; done", procs.display());
        let name = self.0.file_name().unwrap_or_default().to_string_lossy();
        let start = || Daemon::start(&format!("busy-{name}"), "sh", ["-c", &script]);
        let started: Vec<_> = (0..N).map(|_| start()).collect::<Result<_>>()?;
        started.try_into().ok().context("as many as were started")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes of a test that failed leave it only when they are reaped.
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// CPU time that the processes of each group got.
fn used(groups: &[&[Daemon]], span: Duration) -> Result<Vec<f64>> {
    let all: Vec<_> = groups.iter().copied().flatten().collect();
    let mut times = times(&all, span)?.into_iter();
    let sum = |group: &&[Daemon]| times.by_ref().take(group.len()).sum();
    Ok(groups.iter().map(sum).collect())
}

/// Whether each has got its part of all, where parts are as `weights`.
fn ensure_shares(what: &str, used: &[f64], weights: &[f64]) -> Result<()> {
    let (all, sum) = (used.iter().sum::<f64>(), weights.iter().sum::<f64>());
    let shares: Vec<_> = used
        .iter()
        .zip(weights)
        .map(|(used, weight)| used / all / (weight / sum))
        .collect();
    println!("{what}: {shares:.3?} of their shares");
    let (least, most) = margins::SHARE_BY_WEIGHT;
    ensure!(
        shares.iter().all(|share| (least..=most).contains(share)),
        "{what}: {shares:.3?} of their shares ({least} to {most}), {used:.2?} s"
    );
    Ok(())
}

#[test]
fn cgroups_share_the_host_by_their_weights_level_by_level() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let (light, heavy) = (
            Cgroup::new(Path::new(ROOT), "light", 100)?,
            Cgroup::new(Path::new(ROOT), "heavy", 300)?,
        );
        // However many tasks each has.
        let (few, many) = (heavy.busy::<2>()?, light.busy::<4>()?);
        thread::sleep(SETTLE);
        let got = used(&[&many, &few], DURATION)?;
        scheduler.check()?;
        ensure_shares("100 to 300", &got, &[100.0, 300.0])?;

        // Within 0.1 s of the change.
        light.set_weight(900)?;
        thread::sleep(Duration::from_millis(100));
        let got = used(&[&many, &few], Duration::from_secs(4))?;
        ensure_shares("900 to 300", &got, &[900.0, 300.0])?;
        drop((few, many));

        light.set_weight(300)?;
        let (a, b) = (
            Cgroup::new(&light.0, "a", 100)?,
            Cgroup::new(&light.0, "b", 200)?,
        );
        let (in_a, in_b, in_heavy) = (a.busy::<2>()?, b.busy::<2>()?, heavy.busy::<2>()?);
        thread::sleep(SETTLE);
        let got = used(&[&in_a, &in_b, &in_heavy], DURATION)?;
        ensure_shares("1/3 and 2/3 of a half, and a half", &got, &[1.0, 2.0, 3.0])?;
        // What a leaves is for b first.
        drop(in_a);
        let got = used(&[&in_b, &in_heavy], DURATION)?;
        ensure_shares("the same without the first", &got, &[1.0, 1.0])?;
        scheduler.check()?;
        drop((in_b, in_heavy));
        scheduler.stop()
    })
}
