//! scx_pvsched as the scheduler of ordinary tasks, without any VM.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure, Result};
use nix::sched::{sched_setaffinity, CpuSet};
use nix::unistd::Pid;
use pvsched_e2e::{eventually, host, margins, promise, promise_with};
use pvsched_lab::chain::Scheduler;
use pvsched_lab::daemon::Daemon;
use pvsched_lab::hog::Hog;
use pvsched_lab::steady::CPU_EXITS;

const CPU1: &str = "/sys/devices/system/cpu/cpu1/online";

/// A busy process on one CPU.
pub fn busy(cpu: &str, nice: &str) -> Result<Daemon> {
    let words = [
        "-c",
        cpu,
        "nice",
        "-n",
        nice,
        "sh",
        "-c",
        "while :; do :; done",
    ];
    Daemon::start(&format!("busy-{cpu}-{nice}"), "taskset", words)
}

/// CPU time that each of the processes gets within `span`, in seconds.
pub fn times(busy: &[&Daemon], span: Duration) -> Result<Vec<f64>> {
    let read = || -> Result<Vec<Duration>> {
        let time = |busy: &&Daemon| host::cpu_time(busy.pid(), busy.pid());
        busy.iter().map(time).collect()
    };
    let before = read()?;
    thread::sleep(span);
    let after = read()?;
    let used = after
        .iter()
        .zip(&before)
        .map(|(after, before)| *after - *before);
    Ok(used.map(|used| used.as_secs_f64()).collect())
}

#[test]
fn tasks_pinned_to_a_cpu_share_it_with_all_others() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let hogs = Hog::start(2)?;
        let pinned = [busy("0", "0")?, busy("1", "0")?, busy("1", "0")?];
        thread::sleep(Duration::from_secs(1));
        let before = hogs.progress();
        let pinned_times = times(&pinned.each_ref(), Duration::from_secs(6))?;
        let work = hogs.progress().since(&before);
        let free_times: Vec<_> = work
            .threads
            .iter()
            .map(|(_, cpu)| cpu.as_secs_f64())
            .collect();
        drop(hogs);
        scheduler.check()?;
        // 5 tasks on 2 CPUs, of which none can have more than a whole one: 0.4 of a CPU each.
        let all: Vec<_> = pinned_times.iter().chain(&free_times).copied().collect();
        let fair = all.iter().sum::<f64>() / 5.0;
        for time in &all {
            let share = time / fair;
            ensure!(
                (0.6..=1.5).contains(&share),
                "pinned {pinned_times:.2?}, free {free_times:.2?}"
            );
        }
        scheduler.stop()
    })
}

#[test]
fn nice_values_weigh_as_they_do_under_the_kernels_scheduler() -> Result<()> {
    promise(|| nice_values_weigh(&[]))
}

/// Whatever the scheduler's options.
pub fn nice_values_weigh(options: &[&str]) -> Result<()> {
    let mut scheduler = Scheduler::start(options)?;
    let (normal, nice) = (busy("1", "0")?, busy("1", "5")?);
    // The test itself must not weigh in.
    let mut cpu0 = CpuSet::new();
    cpu0.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu0)?;
    thread::sleep(Duration::from_secs(1));
    let times = times(&[&normal, &nice], Duration::from_secs(6));
    cpu0.set(1)?;
    sched_setaffinity(Pid::from_raw(0), &cpu0)?;
    let times = times?;
    scheduler.check()?;
    let ratio = times[0] / times[1];
    println!("nice 0 to nice 5: {ratio:.2}");
    let (least, most) = margins::NICE_5_RATIO;
    ensure!(
        (least..=most).contains(&ratio),
        "{ratio:.2} of {times:.2?} s, not about 3"
    );
    scheduler.stop()
}

/// What goes on on one CPU does not set the pace of those that may not go there.
#[test]
fn nice_values_weigh_on_a_cpu_that_is_busier_than_another() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        for alone in ["0", "19"] {
            let _alone = busy("0", alone)?;
            let crowd = [busy("1", "0")?, busy("1", "0")?, busy("1", "5")?];
            thread::sleep(Duration::from_secs(1));
            let times = times(&crowd.each_ref(), Duration::from_secs(6))?;
            scheduler.check()?;
            let ratio = (times[0] + times[1]) / 2.0 / times[2];
            println!("beside nice {alone} alone on CPU 0, nice 0 to nice 5: {ratio:.2}");
            let (least, most) = margins::NICE_5_RATIO;
            ensure!(
                (least..=most).contains(&ratio),
                "beside nice {alone} alone on CPU 0 {ratio:.2} of {times:.2?} s, not about 3"
            );
        }
        scheduler.stop()
    })
}

/// What it used while nobody else wanted the CPU is not held against it.
#[test]
fn a_task_that_ran_alone_shares_at_once_with_one_that_comes() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let first = busy("1", "0")?;
        thread::sleep(Duration::from_secs(6));
        let second = busy("1", "0")?;
        let times = times(&[&first, &second], Duration::from_secs(3))?;
        scheduler.check()?;
        let part = times[0] / (times[0] + times[1]);
        println!("{part:.2} of the CPU for the first one");
        ensure!(
            (0.3..=0.7).contains(&part),
            "{part:.2} of the CPU for the first one: {times:.2?} s"
        );
        scheduler.stop()
    })
}

