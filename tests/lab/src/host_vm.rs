//! The host VM: a machine whose kernel has sched_ext and KVM, seen from the real one.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::accel::Accel;
use crate::cache::Cache;
use crate::channel::{Channel, Event};
use crate::checkout::Checkout;
use crate::guest_initrd;
use crate::initrd::Initrd;
use crate::kernels::{Kernel, Kernels};
use crate::monitor;
use crate::process::tail;
use crate::qemu::{Arguments, Qemu, COMMAND_LINE};
use crate::root::Root;
use crate::topology::Topology;
use crate::turns;

/// From power-on to the agent's greeting; measured at 12 to 17 s on an idle machine and at up to
/// 44 s on a busy one.
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// How often turns are bounded anew while the machine boots.
const TURN_RETRY: Duration = Duration::from_millis(200);

/// The agent speaks every 2 s, so this long a silence is a machine that has hung.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// From an NMI to the end of what the kernel has to say about it.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(20);

/// An NMI that nobody expects is a panic, which prints what each CPU is at.
const PANIC_AT_NMI: &str = "unknown_nmi_panic panic_print=0x40";

/// What 9p and overlayfs need, then KVM for either maker's processors.
const MODULES: &[&str] = &["9pnet_virtio", "9p", "overlay", "kvm-amd", "kvm-intel"];

/// What a host VM is to be.
#[derive(Clone, Debug)]
pub struct Options {
    pub kernel: Kernel,
    pub topology: Topology,
    /// As QEMU's `-m` takes it.
    pub memory: String,
    pub accel: Accel,
    /// The folder that becomes `/usr/local/bin`.
    pub binaries: PathBuf,
    /// The folder that becomes `/out`.
    pub out: PathBuf,
}

/// How a command in a host VM ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Exit(i32),
    /// The time given was over.
    Timeout,
    /// The machine no longer answered, or stopped.
    Hang,
}

/// Everything a boot needs on this side; the folder goes when this is dropped.
pub struct Setup<'a> {
    options: &'a Options,
    checkout: &'a Checkout,
    root: Root,
    kernels: Kernels,
    release: String,
    folder: TempDir,
    _lock: Flock<File>,
}

/// A host VM that runs.
pub struct HostVm<'a> {
    setup: &'a Setup<'a>,
    qemu: Qemu,
    channel: Channel,
}

impl<'a> Setup<'a> {
    pub fn new(cache: &Cache, checkout: &'a Checkout, options: &'a Options) -> Result<Self> {
        let root = Root::new(cache);
        let kernels = Kernels::new(cache);
        let release = kernels.release(options.kernel)?;
        let folder = tempfile::Builder::new()
            .prefix("run.")
            .tempdir_in(cache.runs()?)?;
        let path = folder.path();
        let lock = Flock::lock(
            File::create(path.join("lock"))?,
            FlockArg::LockExclusiveNonblock,
        )
        .map_err(|(_, errno)| errno)?;
        fs::create_dir_all(&options.out)
            .with_context(|| format!("cannot make {}", options.out.display()))?;
        fs::create_dir_all(&options.binaries)?;
        fs::create_dir(path.join("share"))?;

        let mut initrd = Initrd::default();
        initrd.busybox(&root)?;
        for dir in ["proc", "sys", "dev"] {
            initrd.directory(dir);
        }
        initrd.modules(&kernels, &release, MODULES)?;
        initrd.data("init", 0o755, include_bytes!("../vm/host-init.sh").to_vec());
        initrd.write(&path.join("host.cpio"))?;

        let share = path.join("share");
        fs::write(
            share.join("host-main.sh"),
            include_bytes!("../vm/host-main.sh"),
        )?;
        fs::copy(env::current_exe()?, share.join("pvsched-lab"))?;
        guest_initrd::write_all(&share, &root, &kernels, checkout, &options.binaries)?;
        Ok(Self {
            options,
            checkout,
            root,
            kernels,
            release,
            folder,
            _lock: lock,
        })
    }

