//! Guests inside the host VM: booted with KVM, commanded over their agent's port.
//!
//! ```no_run
//! use std::time::Duration;
//! use pvsched_lab::{guest::Guest, kernels::Kernel};
//!
//! # fn main() -> anyhow::Result<()> {
//! let guest = Guest::builder().name("a").vcpus(2).kernel(Kernel::Newest).boot()?;
//! let cpus = guest.exec("nproc", Duration::from_secs(10))?.ok()?;
//! assert_eq!(cpus.trim(), "2");
//! # Ok(())
//! # }
//! ```

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use tempfile::TempDir;

use crate::channel::{Channel, Job, Output};
use crate::kernels::{Kernel, Kernels};
use crate::network::{self, Network};
use crate::paths;
use crate::process::tail;
use crate::qemu::{escape, Arguments, Qemu, COMMAND_LINE};

/// The shortest and the longest that a boot may take before it counts as hung. Between them it may
/// take [`BOOT_FACTOR`] times what the host VM took, because the machine may be busy.
const BOOT_LIMITS: (u64, u64) = (60, 240);

/// Guests were measured to take 2 to 7 times as long as their host VM did.
const BOOT_FACTOR: u64 = 10;

fn boot_limit() -> Duration {
    let host = fs::read_to_string(paths::BOOT_SECONDS).unwrap_or_default();
    let host: u64 = host.trim_end().parse().unwrap_or_default();
    Duration::from_secs((host * BOOT_FACTOR).clamp(BOOT_LIMITS.0, BOOT_LIMITS.1))
}

/// What a guest is to be; [`Builder::boot`] makes it.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    smp: String,
    memory_mib: u32,
    kernel: Kernel,
    device: Option<PathBuf>,
    qmp: Option<PathBuf>,
    driver: bool,
    network: bool,
    boot_limit: Duration,
    append: String,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: "guest".to_owned(),
            smp: "2".to_owned(),
            memory_mib: 256,
            kernel: Kernel::Newest,
            device: None,
            qmp: None,
            driver: false,
            network: false,
            boot_limit: boot_limit(),
            append: String::new(),
        }
    }
}

