//! Whether the machine's own virtualisation can carry the host VM, or QEMU emulates it.

use clap::ValueEnum;

/// How the host VM's processors come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// The machine's KVM, with its own virtualisation passed on.
    Kvm,
    /// QEMU's emulation, of an AMD processor with virtualisation.
    Tcg,
}

impl Accel {
    /// QEMU's options for it.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}
