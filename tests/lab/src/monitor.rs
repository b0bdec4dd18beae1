//! QEMU's monitor for people: what can be learnt of a machine that no longer answers.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{bail, Context, Result};

/// A monitor that has said nothing for so long has no more to say.
const QUIET: Duration = Duration::from_secs(2);

/// Gives every CPU of the machine an NMI, and returns where each was before.
///
/// # Errors
/// When QEMU does not answer.
pub fn interrupt(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(QUIET))?;
    stream.set_write_timeout(Some(QUIET))?;
    stream.write_all(b"info registers -a\nnmi\n")?;
    let mut said = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => said.extend_from_slice(&piece[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("cannot read from the monitor"),
        }
    }
    let places = places(&String::from_utf8_lossy(&said));
    if places.is_empty() {
        bail!("the monitor says nothing");
    }
    Ok(places)
}

/// Of `info registers -a` the number of each CPU, its place, its flags and whether it halts.
fn places(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("CPU#") || line.starts_with("RIP="))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn the_place_of_each_cpu_is_told() {
        let said = "QEMU 11.1 monitor\r\n(qemu) info registers -a\r\n\r\nCPU#0\r\n\
                    RAX=0 RBX=1\r\nRIP=ffffffff81000000 RFL=00000046 HLT=0\r\nES =0000\r\n\
                    \r\nCPU#1\r\nRIP=ffffffff82000000 RFL=00000246 HLT=1\r\n(qemu) ";
        assert_eq!(
            places(said),
            "CPU#0\nRIP=ffffffff81000000 RFL=00000046 HLT=0\n\
             CPU#1\nRIP=ffffffff82000000 RFL=00000246 HLT=1"
        );
    }

    #[test]
    fn a_monitor_that_says_nothing_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("monitor.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let silent = thread::spawn(move || listener.accept().unwrap());
        let error = interrupt(&socket).unwrap_err();
        assert!(format!("{error:#}").contains("says nothing"), "{error:#}");
        silent.join().unwrap();
    }
}
