//! A small server in a guest, asked over its network: memcached, which answers single datagrams.
//!
//! Who asks is a real-time thread of the host, as somebody on another machine would not wait for this
//! host's CPUs; the virtual network itself is QEMU's, an ordinary task.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::measure::{Better, Metric, Outcome, Scene, RATE};
use super::needs;
use super::stage::Used;
use crate::guest::Guest;
use crate::hog::Hog;
use crate::latency::Histogram;
use crate::network::Network;
use crate::priority::{set_policy, Policy};

const PORT: u16 = 11211;

/// One thread, and none that wakes up by itself to clean up; every thread a real-time one, as an
/// operator makes a server for whose answers others wait.
const SERVER: &str = "chrt -f 50 memcached -d -u root -l 10.9.0.2 -U 11211 -t 1 -m 8 \
                      -o no_lru_crawler,no_lru_maintainer,no_slab_reassign,no_hashexpand";

const KEY: &str = "bench";
const VALUE_LENGTH: usize = 100;

/// One at a time, not in step with the ticks of host or guest, for the times that answers take; longer
/// than those are where every thread on the way waits its turn, or they would only wait for each other.
const INTERVAL: Duration = Duration::from_millis(41);
const PACED: Duration = Duration::from_secs(12);

/// Before that, as all who take part do some of it for the first time: in a guest that had just been booted the
/// first answers took seconds, under the kernel's scheduler as well.
const WARM_UP: Duration = Duration::from_secs(3);

/// So many at once, for how many are answered.
const WINDOW: u16 = 4;
const SATURATED: Duration = Duration::from_secs(3);

/// After this an answer counts as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Of the thread that asks.
const PRIORITY: i32 = 50;

/// memcached's header of a datagram: number of the request, of this datagram, how many there are, 0.
const HEADER: usize = 8;

const REQUEST_P50: Metric = Metric::new("answer p50", "us", Better::Lower);
const REQUEST_P99: Metric = Metric::new("answer p99", "us", Better::Lower).at_least(3.0);
const LOST: Metric = Metric::new("lost", "requests", Better::Lower);
/// CPU time of the guest for an answer, on an idle host.
const NEEDS: Metric = Metric::new("needs", "ms", Better::Lower);

/// Starts the server in a guest with a network, and sees that it answers.
pub fn serve(guest: &Guest) -> Result<()> {
    let limit = Duration::from_secs(30);
    guest.exec(SERVER, limit)?.ok().context("memcached")?;
    let network = guest.network()?;
    let set = format!(
        "set {KEY} 0 0 {VALUE_LENGTH}\r\n{}\r\n",
        "x".repeat(VALUE_LENGTH)
    );
    let start = Instant::now();
    // It listens a moment after it was started.
    while start.elapsed() < limit {
        network.send_udp(PORT, &request(0, &set))?;
        if let Some(answer) = network.receive_udp(PORT, Instant::now() + ANSWER_LIMIT)? {
            ensure!(
                answer.get(HEADER..) == Some(b"STORED\r\n"),
                "memcached said {}",
                String::from_utf8_lossy(&answer)
            );
            return Ok(());
        }
    }
    anyhow::bail!("memcached did not answer within {limit:?}")
}

fn request(number: u16, command: &str) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    [&[high, low, 0, 0, 0, 1, 0, 0], command.as_bytes()].concat()
}

/// The number of the request that this is the answer to, if it is the right answer.
fn answered(datagram: &[u8]) -> Option<u16> {
    let (header, text) = datagram.split_at_checked(HEADER)?;
    let value = format!("VALUE {KEY} 0 {VALUE_LENGTH}\r\n");
    let number = u16::from_be_bytes([header[0], header[1]]);
    (text.starts_with(value.as_bytes()) && text.ends_with(b"END\r\n")).then_some(number)
}

struct Asking<'a> {
    network: &'a Network,
    get: String,
    number: u16,
    lost: u32,
}

