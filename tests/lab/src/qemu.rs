//! What the QEMU command lines of both levels share.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};

use crate::paths;

/// A QEMU process; ended when dropped, since a machine without its owner has no use.
pub struct Qemu(Child);

impl Qemu {
    pub fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().context("cannot start QEMU")?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    pub fn kill(&mut self) {
        // Neither fails but for a process that has ended, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Builds a command line; a value's commas are doubled where a path goes into an option.
#[derive(Default)]
pub struct Arguments(Vec<OsString>);

impl Arguments {
    pub fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    pub fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }

    /// A machine with nothing in it but what follows, that ends instead of rebooting.
    pub fn bare_machine(&mut self) -> &mut Self {
        // A video BIOS has hung nested guests, and default devices take time to emulate.
        self.flag("-nodefaults")
            .flag("-no-user-config")
            .flag("-no-reboot");
        self.option("-display", "none").option("-vga", "none")
    }

    /// The kernel's console, kept in a file.
    pub fn console(&mut self, log: &Path) -> &mut Self {
        self.option("-chardev", format!("file,id=console,path={}", escape(log)))
            .option("-serial", "chardev:console")
    }

    /// The port of the agent, on a socket that QEMU connects to.
    ///
    /// It notifies by port: an emulator with the last of the faults that [`crate::emulator`] mends has KVM of
    /// 6.18 end guests at memory-mapped notifications ("KVM internal error. Suberror: 3").
    pub fn agent(&mut self, socket: &Path) -> &mut Self {
        self.option("-device", "virtio-serial-pci,modern-pio-notify=on")
            .option(
                "-chardev",
                format!("socket,id=agent,path={}", escape(socket)),
            )
            .option(
                "-device",
                format!("virtserialport,chardev=agent,name={}", paths::PORT_NAME),
            )
    }

    /// QEMU's monitor for people, on a socket that QEMU makes.
    pub fn monitor(&mut self, socket: &Path) -> &mut Self {
        self.option(
            "-monitor",
            format!("unix:{},server=on,wait=off", escape(socket)),
        )
    }

    /// QEMU's test protocol, which reads and writes the machine's memory and registers, on a socket that QEMU makes.
    pub fn test_protocol(&mut self, socket: &Path) -> &mut Self {
        self.option(
            "-qtest",
            format!("unix:{},server=on,wait=off", escape(socket)),
        )
        .option("-qtest-log", "none")
    }

    /// A network device whose frames come from and go to datagram sockets: `from`, which QEMU makes,
    /// and `to`.
    pub fn network(&mut self, from: &Path, to: &Path, mac: [u8; 6]) -> &mut Self {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        self.option(
            "-netdev",
            format!(
                "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                escape(from),
                escape(to)
            ),
        )
        .option(
            "-device",
            format!("virtio-net-pci,netdev=net,mac={mac},romfile="),
        )
    }

    /// A folder of this side, for a 9p mount under the name `tag`.
    pub fn share(&mut self, tag: &str, folder: &Path, writable: bool) -> &mut Self {
        let readonly = if writable { "off" } else { "on" };
        let fsdev = format!(
            "local,id=fs-{tag},path={},security_model=none,multidevs=remap,readonly={readonly}",
            escape(folder)
        );
        self.option("-fsdev", fsdev).option(
            "-device",
            format!("virtio-9p-pci,fsdev=fs-{tag},mount_tag={tag}"),
        )
    }

    pub fn kernel(&mut self, folder: &Path, initrd: &Path, command_line: &str) -> &mut Self {
        self.option("-kernel", folder.join("vmlinux"))
            .option("-initrd", initrd)
            .option("-append", command_line)
    }

    pub fn get(&self) -> &[OsString] {
        &self.0
    }
}

/// A path as a value within an option.
pub fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The command line every kernel of the lab gets: only warnings, because a serial console is slow to
/// emulate; without the mitigations that make nested emulation slower still; and ending at a
/// panic, so that it is seen at once.
pub const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=-1 mitigations=off";
