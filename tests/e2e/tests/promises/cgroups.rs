//! Weights and quotas of cgroups, as libvirt and systemd set them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pvsched_e2e::{host, margins, median, promise};
use pvsched_lab::chain::{Chain, ChainOptions, Scheduler, Vm, VmOptions};
use pvsched_lab::daemon::Daemon;
use pvsched_lab::guest::Guest;
use pvsched_lab::latency::GuestLoad;

use crate::host::{busy, times};
use crate::vm::endless_fifo;

const ROOT: &str = "/sys/fs/cgroup";
const SETTLE: Duration = Duration::from_secs(1);
const DURATION: Duration = Duration::from_secs(8);
/// Of the scheduler, while cgroups come and go.
const STARTS: u32 = 5;

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

    /// CPU time that its tasks may use in each period, in microseconds.
    fn set_quota(&self, quota: u32, period: u32) -> Result<()> {
        write(&self.0.join("cpu.max"), &format!("{quota} {period}"))
    }

    /// Moves a process into it.
    fn take(&self, pid: u32) -> Result<()> {
        write(&self.0.join("cgroup.procs"), &pid.to_string())
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

/// Context switches of all the host while eighty tasks exchange messages, in `cgroup` where one is given.
fn switches(cgroup: Option<&Cgroup>) -> Result<f64> {
    let count = || -> Result<f64> {
        let stat = fs::read_to_string("/proc/stat")?;
        let count = stat.lines().find_map(|line| line.strip_prefix("ctxt "));
        Ok(count.context("no ctxt in /proc/stat")?.parse()?)
    };
    let before = count()?;
    let enter = cgroup.map_or(String::new(), |cgroup| {
        format!("echo $$ >{}/cgroup.procs && ", cgroup.0.display())
    });
    let script = format!("{enter}exec hackbench -g 2 -l 300");
    let status = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "hackbench ended badly ({status})");
    Ok(count()? - before)
}

/// Where a load begins, what cgroups leave of a task's weight is soon another part of it. What its tasks
/// were charged before that must not keep some of them waiting while others take turns.
#[test]
fn a_load_that_begins_in_a_cgroup_takes_turns_as_one_outside() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let cgroup = Cgroup::new(Path::new(ROOT), "load", 100)?;
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let outside = switches(None)?;
            ratios.push(switches(Some(&cgroup))? / outside);
        }
        scheduler.check()?;
        println!("switches in a cgroup, of those outside: {ratios:.2?}");
        let ratio = median(&ratios)?;
        ensure!(
            ratio < margins::LIKE_TURNS,
            "{ratio:.2} times as many switches in a cgroup"
        );
        scheduler.stop()
    })
}

/// A cgroup that has been removed is shown to a scheduler that starts for a moment still.
#[test]
fn it_starts_while_cgroups_come_and_go() -> Result<()> {
    promise(|| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let comes_and_goes = scope.spawn(|| -> Result<u32> {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    drop(Cgroup::new(Path::new(ROOT), "fleeting", 100)?);
                    number += 1;
                }
                Ok(number)
            });
            let starts = (0..STARTS).try_for_each(|_| {
                let mut scheduler = Scheduler::start::<&str>(&[])?;
                scheduler.check()?;
                scheduler.stop()
            });
            stop.store(true, Ordering::Relaxed);
            let number = comes_and_goes.join().expect("it returns what goes wrong")?;
            println!("{number} cgroups came and went during {STARTS} starts");
            starts?;
            ensure!(number >= STARTS, "only {number} cgroups came and went");
            Ok(())
        })
    })
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

        // The scheduler says when the kernel does not tell it of cpu.idle.
        if !scheduler.log().contains("cgroup_set_idle") {
            write(&light.0.join("cpu.idle"), "1")?;
            let got = used(&[&in_b, &in_heavy], DURATION)?;
            println!("with cpu.idle {:.4} of the heavy one's", got[0] / got[1]);
            ensure!(
                got[0] / got[1] <= margins::IDLE_CGROUP,
                "a cgroup with cpu.idle got {:.2} s, another one {:.2} s",
                got[0],
                got[1]
            );
        }
        scheduler.check()?;
        drop((in_b, in_heavy));
        scheduler.stop()
    })
}

/// CPU time that the vCPUs of each guest get, in seconds.
fn vcpus(guests: &[&Guest], span: Duration) -> Result<Vec<f64>> {
    let read = || -> Result<Vec<Duration>> {
        let time = |guest: &&Guest| -> Result<Duration> {
            let threads = guest.vcpu_threads()?;
            let times = threads.iter().map(|tid| host::cpu_time(guest.pid(), *tid));
            Ok(times.collect::<Result<Vec<_>>>()?.iter().sum())
        };
        guests.iter().map(time).collect()
    };
    let before = read()?;
    thread::sleep(span);
    let used = read()?.into_iter().zip(before);
    Ok(used
        .map(|(after, before)| (after - before).as_secs_f64())
        .collect())
}

