//! Threads that wait for each other's CPUs, as those do that take one spinlock in turn.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::priority::bind;

/// `enum membarrier_cmd` of include/uapi/linux/membarrier.h: `MEMBARRIER_CMD_PRIVATE_EXPEDITED`, and its
/// `REGISTER`.
const BARRIER: libc::c_int = 1 << 3;
const REGISTER: libc::c_int = 1 << 4;

/// Ends the busy threads, also where something fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn membarrier(command: libc::c_int) -> Result<()> {
    // SAFETY: takes no address, and changes no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) };
    Errno::result(result).with_context(|| format!("cannot do membarrier command {command}"))?;
    Ok(())
}

/// How many memory barriers per second a thread on CPU 0 does while one on each other CPU is busy. Each
/// barrier interrupts those CPUs and spins, with preemption off, until all have answered.
///
/// # Errors
/// When the kernel has no such barrier, or there are not so many CPUs.
#[allow(clippy::cast_precision_loss)]
pub fn rate(cpus: usize, duration: Duration) -> Result<f64> {
    let flag = AtomicBool::new(false);
    let stop = &flag;
    membarrier(REGISTER)?;
    bind(0)?;
    thread::scope(|scope| {
        let _stop = Stop(stop);
        for cpu in 1..cpus {
            let busy = thread::Builder::new().spawn_scoped(scope, move || -> Result<()> {
                bind(cpu)?;
                while !stop.load(Ordering::Relaxed) {}
                Ok(())
            });
            busy.context("cannot start a thread")?;
        }
        let (start, mut barriers) = (Instant::now(), 0_u64);
        while start.elapsed() < duration {
            membarrier(BARRIER)?;
            barriers += 1;
        }
        Ok(barriers as f64 / start.elapsed().as_secs_f64())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barriers_are_counted() {
        let rate = thread::spawn(|| rate(1, Duration::from_millis(20)));
        assert!(rate.join().unwrap().unwrap() > 100.0);
    }
}
