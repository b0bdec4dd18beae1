//! A guest that lies in its pages gains nothing by it, and delays nobody.

use std::fs;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use pvsched_e2e::guest_pages::GuestPages;
use pvsched_e2e::{eventually, host, margins, promise};
use pvsched_lab::chain::{Chain, ChainOptions};
use pvsched_lab::hog::Hog;
use pvsched_lab::latency::GuestLoad;
use scx_pvsched::abi;
use scx_pvsched::scheduler::realtime::Urgent;

use crate::host::{busy, times};
use crate::vm::Used;

const SETTLE: Duration = Duration::from_secs(2);
const DURATION: Duration = Duration::from_secs(10);
const HOGS: usize = 4;

const CURRENT: usize = offset_of!(abi::pvsched_page, current_task);
const PENDING: usize = offset_of!(abi::pvsched_page, pending_task);
const CONTEXT: usize = offset_of!(abi::pvsched_page, context);
const ACK: usize = offset_of!(abi::pvsched_page, ack);
const TIMER: usize = offset_of!(abi::pvsched_page, timer);
const RESPONSE: usize = offset_of!(abi::pvsched_page, response);
const TICKET: usize = offset_of!(abi::pvsched_page, ticket);
const STATE: usize = offset_of!(abi::pvsched_page, guest_state);

const FIFO_99: u64 = (abi::PVSCHED_CLASS_RT as u64) << abi::PVSCHED_URGENCY_CLASS_SHIFT
    | 99 << abi::PVSCHED_URGENCY_PRIO_SHIFT
    | abi::PVSCHED_NICE_OFFSET as u64;
const NORMAL: u64 = (abi::PVSCHED_CLASS_NORMAL as u64) << abi::PVSCHED_URGENCY_CLASS_SHIFT
    | abi::PVSCHED_NICE_OFFSET as u64;

/// A generator of words without a pattern (Marsaglia, Xorshift RNGs, 2003).
struct Words(u64);