#[test]
fn vms_in_slices_share_the_host_by_the_weights_of_those() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let slices = [
            Cgroup::new(Path::new(ROOT), "silver.slice", 100)?,
            Cgroup::new(Path::new(ROOT), "gold.slice", 300)?,
        ];
        let mut vms = Vec::new();
        for (slice, name) in slices.iter().zip(["silver", "gold"]) {
            let vm = Vm::start(&VmOptions {
                name: name.to_owned(),
                memory_mib: 192,
                ..VmOptions::default()
            })?;
            slice.take(vm.guest.pid())?;
            vms.push(vm);
        }
        let [silver, gold] = [&vms[0].guest, &vms[1].guest];
        let _loads = [
            GuestLoad::start(silver, [0, 1])?,
            GuestLoad::start(gold, [0, 1])?,
        ];
        // What starts the load in a guest is an ordinary task there.
        thread::sleep(3 * SETTLE);
        // Interrupts put each vCPU up to 0.1 s ahead of its share, of which this has to be a small part.
        let got = vcpus(&[silver, gold], 3 * DURATION)?;
        scheduler.check()?;
        ensure_shares("VMs in slices of 100 and 300", &got, &[100.0, 300.0])?;
        drop(vms);
        scheduler.stop()
    })
}

#[test]
fn a_quota_holds_also_for_a_guest_that_is_always_urgent() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let slice = Cgroup::new(Path::new(ROOT), "limited.slice", 100)?;
        let guest = &chain.vm.guest;
        slice.take(guest.pid())?;
        // Half a CPU, of two that nobody else wants.
        slice.set_quota(50_000, 100_000)?;
        let greedy = [
            endless_fifo(guest, 1, 50, 40)?,
            endless_fifo(guest, 0, 50, 40)?,
        ];
        thread::sleep(SETTLE);
        let got = vcpus(&[guest], DURATION)?[0] / DURATION.as_secs_f64();
        println!("{got:.3} CPUs of a half");
        let (least, most) = margins::HALF_A_CPU;
        ensure!(
            (least..=most).contains(&got),
            "{got:.3} CPUs, not a half ({least} to {most})"
        );
        // Held back or not, it is there again as soon as it may be.
        write(&slice.0.join("cpu.max"), "max")?;
        let got = vcpus(&[guest], Duration::from_secs(4))?[0] / 4.0;
        println!("{got:.3} CPUs of two without a limit");
        ensure!(got >= 1.8, "{got:.3} CPUs of two without a limit");
        chain.scheduler()?.check()?;
        for task in greedy {
            task.wait(Duration::from_secs(90))?;
        }
        Ok(())
    })
}

/// A level above counts as well, and what waits for a quota is not in anybody's way.
#[test]
fn a_quota_holds_for_all_below_and_for_nobody_else() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let outer = Cgroup::new(Path::new(ROOT), "outer", 100)?;
        let (a, b) = (
            Cgroup::new(&outer.0, "a", 100)?,
            Cgroup::new(&outer.0, "b", 100)?,
        );
        outer.set_quota(25_000, 50_000)?;
        a.set_quota(10_000, 100_000)?;
        let (in_a, in_b) = (a.busy::<3>()?, b.busy::<3>()?);
        let free = [busy("0", "0")?];
        thread::sleep(SETTLE);
        let got = used(&[&in_a, &in_b, &free], DURATION)?;
        scheduler.check()?;
        println!("0.1 and the rest of 0.5 CPUs, and one: {got:.3?} s of {DURATION:.0?}");
        let all = DURATION.as_secs_f64();
        let near = |is: f64, wanted: f64| (is / all - wanted).abs() <= margins::OF_A_QUOTA;
        ensure!(
            near(got[0], 0.1) && near(got[0] + got[1], 0.5) && got[2] / all > 0.7,
            "{got:.3?} s of {DURATION:.0?}"
        );
        drop((in_a, in_b, free));
        scheduler.stop()
    })
}

/// Also where the rest of the host has more room.
#[test]
fn weights_hold_within_a_cpuset() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let set = Cgroup::new(Path::new(ROOT), "set", 100)?;
        write(&Path::new(ROOT).join("cgroup.subtree_control"), "+cpuset")?;
        write(&set.0.join("cpuset.cpus"), "1")?;
        let (light, heavy) = (
            Cgroup::new(&set.0, "light", 100)?,
            Cgroup::new(&set.0, "heavy", 300)?,
        );
        let _alone = busy("0", "0")?;
        let (in_light, in_heavy) = (light.busy::<2>()?, heavy.busy::<2>()?);
        thread::sleep(SETTLE);
        let got = used(&[&in_light, &in_heavy], DURATION)?;
        scheduler.check()?;
        ensure_shares("100 to 300 on one CPU", &got, &[100.0, 300.0])?;
        ensure!(
            got.iter().sum::<f64>() <= 1.02 * DURATION.as_secs_f64(),
            "more than the one CPU of the set: {got:.2?} s"
        );
        drop((in_light, in_heavy));
        scheduler.stop()
    })
}
