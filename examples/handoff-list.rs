// SPDX-License-Identifier: GPL-2.0-only
//! A handoff server without a scheduler behind it: prints what VMMs hand over and take back.
//!
//! For whoever writes a VMM or a device and wants to see what arrives. It takes each thread for a
//! vCPU, and pins nothing.
//!
//!     handoff-list SOCKET

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use scx_pvsched::handoff::server::*;

struct List;

impl Registry for List {
    fn is_vcpu(&mut self, _: &VcpuInfo) -> bool {
        true
    }

    fn vm_added(&mut self, vm: VmId, info: &VmInfo) -> Result<(), RegistryError> {
        let VmInfo {
            name,
            protocol,
            version,
            peer_pid,
            ..
        } = info;
        println!(
            "vm {} + {name} from process {peer_pid}, {protocol} version {version}",
            vm.0
        );
        Ok(())
    }

    fn attach(&mut self, vm: VmId, vcpu: &VcpuInfo, _: &MappedPage) -> Result<(), RegistryError> {
        println!("vm {} + vcpu {} thread {}", vm.0, vcpu.apic_id, vcpu.tid);
        Ok(())
    }

    fn detach(&mut self, vm: VmId, vcpu: &VcpuInfo) {
        println!("vm {} - vcpu {} thread {}", vm.0, vcpu.apic_id, vcpu.tid);
    }

    fn vm_removed(&mut self, vm: VmId) {
        println!("vm {} -", vm.0);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: handoff-list SOCKET")?;
    let mut server = Server::bind(&PathBuf::from(path), Config::default())?;
    loop {
        server.turn(&mut List, Duration::from_secs(1))?;
    }
}
