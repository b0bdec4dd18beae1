//! The whole chain inside the host VM: scheduler, device, guest with driver and agent.
//!
//! ```no_run
//! use std::time::Duration;
//! use pvsched_lab::chain::{Chain, ChainOptions};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut chain = Chain::start(ChainOptions::default())?;
//! let stats = chain.scheduler()?.stats()?;
//! assert_eq!(stats["nr_vcpus"], 2);
//! chain.vm.guest.exec("chrt -f 50 true", Duration::from_secs(10))?.ok()?;
//! chain.stop_scheduler()?;
//! # Ok(())
//! # }
//! ```
//!
//! Two VMs under one scheduler: `Scheduler::start(&[])`, then `Vm::start` twice. Everything ends
//! when its value is dropped, and if that is because a test panicked, the logs are shown.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::sys::signal::Signal;
use serde_json::{json, Value};
use tempfile::TempDir;

use crate::channel::Job;
use crate::daemon::{ended_well, Daemon};
use crate::guest::Guest;
use crate::kernels::Kernel;

/// From start to scheduling. Loading takes 2 s, and many times that if the machine is busy.
const SCHEDULER_LIMIT: Duration = Duration::from_secs(120);

/// From the agent's start, or the scheduler's, to vCPUs that are handed over.
const ATTACH_LIMIT: Duration = Duration::from_secs(90);

/// For a process that was asked to end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// For one command in a guest that has little to do.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// For an answer of the statistics server, whose loop turns a few times a second.
const STATS_LIMIT: Duration = Duration::from_secs(20);

/// The statistics server of scx_stats.
const STATS_SOCKET: &str = "/var/run/scx/root/stats";

const SCHED_EXT: &str = "/sys/kernel/sched_ext";

/// The name in the scheduler's ops table.
const OPS_NAME: &str = "pvsched";

const LOOK: Duration = Duration::from_millis(200);

/// The kernel's word on sched_ext: `enabled`, `disabled` and the states between.
pub fn sched_ext_state() -> String {
    let state = fs::read_to_string(Path::new(SCHED_EXT).join("state")).unwrap_or_default();
    state.trim_end().to_owned()
}

/// The name of the attached scheduler, if there is one.
pub fn sched_ext_ops() -> Option<String> {
    let ops = fs::read_to_string(Path::new(SCHED_EXT).join("root/ops")).ok()?;
    Some(ops.trim_end().to_owned())
}

/// How many schedulers this boot has seen; a restart of any shows here.
pub fn sched_ext_enable_seq() -> u64 {
    let seq = fs::read_to_string(Path::new(SCHED_EXT).join("enable_seq")).unwrap_or_default();
    seq.trim_end().parse().unwrap_or_default()
}

/// A running scx_pvsched.
#[derive(Debug)]
pub struct Scheduler {
    daemon: Daemon,
}

impl Scheduler {
    /// Starts it with these options and waits until it schedules.
    pub fn start<A: AsRef<str>>(arguments: &[A]) -> Result<Self> {
        Self::start_program(Path::new("scx_pvsched"), arguments)
    }

