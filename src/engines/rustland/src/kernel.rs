// SPDX-License-Identifier: GPL-2.0-only
//! The kernel's side: tasks by scx_rustland_core, all else by `bpf/relay.bpf.c`.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{
    MapCore, MapFlags, OpenObject, ProgramInput, ProgramMut, RingBuffer, RingBufferBuilder,
};
use log::warn;
use nix::sched::{sched_getaffinity, CpuSet};
use nix::unistd::Pid;
use scx_pvsched::policy::arithmetic::{PV_BOOST_IRQ, PV_BOOST_NONE, PV_BOOST_TASK};
use scx_pvsched::policy::{Applied, CpuId, TaskId, Weight};
use scx_pvsched::scheduler::bpf::relay_skel::{RelaySkel, RelaySkelBuilder};
use scx_pvsched::scheduler::bpf::{intf, MapValue};
use scx_pvsched::scheduler::options::Options;
use scx_pvsched::scheduler::user_space::MapIds;
use scx_utils::UserExitInfo;

use crate::bpf::{BpfScheduler, DispatchedTask, QueuedTask};
use crate::engine::{Arrival, Backend, Counts, Dispatch, Kick};
use crate::news::{News, Told};

/// How often a CPU looks whether another task was handed to it. While there is none, and that is until the
/// turn is ended here, it lets the one that runs go on.
const SLICE: u64 = 20_000_000;
/// SCX_ENQ_WAKEUP of the kernel's enum scx_enq_flags.
const WAKEUP: u64 = 1;
/// In sysfs, and for whoever asks who schedules.
const NAME: &str = "pvsched_rustland";

/// The programs that tell what happens; dropping it detaches them.
pub struct Relay<'obj> {
    /// Before the map that it reads.
    ring: RingBuffer<'static>,
    news: Rc<RefCell<Vec<News>>>,
    skel: RelaySkel<'obj>,
}

impl<'obj> Relay<'obj> {
    /// Loads and attaches them.
    ///
    /// # Errors
    /// When the kernel refuses a program.
    pub fn attach(options: &Options, object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let mut open = RelaySkelBuilder::default()
            .open(object)
            .context("cannot open the relay")?;
        scx_utils::import_enums!(open);
        let tunables = open
            .maps
            .rodata_data
            .as_mut()
            .context("the relay has no tunables")?;
        tunables.engine_tid = i32::try_from(std::process::id())?;
        tunables.irq_boost_ns = options.irq_boost_us * 1000;
        tunables.slice_ns = options.slice_us * 1000;
        tunables.nr_cpu_ids = u32::try_from(*scx_utils::NR_CPU_IDS)?;
        let mut skel = open.load().context("the kernel refused the relay")?;
        skel.attach().context("cannot attach the relay")?;
        let news = Rc::new(RefCell::new(Vec::new()));
        let found = Rc::clone(&news);
        let mut ring = RingBufferBuilder::new();
        ring.add(&skel.maps.news, move |bytes| {
            match News::parse(bytes) {
                Ok(news) => found.borrow_mut().push(news),
                Err(error) => warn!("news that nobody understands: {error:#}"),
            }
            0
        })?;
        Ok(Self {
            ring: ring.build()?,
            news,
            skel,
        })
    }

    /// Its maps, for the process that serves VMMs.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn maps(&self) -> Result<MapIds> {
        let maps = &self.skel.maps;
        Ok(MapIds {
            tasks: maps.tasks.info()?.info.id,
            pages: maps.pages.info()?.info.id,
            homes: maps.homes.info()?.info.id,
            dues: maps.dues.info()?.info.id,
            vms: maps.vms.info()?.info.id,
            cpus: maps.cpus.info()?.info.id,
            llcs: maps.llcs.info()?.info.id,
            stats: maps.stats.info()?.info.id,
            engine_stats: maps.engine_stats.info()?.info.id,
            news: maps.news.info()?.info.id,
        })
    }
}

/// All of it, as an engine wants it.
pub struct Kernel<'obj, 'relay> {
    scheduler: BpfScheduler<'obj>,
    relay: Relay<'relay>,
    /// Orders that the kernel did not take.
    failed: bool,
}

