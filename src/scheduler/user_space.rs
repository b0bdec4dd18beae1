// SPDX-License-Identifier: GPL-2.0-only
//! An engine that decides in user space, from start to exit.
//!
//! It is a program and a process of its own, which decides and does nothing else; all that takes time,
//! or must not fail with it, is done here: VMMs, the configuration, exclusion groups, statistics. Both share
//! BPF maps. The engine ends when its standard input does, so when this process ends, however that happens.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use log::{error, info, warn};
use scx_stats::prelude::*;
use serde::{Deserialize, Serialize};

use super::bpf::{intf, MapValue};
use super::config::{Config, ConfigFile};
use super::hints::{self, Relayed, Tries};
use super::instance::{reload, Asked, CANNOT_GRANT, TURN};
use super::monitor::write_report;
use super::options::Options;
use super::placement::{self, Homes};
use super::registry::{collect, Maps, Vms};
use super::stats::{self, Metrics};
use crate::handoff::server::{self, Server};

/// The exit status of an engine that the kernel asked to start again: EX_TEMPFAIL of sysexits.h.
pub const RESTART: u8 = 75;
const PROGRAM: &str = "scx_pvsched_rustland";
/// How long an engine may take to end once the kernel has ended it, or it was told to.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
const STATE: &str = "/sys/kernel/sched_ext/state";

/// The kernel's numbers of the maps of `bpf/relay.bpf.c`: what the engine says when it schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MapIds {
    pub tasks: u32,
    pub pages: u32,
    pub homes: u32,
    pub dues: u32,
    pub vms: u32,
    pub cpus: u32,
    pub llcs: u32,
    pub stats: u32,
    pub engine_stats: u32,
    pub news: u32,
}

/// The engine's program: beside this one, or in the PATH.
fn program() -> PathBuf {
    let beside = env::current_exe().map(|this| this.with_file_name(PROGRAM));
    beside
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into())
}

/// The engine's process.
struct Process {
    child: Child,
    /// It ends when this is closed.
    stdin: Option<ChildStdin>,
    /// Passes on what it says: the engine must not wait for who reads that.
    voice: Option<JoinHandle<()>>,
}

fn pass_on(stderr: ChildStderr) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        eprintln!("{line}");
    }
}

impl Process {
    /// Starts it, and waits until it schedules.
    fn start() -> Result<(Self, MapIds)> {
        let program = program();
        let mut child = Command::new(&program)
            .args(env::args_os().skip(1))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}; --engine rustland needs it in the PATH, or beside scx_pvsched",
                    program.display()
                )
            })?;
        let stdin = child.stdin.take();
        let voice = child.stderr.take();
        let voice = voice.map(|stderr| thread::spawn(move || pass_on(stderr)));
        let stdout = child.stdout.take().context("the engine has no output")?;
        let mut process = Self {
            child,
            stdin,
            voice,
        };
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("cannot hear the engine")?;
        if line.is_empty() {
            let status = process.end()?;
            bail!("the engine ended before it scheduled ({status})");
        }
        let maps = serde_json::from_str(&line)
            .with_context(|| format!("{} is of another version", program.display()))?;
        Ok((process, maps))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Tells it to end, and waits for that; one that does not is killed.
    fn end(&mut self) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let deadline = Instant::now() + ENDS_WITHIN;
        let status = loop {
            if let Some(status) = self.ended()? {
                break status;
            }
            if Instant::now() >= deadline {
                warn!("the engine does not end; killing it");
                self.child.kill()?;
                break self.child.wait()?;
            }
            thread::sleep(Duration::from_millis(20));
        };
        if let Some(voice) = self.voice.take() {
            // A panic has been reported by itself.
            let _ = voice.join();
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            error!("the engine is lost: {error:#}");
        }
    }
}

/// The kernel's own scheduler has the host.
fn kernel_has_it() -> bool {
    fs::read_to_string(STATE).is_ok_and(|state| state.trim_end() == "disabled")
}

/// What an end of the engine means: whether to start it again.
fn say_why(status: ExitStatus, asked: &Asked) -> Result<bool> {
    let was_told = asked.stop.load(Ordering::Relaxed);
    if status.success() || was_told && status.signal().is_some() {
        return Ok(false);
    }
    if status.code() == Some(RESTART.into()) {
        return Ok(true);
    }
    bail!("the engine ended ({status}); the kernel's own scheduler has taken over")
}

/// An engine that schedules, and what serves it.
pub struct UserSpace {
    // The first to be dropped: it schedules.
    process: Process,
    ids: MapIds,
    stats_map: MapHandle,
    engine_stats: MapHandle,
    vms: Vms,
    homes: Homes,
    handoff: Server,
    stats: StatsServer<(), Metrics>,
    stats_interval: Option<Duration>,
}