    /// [`Scheduler::start`] with another build of it.
    pub(crate) fn start_program<A: AsRef<str>>(program: &Path, arguments: &[A]) -> Result<Self> {
        let arguments = arguments.iter().map(AsRef::as_ref);
        let mut daemon = Daemon::start("scx_pvsched", program, arguments)?;
        // Two words of the kernel, because the statistics are served before it takes over.
        daemon.wait_until("scheduling", SCHEDULER_LIMIT, || {
            Ok(attached()
                .then_some(())
                .filter(|()| request_stats().is_ok()))
        })?;
        Ok(Self { daemon })
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// A sentence about its log, with the end of that.
    pub fn log_end(&self) -> String {
        self.daemon.failure("says")
    }

    /// Whether its process is there; the kernel may not have it just now.
    pub fn is_running(&mut self) -> bool {
        matches!(self.daemon.ended(), Ok(None))
    }

    /// Whether it runs and the kernel has it.
    pub fn is_attached(&mut self) -> bool {
        self.is_running() && attached()
    }

    /// Every statistic, as `scx_pvsched --help-stats` describes them.
    pub fn stats(&self) -> Result<Value> {
        request_stats().with_context(|| self.daemon.failure("gave no statistics"))
    }

    /// Asks it to end as a service manager would, and expects a clean end with the kernel's own
    /// scheduler back in charge.
    pub fn stop(mut self) -> Result<()> {
        let status = self.daemon.stop(Signal::SIGTERM, STOP_LIMIT)?;
        ensure!(
            ended_well(status),
            self.daemon.failure(&format!("ended badly ({status})"))
        );
        wait_detached().with_context(|| self.daemon.failure("is still attached"))
    }

    /// Ends it as a crash would, and tells after how long the kernel had taken over by itself. The process
    /// is reaped too, which may take longer, for its last files.
    pub fn kill9(self) -> Result<Duration> {
        let start = Instant::now();
        self.daemon.signal(Signal::SIGKILL)?;
        wait_detached()?;
        Ok(start.elapsed())
    }

    /// Fails with its log if it no longer schedules, for instance because it was ejected.
    pub fn check(&mut self) -> Result<()> {
        ensure!(
            self.is_attached(),
            self.daemon.failure("no longer schedules")
        );
        Ok(())
    }
}

fn attached() -> bool {
    sched_ext_state() == "enabled" && sched_ext_ops().is_some_and(|ops| ops.starts_with(OPS_NAME))
}

/// Waits until the kernel's own scheduler is back.
pub(crate) fn wait_detached() -> Result<()> {
    let deadline = Instant::now() + STOP_LIMIT;
    while sched_ext_state() != "disabled" {
        if Instant::now() >= deadline {
            bail!(
                "sched_ext is still {} after {STOP_LIMIT:?}",
                sched_ext_state()
            );
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// One request in the words of scx_stats: a line of JSON each way.
fn request_stats() -> Result<Value> {
    let mut stream = UnixStream::connect(STATS_SOCKET)
        .with_context(|| format!("cannot connect to {STATS_SOCKET}"))?;
    stream.set_read_timeout(Some(STATS_LIMIT))?;
    stream.set_write_timeout(Some(STATS_LIMIT))?;
    let request = json!({ "req": "stats", "args": { "target": "top" } });
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    parse_stats(&line)
}

fn parse_stats(line: &str) -> Result<Value> {
    let mut answer: Value =
        serde_json::from_str(line).context("the statistics server did not answer in JSON")?;
    let answer_text = answer["args"]["resp"].take();
    ensure!(
        answer["errno"] == 0,
        "the statistics server refused: {answer_text}"
    );
    Ok(answer_text)
}

/// A running vhost-device-pvsched with sockets of its own.
#[derive(Debug)]
pub struct Device {
    daemon: Daemon,
    folder: TempDir,
}

impl Device {
    /// Starts it and waits until QEMU can connect.
    pub fn start(vm_name: &str) -> Result<Self> {
        Self::start_with::<&str>(vm_name, &[])
    }

    /// [`Device::start`] with more arguments.
    pub fn start_with<A: AsRef<str>>(vm_name: &str, more: &[A]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pvsched-device.")
            .tempdir()?;
        let socket = folder.path().join("vhost.sock");
        let qmp = folder.path().join("qmp.sock");
        let mut arguments = vec!["--verbose".into(), "--vm-name".into(), vm_name.into()];
        arguments.extend(["--socket-path".into(), socket.clone().into_os_string()]);
        arguments.extend(["--qmp".into(), qmp.into_os_string()]);
        arguments.extend(more.iter().map(|more| more.as_ref().into()));
        let name = format!("device-{vm_name}");
        let mut daemon = Daemon::start(&name, "vhost-device-pvsched", &arguments)?;
        daemon.wait_until("listening", STOP_LIMIT, || {
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self { daemon, folder })
    }

    /// Where QEMU's vhost-user device connects.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("vhost.sock")
    }

    /// Where QEMU is to serve QMP.
    pub fn qmp(&self) -> PathBuf {
        self.folder.path().join("qmp.sock")
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }

    pub fn running(&mut self) -> bool {
        matches!(self.daemon.ended(), Ok(None))
    }

    /// Asks it to end as a service manager would.
    pub fn stop(mut self) -> Result<()> {
        let status = self.daemon.stop(Signal::SIGTERM, STOP_LIMIT)?;
        ensure!(
            ended_well(status),
            self.daemon.failure(&format!("ended badly ({status})"))
        );
        Ok(())
    }

    /// Ends it as a crash would; its sockets stay.
    pub fn kill9(&mut self) -> Result<()> {
        self.daemon.kill9()
    }

    /// A sentence about the device with the end of its log.
    pub fn failure(&self, what: &str) -> String {
        self.daemon.failure(what)
    }
}

/// What a VM with the device is to be.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// For QEMU, the device and the scheduler's statistics.
    pub name: String,
    pub vcpus: u32,
    /// QEMU's `-smp`, where more than the number matters; it must make `vcpus` vCPUs.
    pub smp: Option<String>,
    pub kernel: Kernel,
    pub memory_mib: u32,
    /// How long its boot may take, where that is not for the guest's builder to say.
    pub boot_limit: Option<Duration>,
    /// Whether it has a network with this machine.
    pub network: bool,
    /// Whether the driver is loaded.
    pub driver: bool,
    /// Whether the agent publishes; needs the driver.
    pub agent: bool,
    /// More arguments of the device.
    pub device_arguments: Vec<String>,
    /// Parameters of the driver, as for insmod.
    pub driver_parameters: String,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            name: "guest".to_owned(),
            vcpus: 2,
            smp: None,
            kernel: Kernel::Newest,
            memory_mib: 256,
            boot_limit: None,
            network: false,
            driver: true,
            agent: true,
            device_arguments: Vec::new(),
            driver_parameters: String::new(),
        }
    }
}

/// A guest and its device.
pub struct Vm {
    // Dropped in this order: the guest first, so that the device sees an ordinary disconnect.
    agent: Option<Job>,
    pub guest: Guest,
    pub device: Device,
    vcpus: u32,
    driver_parameters: String,
}

impl Vm {
    /// Starts the device, boots the guest, loads the driver and starts the agent.
    pub fn start(options: &VmOptions) -> Result<Self> {
        let device = Device::start_with(&options.name, &options.device_arguments)?;
        let smp = options
            .smp
            .clone()
            .unwrap_or_else(|| options.vcpus.to_string());
        let mut guest = Guest::builder()
            .name(&options.name)
            .smp(smp)
            .kernel(options.kernel)
            .memory_mib(options.memory_mib)
            .network(options.network)
            .device(device.socket())
            .qmp(device.qmp());
        if let Some(limit) = options.boot_limit {
            guest = guest.boot_limit(limit);
        }
        let guest = guest.boot().with_context(|| device.failure("stood by"))?;
        let mut vm = Self {
            agent: None,
            guest,
            device,
            vcpus: options.vcpus,
            driver_parameters: options.driver_parameters.clone(),
        };
        if options.driver {
            vm.load_driver()?;
        }
        if options.agent {
            vm.start_agent()?;
        }
        Ok(vm)
    }

