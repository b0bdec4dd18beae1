//! A process that belongs to a fixture: it keeps a log, is told to stop in its own way, and does
//! not outlive the fixture.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::process::tail;

/// How often a condition is looked at again. Each look costs emulated CPU time that is measured.
const LOOK: Duration = Duration::from_millis(100);

/// Logs of one process's fixtures are numbered, so that a restart does not overwrite the last one.
static NEXT_LOG: AtomicU32 = AtomicU32::new(1);

/// Where logs go: to the reports in the lab, so that they survive the host VM.
fn log_folder() -> Result<PathBuf> {
    let base = if std::env::var_os("PVSCHED_LAB").is_some_and(|place| place == "host") {
        PathBuf::from("/out")
    } else {
        std::env::temp_dir()
    };
    let folder = base.join(format!("pvsched-logs.{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A log of its own for whatever has this name.
pub fn new_log(name: &str) -> Result<(PathBuf, File)> {
    let number = NEXT_LOG.fetch_add(1, Ordering::Relaxed);
    let log = log_folder()?.join(format!("{number:03}-{name}.log"));
    // Written through: where the reports are shared by 9p, opening a file to read it drops what
    // was written to it and has not reached the machine yet.
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DSYNC)
        .open(&log)
        .with_context(|| format!("cannot make {}", log.display()))?;
    Ok((log, file))
}

/// A running child process; killed when dropped, and its log shown if a test has panicked.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`; the kernel ends it with the thread that called this, which therefore has
    /// to be the one that keeps the fixture.
    pub fn start<I, A>(name: &str, program: impl AsRef<OsStr>, arguments: I) -> Result<Self>
    where
        I: IntoIterator<Item = A>,
        A: AsRef<OsStr>,
    {
        let (log, file) = new_log(name)?;
        // setpriv becomes the program, so the process id is the program's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("cannot start setpriv; is util-linux installed?")?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its end, if it has come to one.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until `ready` gives something; an end of the process or of the time is an error that
    /// repeats the log.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(value) = ready()? {
                return Ok(value);
            }
            if let Some(status) = self.ended()? {
                bail!(self.failure(&format!("ended ({status}) instead of {what}")));
            }
            if Instant::now() >= deadline {
                bail!(self.failure(&format!("was not seen {what} within {limit:?}")));
            }
            thread::sleep(LOOK);
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Sends `signal` and waits for the end.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.signal(signal)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(self.failure(&format!("did not end within {limit:?} after {signal}")));
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends it as a crash would.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// A sentence about this process with the end of its log.
    pub fn failure(&self, what: &str) -> String {
        format!(
            "{} {what}; {} ends so:\n{}",
            self.name,
            self.log.display(),
            tail(&self.log)
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only for a process that has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "--- {} ({}):\n{}",
                self.name,
                self.log.display(),
                tail(&self.log)
            );
        }
    }
}

/// Whether a process ended as one that was asked to and had nothing to complain about.
pub fn ended_well(status: ExitStatus) -> bool {
    status.success() && status.signal().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ends_too_early_is_told_with_its_log() {
        let mut daemon = Daemon::start("early", "sh", ["-c", "echo because; exit 3"]).unwrap();
        let limit = Duration::from_secs(10);
        let error = daemon
            .wait_until("ready", limit, || Ok(None::<()>))
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.contains("because"),
            "{text}"
        );
    }

    #[test]
    fn a_process_does_not_outlive_its_owner() {
        let daemon = Daemon::start("owned", "sleep", ["1000"]).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", daemon.pid()));
        assert!(proc.exists());
        drop(daemon);
        assert!(!proc.exists());
    }

    #[test]
    fn a_signal_ends_it_and_the_status_tells() {
        let mut daemon = Daemon::start("asked", "sleep", ["1000"]).unwrap();
        // Before setpriv has become sleep, the signal does the same to setpriv.
        let status = daemon
            .stop(Signal::SIGTERM, Duration::from_secs(10))
            .unwrap();
        assert!(!ended_well(status));
    }
}