impl UserSpace {
    /// Opens the sockets and starts the engine.
    ///
    /// # Errors
    /// When the engine is not installed or does not get as far as scheduling, or a socket is in use.
    pub fn start(options: &Options, config: &Config) -> Result<Self> {
        let topology = placement::topology()?;
        let homes = Homes::new(placement::cores(&topology)?, options.smt_isolate);
        // The socket first: an instance that cannot be talked to must not replace a scheduler.
        let handoff = server::Config {
            protocols: config.protocols(),
            ..Default::default()
        };
        let handoff = Server::bind(&options.socket, handoff)?;
        for unused in options.unused() {
            warn!("{unused} means nothing to the policy {}", options.policy());
        }
        warn!("cpu.weight, cpu.max and cpu.idle of cgroups have no effect with this engine");

        let (process, ids) = Process::start()?;
        let handle = MapHandle::from_map_id;
        let maps = Maps {
            tasks: handle(ids.tasks)?,
            pages: handle(ids.pages)?,
            dues: handle(ids.dues)?,
            vms: handle(ids.vms)?,
            homes: handle(ids.homes)?,
        };
        let vms = Vms::new(maps, config.clone()).context(CANNOT_GRANT)?;
        let stats = StatsServer::new(stats::server_data()).launch()?;
        info!(
            "scheduling all tasks on {} CPUs by the policy {} in user space; VMMs connect to {}",
            topology.all_cpus.len(),
            options.policy(),
            options.socket.display()
        );
        Ok(Self {
            process,
            ids,
            stats_map: handle(ids.stats)?,
            engine_stats: handle(ids.engine_stats)?,
            vms,
            homes,
            handoff,
            stats,
            stats_interval: options.stats.map(Duration::from_secs_f64),
        })
    }

    /// Serves until asked to stop or until the engine ends. Returns whether it has to be started again.
    ///
    /// # Errors
    /// When the engine ended for another reason than that it was asked to, or a socket failed.
    pub fn run(
        mut self,
        options: &Options,
        asked: &Asked,
        config: &mut ConfigFile,
    ) -> Result<bool> {
        let (responses, requests) = self.stats.channels();
        let mut objects = hints::objects();
        let mut tries = Tries::new(&mut objects);
        let mut hints: Option<Relayed> = None;
        let mut printed = (Instant::now(), Metrics::default());
        let mut without_it: Option<Instant> = None;

        while !asked.stop.load(Ordering::Relaxed) {
            if let Some(status) = self.process.ended()? {
                return say_why(status, asked);
            }
            // One that is stopped or stuck cannot end by itself when the kernel has ended its scheduling.
            let since = kernel_has_it().then(|| *without_it.get_or_insert_with(Instant::now));
            without_it = since;
            if since.is_some_and(|since| since.elapsed() > ENDS_WITHIN) {
                self.process.child.kill()?;
                bail!("the kernel has ended the scheduling, and the engine did not notice (dmesg says why)");
            }
            if hints.is_none() {
                if let Some(object) = tries.due() {
                    let attached = Relayed::attach(options, &self.ids, object);
                    hints = tries.outcome(attached, Relayed::live);
                }
            }
            self.handoff
                .turn(&mut self.vms, TURN)
                .context("the handoff socket failed")?;
            self.homes
                .look(&self.vms)
                .context("cannot place exclusion groups")?;
            if asked.reload.swap(false, Ordering::Relaxed) {
                reload(config, &mut self.vms, &mut self.handoff)?;
            }
            while requests.try_recv().is_ok() {
                responses.send(self.metrics(hints.as_ref())?)?;
            }
            if let Some(interval) = self.stats_interval {
                if printed.0.elapsed() >= interval {
                    let now = self.metrics(hints.as_ref())?;
                    write_report(&mut std::io::stdout().lock(), &printed.1, &now)?;
                    printed = (Instant::now(), now);
                }
            }
        }

        // The scheduling first: the rest may wait for the kernel, on a busy host for seconds.
        let status = self.process.end()?;
        self.handoff.stop(&mut self.vms);
        drop(hints);
        say_why(status, asked)
    }

    fn metrics(&self, hints: Option<&Relayed>) -> Result<Metrics> {
        let mut metrics = Metrics {
            hint_sources: hints.map_or_else(String::new, |hints| hints.live().to_owned()),
            shared_placements: self.homes.shared(),
            ..Default::default()
        };
        collect(&mut metrics, &self.vms, &self.homes, &self.stats_map)?;
        let engine = self
            .engine_stats
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)?
            .context("the engine's statistics are gone")?;
        metrics.add_engine(&intf::pv_engine_stats::from_bytes(&engine)?);
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_looked_for_beside_this_program() {
        // Tests are in a folder of their own.
        assert!(program().ends_with(PROGRAM));
        let missing = program()
            .parent()
            .is_some_and(|folder| folder.as_os_str().is_empty());
        assert!(missing || program().exists());
    }

    #[test]
    fn what_the_engine_says_is_understood() {
        let line = r#"{"tasks":1,"pages":2,"homes":3,"dues":4,"vms":5,"cpus":6,"llcs":7,"stats":8,"engine_stats":9,"news":10}"#;
        let ids: MapIds = serde_json::from_str(line).unwrap();
        assert_eq!((ids.tasks, ids.news), (1, 10));
        assert!(serde_json::from_str::<MapIds>("{}").is_err());
    }
}