    /// The kernel that its host VMs run.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// How many times as long as by emulation something may take on them.
    pub fn patience(&self) -> u32 {
        self.options.accel.patience()
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    pub(crate) fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// The folder with what belongs to this run.
    pub(crate) fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    pub(crate) fn binaries(&self) -> &Path {
        &self.options.binaries
    }

    pub(crate) fn checkout(&self) -> &Path {
        &self.checkout.path
    }

    pub(crate) fn out(&self) -> &Path {
        &self.options.out
    }

    pub fn console(&self) -> PathBuf {
        self.folder.path().join("console.log")
    }

    fn monitor(&self) -> PathBuf {
        self.folder.path().join("monitor.sock")
    }

    fn test_protocol(&self) -> PathBuf {
        self.folder.path().join("qtest.sock")
    }

    /// Copies the console to where reports go, for a look after the run.
    pub fn keep_console(&self) -> Result<PathBuf> {
        let kept = self.options.out.join("console.log");
        fs::copy(self.console(), &kept)?;
        Ok(kept)
    }

    fn command(&self, arguments: &mut Arguments, environment: &str) -> Command {
        let Options {
            topology,
            memory,
            accel,
            binaries,
            out,
            ..
        } = self.options;
        let path = self.folder.path();
        arguments
            .bare_machine()
            .option("-name", "pvsched-lab,debug-threads=on")
            .option("-machine", "q35")
            .option("-smp", topology.to_string())
            .option("-m", memory)
            .console(&self.console())
            .share("root", self.root.path(), false)
            .share("kernels", self.kernels.path(), false)
            .share("run", &self.share(), false)
            .share("src", &self.checkout.path, false)
            .share("bin", binaries, false)
            .share("out", out, true)
            .kernel(
                &self.kernels.folder(&self.release),
                &path.join("host.cpio"),
                &format!("{COMMAND_LINE} {PANIC_AT_NMI} {environment}"),
            );
        for option in accel.options() {
            arguments.flag(option);
        }
        let share = self.root.path().join("usr/share");
        arguments
            .option("-L", share.join("qemu"))
            .option("-L", share.join("seabios"));
        // Killed, the lab must not leave a machine behind.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(accel.wrapper())
            .args(self.root.emulator())
            .args(arguments.get())
            .env("QEMU_MODULE_DIR", self.root.libraries().join("qemu"));
        command
    }

    /// Boots, and once more if the first boot hangs; that is told on standard error, lest hangs of
    /// our own making go unseen.
    pub fn boot(&'a self) -> Result<HostVm<'a>> {
        let start = Instant::now();
        let limit = BOOT_LIMIT * self.patience();
        let first = match self.boot_within(limit) {
            Ok(vm) => return Ok(vm),
            Err(error) => error,
        };
        let vm = self
            .boot_within(limit)
            .context("the host VM did not boot, twice")?;
        let seconds = start.elapsed().as_secs();
        eprintln!("lab: retried boot 1×: host VM, up after {seconds} s; before: {first:#}");
        Ok(vm)
    }

    /// One try to boot.
    pub fn boot_within(&'a self, limit: Duration) -> Result<HostVm<'a>> {
        let socket = self.folder.path().join("agent.sock");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let listener = Channel::listen(&socket)?;
        let mut arguments = Arguments::default();
        arguments.agent(&socket).monitor(&self.monitor());
        let turn = self.options.accel.turn();
        if turn.is_some() {
            arguments.test_protocol(&self.test_protocol());
        }
        let mut qemu = Qemu::start(self.command(&mut arguments, "").stdin(Stdio::null()))?;
        let channel = Channel::accept(&listener, || qemu.running())?;
        if !self.wait_up(&channel, limit, turn)? {
            let what = if channel.closed() { "stopped" } else { "hung" };
            bail!(
                "it {what} in boot; its console ends so:\n{}",
                tail(&self.console())
            );
        }
        Ok(HostVm {
            setup: self,
            qemu,
            channel,
        })
    }

    /// Waits for the agent; where turns are to be bounded, does so from the moment on that the kernel uses the HPET.
    fn wait_up(&self, channel: &Channel, limit: Duration, turn: Option<Duration>) -> Result<bool> {
        let Some(turn) = turn else {
            return Ok(channel.wait_up(limit));
        };
        let start = Instant::now();
        while !channel.wait_up(TURN_RETRY) {
            if channel.closed() || start.elapsed() > limit {
                return Ok(false);
            }
            // What QEMU or the kernel does not take yet, or undoes, comes again.
            let _ = turns::bound(&self.test_protocol(), turn);
        }
        turns::bound(&self.test_protocol(), turn)?;
        Ok(true)
    }

    /// Runs the machine with this terminal as its own until its shell ends.
    ///
    /// # Errors
    /// When time is to go by as instructions are executed: it would not wait for who types.
    pub fn shell(&self) -> Result<()> {
        ensure!(
            self.options.accel.turn().is_none(),
            "a shell cannot have --accel icount: idle time does not go by as it does for who types"
        );
        let mut arguments = Arguments::default();
        arguments
            .option("-device", "virtio-serial-pci")
            .option("-chardev", "stdio,id=shell,signal=off")
            .option("-device", "virtconsole,chardev=shell");
        let mut environment = "LAB_SHELL=1".to_owned();
        for (name, variable) in [
            ("LAB_TERM", "TERM"),
            ("LAB_ROWS", "LINES"),
            ("LAB_COLUMNS", "COLUMNS"),
        ] {
            if let Ok(value) = env::var(variable) {
                environment += &format!(" {name}={value}");
            }
        }
        let status = self.command(&mut arguments, &environment).status()?;
        if !status.success() {
            bail!(
                "QEMU failed ({status}); the console ends so:\n{}",
                tail(&self.console())
            );
        }
        Ok(())
    }
}

impl HostVm<'_> {
    /// The kernel that runs.
    pub fn release(&self) -> &str {
        &self.setup.release
    }

    /// Runs a command, giving its output to `print` as it comes.
    pub fn run(
        &mut self,
        argv: &[&str],
        limit: Duration,
        mut print: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<End> {
        let deadline = Instant::now() + limit;
        let job = self.channel.start(argv, true)?;
        loop {
            match job.next(Duration::from_secs(1)) {
                Event::Stdout(bytes) | Event::Stderr(bytes) => print(&bytes)?,
                Event::Exit(status) => {
                    self.report_notes();
                    return Ok(End::Exit(status));
                }
                Event::Gone => return Ok(End::Hang),
                Event::Silence => {}
            }
            if Instant::now() >= deadline {
                return Ok(End::Timeout);
            }
            if self.channel.silence() > SILENCE_LIMIT * self.setup.patience() {
                self.last_words();
                return Ok(End::Hang);
            }
        }
    }

    /// Has a machine that hangs say what it is at: where its CPUs are, on standard error, and the
    /// kernel's own traces of them, on its console.
    fn last_words(&mut self) {
        match monitor::interrupt(&self.setup.monitor()) {
            Ok(places) => eprintln!("lab: the host VM hangs; its CPUs:\n{places}"),
            Err(error) => return eprintln!("lab: the host VM hangs, and QEMU too: {error:#}"),
        }
        let start = Instant::now();
        while self.qemu.running() && start.elapsed() < LAST_WORDS_LIMIT {
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn report_notes(&self) {
        for note in self.channel.take_notes() {
            eprintln!("lab: {note}");
        }
    }

    /// Ends the machine once what it wrote to `/out` is on this side.
    pub fn end(mut self) -> Result<()> {
        self.channel.exec("sync", Duration::from_secs(30))?;
        self.qemu.kill();
        Ok(())
    }
}

/// The console's end, for an error.
pub fn console_tail(path: &Path) -> String {
    tail(path)
}