impl Builder {
    /// The guest's name, as QEMU and messages have it.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The number of vCPUs, in one socket.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.smp = vcpus.to_string();
        self
    }

    /// QEMU's `-smp`, where the shape matters: `4,sockets=1,cores=2,threads=2`.
    pub fn smp(mut self, smp: impl Into<String>) -> Self {
        self.smp = smp.into();
        self
    }

    /// Memory in MiB.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.memory_mib = memory;
        self
    }

    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// The socket of a vhost-user back-end, which becomes a virtio device in the guest.
    pub fn device(mut self, socket: impl Into<PathBuf>) -> Self {
        self.device = Some(socket.into());
        self
    }

    /// Where QEMU is to listen for QMP.
    pub fn qmp(mut self, socket: impl Into<PathBuf>) -> Self {
        self.qmp = Some(socket.into());
        self
    }

    /// Loads the guest driver as soon as the guest is up.
    pub fn driver(mut self, load: bool) -> Self {
        self.driver = load;
        self
    }

    /// A network with this machine, up as soon as the guest is.
    pub fn network(mut self, network: bool) -> Self {
        self.network = network;
        self
    }

    /// How long a boot may take before it counts as hung.
    pub fn boot_limit(mut self, limit: Duration) -> Self {
        self.boot_limit = limit;
        self
    }

    /// More words for the kernel's command line.
    pub fn append(mut self, words: impl Into<String>) -> Self {
        self.append = words.into();
        self
    }

    /// Boots, and once more if the first boot hangs, as nested emulation makes it do now and then.
    /// The retry is told on standard error and in the lab's summary. Never retried is a guest whose
    /// QEMU ends by itself: that has a cause.
    pub fn boot(self) -> Result<Guest> {
        let start = Instant::now();
        let guest = match self.boot_once()? {
            Boot::Up(guest) => *guest,
            Boot::Hung(console) => match self.boot_once()? {
                Boot::Up(guest) => {
                    let seconds = start.elapsed().as_secs();
                    note(&format!(
                        "retried boot 1×: guest {}, up after {seconds} s; hung after: {}",
                        self.name,
                        console.lines().last().unwrap_or_default()
                    ));
                    *guest
                }
                Boot::Hung(console) => {
                    bail!(
                        "guest {} hung in boot, twice; console:\n{console}",
                        self.name
                    )
                }
            },
        };
        if self.network {
            guest
                .exec("guest-net", Duration::from_secs(30))?
                .ok()
                .context("the guest's network")?;
        }
        if self.driver {
            guest
                .exec("guest-up", Duration::from_secs(30))?
                .ok()
                .context("the guest driver")?;
        }
        Ok(guest)
    }

    fn boot_once(&self) -> Result<Boot> {
        let kernels = Kernels::at(Path::new(paths::KERNELS));
        let release = kernels
            .release(self.kernel)
            .context("guests run inside the host VM")?;
        let folder = tempfile::Builder::new().prefix("guest.").tempdir()?;
        let path = folder.path();
        let console = path.join("console.log");
        let socket = path.join("agent.sock");
        let listener = Channel::listen(&socket)?;
        let network = self.network.then(|| Network::new(path)).transpose()?;
        let mut command = Command::new("qemu-system-x86_64");
        let initrd = Path::new(paths::RUN).join(paths::guest_initrd(&release));
        let mut arguments = self.arguments();
        arguments.console(&console).agent(&socket).kernel(
            &kernels.folder(&release),
            &initrd,
            &format!("{COMMAND_LINE} {}", self.append),
        );
        if self.network {
            arguments.network(
                &Network::guests(path),
                &Network::ours(path),
                network::GUEST_MAC,
            );
        }
        command
            .args(arguments.get())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path.join("qemu.log"))?);
        let mut qemu = Qemu::start(&mut command)?;
        let failed = |what: &str| {
            format!(
                "guest {}: {what}; QEMU said: {}\nconsole: {}",
                self.name,
                tail(&path.join("qemu.log")),
                tail(&console)
            )
        };
        let channel = Channel::accept(&listener, || qemu.running())
            .with_context(|| failed("QEMU did not start"))?;
        if !channel.wait_up(self.boot_limit) {
            if channel.closed() || !qemu.running() {
                bail!(failed("it stopped in boot"));
            }
            return Ok(Boot::Hung(tail(&console)));
        }
        let name = self.name.clone();
        Ok(Boot::Up(Box::new(Guest {
            name,
            release,
            qemu: Mutex::new(qemu),
            channel,
            network,
            folder,
        })))
    }

    fn arguments(&self) -> Arguments {
        let mut arguments = Arguments::default();
        let memory = self.memory_mib;
        arguments
            .bare_machine()
            .option("-name", format!("{},debug-threads=on", self.name))
            // As libvirt's tools do it. QEMU's HPET goes on at the guest's boot-time tick for as
            // long as the guest lives, and wakes QEMU's main thread at each.
            .option("-machine", "q35,memory-backend=m0,hpet=off")
            .option("-accel", "kvm")
            .option("-cpu", "host")
            .option("-smp", &self.smp)
            .option("-m", format!("{memory}M"))
            // Shared, so that a vhost-user back-end sees the guest's memory.
            .option(
                "-object",
                format!("memory-backend-memfd,id=m0,size={memory}M,share=on"),
            );
        if let Some(socket) = &self.device {
            arguments
                .option("-chardev", format!("socket,id=c0,path={}", escape(socket)))
                .option(
                    "-device",
                    "vhost-user-test-device-pci,chardev=c0,virtio-id=39,num_vqs=3,config_size=16",
                );
        }
        if let Some(socket) = &self.qmp {
            arguments.option(
                "-qmp",
                format!("unix:{},server=on,wait=off", escape(socket)),
            );
        }
        arguments
    }
}

enum Boot {
    Up(Box<Guest>),
    Hung(String),
}

/// Leaves a sentence for whoever reads the output, and for the summary of the run.
fn note(text: &str) {
    eprintln!("lab: {text}");
    if let Ok(mut notes) = OpenOptions::new()
        .create(true)
        .append(true)
        .open(paths::NOTES)
    {
        // It has been said already.
        let _ = writeln!(notes, "{text}");
    }
}

/// A guest that runs; its QEMU is killed when this is dropped.
pub struct Guest {
    name: String,
    release: String,
    qemu: Mutex<Qemu>,
    channel: Channel,
    network: Option<Network>,
    folder: TempDir,
}

