//! How long emulated processors' turns are where instructions are counted.
//!
//! One thread of QEMU's executes all processors there, each in turn for its part of the time until QEMU's next timer of
//! virtual time. That is often a millisecond away, and until then no processor sees what another one does: a
//! processor that wakes up for an interrupt waits for the turn of one that computes. A comparator of the machine's HPET that
//! expires periodically, and is not to interrupt anybody, is such a timer too, and bounds all turns.
//!
//! It is set from outside, by QEMU's test protocol, so that any kernel can run within. Linux uses the first two comparators,
//! and stops and resets the counter when it boots, so that it is to be set again until the machine is up.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};

/// Where PCs have it.
const HPET: u64 = 0xfed0_0000;

/// Registers of a comparator: IA-PC HPET specification 1.0a, section 2.3. The third is free.
const CONFIGURATION: u64 = HPET + 0x100 + 2 * 0x20;
const COMPARATOR: u64 = CONFIGURATION + 8;

/// Bits of its configuration: periodic, and that the next value is for the comparator as well as for the period.
const PERIODIC: u64 = 1 << 3;
const SET_VALUE: u64 = 1 << 6;

/// QEMU's HPET has 100 MHz.
const TICK: Duration = Duration::from_nanos(10);

/// QEMU answers at once or not at all.
const QUIET: Duration = Duration::from_secs(10);

/// Has a timer of QEMU's expire every `period` of the machine's time, which divides the turns of all its processors.
///
/// # Errors
/// When QEMU does not answer on the `socket` of its test protocol, or refuses.
pub fn bound(socket: &Path, period: Duration) -> Result<()> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(QUIET))?;
    stream.set_write_timeout(Some(QUIET))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let ticks = period.as_nanos() / TICK.as_nanos();
    for command in [
        format!("writel {CONFIGURATION:#x} {:#x}", PERIODIC | SET_VALUE),
        format!("writeq {COMPARATOR:#x} {ticks:#x}"),
    ] {
        writeln!(stream, "{command}")?;
        let mut answer = String::new();
        answers
            .read_line(&mut answer)
            .with_context(|| format!("QEMU does not answer \"{command}\""))?;
        if answer.trim_end() != "OK" {
            bail!("QEMU answers {:?} to \"{command}\"", answer.trim_end());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Gives each command one of the answers; returns the commands and what became of them.
    fn with_answers(answers: &'static [&str]) -> (Vec<String>, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qtest.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let qemu = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut commands = Vec::new();
            for (line, answer) in lines.zip(answers) {
                commands.push(line.unwrap());
                writeln!(stream, "{answer}").unwrap();
            }
            commands
        });
        let result = bound(&socket, Duration::from_micros(50));
        (qemu.join().unwrap(), result)
    }

    #[test]
    fn the_third_comparator_expires_periodically_without_an_interrupt() {
        let (commands, result) = with_answers(&["OK", "OK"]);
        result.unwrap();
        assert_eq!(
            commands,
            ["writel 0xfed00140 0x48", "writeq 0xfed00148 0x1388"]
        );
    }

    #[test]
    fn a_refusal_is_an_error_that_names_the_command() {
        let (_, result) = with_answers(&["FAIL Unknown command 'writel'"]);
        let error = format!("{:#}", result.unwrap_err());
        assert!(error.contains("FAIL Unknown command"), "{error}");
        assert!(error.contains("writel 0xfed00140"), "{error}");
    }
}
