// SPDX-License-Identifier: GPL-2.0-only
//! Finds the thread of each vCPU by asking QEMU, over a QMP monitor.
//!
//! A QMP socket serves one client at a time, so the device should have one for itself, and lets go
//! of it after each question. QEMU connects to its vhost-user back-ends before it serves QMP, and
//! waits for them in its main loop now and then; so nothing is asked at start, and no question
//! waits for long.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use qapi::qmp::{self, CpuInfoFast, CpuInfoFastBase};
use qapi::{ExecuteError, Qmp, Stream};
use thiserror::Error;

use crate::handoff::thread;

/// How long QEMU may take for one answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why the vCPUs could not be found out.
#[derive(Debug, Error)]
pub enum VcpusError {
    #[error("cannot connect to the QMP socket {0}: {1}; start QEMU with -qmp unix:{0},server=on,wait=off")]
    Connect(PathBuf, io::Error),
    #[error("the QMP socket {0} does not answer ({1}); if another client uses that monitor, give the device one of its own")]
    Silent(PathBuf, io::Error),
    #[error("QEMU refused {0}: {1}")]
    Refused(&'static str, ExecuteError),
    #[error("QEMU says something unexpected: {0}")]
    Unexpected(&'static str),
    #[error("cannot open thread {0}: {1}; the device must run in QEMU's pid namespace")]
    Thread(u32, io::Error),
}

type Monitor = Qmp<Stream<BufReader<UnixStream>, UnixStream>>;

/// Asks one QEMU.
#[derive(Clone, Debug)]
pub struct QemuVcpus {
    socket: PathBuf,
}

impl QemuVcpus {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// A pidfd of the thread of each vCPU that exists now, by local APIC id.
    pub fn threads(&self) -> Result<BTreeMap<u32, OwnedFd>, VcpusError> {
        let mut monitor = self.connect()?;
        let cpus = query_cpus(&mut monitor)?;
        let mut threads = BTreeMap::new();
        for cpu in &cpus {
            let tid = u32::try_from(cpu.thread_id)
                .map_err(|_| VcpusError::Unexpected("a thread id that is none"))?;
            let pidfd = thread::open(tid).map_err(|error| VcpusError::Thread(tid, error))?;
            threads.insert(apic_id(&mut monitor, cpu)?, pidfd);
        }
        // A thread may have exited after QEMU named it, and its id gone to another before it was
        // opened. If QEMU still names the same ones, that has not happened.
        let named = |cpus: &[CpuInfoFastBase]| -> Vec<(String, i64)> {
            cpus.iter()
                .map(|cpu| (cpu.qom_path.clone(), cpu.thread_id))
                .collect()
        };
        if named(&query_cpus(&mut monitor)?) != named(&cpus) {
            return Err(VcpusError::Unexpected("its vCPUs change at this moment"));
        }
        Ok(threads)
    }

    fn connect(&self) -> Result<Monitor, VcpusError> {
        let failed = |error| VcpusError::Connect(self.socket.clone(), error);
        let silent = |error| VcpusError::Silent(self.socket.clone(), error);
        let stream = UnixStream::connect(&self.socket).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let writer = stream.try_clone().map_err(failed)?;
        let mut reader = BufReader::new(stream);
        // The handshake below takes it for granted that QEMU greets.
        if reader.fill_buf().map_err(silent)?.is_empty() {
            return Err(silent(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut monitor = Qmp::new(Stream::new(reader, writer));
        monitor
            .handshake()
            .map_err(|error| VcpusError::Refused("qmp_capabilities", error))?;
        Ok(monitor)
    }
}

fn query_cpus(monitor: &mut Monitor) -> Result<Vec<CpuInfoFastBase>, VcpusError> {
    let cpus = monitor
        .execute(&qmp::query_cpus_fast {})
        .map_err(|error| VcpusError::Refused("query-cpus-fast", error))?;
    cpus.into_iter()
        .map(|cpu| match cpu {
            CpuInfoFast::x86_64(base) | CpuInfoFast::i386(base) => Ok(base),
            _ => Err(VcpusError::Unexpected("a vCPU that is not x86")),
        })
        .collect()
}

/// As QEMU says, not computed: APIC ids have gaps that depend on the whole topology.
fn apic_id(monitor: &mut Monitor, cpu: &CpuInfoFastBase) -> Result<u32, VcpusError> {
    let get = qmp::qom_get {
        path: cpu.qom_path.clone(),
        property: "apic-id".into(),
    };
    let value = monitor
        .execute(&get)
        .map_err(|error| VcpusError::Refused("qom-get of apic-id", error))?;
    value
        .as_u64()
        .and_then(|id| u32::try_from(id).ok())
        .ok_or(VcpusError::Unexpected("an APIC id that is none"))
}
