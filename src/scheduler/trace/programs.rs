// SPDX-License-Identifier: GPL-2.0-only
//! The recording programs, `bpf/trace.bpf.c`, attached to a scheduler that runs already.
//!
//! Its events are calls of a function of this name in its own BPF programs, which are found among
//! all of the kernel's by their type information. Names of programs are cut to 15 characters and not
//! unique, and nothing is pinned or asked for that could be left from another instance: a program that
//! has the function either runs, and then its events are to be recorded, or it does not, and then it has none.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{ensure, Context, Result};
use libbpf_rs::btf::types::Func;
use libbpf_rs::btf::TypeId;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions, ProgramInfo};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Btf, Link, OpenObject, Program, ProgramType};

use super::super::bpf::trace_skel::{TraceSkel, TraceSkelBuilder};
use super::super::hints::kvm_is_loaded;

/// The function of `bpf/events.bpf.h`.
const EVENT_FUNCTION: &str = "pvsched_event_1";
/// The programs of `bpf/trace.bpf.c` that have to be told which copy of it they are for.
const ON_EVENT: &str = "on_event_";

/// A program of the running scheduler that has events.
struct Source {
    fd: OwnedFd,
    /// As in the source code.
    name: String,
}

/// What the type information of one BPF object says.
struct Types<'btf> {
    btf: Btf<'btf>,
    event: TypeId,
}

fn sources() -> Result<Vec<Source>> {
    let options = ProgInfoQueryOptions::default().include_func_info(true);
    let mut objects: BTreeMap<u32, Option<Types>> = BTreeMap::new();
    let mut sources = Vec::new();
    for program in ProgInfoIter::with_query_opts(options) {
        if !matches!(program.ty, ProgramType::StructOps | ProgramType::Tracing) {
            continue;
        }
        let types = objects
            .entry(program.btf_id)
            .or_insert_with(|| types_of(program.id));
        let Some(name) = types.as_ref().and_then(|types| name_of(&program, types)) else {
            continue;
        };
        // It may have gone meanwhile, with its scheduler.
        let Ok(fd) = Program::fd_from_id(program.id) else {
            continue;
        };
        sources.push(Source { fd, name });
    }
    ensure!(
        !sources.is_empty(),
        "the scheduler that runs has no events of a kind that this version knows"
    );
    Ok(sources)
}

/// `None` for an object that is not the scheduler's.
fn types_of(program: u32) -> Option<Types<'static>> {
    let btf = Btf::from_prog_id(program).ok()?;
    let event = btf.type_by_name::<Func>(EVENT_FUNCTION)?.type_id();
    Some(Types { btf, event })
}

/// The name of a program that has events; `None` for one that has not.
fn name_of(program: &ProgramInfo, types: &Types) -> Option<String> {
    let functions = || program.func_info.iter().map(|f| TypeId::from(f.type_id));
    functions().find(|function| *function == types.event)?;
    let main: Func = types.btf.type_by_id(functions().next()?)?;
    Some(main.name()?.to_string_lossy().into_owned())
}

/// The recording programs; dropping them ends the recording.
pub struct Recorder<'obj> {
    pub skel: TraceSkel<'obj>,
    /// Which of the scheduler's programs each is for, by `pv_record.by`.
    pub names: Vec<String>,
    _links: Vec<Link>,
}

impl<'obj> Recorder<'obj> {
    /// Loads the programs and attaches them to those of the running scheduler.
    ///
    /// # Errors
    /// When no scheduler with events runs, or the kernel refuses.
    pub fn attach(object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let sources = sources()?;
        let mut open = TraceSkelBuilder::default()
            .open(object)
            .context("cannot open the recording programs")?;
        open.progs.on_entry.set_autoload(kvm_is_loaded());
        let mut left = sources.iter();
        for mut program in open.open_object_mut().progs_mut() {
            if !program.name().to_string_lossy().starts_with(ON_EVENT) {
                continue;
            }
            let Some(source) = left.next() else { break };
            program.set_autoload(true);
            program.set_attach_target(source.fd.as_raw_fd(), Some(EVENT_FUNCTION.to_owned()))?;
        }
        ensure!(
            left.next().is_none(),
            "the scheduler has events in {} programs, which are too many",
            sources.len()
        );
        let skel = open
            .load()
            .context("the kernel refused the recording programs")?;
        let mut links = Vec::new();
        for program in skel.object().progs_mut() {
            if program.autoload() {
                let link = program.attach().with_context(|| {
                    format!("cannot attach {}", program.name().to_string_lossy())
                })?;
                links.push(link);
            }
        }
        Ok(Self {
            skel,
            names: sources.into_iter().map(|source| source.name).collect(),
            _links: links,
        })
    }

    /// Records that were lost so far, as there was no room for them.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.skel.maps.bss_data.as_ref().map_or(0, |bss| bss.lost)
    }
}
