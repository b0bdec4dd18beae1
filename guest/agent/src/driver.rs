// SPDX-License-Identifier: GPL-2.0-only
//! /dev/pvsched: the driver's state, and the right to publish.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use anyhow::{anyhow, bail, Context, Result};
use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};

use crate::uapi::{
    pvsched_cpu_info, pvsched_cpu_role, pvsched_info, PVSCHED_IOC_NR_CPU, PVSCHED_IOC_NR_INFO,
    PVSCHED_IOC_NR_PUBLISH, PVSCHED_IOC_NR_ROLE, PVSCHED_IOC_TYPE,
};

pub const NODE: &str = "/dev/pvsched";

mod ioctl {
    use super::*;
    nix::ioctl_read!(info, PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_INFO, pvsched_info);
    nix::ioctl_readwrite!(cpu, PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_CPU, pvsched_cpu_info);
    nix::ioctl_none!(publish, PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_PUBLISH);
    nix::ioctl_write_ptr!(
        role,
        PVSCHED_IOC_TYPE,
        PVSCHED_IOC_NR_ROLE,
        pvsched_cpu_role
    );
}

/// What became of an attempt to become the publisher.
pub enum Claim {
    Granted,
    /// The device went, or nothing is negotiated with it (any more).
    NoDevice,
}

/// An open /dev/pvsched. Dropping it ends publishing, if it was the publisher.
pub struct Driver {
    node: File,
}

impl Driver {
    /// None if the driver is not loaded. `change`: to publish, or to set roles.
    pub fn open(change: bool) -> Result<Option<Self>> {
        match OpenOptions::new().read(true).write(change).open(NODE) {
            Ok(node) => Ok(Some(Self { node })),
            // ENXIO, ENODEV: the node outlives its driver, as one made by hand does
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err(anyhow!("no right to open {NODE}: run this as root"))
            }
            Err(error) => Err(error).context(format!("cannot open {NODE}")),
        }
    }

    pub fn info(&self) -> Result<pvsched_info> {
        let mut info = pvsched_info::default();
        // SAFETY: the request's number is made from the type that the kernel fills in.
        unsafe { ioctl::info(self.node.as_raw_fd(), &mut info) }
            .with_context(|| format!("{NODE} does not answer: is it another driver's node?"))?;
        Ok(info)
    }

    pub fn cpu(&self, cpu: u32) -> Result<pvsched_cpu_info> {
        let mut info = pvsched_cpu_info {
            cpu,
            ..Default::default()
        };
        // SAFETY: the request's number is made from the type that the kernel reads and fills in.
        unsafe { ioctl::cpu(self.node.as_raw_fd(), &mut info) }
            .with_context(|| format!("{NODE} does not tell about CPU {cpu}"))?;
        Ok(info)
    }

    /// All CPUs that this machine can have.
    pub fn cpus(&self, info: &pvsched_info) -> Result<Vec<pvsched_cpu_info>> {
        (0..info.cpu_count).map(|cpu| self.cpu(cpu)).collect()
    }

    /// Declares what a CPU is for; `role` is a word of the page. False if there is no device.
    pub fn set_role(&self, cpu: u32, role: u64) -> Result<bool> {
        let role = pvsched_cpu_role { cpu, rsvd: 0, role };
        // SAFETY: the request's number is made from the type that the kernel reads.
        match unsafe { ioctl::role(self.node.as_raw_fd(), &role) } {
            Ok(_) => Ok(true),
            Err(Errno::ENODEV) => Ok(false),
            Err(Errno::EINVAL) => bail!("this machine has no CPU {cpu}"),
            Err(Errno::ENOTTY) => bail!("the driver is too old to know roles: update it"),
            Err(error) => Err(error).with_context(|| format!("cannot set the role of CPU {cpu}")),
        }
    }

    pub fn claim(&self) -> Result<Claim> {
        // SAFETY: the request takes no argument.
        match unsafe { ioctl::publish(self.node.as_raw_fd()) } {
            Ok(_) => Ok(Claim::Granted),
            Err(Errno::ENODEV) => Ok(Claim::NoDevice),
            Err(Errno::EBUSY) => {
                bail!("another process publishes already: stop that pvsched-guest first")
            }
            Err(error) => Err(error).context("cannot become the publisher"),
        }
    }

    /// Returns when the state may have changed since the last `info`, at the latest after `limit`.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let mut fds = [PollFd::new(self.node.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot wait on {NODE}")),
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENXIO | Errno::ENODEV)
        )
}