    pub fn load_driver(&self) -> Result<()> {
        self.guest
            .exec(
                &format!("guest-up {}", self.driver_parameters),
                COMMAND_LIMIT,
            )?
            .ok()
            .with_context(|| self.state("the driver was not loaded"))?;
        Ok(())
    }

    /// Starts the agent and waits until it publishes.
    pub fn start_agent(&mut self) -> Result<()> {
        let start = "pvsched-guest run >/tmp/agent.log 2>&1";
        self.agent = Some(self.guest.spawn(start)?);
        let deadline = Instant::now() + ATTACH_LIMIT;
        loop {
            let answer = self.status()?["answer"].take();
            if answer == "publishing" || answer == "host-detached" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(self.state(&format!("the agent does not publish: {answer}")));
            }
            thread::sleep(LOOK);
        }
    }

    /// Asks the agent to end as a service manager would, and waits for it.
    pub fn stop_agent(&mut self) -> Result<()> {
        let Some(agent) = self.agent.take() else {
            return Ok(());
        };
        self.guest
            .exec("killall -TERM pvsched-guest", COMMAND_LIMIT)?
            .ok()?;
        let output = agent.wait(STOP_LIMIT)?;
        ensure!(
            output.status == 0,
            self.state(&format!("the agent ended with {}", output.status))
        );
        Ok(())
    }

    /// Ends the agent as a crash would.
    pub fn kill9_agent(&mut self) -> Result<()> {
        let Some(agent) = self.agent.take() else {
            return Ok(());
        };
        agent.kill()?;
        agent.wait(STOP_LIMIT)?;
        Ok(())
    }

    /// `pvsched-guest status --json`; its exit code says the same as `answer` in it.
    pub fn status(&self) -> Result<Value> {
        let output = self
            .guest
            .exec("pvsched-guest status --json", COMMAND_LIMIT)?;
        serde_json::from_str(&output.stdout).with_context(|| {
            self.state(&format!(
                "pvsched-guest status ended with {} and gave no JSON but {} {}",
                output.status, output.stdout, output.stderr
            ))
        })
    }

