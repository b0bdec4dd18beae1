//! A byte to and fro between two processes: the price of a switch and a wake-up, as
//! `perf bench sched pipe` measures it. perf itself would come with a hundred packages.

use std::env;
use std::io::{self, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use super::measure::{Results, Scale, RATE};

const DURATION: Duration = Duration::from_secs(3);

/// To and fro so often between two looks at the clock, which is slow to read on some machines.
const BATCH: u32 = 50;

/// The other process: gives back each byte until there are no more.
///
/// # Errors
/// When a pipe breaks in another way than by its end.
pub fn serve() -> Result<()> {
    repeat(&mut io::stdin().lock(), &mut io::stdout().lock())
}

fn repeat(from: &mut impl Read, to: &mut impl Write) -> Result<()> {
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        to.write_all(&byte)?;
        to.flush()?;
    }
    Ok(())
}

/// Ends the other process however this one ends.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn load(scale: &Scale) -> Result<Results> {
    Ok(vec![(RATE, rate(scale.duration(DURATION))?)])
}

/// How often a second a byte goes to and fro.
///
/// # Errors
/// When there is no other process, or it answers wrongly.
pub fn rate(duration: Duration) -> Result<f64> {
    let mut child = Command::new(env::current_exe()?)
        .arg("echo")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the other process")?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let _server = Server(child);
    let (mut to, mut from): (ChildStdin, ChildStdout) =
        stdin.zip(stdout).context("a process has no pipes")?;
    // Loading the program is not what is measured.
    round_trips(&mut to, &mut from, Duration::ZERO)?;
    round_trips(&mut to, &mut from, duration)
}

/// Round trips per second, of at least one batch.
fn round_trips(to: &mut impl Write, from: &mut impl Read, duration: Duration) -> Result<f64> {
    let start = Instant::now();
    let mut trips = 0_u32;
    loop {
        for number in 0..BATCH {
            let [sent, ..] = number.to_le_bytes();
            let mut byte = [0];
            to.write_all(&[sent])?;
            from.read_exact(&mut byte)?;
            ensure!(byte == [sent], "another byte came back");
        }
        trips += BATCH;
        let elapsed = start.elapsed();
        if elapsed >= duration {
            return Ok(f64::from(trips) / elapsed.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn every_byte_comes_back_and_trips_are_counted() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut reader = theirs.try_clone().unwrap();
        let server = thread::spawn(move || repeat(&mut reader, &mut theirs));
        let mut from = ours.try_clone().unwrap();
        let start = Instant::now();
        let rate = round_trips(&mut ours, &mut from, Duration::from_millis(50)).unwrap();
        let trips = rate * start.elapsed().as_secs_f64();
        assert!(trips + 1e-6 >= f64::from(BATCH), "{rate}");
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        server.join().unwrap().unwrap();
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        let mut answers: &[u8] = &[7; 100];
        assert!(round_trips(&mut Vec::new(), &mut answers, Duration::ZERO).is_err());
    }
}
