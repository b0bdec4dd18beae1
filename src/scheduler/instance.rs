// SPDX-License-Identifier: GPL-2.0-only
//! One loaded scheduler, from load to exit.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use libbpf_rs::{Link, MapCore, MapFlags, MapHandle, OpenObject};
use log::{debug, error, info, warn};
use nix::fcntl::{fcntl, FcntlArg};
use scx_stats::prelude::*;
use scx_utils::{
    compat, scx_ops_attach, scx_ops_load, scx_ops_open, uei_exited, uei_report, Topology,
    UserExitInfo,
};

use super::bpf::main_skel::{MainSkel, MainSkelBuilder};
use super::bpf::{intf, MapValue};
use super::config::{Config, ConfigFile};
use super::groups;
use super::hints::{self, Hints, Tries};
use super::monitor::write_report;
use super::options::Options;
use super::partial::Roster;
use super::placement::{self, Homes};
use super::realtime::Urgent;
use super::registry::{collect, Maps, Vms};
use super::stats::{self, Metrics};
use crate::handoff::server::{self, Server};

/// Longest time for which the main loop waits for a VMM before it looks at all else.
pub(super) const TURN: Duration = Duration::from_millis(200);

pub(super) const CANNOT_GRANT: &str = "cannot tell the BPF programs what VMs may have";

/// What signals ask for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub stop: Arc<AtomicBool>,
    /// To read the configuration again.
    pub reload: Arc<AtomicBool>,
}

/// Takes over scheduling.
///
/// Kernels without "sched_ext: Fix starvation of `scx_enable()` under fair-class saturation" hand
/// the tasks over one by one in this thread, and it is one of them: from then on it comes after all
/// that are not yet handed over. Busy ones may keep it, and with it the host, waiting for good.
fn attach(skel: &mut MainSkel<'_>) -> Result<Link> {
    let urgent = Urgent::begin();
    if let Err(error) = &urgent {
        warn!("takes over without a real-time priority, so busy tasks may delay it: {error}");
    }
    scx_ops_attach!(skel, pvsched_ops)
}

/// What the kernel and the host's topology say, as the BPF programs want it.
struct Layout {
    cpu_ids: u32,
    llc_of_cpu: BTreeMap<usize, u32>,
    cpus_of_llc: Vec<u32>,
}

impl Layout {
    fn new(topology: &Topology) -> Result<Self> {
        let mut llc_of_cpu = BTreeMap::new();
        let mut cpus_of_llc = Vec::new();
        for llc in topology.all_llcs.values() {
            let index = u32::try_from(cpus_of_llc.len())?;
            for cpu in llc.all_cpus.keys() {
                llc_of_cpu.insert(*cpu, index);
            }
            cpus_of_llc.push(u32::try_from(llc.all_cpus.len())?);
        }
        let cpu_ids = u32::try_from(*scx_utils::NR_CPU_IDS)?;
        if cpu_ids > intf::PV_MAX_CPUS {
            bail!(
                "this host has {cpu_ids} CPU ids; the limit is {}",
                intf::PV_MAX_CPUS
            );
        }
        if cpus_of_llc.is_empty() || cpus_of_llc.len() > intf::PV_MAX_LLCS as usize {
            bail!(
                "this host has {} last-level caches; the limit is {}",
                cpus_of_llc.len(),
                intf::PV_MAX_LLCS
            );
        }
        Ok(Self {
            cpu_ids,
            llc_of_cpu,
            cpus_of_llc,
        })
    }
}

/// A descriptor of a link that is higher than any other of this process. When a process dies the kernel
/// closes its descriptors from the lowest on, and lets go of the files in the opposite order. Programs at
/// functions of KVM take it a grace period of RCU tasks each, tens of seconds on a busy host, for which
/// the scheduler would stay in charge if its turn came after theirs.
fn above_all(link: &Link) -> Result<OwnedFd> {
    let mut highest = 0;
    for entry in fs::read_dir("/proc/self/fd").context("cannot read /proc")? {
        let number = entry?.file_name().to_string_lossy().parse().unwrap_or(0);
        highest = highest.max(number);
    }
    let fd = fcntl(link.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(highest + 1))?;
    // SAFETY: the kernel returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives back to the kernel what loading BPF programs needed: they are checked against the types of all
/// of the kernel. By itself the C library keeps most of that from the second time on.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Reads the configuration again. One with an error is reported and changes nothing.
pub(super) fn reload(file: &mut ConfigFile, vms: &mut Vms, handoff: &mut Server) -> Result<()> {
    if let Err(error) = file.reload() {
        error!("what VMs may have stays as it is: {error}");
        return Ok(());
    }
    let config = file.config();
    vms.configure(config.clone()).context(CANNOT_GRANT)?;
    handoff.offer(vms, config.protocols());
    Ok(())
}

/// A scheduler that is attached to the kernel.
pub struct Instance<'obj> {
    skel: MainSkel<'obj>,
    struct_ops: Option<Link>,
    /// Another descriptor of `struct_ops`, above all that are slow to be let go.
    last_fd: Option<OwnedFd>,
    vms: Vms,
    /// Not where all tasks are scheduled.
    roster: Option<Roster>,
    homes: Homes,
    handoff: Server,
    stats: StatsServer<(), Metrics>,
    stats_interval: Option<Duration>,
}

