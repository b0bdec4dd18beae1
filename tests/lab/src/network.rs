//! A network between a guest and this machine: a virtio-net device whose other end is a socket here.
//!
//! There is no route to anywhere, and nothing else on it: what the guest's device interrupts it
//! for is what is sent here.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::{EtherType, TransportHeader};
use etherparse::{IcmpEchoHeader, Icmpv4Type, NetHeaders, PacketBuilder, PacketHeaders};

use crate::latency::Histogram;

/// The guest's end, and ours; `vm/guest-net.sh` has them too.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const OUR_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const GUEST_IP: [u8; 4] = [10, 9, 0, 2];
const OUR_IP: [u8; 4] = [10, 9, 0, 1];

/// Where answers to our datagrams go; of those that nobody is assigned.
const OUR_PORT: u16 = 49_876;

/// The name of our echo requests.
const ECHO_ID: u16 = 0x7076;

/// After this an answer counts as lost.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// For experiments on one's own network (IEEE 802, ethertypes for local use). Nobody answers.
const FLOOD_TYPE: EtherType = EtherType(0x88b5);

/// Our end of the network.
#[derive(Debug)]
pub struct Network {
    socket: UnixDatagram,
    guests: PathBuf,
}

impl Network {
    /// Makes the socket; QEMU is to bind its own, of [`Network::guests`].
    pub fn new(folder: &Path) -> Result<Self> {
        let ours = Self::ours(folder);
        let socket =
            UnixDatagram::bind(&ours).with_context(|| format!("cannot make {}", ours.display()))?;
        Ok(Self {
            socket,
            guests: Self::guests(folder),
        })
    }

    /// Where our socket is.
    pub fn ours(folder: &Path) -> PathBuf {
        folder.join("net-ours.sock")
    }

    /// Where QEMU's socket is.
    pub fn guests(folder: &Path) -> PathBuf {
        folder.join("net-guests.sock")
    }

    /// Asks the guest's kernel for an echo once per `interval`, and gives the times that the answers
    /// took. Each is awaited before the next is asked for.
    pub fn ping(&self, interval: Duration, duration: Duration) -> Result<Histogram> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        let (start, mut times) = (Instant::now(), Histogram::default());
        let mut seq = 0_u16;
        while start.elapsed() < duration {
            let asked = Instant::now();
            self.socket.send_to(&echo_request(seq)?, &self.guests)?;
            if self.await_answer(seq, asked + ANSWER_LIMIT)? {
                times.record(asked.elapsed());
            } else {
                times.record(ANSWER_LIMIT);
            }
            seq = seq.wrapping_add(1);
            thread::sleep(interval.saturating_sub(asked.elapsed()));
        }
        Ok(times)
    }

    fn await_answer(&self, seq: u16, deadline: Instant) -> Result<bool> {
        let mut frame = [0; 2048];
        while Instant::now() < deadline {
            match self.socket.recv(&mut frame) {
                Ok(length) if is_answer(&frame[..length], seq) => return Ok(true),
                // The guest has things to say by itself, too.
                Ok(_) => {}
                Err(error) if is_nothing_yet(&error) => {}
                Err(error) => return Err(error).context("the guest's network"),
            }
        }
        Ok(false)
    }

    /// Sends a datagram to a UDP port of the guest.
    pub fn send_udp(&self, port: u16, payload: &[u8]) -> Result<()> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_write_timeout(Some(ANSWER_LIMIT))?;
        let packet = PacketBuilder::ethernet2(OUR_MAC, GUEST_MAC)
            .ipv4(OUR_IP, GUEST_IP, 64)
            .udp(OUR_PORT, port);
        let mut frame = Vec::with_capacity(packet.size(payload.len()));
        packet.write(&mut frame, payload)?;
        match self.socket.send_to(&frame, &self.guests) {
            Ok(_) => Ok(()),
            // As on any network: whoever waits for an answer does not get one.
            Err(error) if is_nothing_yet(&error) => Ok(()),
            Err(error) => Err(error).context("the guest's network"),
        }
    }

    /// What the next datagram from a UDP port of the guest has in it; `None` if there is none until
    /// `deadline`.
    pub fn receive_udp(&self, port: u16, deadline: Instant) -> Result<Option<Vec<u8>>> {
        self.socket.set_nonblocking(false)?;
        let mut frame = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv(&mut frame) {
                Ok(length) => {
                    if let Some(payload) = datagram(&frame[..length], port) {
                        return Ok(Some(payload.to_vec()));
                    }
                }
                Err(error) if is_nothing_yet(&error) => {}
                Err(error) => return Err(error).context("the guest's network"),
            }
        }
    }

    /// Sends frames of which the guest's kernel makes nothing, one per `interval`, until the value
    /// is dropped.
    pub fn flood(&self, interval: Duration) -> Result<Flood> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let (guests, frame) = (self.guests.clone(), flood_frame());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("flood".to_owned());
        let thread = thread.spawn(move || {
            let (mut next, mut said) = (Instant::now(), [0; 2048]);
            while !stopped.load(Ordering::Relaxed) {
                // A full socket is as much as the guest can take.
                let _ = socket.send_to(&frame, &guests);
                while socket.recv(&mut said).is_ok() {}
                next = (next + interval).max(Instant::now());
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        })?;
        Ok(Flood {
            stop,
            thread: Some(thread),
        })
    }
}

