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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::tests::Vcpu;
    use serde_json::{json, Value};
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::time::Instant;

    /// Answers one client as a QEMU whose vCPUs have these APIC ids and threads.
    fn serve(socket: &Path, vcpus: Vec<(u32, u32)>) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let version = json!({"qemu": {"major": 11, "minor": 1, "micro": 0}, "package": ""});
            let greeting = json!({"QMP": {"version": version, "capabilities": ["oob"]}});
            writeln!(writer, "{greeting}").unwrap();
            for line in BufReader::new(stream).lines() {
                let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
                let path = |id: u32| format!("/machine/unattached/device[{id}]");
                let answer = match command["execute"].as_str().unwrap() {
                    "qmp_capabilities" => json!({}),
                    "query-cpus-fast" => vcpus
                        .iter()
                        .zip(0..)
                        .map(|((id, tid), index)| {
                            json!({"cpu-index": index, "thread-id": tid, "qom-path": path(*id),
                                   "target": "x86_64", "props": {"core-id": index}})
                        })
                        .collect(),
                    "qom-get" => {
                        assert_eq!(command["arguments"]["property"], "apic-id");
                        let asked = &command["arguments"]["path"];
                        let found = vcpus.iter().find(|(id, _)| *asked == path(*id));
                        json!(found.unwrap().0)
                    }
                    other => panic!("{other} was not expected"),
                };
                writeln!(writer, "{}", json!({ "return": answer })).unwrap();
            }
        })
    }

    #[test]
    fn the_threads_of_a_topology_with_gaps_are_found_by_apic_id() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp");
        let vcpus: Vec<(u32, Vcpu)> = [0, 1, 2, 4].map(|id| (id, Vcpu::start())).into();
        let qemu = serve(
            &socket,
            vcpus.iter().map(|(id, vcpu)| (*id, vcpu.tid)).collect(),
        );
        let threads = QemuVcpus::new(socket).threads().unwrap();
        assert_eq!(threads.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 4]);
        for (id, vcpu) in &vcpus {
            let found = thread::identify(std::os::fd::AsFd::as_fd(&threads[id])).unwrap();
            assert_eq!(found.tid, vcpu.tid);
        }
        qemu.join().unwrap();
    }

    #[test]
    fn a_monitor_that_another_client_holds_is_given_up_soon_and_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("qmp");
        let qemu = QemuVcpus::new(socket.clone());
        assert!(matches!(qemu.threads(), Err(VcpusError::Connect(..))));
        let _busy = UnixListener::bind(&socket).unwrap();
        let since = Instant::now();
        let error = qemu.threads().unwrap_err();
        assert!(since.elapsed() < 2 * PATIENCE);
        assert!(error.to_string().contains("one of its own"), "{error}");
    }
}
