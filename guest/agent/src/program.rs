// SPDX-License-Identifier: GPL-2.0-only
//! The BPF programs: which one speaks which protocol, and how it gets into the kernel.

use std::path::Path;

use anyhow::{anyhow, ensure, Context, Result};
use libbpf_rs::btf::types::{Func, Typedef};
use libbpf_rs::btf::Btf;
use libbpf_rs::{Link, Object, ObjectBuilder, OpenObject};
use scx_pvsched::abi;

const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";
const MODULE_BTF: &str = "/sys/kernel/btf/virtio_pvsched";

/// libelf reads the object's tables in place, so they must be aligned.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static LATENCY: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/latency.bpf.o")));

/// A protocol that this agent can publish in.
pub struct Protocol {
    pub name: &'static str,
    pub version: u32,
    object: &'static [u8],
}

/// The guest's part is the same in both: what the host makes of it is not for it to know.
static PROTOCOLS: &[Protocol] = &[
    Protocol {
        name: "latency",
        version: abi::PVSCHED_PROTOCOL_LATENCY_VERSION,
        object: &LATENCY.0,
    },
    Protocol {
        name: "observe",
        version: abi::PVSCHED_PROTOCOL_OBSERVE_VERSION,
        object: &LATENCY.0,
    },
];

/// None if this agent has no program for it.
pub fn find(name: &str, version: u32) -> Option<&'static Protocol> {
    PROTOCOLS
        .iter()
        .find(|protocol| protocol.name == name && protocol.version == version)
}

/// A program in the kernel. Dropping it takes it out again.
pub struct Attached {
    // Fields are dropped in this order.
    _links: Vec<Link>,
    _object: Object,
}

impl Protocol {
    pub fn attach(&self) -> Result<Attached> {
        ensure!(
            Path::new(VMLINUX_BTF).exists(),
            "this kernel has no type information: it needs CONFIG_DEBUG_INFO_BTF=y"
        );
        ensure!(
            Path::new(MODULE_BTF).exists(),
            "virtio_pvsched was built without type information: install pahole and the complete \
             kernel headers (with their vmlinux), then build the module again"
        );
        let mut open = ObjectBuilder::default()
            .open_memory(self.object)
            .context("cannot read the built-in BPF object")?;
        choose_optional(&mut open)?;
        let object = open.load().map_err(|error| {
            anyhow!(error).context(
                "the kernel refused the BPF program (its reasons are above): it needs kernel 6.12 \
                 or newer, root, and no lockdown that forbids BPF",
            )
        })?;
        let mut links = Vec::new();
        for program in object.progs_mut().filter(|program| program.autoload()) {
            let name = program.name().to_string_lossy().into_owned();
            links.push(
                program
                    .attach()
                    .with_context(|| format!("cannot attach {name}"))?,
            );
        }
        Ok(Attached {
            _links: links,
            _object: object,
        })
    }
}

/// Programs of a section `?tp_btf/…` are wanted where the kernel has the tracepoint, those of a
/// section `?fentry/…` or `?fexit/…` where it has the function.
fn choose_optional(open: &mut OpenObject) -> Result<()> {
    let kernel = Btf::from_vmlinux().with_context(|| format!("cannot read {VMLINUX_BTF}"))?;
    for mut program in open.progs_mut().filter(|program| !program.autoload()) {
        let section = program.section().to_string_lossy().into_owned();
        let exists = match section.trim_start_matches('?').split_once('/') {
            Some(("tp_btf", name)) => kernel
                .type_by_name::<Typedef>(&format!("btf_trace_{name}"))
                .is_some(),
            Some(("fentry" | "fexit", name)) => kernel.type_by_name::<Func>(name).is_some(),
            _ => continue,
        };
        program.set_autoload(exists);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn every_protocol_is_found_by_its_name_and_version_only() {
        for protocol in PROTOCOLS {
            assert!(find(protocol.name, protocol.version).is_some());
            assert!(find(protocol.name, protocol.version + 1).is_none());
        }
        assert!(find("", 1).is_none());
    }

    #[test]
    fn the_program_table_uses_the_names_that_the_driver_negotiates() {
        for (name, version) in [
            (
                abi::PVSCHED_PROTOCOL_LATENCY.as_slice(),
                abi::PVSCHED_PROTOCOL_LATENCY_VERSION,
            ),
            (
                abi::PVSCHED_PROTOCOL_OBSERVE,
                abi::PVSCHED_PROTOCOL_OBSERVE_VERSION,
            ),
        ] {
            let text = CStr::from_bytes_with_nul(name).unwrap();
            assert!(find(text.to_str().unwrap(), version).is_some(), "{text:?}");
        }
    }
}
