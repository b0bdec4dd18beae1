//! The command line's options for host VMs.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use clap::Args;

use crate::accel::Accel;
use crate::cache::Cache;
use crate::checkout::Checkout;
use crate::host_vm::Options;
use crate::kernels::Kernel;
use crate::topology::Topology;

/// Which host VM to boot.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// Kernel: a series such as 6.18, a release such as 7.2.11, or newest
    #[arg(long, default_value_t = Kernel::V6_18, value_name = "SERIES")]
    pub kernel: Kernel,
    #[command(flatten)]
    pub machine: MachineArgs,
}

/// All of a host VM but its kernel.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Processors [default: 2, or the topology's]
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Sockets, cores and threads, as in 1,2,2
    #[arg(long, value_name = "S,C,T")]
    pub topology: Option<Topology>,
    /// Memory
    #[arg(long, default_value = "4G", value_name = "SIZE")]
    pub memory: String,
    /// How the host VM's processors come about
    #[arg(long, value_enum, default_value_t = Accel::Auto)]
    pub accel: Accel,
    /// The target folder's binaries that become /usr/local/bin
    #[arg(long, default_value = "debug", value_name = "FOLDER")]
    pub profile: String,
    /// The folder that becomes /out [default: target/lab/out]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl HostArgs {
    /// What they mean for this checkout.
    ///
    /// # Errors
    /// When two of them contradict each other.
    pub fn options(self, checkout: &Checkout) -> Result<Options> {
        let Self { kernel, machine } = self;
        let topology = machine
            .topology
            .unwrap_or_else(|| Topology::flat(machine.cpus.unwrap_or(2)));
        ensure!(
            machine.cpus.is_none_or(|cpus| cpus == topology.cpus()),
            "--topology makes {} processors; leave out --cpus, or let it say the same",
            topology.cpus()
        );
        Ok(Options {
            kernel,
            topology,
            memory: machine.memory,
            accel: machine.accel,
            binaries: checkout.binaries(&machine.profile),
            out: machine.out.unwrap_or_else(|| checkout.lab().join("out")),
        })
    }

    /// The same with what a trial on this machine decides.
    ///
    /// # Errors
    /// As [`HostArgs::options`], and when the lab itself fails.
    pub fn settled(self, cache: &Cache, checkout: &Checkout) -> Result<Options> {
        let mut options = self.options(checkout)?;
        options.accel = options.accel.settle(cache, checkout, &options)?;
        Ok(options)
    }
}
