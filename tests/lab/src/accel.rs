//! Whether the machine's own virtualisation can carry the host VM, or QEMU emulates it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::cache::Cache;
use crate::checkout::Checkout;
use crate::host_vm::{End, Options, Setup};
use crate::process;

/// How the host VM's processors come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM where a trial shows that it carries guests within the VM, else emulation
    Auto,
    /// The machine's KVM, with its own virtualisation passed on
    Kvm,
    /// QEMU's emulation, of an AMD processor with virtualisation
    Tcg,
    /// The same, timed by the instructions that are executed; takes several times as long
    Icount,
}

/// An instruction is 2 ns. While all processors are idle time goes from one timer to the next, however long that
/// takes on the machine: with [`TURN`] none is far away, and what comes from the machine, such as files, is late by
/// some times what it takes there. Without, idle time ran away while files were read.
const ICOUNT: &[&str] = &[
    "-accel",
    "tcg,thread=single",
    "-cpu",
    "max",
    "-icount",
    "shift=1,sleep=off",
];

/// On 6.18 with two CPUs, one of which computes, the other's timers were late by 0.5 ms on average and 1.9 at most without a
/// limit, by 36 to 43 µs and 48 at most with 50 µs, by 26 µs and 45 at most with 20 and also with 10 (`cyclictest
/// --interval=1000`, a thousand times; one boot each). The same script took 1.27 times as long with 20 µs as without a limit, its
/// boot included, and 1.7 times with 10.
const TURN: Duration = Duration::from_micros(20);

impl Accel {
    /// QEMU's options for it.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Self::Auto | Self::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
            Self::Icount => ICOUNT,
        }
    }

    /// After how long, of the machine's time, a timer is to end an emulated processor's turn.
    pub fn turn(self) -> Option<Duration> {
        (self == Self::Icount).then_some(TURN)
    }

    /// How many times as long as by emulation something may take.
    pub fn patience(self) -> u32 {
        match self {
            Self::Icount => 8,
            Self::Auto | Self::Kvm | Self::Tcg => 1,
        }
    }

    /// The command that QEMU is started by, where it needs one.
    ///
    /// An emulated machine's timers expire in QEMU's main thread. As an ordinary thread beside two
    /// busy emulated processors it came more than 1 ms late once in a hundred times, and up to the
    /// next tick of the machine (4 ms); as a real-time thread once in a thousand, and up to 2.6 ms.
    /// The threads that it creates stay ordinary ones.
    pub fn wrapper(self) -> &'static [&'static str] {
        const REAL_TIME: &[&str] = &["chrt", "--reset-on-fork", "--fifo", "1"];
        let permitted = || {
            process::output(Command::new(REAL_TIME[0]).args(&REAL_TIME[1..]).arg("true")).is_ok()
        };
        match self {
            Self::Auto | Self::Tcg if permitted() => REAL_TIME,
            _ => &[],
        }
    }

    /// Settles `Auto` by a trial, whose verdict is kept until the machine boots anew: that
    /// /dev/kvm exists says little on a machine that is itself virtual.
    pub fn settle(self, cache: &Cache, checkout: &Checkout, options: &Options) -> Result<Self> {
        if self != Self::Auto {
            return Ok(self);
        }
        if !Path::new("/dev/kvm").exists() {
            return Ok(Self::Tcg);
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let known = fs::read_to_string(cache.verdict()).unwrap_or_default();
        let accel = match known.strip_prefix(&boot) {
            Some("kvm") => return Ok(Self::Kvm),
            Some("tcg") => return Ok(Self::Tcg),
            _ if trial(cache, checkout, options).unwrap_or(false) => Self::Kvm,
            _ => Self::Tcg,
        };
        let verdict = if accel == Self::Kvm { "kvm" } else { "tcg" };
        eprintln!("lab: tried the machine's KVM; using {verdict}");
        fs::write(cache.verdict(), format!("{boot}{verdict}"))?;
        Ok(accel)
    }
}

/// Boots the host VM under KVM and a guest within it, both quick if they work at all.
fn trial(cache: &Cache, checkout: &Checkout, options: &Options) -> Result<bool> {
    let options = Options {
        accel: Accel::Kvm,
        ..options.clone()
    };
    let setup = Setup::new(cache, checkout, &options)?;
    let mut vm = setup.boot_within(Duration::from_secs(20))?;
    let guest = ["/lab/run/pvsched-lab", "guest", "--", "true"];
    Ok(vm.run(&guest, Duration::from_secs(30), |_| Ok(()))? == End::Exit(0))
}