    /// What is known about this VM, for an error.
    pub fn state(&self, what: &str) -> String {
        let told = |command: &str| match self.guest.exec(command, COMMAND_LIMIT) {
            Ok(output) => format!("{}{}", output.stdout, output.stderr),
            Err(error) => format!("{error:#}"),
        };
        format!(
            "{what}\n--- agent:\n{}--- status:\n{}--- the guest's kernel:\n{}--- {}",
            told("cat /tmp/agent.log 2>/dev/null"),
            told("pvsched-guest status"),
            told("dmesg | grep -i pvsched | tail -n 20"),
            self.device.failure("stands by")
        )
    }
}

/// What a chain is to be.
#[derive(Clone, Debug, Default)]
pub struct ChainOptions {
    pub vm: VmOptions,
    /// Without a scheduler, [`Chain::start_scheduler`] brings one later.
    pub no_scheduler: bool,
    /// The scheduler's options.
    pub scheduler: Vec<String>,
}

/// Scheduler, device and guest; up to two vCPUs' worth of everything by default.
pub struct Chain {
    pub vm: Vm,
    scheduler: Option<Scheduler>,
}

impl Chain {
    /// Starts all of it, and with a scheduler waits until it has every vCPU.
    pub fn start(options: ChainOptions) -> Result<Self> {
        let ChainOptions {
            vm,
            no_scheduler,
            scheduler,
        } = options;
        let scheduler = (!no_scheduler)
            .then(|| Scheduler::start(&scheduler))
            .transpose()?;
        let mut chain = Self {
            vm: Vm::start(&vm)?,
            scheduler,
        };
        if chain.scheduler.is_some() && vm.agent {
            chain.wait_attached()?;
        }
        Ok(chain)
    }

    /// The scheduler, which must run.
    pub fn scheduler(&mut self) -> Result<&mut Scheduler> {
        self.scheduler
            .as_mut()
            .context("this chain has no scheduler just now")
    }

    /// Starts the scheduler and waits until it has every vCPU.
    pub fn start_scheduler<A: AsRef<str>>(&mut self, arguments: &[A]) -> Result<()> {
        self.scheduler = Some(Scheduler::start(arguments)?);
        self.wait_attached()
    }

    /// Stops the scheduler; the guest stays and publishes to nobody.
    pub fn stop_scheduler(&mut self) -> Result<()> {
        self.scheduler.take().map_or(Ok(()), Scheduler::stop)
    }

    /// [`Chain::stop_scheduler`] by a crash.
    pub fn kill9_scheduler(&mut self) -> Result<Duration> {
        self.scheduler
            .take()
            .map_or(Ok(Duration::ZERO), Scheduler::kill9)
    }

    /// Waits until the scheduler has every vCPU of the guest.
    pub fn wait_attached(&mut self) -> Result<()> {
        let Self { vm, scheduler } = self;
        let scheduler = scheduler
            .as_mut()
            .context("there is no scheduler to attach to")?;
        let deadline = Instant::now() + ATTACH_LIMIT;
        loop {
            scheduler.check()?;
            let stats = scheduler.stats()?;
            // The scheduler's word, not the guest's: asking there would cost its CPU time.
            if stats["nr_vcpus"].as_u64() >= Some(u64::from(vm.vcpus)) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "{}\n--- {}",
                    vm.state(&format!(
                        "{} of {} vCPUs were handed over within {ATTACH_LIMIT:?}",
                        stats["nr_vcpus"], vm.vcpus
                    )),
                    scheduler.daemon.failure("stands by")
                );
            }
            thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_statistics_server_is_unwrapped() {
        let stats = parse_stats(r#"{"errno":0,"args":{"resp":{"nr_vms":1}}}"#).unwrap();
        assert_eq!(stats["nr_vms"], 1);
    }

    #[test]
    fn a_refusal_of_the_statistics_server_is_an_error_with_its_reason() {
        let error = parse_stats(r#"{"errno":22,"args":{"resp":"unknown target"}}"#).unwrap_err();
        assert!(error.to_string().contains("unknown target"));
    }

    #[test]
    fn an_empty_answer_is_an_error() {
        assert!(parse_stats("").is_err());
    }
}