/// Frames that keep coming; see [`Network::flood`].
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// What a frame has in it that is a datagram from this port of the guest to ours.
fn datagram(frame: &[u8], port: u16) -> Option<&[u8]> {
    let headers = PacketHeaders::from_ethernet_slice(frame).ok()?;
    let from_guest = matches!(&headers.net, Some(NetHeaders::Ipv4(ip, _)) if ip.source == GUEST_IP);
    match headers.transport {
        Some(TransportHeader::Udp(udp))
            if from_guest && udp.source_port == port && udp.destination_port == OUR_PORT =>
        {
            Some(headers.payload.slice())
        }
        _ => None,
    }
}

fn is_nothing_yet(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

fn echo_request(seq: u16) -> Result<Vec<u8>> {
    let packet = PacketBuilder::ethernet2(OUR_MAC, GUEST_MAC)
        .ipv4(OUR_IP, GUEST_IP, 64)
        .icmpv4_echo_request(ECHO_ID, seq);
    let payload = [0; 18];
    let mut frame = Vec::with_capacity(packet.size(payload.len()));
    packet.write(&mut frame, &payload)?;
    Ok(frame)
}

fn flood_frame() -> Vec<u8> {
    let header = etherparse::Ethernet2Header {
        destination: GUEST_MAC,
        source: OUR_MAC,
        ether_type: FLOOD_TYPE,
    };
    // The shortest that Ethernet has.
    [&header.to_bytes()[..], &[0; 46]].concat()
}

fn is_answer(frame: &[u8], seq: u16) -> bool {
    let Ok(headers) = PacketHeaders::from_ethernet_slice(frame) else {
        return false;
    };
    let from_guest = matches!(&headers.net, Some(NetHeaders::Ipv4(ip, _)) if ip.source == GUEST_IP);
    let ours = IcmpEchoHeader { id: ECHO_ID, seq };
    from_guest
        && matches!(headers.transport, Some(TransportHeader::Icmpv4(icmp))
            if icmp.icmp_type == Icmpv4Type::EchoReply(ours))
}

#[cfg(test)]
mod tests {
    use etherparse::icmpv4;

    use super::*;

    /// The frame with the addresses, and the ICMP type, of an answer.
    fn answered(request: &[u8]) -> Vec<u8> {
        let mut frame = request.to_vec();
        // Addresses of Ethernet at 0, of IPv4 at 26; the ICMP type at 34.
        frame[..12].rotate_left(6);
        frame[26..34].rotate_left(4);
        frame[34] = icmpv4::TYPE_ECHO_REPLY;
        frame
    }

    #[test]
    fn an_answer_is_told_from_everything_else() {
        let request = echo_request(7).unwrap();
        assert!(is_answer(&answered(&request), 7));
        assert!(!is_answer(&answered(&request), 8));
        assert!(!is_answer(&request, 7));
        assert!(!is_answer(&flood_frame(), 7));
        assert!(!is_answer(&[], 7));
    }

    #[test]
    fn datagrams_go_to_the_guest_and_its_own_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::new(folder.path()).unwrap();
        let guest = UnixDatagram::bind(Network::guests(folder.path())).unwrap();
        guest.connect(Network::ours(folder.path())).unwrap();
        network.send_udp(7, b"ping").unwrap();
        let mut frame = [0; 2048];
        let length = guest.recv(&mut frame).unwrap();
        let mut answer = frame[..length].to_vec();
        // Addresses of Ethernet at 0, of IPv4 at 26, ports at 34.
        answer[..12].rotate_left(6);
        answer[26..34].rotate_left(4);
        answer[34..38].rotate_left(2);
        guest.send(&frame[..length]).unwrap();
        guest.send(&answer).unwrap();
        let deadline = Instant::now() + ANSWER_LIMIT;
        let received = network.receive_udp(7, deadline).unwrap();
        assert_eq!(received.as_deref(), Some(&b"ping"[..]));
        guest.send(&answer).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(network.receive_udp(8, soon).unwrap(), None);
    }

    #[test]
    fn frames_go_to_the_guest_and_answers_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::new(folder.path()).unwrap();
        let guest = UnixDatagram::bind(Network::guests(folder.path())).unwrap();
        guest.connect(Network::ours(folder.path())).unwrap();
        let answers = thread::spawn(move || {
            let mut frame = [0; 2048];
            for _ in 0..3 {
                let length = guest.recv(&mut frame).unwrap();
                guest.send(b"something else").unwrap();
                guest.send(&answered(&frame[..length])).unwrap();
            }
            guest
        });
        let times = network
            .ping(Duration::from_millis(20), Duration::from_millis(50))
            .unwrap();
        assert_eq!(times.samples(), 3);
        let guest = answers.join().unwrap();
        let flood = network.flood(Duration::from_millis(1)).unwrap();
        let mut frame = [0; 2048];
        let length = guest.recv(&mut frame).unwrap();
        assert_eq!(frame[..length], flood_frame());
        drop(flood);
    }
}