impl<'obj, 'relay> Kernel<'obj, 'relay> {
    /// Takes over scheduling.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn start(
        options: &Options,
        object: &'obj mut MaybeUninit<OpenObject>,
        relay: Relay<'relay>,
    ) -> Result<Self> {
        let scheduler = BpfScheduler::init(
            object,
            options.libbpf.clone().into_bpf_open_opts(),
            options.exit_dump_len,
            false,
            false,
            // Which CPU is for the policy to say, also where one is idle.
            false,
            false,
            SLICE,
            NAME,
        )?;
        Ok(Self {
            scheduler,
            relay,
            failed: false,
        })
    }

    /// Becomes readable when there is something to decide.
    pub fn wake_up(&self) -> BorrowedFd<'_> {
        self.relay.skel.maps.news.as_fd()
    }

    /// Whether the kernel has ended it, or a signal asks for that.
    pub fn has_ended(&mut self) -> bool {
        self.scheduler.exited()
    }

    /// Gives the host back to the kernel's own scheduler, and says why.
    ///
    /// # Errors
    /// When the kernel ejected it.
    pub fn end(&mut self) -> Result<UserExitInfo> {
        self.scheduler.shutdown_and_report()
    }

    /// Who wants a CPU, in order, since the last call.
    pub fn arrivals(&mut self) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        loop {
            match self.scheduler.dequeue_task() {
                Ok(Some(task)) => arrivals.extend(arrival(&task)),
                Ok(None) => return arrivals,
                Err(error) => {
                    warn!("cannot read who wants a CPU: error {error}");
                    return arrivals;
                }
            }
        }
    }

    /// What has happened since the last call. After [`Kernel::arrivals`]: a task that has lost its CPU
    /// arrives before the news of that.
    ///
    /// # Errors
    /// When the ring cannot be read.
    pub fn news(&mut self) -> Result<Vec<News>> {
        self.relay.ring.consume()?;
        Ok(self.relay.news.take())
    }

    /// Shows the process that serves statistics what was counted.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn show(&mut self, counts: Counts) -> Result<()> {
        let map = &self.relay.skel.maps.engine_stats;
        let key = 0u32.to_ne_bytes();
        let before = map.lookup(&key, MapFlags::ANY)?.unwrap_or_default();
        let before = intf::pv_engine_stats::from_bytes(&before)?;
        let now = intf::pv_engine_stats {
            enqueued_fair: counts.fair,
            enqueued_boost: counts.boosted,
            preempted: counts.preempted,
            bounced: *self.scheduler.nr_bounce_dispatches_mut(),
            congested: *self.scheduler.nr_sched_congested_mut(),
            ..before
        };
        map.update(&key, &now.to_bytes(), MapFlags::ANY)?;
        Ok(())
    }

    fn order(&mut self, order: intf::pv_order) {
        let mut bytes = order.to_bytes();
        let result = run(&self.relay.skel.progs.order, &mut bytes);
        self.check(result);
    }

    /// The kernel takes these as long as there is memory.
    fn check(&mut self, result: Result<(), libbpf_rs::Error>) {
        if let Err(error) = result {
            if !std::mem::replace(&mut self.failed, true) {
                warn!("the kernel does not take orders: {error}");
            }
        }
    }
}

/// Has the kernel run a program now, which may change what it is given.
fn run(program: &ProgramMut<'_>, context: &mut [u8]) -> Result<(), libbpf_rs::Error> {
    let input = ProgramInput {
        context_in: Some(context),
        ..Default::default()
    };
    program.test_run(input).map(|_| ())
}

fn arrival(task: &QueuedTask) -> Option<Arrival> {
    let weight = u32::try_from(task.weight.clamp(1, 10_000)).ok();
    Some(Arrival {
        task: TaskId(task.pid.try_into().ok()?),
        cpu: CpuId(task.cpu.try_into().ok()?),
        weight: weight.and_then(Weight::new).unwrap_or(Weight::DEFAULT),
        nr_allowed: task.nr_cpus_allowed,
        woke: task.flags & WAKEUP != 0,
        number: task.enq_cnt,
    })
}

impl Backend for Kernel<'_, '_> {
    fn dispatch(&mut self, turn: &Dispatch) -> bool {
        let (Ok(pid), Ok(cpu)) = (i32::try_from(turn.task.0), i32::try_from(turn.cpu.0)) else {
            return false;
        };
        let task = DispatchedTask {
            pid,
            cpu,
            flags: 0,
            slice_ns: SLICE,
            // The kernel compares these as times, which wrap around.
            vtime: turn.order >> 1,
            enq_cnt: turn.number,
        };
        self.scheduler.dispatch_task(&task).is_ok()
    }

    fn kick(&mut self, cpu: CpuId, how: Kick) {
        let Ok(cpu) = i32::try_from(cpu.0) else {
            return;
        };
        self.order(intf::pv_order {
            cpu,
            kick: match how {
                Kick::Look => intf::pv_kick_PV_KICK_LOOK,
                Kick::Preempt => intf::pv_kick_PV_KICK_PREEMPT,
            },
            ..intf::pv_order::zeroed()
        });
    }

    fn tell(&mut self, task: TaskId, applied: u64, boost: Applied, ahead: u64) {
        let Ok(tid) = i32::try_from(task.0) else {
            return;
        };
        self.order(intf::pv_order {
            tid,
            boost: match boost {
                Applied::BoostTask => PV_BOOST_TASK,
                Applied::BoostIrq => PV_BOOST_IRQ,
                Applied::Baseline | Applied::Throttled => PV_BOOST_NONE,
            },
            applied,
            ahead,
            ..intf::pv_order::zeroed()
        });
    }

    fn look(&mut self, task: TaskId) -> Option<Told> {
        let asked = intf::pv_news_vcpu {
            tid: i32::try_from(task.0).ok()?,
            ..intf::pv_news_vcpu::zeroed()
        };
        let mut bytes = asked.to_bytes();
        let result = run(&self.relay.skel.progs.look, &mut bytes);
        self.check(result);
        match News::parse(&bytes) {
            Ok(News::Vcpu(told)) => Some(told),
            _ => None,
        }
    }

    fn affinity(&mut self, task: TaskId) -> Option<BTreeSet<CpuId>> {
        let set = sched_getaffinity(Pid::from_raw(i32::try_from(task.0).ok()?)).ok()?;
        let cpus = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false));
        Some(
            cpus.filter_map(|cpu| u32::try_from(cpu).ok().map(CpuId))
                .collect(),
        )
    }

    fn waiting(&mut self, anybody: bool) {
        let order = intf::pv_order {
            kick: anybody.into(),
            ..intf::pv_order::zeroed()
        };
        let mut bytes = order.to_bytes();
        let result = run(&self.relay.skel.progs.set_waiting, &mut bytes);
        self.check(result);
    }
}