impl Words {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What the guest has in its pages, again and again.
type Lie = fn(&GuestPages, &mut Words) -> Result<()>;

/// Everything at times, also to have nothing urgent, or nothing but SCHED_IDLE work.
const CAPRICE: &str = "any words";

const LIES: [(&str, Lie); 6] = [
    ("always FIFO 99", |pages, _| pages.write(CURRENT, FIFO_99)),
    ("always in an interrupt", |pages, _| {
        pages.write(CONTEXT, 0x0101)
    }),
    ("takes no interrupt", |pages, _| pages.write(ACK, 0)),
    ("takes every interrupt", |pages, _| {
        pages.write(ACK, pages.read(0, TICKET)?)
    }),
    ("always about to have an urgent timer", |pages, _| {
        let timer = abi::PVSCHED_TIMER_KNOWN
            | FIFO_99 >> abi::PVSCHED_URGENCY_PRIO_SHIFT << abi::PVSCHED_TIMER_URGENCY_SHIFT;
        pages.write(TIMER, timer)
    }),
    (CAPRICE, |pages, words| {
        [CURRENT, PENDING, CONTEXT, ACK, TIMER, RESPONSE]
            .into_iter()
            .try_for_each(|word| pages.write(word, words.next()))
    }),
];

/// Sleeps for a while, a little at a time; the longest that this took beyond its time.
fn overslept() -> Duration {
    let (start, mut longest) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < DURATION {
        let (period, before) = (Duration::from_millis(5), Instant::now());
        thread::sleep(period);
        longest = longest.max(before.elapsed().saturating_sub(period));
    }
    longest
}

/// The pages of both vCPUs, which the host keeps and nobody else writes to any more.
fn pages_of_nobody(chain: &mut Chain) -> Result<GuestPages> {
    chain.vm.stop_agent()?;
    let pages = GuestPages::find(chain.vm.guest.pid())?;
    ensure!(pages.count() == 2, "{} pages of 2 vCPUs", pages.count());
    Ok(pages)
}

/// A busy normal task on each of the guest's CPUs.
fn tell_the_truth(pages: &GuestPages) -> Result<()> {
    for word in [PENDING, CONTEXT, ACK, TIMER] {
        pages.write(word, 0)?;
    }
    pages.write(CURRENT, NORMAL)?;
    pages.write(STATE, abi::PVSCHED_GUEST_PUBLISHING.into())
}

#[test]
fn no_lie_in_its_pages_gains_a_guest_more_than_its_share() -> Result<()> {
    promise(|| no_lie_gains_more_than_its_share(ChainOptions::default()))
}

pub fn no_lie_gains_more_than_its_share(options: ChainOptions) -> Result<()> {
    let mut chain = Chain::start(options)?;
    let _load = GuestLoad::start(&chain.vm.guest, [0, 1])?;
    let pages = pages_of_nobody(&mut chain)?;
    let hogs = Hog::start(HOGS)?;
    for (name, lie) in LIES {
        tell_the_truth(&pages)?;
        let stop = AtomicBool::new(false);
        let (used, overslept) = thread::scope(|scope| {
            let liar = scope.spawn(|| {
                let mut words = Words(0x9e37_79b9_7f4a_7c15);
                while !stop.load(Ordering::Relaxed) {
                    lie(&pages, &mut words)?;
                    thread::sleep(Duration::from_micros(200));
                }
                Ok::<_, anyhow::Error>(())
            });
            thread::sleep(SETTLE);
            let used = Used::during(&chain.vm.guest, &hogs, || Ok(overslept()));
            stop.store(true, Ordering::Relaxed);
            liar.join().expect("the liar does not panic")?;
            used
        })?;
        chain.scheduler()?.check()?;
        let most = if name == CAPRICE {
            margins::OVERSLEPT_BESIDE_CAPRICE
        } else {
            margins::OVERSLEPT_BESIDE_LIAR
        };
        let (vcpu, least) = (used.share_of_vcpu(), used.least_share_of_host());
        println!(
            "{name}: each vCPU {vcpu:.3} of its share, the least of the host's tasks {least:.3}, \
             one overslept {overslept:.1?}"
        );
        ensure!(
            least >= margins::BESIDE_LIAR_SHARE && overslept <= most,
            "{name}: the host's tasks at least {:.2}, at most {most:?}",
            margins::BESIDE_LIAR_SHARE
        );
    }
    Ok(())
}

/// By the pace of an emptier CPU everybody on a full one is owed time, and a liar would get all of it.
#[test]
fn a_lie_gains_nothing_on_a_cpu_that_is_busier_than_another() -> Result<()> {
    promise(|| {
        let mut chain = Chain::start(ChainOptions::default())?;
        let guest = &chain.vm.guest;
        let _load = GuestLoad::start(guest, [0, 1])?;
        let threads = guest.vcpu_threads()?;
        let pid = guest.pid();
        let pages = pages_of_nobody(&mut chain)?;
        tell_the_truth(&pages)?;
        for thread in &threads {
            host::allow(*thread, &[1])?;
        }
        let _alone = busy("0", "0")?;
        let crowd = [busy("1", "0")?, busy("1", "0")?];
        // They are started before the lie begins, as that makes starting slow.
        thread::sleep(SETTLE);
        pages.write(CURRENT, FIFO_99)?;
        thread::sleep(SETTLE);
        let used = || -> Result<Duration> {
            let times = threads.iter().map(|thread| host::cpu_time(pid, *thread));
            Ok(times.collect::<Result<Vec<_>>>()?.iter().sum())
        };
        let before = used()?;
        // Twice as long, as with half as many CPUs the budget is twice as much of a share.
        let times = times(&crowd.each_ref(), 2 * DURATION)?;
        let vcpus = (used()? - before).as_secs_f64();
        host::ensure_all_were_asked_about()?;
        chain.scheduler()?.check()?;
        let fair = (vcpus + times.iter().sum::<f64>()) / 4.0;
        let least = times.iter().copied().fold(f64::INFINITY, f64::min) / fair;
        println!(
            "each vCPU {:.3} of its share, the least of the host's tasks {least:.3}",
            vcpus / 2.0 / fair
        );
        ensure!(
            least >= margins::BESIDE_LIAR_SHARE,
            "{least:.3} of their share was left to the host's tasks (at least {}): {times:.2?} s, vCPUs {vcpus:.2} s",
            margins::BESIDE_LIAR_SHARE
        );
        Ok(())
    })
}

/// How long the kernel waits for a thread of each CPU's own to run, again and again; the ninth longest of ten.
fn wait_for_kernel_threads() -> Result<Duration> {
    const ROUNDS: usize = 150;
    // Else it would wait for its own turn.
    let _urgent = Urgent::begin()?;
    let mut waits = Vec::new();
    for _ in 0..ROUNDS {
        thread::sleep(Duration::from_millis(13));
        let asked = Instant::now();
        // Has a worker of each CPU count what happened there, and returns when all have: schedule_on_each_cpu().
        fs::write("/proc/sys/vm/stat_refresh", "1")?;
        waits.push(asked.elapsed());
    }
    waits.sort_unstable();
    Ok(waits[ROUNDS * 9 / 10])
}

#[test]
fn a_cpus_own_kernel_threads_do_not_wait_for_urgent_guests() -> Result<()> {
    promise(|| kernel_threads_come_first(ChainOptions::default()))
}

/// The kernel's work for everybody on a CPU is done by threads that may run nowhere else.
pub fn kernel_threads_come_first(options: ChainOptions) -> Result<()> {
    let mut chain = Chain::start(options)?;
    let idle = wait_for_kernel_threads()?;
    let _hogs = Hog::start(HOGS)?;
    let mut work = Vec::new();
    for cpu in [0, 1] {
        let bursts = format!("exec taskset -c {cpu} chrt -f 50 pvsched-lab burn 30 70");
        work.push(chain.vm.guest.spawn(&bursts)?);
    }
    let boosted = |chain: &mut Chain| -> Result<u64> {
        let stats = chain.scheduler()?.stats()?;
        stats["enqueued_boost"]
            .as_u64()
            .context("it does not count boosted turns")
    };
    let before = boosted(&mut chain)?;
    eventually("boosts", margins::AT_ONCE, || {
        Ok((boosted(&mut chain)? > before + 10).then_some(()))
    })?;
    let before = boosted(&mut chain)?;
    let busy = wait_for_kernel_threads()?;
    let boosts = boosted(&mut chain)? - before;
    chain.scheduler()?.check()?;
    println!(
        "{idle:.1?} on the idle host, {busy:.1?} on the busy one, with {boosts} boosted turns"
    );
    ensure!(boosts > 0, "nobody was boosted meanwhile");
    ensure!(
        busy < idle + margins::KERNEL_THREADS_WAIT,
        "kernel threads waited for {busy:.1?}, and for {idle:.1?} on the idle host"
    );
    Ok(())
}