impl<'obj> Instance<'obj> {
    /// Loads the BPF programs, opens the sockets and takes over scheduling.
    ///
    /// # Errors
    /// When the kernel refuses the programs, or a socket is in use.
    pub fn start(
        options: &Options,
        config: &Config,
        object: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        // The socket first: an instance that cannot be talked to must not replace a scheduler.
        let handoff = server::Config {
            protocols: config.protocols(),
            ..Default::default()
        };
        let handoff = Server::bind(&options.socket, handoff)?;

        let open_opts = options.libbpf.clone().into_bpf_open_opts();
        let builder = MainSkelBuilder::default();
        let mut skel = scx_ops_open!(builder, object, pvsched_ops, open_opts)?;
        // After the opening, which notes how often CPUs have come and gone: the kernel refuses what is
        // attached after another time.
        let topology = placement::topology()?;
        let layout = Layout::new(&topology)?;
        let homes = Homes::new(placement::cores(&topology)?, options.smt_isolate);
        skel.struct_ops.pvsched_ops_mut().exit_dump_len = options.exit_dump_len;
        // A vCPU that has to leave a CPU does so although nobody else wants that CPU.
        skel.struct_ops.pvsched_ops_mut().flags |= *compat::SCX_OPS_ENQ_LAST;
        // Else the kernel gives a task that loses its CPU while it may not migrate, as in a BPF program
        // that KVM's hints run, the next turn there and 20 ms.
        skel.struct_ops.pvsched_ops_mut().flags |= *compat::SCX_OPS_ENQ_MIGRATION_DISABLED;
        if options.partial {
            skel.struct_ops.pvsched_ops_mut().flags |= *compat::SCX_OPS_SWITCH_PARTIAL;
        } else {
            // Of tasks that come before all of ours there are few then.
            skel.struct_ops.pvsched_ops_mut().cpu_release = std::ptr::null_mut();
        }
        if !groups::are_known()? {
            warn!("the kernel was built without CONFIG_EXT_GROUP_SCHED: cpu.weight and cpu.max have no effect");
            let ops = skel.struct_ops.pvsched_ops_mut();
            ops.cgroup_init = std::ptr::null_mut();
            ops.cgroup_exit = std::ptr::null_mut();
            ops.cgroup_move = std::ptr::null_mut();
            ops.cgroup_set_weight = std::ptr::null_mut();
            ops.cgroup_set_idle = std::ptr::null_mut();
            ops.cgroup_set_bandwidth = std::ptr::null_mut();
        }
        let tunables = skel
            .maps
            .rodata_data
            .as_mut()
            .context("the program has no tunables")?;
        tunables.slice_ns = options.slice_us * 1000;
        tunables.slice_min_ns = options.slice_min_us.min(options.slice_us) * 1000;
        tunables.irq_boost_ns = options.irq_boost_us * 1000;
        tunables.guard_ns = options.guard_us * 1000;
        tunables.partial = u32::from(options.partial);
        tunables.nr_llcs = u32::try_from(layout.cpus_of_llc.len())?;
        tunables.nr_cpu_ids = layout.cpu_ids;
        tunables.nr_cpus = u32::try_from(layout.llc_of_cpu.len())?;
        for (cpu, llc) in &layout.llc_of_cpu {
            tunables.cpu_llc[*cpu] = *llc;
        }

        let mut skel = scx_ops_load!(skel, pvsched_ops, uei)?;
        for (cpu, llc) in &layout.llc_of_cpu {
            let value = intf::pv_cpu {
                llc: *llc,
                ..intf::pv_cpu::zeroed()
            };
            let key = u32::try_from(*cpu)?;
            skel.maps
                .cpus
                .update(&key.to_ne_bytes(), &value.to_bytes(), MapFlags::ANY)?;
        }
        for (llc, cpus) in (0u32..).zip(&layout.cpus_of_llc) {
            let value = intf::pv_llc {
                cpus: *cpus,
                ..intf::pv_llc::zeroed()
            };
            skel.maps
                .llcs
                .update(&llc.to_ne_bytes(), &value.to_bytes(), MapFlags::ANY)?;
        }

        groups::make_numbers(&skel)?;

        let maps = Maps {
            tasks: MapHandle::try_from(&skel.maps.tasks)?,
            pages: MapHandle::try_from(&skel.maps.pages)?,
            dues: MapHandle::try_from(&skel.maps.dues)?,
            vms: MapHandle::try_from(&skel.maps.vms)?,
            homes: MapHandle::try_from(&skel.maps.homes)?,
        };
        let roster = options
            .partial
            .then(|| Roster::new(MapHandle::try_from(&skel.maps.tasks)?))
            .transpose()?;
        let vms = Vms::new(maps, config.clone()).context(CANNOT_GRANT)?;
        let stats = StatsServer::new(stats::server_data()).launch()?;
        let struct_ops = Some(attach(&mut skel)?);
        give_back_memory();
        info!(
            "scheduling {} {} CPUs in {} cache domains; VMMs connect to {}",
            if options.partial {
                "vCPUs on"
            } else {
                "all tasks on"
            },
            layout.llc_of_cpu.len(),
            layout.cpus_of_llc.len(),
            options.socket.display()
        );
        Ok(Self {
            skel,
            struct_ops,
            last_fd: None,
            vms,
            roster,
            homes,
            handoff,
            stats,
            stats_interval: options.stats.map(Duration::from_secs_f64),
        })
    }