impl Guest {
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The release of its kernel.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The network with it, for a guest that was made with one.
    pub fn network(&self) -> Result<&Network> {
        self.network
            .as_ref()
            .with_context(|| format!("guest {} has no network", self.name))
    }

    /// Runs a shell command in the guest to its end.
    pub fn exec(&self, command: &str, limit: Duration) -> Result<Output> {
        self.channel.exec(command, limit).with_context(|| {
            format!(
                "guest {}; its console ends so:\n{}\nQEMU said: {}",
                self.name,
                self.console_tail(),
                self.qemu_log()
            )
        })
    }

    /// Fails if QEMU has stopped the guest's CPUs, which it does when KVM gives up on an
    /// instruction; nested emulation makes that happen now and then.
    pub fn check(&self) -> Result<()> {
        let log = self.qemu_log();
        ensure!(
            !log.contains("KVM internal error") && self.running(),
            "guest {} has stopped; QEMU said: {log}",
            self.name
        );
        Ok(())
    }

    /// Whether the guest has stopped, or is found to within `limit`: what talks to it notices
    /// before QEMU has ended.
    pub fn stops_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.check().is_ok() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn qemu_log(&self) -> String {
        tail(&self.folder.path().join("qemu.log"))
    }

    /// Starts a shell command in the guest and returns at once.
    pub fn spawn(&self, command: &str) -> Result<Job> {
        self.channel.start(&["/bin/sh", "-c", command], false)
    }

    /// [`Guest::spawn`] with both streams in one, in the order written.
    pub fn spawn_merged(&self, argv: &[&str]) -> Result<Job> {
        self.channel.start(argv, true)
    }

    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.qemu().pid()
    }

    /// The threads of the vCPUs, in the vCPUs' order.
    pub fn vcpu_threads(&self) -> Result<Vec<u32>> {
        let mut threads = Vec::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let task = task?.path();
            let comm = fs::read_to_string(task.join("comm")).unwrap_or_default();
            let tid = task
                .file_name()
                .and_then(|tid| tid.to_str()?.parse::<u32>().ok());
            if let (Some(vcpu), Some(tid)) = (vcpu_index(&comm), tid) {
                threads.push((vcpu, tid));
            }
        }
        threads.sort_unstable();
        Ok(threads.into_iter().map(|(_, tid)| tid).collect())
    }

    /// A statistic of KVM's over all its vCPUs, by its name in debugfs.
    pub fn kvm_statistic(&self, name: &str) -> Result<u64> {
        kvm_statistic(self.pid(), name)
    }

    /// The console so far.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.folder.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn console_tail(&self) -> String {
        tail(&self.folder.path().join("console.log"))
    }

    /// Ends QEMU at once, as a crash would.
    pub fn kill(&self) {
        self.qemu().kill();
    }

    /// Whether QEMU still runs.
    pub fn running(&self) -> bool {
        self.qemu().running()
    }

    /// Lets the guest's kernel power off, and waits for QEMU to end.
    pub fn poweroff(&self, limit: Duration) -> Result<()> {
        self.spawn("poweroff -f")?;
        let deadline = Instant::now() + limit;
        while self.running() {
            if Instant::now() >= deadline {
                bail!("guest {} did not power off within {limit:?}", self.name);
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn qemu(&self) -> MutexGuard<'_, Qemu> {
        self.qemu.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A statistic of KVM's for the VM of a process, over all its vCPUs, by its name in debugfs.
pub fn kvm_statistic(pid: u32, name: &str) -> Result<u64> {
    let all = Path::new("/sys/kernel/debug/kvm");
    let prefix = format!("{pid}-");
    let vm = fs::read_dir(all)
        .with_context(|| all.display().to_string())?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .with_context(|| format!("KVM has no VM of process {pid}"))?;
    let path = vm.path().join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .with_context(|| path.display().to_string())
}

/// The number in a thread's name `CPU 3/KVM`.
fn vcpu_index(comm: &str) -> Option<u32> {
    comm.trim_end()
        .strip_prefix("CPU ")?
        .strip_suffix("/KVM")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpu_threads_are_known_by_their_names() {
        assert_eq!(vcpu_index("CPU 12/KVM\n"), Some(12));
        assert_eq!(vcpu_index("qemu-system-x86\n"), None);
        assert_eq!(vcpu_index("CPU 0/TCG\n"), None);
    }
}