impl<'a> Asking<'a> {
    fn new(network: &'a Network) -> Self {
        Self {
            network,
            get: format!("get {KEY}\r\n"),
            number: 0,
            lost: 0,
        }
    }

    fn ask(&mut self) -> Result<u16> {
        self.number = self.number.wrapping_add(1);
        self.network
            .send_udp(PORT, &request(self.number, &self.get))?;
        Ok(self.number)
    }

    /// The number of the next answer.
    fn answer(&self, deadline: Instant) -> Result<Option<u16>> {
        while let Some(datagram) = self.network.receive_udp(PORT, deadline)? {
            if let Some(number) = answered(&datagram) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// How long answers take. A request that has to wait until the one before it is answered counts
    /// from when it was due. Where they do not keep up at all, it takes no more than twice as long.
    fn paced(&mut self, duration: Duration) -> Result<Histogram> {
        let (start, mut times) = (Instant::now(), Histogram::default());
        let mut due = start;
        while due < start + duration && start.elapsed() < 2 * duration {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let number = self.ask()?;
            let deadline = Instant::now() + ANSWER_LIMIT;
            let answered = loop {
                match self.answer(deadline)? {
                    Some(answered) if answered == number => break true,
                    Some(_) => {}
                    None => break false,
                }
            };
            self.lost += u32::from(!answered);
            times.record(due.elapsed());
            due += INTERVAL;
        }
        Ok(times)
    }

    /// How many answers there are a second.
    fn saturated(&mut self, duration: Duration) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..WINDOW {
            self.ask()?;
        }
        let mut answers = 0_u32;
        while start.elapsed() < duration {
            if self.answer(Instant::now() + ANSWER_LIMIT)?.is_some() {
                answers += 1;
            } else {
                self.lost += u32::from(WINDOW);
                for _ in 1..WINDOW {
                    self.ask()?;
                }
            }
            self.ask()?;
        }
        Ok(f64::from(answers) / start.elapsed().as_secs_f64())
    }
}

/// Makes this thread a real-time one until it is dropped.
struct Urgent;

impl Urgent {
    fn new() -> Result<Self> {
        set_policy(0, Policy::Fifo(PRIORITY))?;
        Ok(Self)
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // Always permitted.
        let _ = set_policy(0, Policy::Other);
    }
}

pub fn measure(scene: &mut Scene) -> Result<Outcome> {
    let guest = scene.stage.guest(scene.contender)?;
    let mut asking = Asking::new(guest.network()?);
    let hogs = Hog::start(scene.hogs())?;
    let (used, (times, rate)) = Used::during(guest, &hogs, || {
        let _urgent = Urgent::new()?;
        asking.paced(WARM_UP)?;
        asking.lost = 0;
        let times = asking.paced(scene.scale.duration(PACED))?;
        let rate = asking.saturated(scene.scale.duration(SATURATED))?;
        Ok((times, rate))
    })?;
    ensure!(rate > 0.0, "not a single request was answered in the end");
    #[allow(clippy::cast_precision_loss)]
    let us = |us: u64| us as f64;
    let mut results = vec![
        (REQUEST_P50, us(times.p50())),
        (REQUEST_P99, us(times.p99())),
        (RATE, rate),
        (LOST, f64::from(asking.lost)),
    ];
    if scene.finds_needs() {
        let (cpus, rate) = needs::of(guest, || {
            let _urgent = Urgent::new()?;
            asking.saturated(needs::WHOLE)
        })?;
        results.push((NEEDS, 1e3 * cpus / rate));
    }
    if scene.hogs() > 0 {
        results.extend(used.results());
    }
    Ok(Outcome {
        results,
        latency: Some(times),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_request() {
        let value = format!(
            "VALUE {KEY} 0 {VALUE_LENGTH}\r\n{}\r\nEND\r\n",
            "x".repeat(VALUE_LENGTH)
        );
        assert_eq!(answered(&request(0x1234, &value)), Some(0x1234));
        assert_eq!(answered(&request(7, "END\r\n")), None);
        assert_eq!(answered(b"short"), None);
    }
}