/// The kernel hands tasks over in the order of their age, on some kernels in the scheduler's own thread,
/// which is one of them: those that are not yet handed over would come first from then on.
#[test]
fn it_takes_over_with_a_realtime_priority_and_gives_that_back() -> Result<()> {
    promise(|| {
        let (done, until_done) = mpsc::channel::<()>();
        let (watched, scheduler) = thread::scope(|scope| {
            let watcher = scope.spawn(move || -> Result<bool> {
                // Long enough for its process to be the older one.
                thread::sleep(Duration::from_millis(500));
                let cpus = ["0", "1"].repeat(2);
                let busy: Result<Vec<_>> = cpus.iter().map(|cpu| busy(cpu, "0")).collect();
                let mut urgent = false;
                let look = Duration::from_millis(5);
                while until_done.recv_timeout(look) == Err(RecvTimeoutError::Timeout) {
                    urgent |= is_urgent("scx_pvsched");
                }
                busy.map(|_| urgent)
            });
            let scheduler = Scheduler::start::<&str>(&[]);
            drop(done);
            (watcher.join(), scheduler)
        });
        let mut scheduler = scheduler?;
        let urgent = watched.map_err(|_| anyhow!("the watcher panicked"))??;
        ensure!(urgent, "it never had a real-time priority");
        ensure!(
            !is_urgent("scx_pvsched"),
            "it has kept its real-time priority"
        );
        scheduler.check()?;
        scheduler.stop()
    })
}

/// Whether the first thread of a process of that name has a real-time priority.
fn is_urgent(name: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut stats = processes.filter_map(|one| fs::read_to_string(one.path().join("stat")).ok());
    stats.any(|stat| {
        // Field 18 is -1 less the real-time priority, and not negative without one: proc_pid_stat(5).
        let Some((head, rest)) = stat.rsplit_once(')') else {
            return false;
        };
        let priority = rest.split_whitespace().nth(15).map(str::parse::<i64>);
        head.ends_with(&format!("({name}")) && matches!(priority, Some(Ok(..=-2)))
    })
}

/// Hundreds of tasks that do nothing but wake each other up.
#[test]
fn hackbench_finishes() -> Result<()> {
    promise(|| {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let mut hackbench = Daemon::start("hackbench", "hackbench", ["-g", "4", "-l", "100"])?;
        let (status, took) = eventually("hackbench ends", Duration::from_secs(60), || {
            hackbench.ended()
        })?;
        println!("hackbench took {took:.1?}");
        ensure!(status.success(), hackbench.failure("ended badly"));
        scheduler.check()?;
        scheduler.stop()
    })
}

#[test]
fn a_cpu_goes_offline_and_comes_back() -> Result<()> {
    promise_with(&CPU_EXITS, || {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let _back = CpuBack;
        let hogs = Hog::start(3)?;
        for online in ["0", "1"] {
            fs::write(CPU1, online)?;
            let before = hogs.progress();
            eventually("it schedules again", margins::START, || {
                Ok((scheduler.is_attached() && scheduler.stats().is_ok()).then_some(()))
            })?;
            thread::sleep(Duration::from_secs(1));
            scheduler.check()?;
            let work = hogs.progress().since(&before);
            let stuck = work.threads.iter().any(|(units, _)| *units == 0);
            ensure!(
                !stuck,
                "a task stands still with CPU 1 at {online}: {work:?}"
            );
        }
        scheduler.stop()
    })
}

/// What is bound to the CPU is as likely as not in the kernel just then, where it keeps RCU waiting. The
/// CPU's end waits for RCU, and must not wait for a turn of such a task.
#[test]
fn a_cpu_goes_offline_under_tasks_that_are_bound_to_it() -> Result<()> {
    promise_with(&CPU_EXITS, || {
        let mut scheduler = Scheduler::start::<&str>(&[])?;
        let _back = CpuBack;
        for round in 0..3 {
            // They ask for their CPU time all the time.
            let burn = ["-c", "1", "pvsched-lab", "burn", "1000", "0"];
            let bound: Vec<_> = (0..3)
                .map(|_| Daemon::start("burn", "taskset", burn))
                .collect::<Result<_>>()?;
            thread::sleep(Duration::from_secs(1));
            let start = Instant::now();
            fs::write(CPU1, "0")?;
            let took = start.elapsed();
            println!("round {round}: CPU 1 went within {took:.1?}");
            ensure!(took < margins::AT_ONCE, "CPU 1 went within {took:.1?}");
            drop(bound);
            fs::write(CPU1, "1")?;
            eventually("it schedules again", margins::START, || {
                Ok((scheduler.is_attached() && scheduler.stats().is_ok()).then_some(()))
            })?;
        }
        scheduler.check()?;
        scheduler.stop()
    })
}

/// Two CPUs, each with caches of its own.
mod on_2_1_1 {
    use super::*;

    /// The clock of a cache domain stands still while that is idle.
    #[test]
    fn a_cache_domain_that_was_idle_is_not_taken_for_a_neglected_one() -> Result<()> {
        promise(|| {
            let mut scheduler = Scheduler::start::<&str>(&[])?;
            let pinned = [busy("0", "0")?, busy("0", "0")?];
            thread::sleep(Duration::from_secs(10));
            let free = [busy("0-1", "0")?, busy("0-1", "0")?];
            let times = times(
                &[&pinned[0], &pinned[1], &free[0], &free[1]],
                Duration::from_secs(4),
            )?;
            scheduler.check()?;
            println!("pinned and free: {times:.2?} s");
            let (least, most) = margins::HALF;
            let part = (times[0] + times[1]) / times.iter().sum::<f64>();
            ensure!(
                (least..=most).contains(&part),
                "pinned tasks got {part:.3} of all, and free ones had the other CPU: {times:.2?} s"
            );
            scheduler.stop()
        })
    }
}

/// Whatever happens, later tests have both CPUs.
struct CpuBack;

impl Drop for CpuBack {
    fn drop(&mut self) {
        // It fails where it is online already.
        let _ = fs::write(CPU1, "1");
    }
}