    /// Serves until asked to stop or until the kernel ends the scheduler. Says how it ended.
    ///
    /// # Errors
    /// When the kernel ejected the scheduler, with its reason, or a socket failed.
    pub fn run(mut self, asked: &Asked, config: &mut ConfigFile) -> Result<UserExitInfo> {
        let (responses, requests) = self.stats.channels();
        let mut objects = hints::objects();
        let mut tries = Tries::new(&mut objects);
        let mut hints: Option<Hints> = None;
        let mut printed = (Instant::now(), Metrics::default());

        while !asked.stop.load(Ordering::Relaxed) && !uei_exited!(&self.skel, uei) {
            if hints.is_none() {
                if let Some(object) = tries.due() {
                    hints = tries.outcome(Hints::attach(&self.skel, object), Hints::live);
                    give_back_memory();
                    if hints.is_some() {
                        match self.struct_ops.as_ref().map(above_all).transpose() {
                            Ok(last_fd) => self.last_fd = last_fd,
                            Err(error) => warn!(
                                "should this process be killed, the kernel's scheduler takes over \
                                 late: {error:#}"
                            ),
                        }
                    }
                }
            }
            self.handoff
                .turn(&mut self.vms, TURN)
                .context("the handoff socket failed")?;
            self.homes
                .look(&self.vms)
                .context("cannot place exclusion groups")?;
            if let (Some(roster), Some(hints)) = (&mut self.roster, &hints) {
                for tid in hints.newcomers()? {
                    roster.take(tid);
                }
                roster.look().context("cannot look after vCPU threads")?;
            }

            groups::scale(&mut self.skel)?;
            if asked.reload.swap(false, Ordering::Relaxed) {
                reload(config, &mut self.vms, &mut self.handoff)?;
            }
            while requests.try_recv().is_ok() {
                responses.send(self.metrics(hints.as_ref())?)?;
            }
            if let Some(interval) = self.stats_interval {
                if printed.0.elapsed() >= interval {
                    let now = self.metrics(hints.as_ref())?;
                    write_report(&mut std::io::stdout().lock(), &printed.1, &now)?;
                    printed = (Instant::now(), now);
                }
            }
        }

        // Each of these waits for the kernel, on a busy host for seconds.
        debug!("closing the connections of VMMs");
        self.handoff.stop(&mut self.vms);
        debug!("leaving the kernel");
        // The scheduling first, as the rest may wait for grace periods of RCU, and those for vCPU
        // threads, which without hints are not urgent, and with policies of ours may not run at all.
        drop(self.roster.take());
        drop(self.last_fd.take());
        drop(self.struct_ops.take());
        debug!("letting KVM go");
        drop(hints);
        uei_report!(&self.skel, uei)
    }

    fn metrics(&self, hints: Option<&Hints>) -> Result<Metrics> {
        let mut metrics = Metrics {
            hint_sources: hints.map_or_else(String::new, |hints| hints.live().to_owned()),
            shared_placements: self.homes.shared(),
            nr_switched: self.roster.as_ref().map_or(0, Roster::switched),
            handed_back: self.roster.as_ref().map_or(0, Roster::handed_back),
            ..Default::default()
        };
        collect(&mut metrics, &self.vms, &self.homes, &self.skel.maps.stats)?;
        Ok(metrics)
    }
}
