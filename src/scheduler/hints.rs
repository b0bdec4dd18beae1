// SPDX-License-Identifier: GPL-2.0-only
//! The KVM half of the BPF programs: loaded when the kvm module is there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::slice::IterMut;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapHandle, Object, OpenObject, RingBuffer, RingBufferBuilder};
use log::{info, warn};

use super::bpf::hints_skel::{HintsSkel, HintsSkelBuilder};
use super::bpf::main_skel::MainSkel;
use super::bpf::relay_kvm_skel::{RelayKvmSkel, RelayKvmSkelBuilder};
use super::options::Options;
use super::user_space::MapIds;

/// Functions of KVM that carry a hint; each is a program of `bpf/hints.bpf.c`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sources {
    timer: bool,
    irq: bool,
    wake: bool,
    /// Not a hint itself: where timers of the host's are set for those of a guest that waits.
    sched_out: bool,
    /// Only where the timer cannot be seen: kicks have many other reasons.
    kick: Option<&'static str>,
}

impl Sources {
    /// Picks from the functions that this kernel's KVM has.
    fn pick(functions: &BTreeSet<String>) -> Self {
        let has = |name: &str| functions.contains(name);
        let timer = has("apic_timer_fn");
        let kick = ["__kvm_vcpu_kick", "kvm_vcpu_kick"]
            .into_iter()
            .find(|name| has(name));
        Self {
            timer,
            irq: has("__apic_accept_irq"),
            wake: has("kvm_vcpu_wake_up"),
            sched_out: has("kvm_sched_out"),
            kick: if timer { None } else { kick },
        }
    }

    /// Those of this kernel.
    fn find() -> Result<Self> {
        let sources = Self::pick(&kvm_functions()?);
        ensure!(
            sources.timer || sources.irq || sources.kick.is_some() || sources.wake,
            "this kernel's KVM has none of the functions that carry hints"
        );
        Ok(sources)
    }

    fn describe(&self) -> String {
        let mut live = Vec::new();
        for (on, name) in [
            (self.timer, "timer"),
            (self.irq, "interrupt"),
            (self.wake, "wake-up"),
            (self.kick.is_some(), "kick"),
            (self.sched_out, "due timer"),
        ] {
            if on {
                live.push(name);
            }
        }
        live.join(", ")
    }
}

/// Chooses among the programs of an opened skeleton.
macro_rules! choose {
    ($sources:expr, $progs:expr) => {
        $progs.on_timer.set_autoload($sources.timer);
        $progs.on_irq.set_autoload($sources.irq);
        $progs.on_wake.set_autoload($sources.wake);
        $progs.on_sched_out.set_autoload($sources.sched_out);
        $progs
            .on_kick
            .set_autoload($sources.kick == Some("kvm_vcpu_kick"));
        $progs
            .on_kick_inner
            .set_autoload($sources.kick == Some("__kvm_vcpu_kick"));
    };
}

/// The attached programs; dropping it detaches them.
pub struct Hints<'obj> {
    /// Before the map that it reads.
    news: RingBuffer<'static>,
    newcomers: Rc<RefCell<Vec<u32>>>,
    _skel: HintsSkel<'obj>,
    live: String,
}

/// Whether the kvm module is loaded (or built in).
#[must_use]
pub fn kvm_is_loaded() -> bool {
    Path::new("/sys/module/kvm").exists() && Path::new("/sys/kernel/btf/kvm").exists()
}

/// How often a KVM is looked for that is missing, and one tried again at first that refused.
const RETRY: Duration = Duration::from_secs(1);

/// Room for the programs of as many tries.
pub type Objects = [MaybeUninit<OpenObject>; 8];

/// Room that is empty.
#[must_use]
pub const fn objects() -> Objects {
    [const { MaybeUninit::uninit() }; 8]
}

/// When to try to get hints from KVM: at once and, where it is missing, each second. Where it refuses,
/// as it may for a moment while its module or CPUs come and go, eight times in two minutes.
pub struct Tries<'obj> {
    objects: IterMut<'obj, MaybeUninit<OpenObject>>,
    next: Instant,
    pause: Duration,
}

impl<'obj> Tries<'obj> {
    /// The first is due at once.
    pub fn new(objects: &'obj mut Objects) -> Self {
        Self {
            objects: objects.iter_mut(),
            next: Instant::now(),
            pause: RETRY,
        }
    }

    /// Room for a try, if one is due and there is a KVM.
    pub fn due(&mut self) -> Option<&'obj mut MaybeUninit<OpenObject>> {
        if Instant::now() < self.next {
            return None;
        }
        self.next = Instant::now() + RETRY;
        kvm_is_loaded().then(|| self.objects.next()).flatten()
    }

    /// Says how a try went, and what `live` says of what is attached.
    pub fn outcome<T>(&mut self, attached: Result<T>, live: impl Fn(&T) -> &str) -> Option<T> {
        match attached {
            Ok(attached) => {
                info!("hints from KVM: {}", live(&attached));
                Some(attached)
            }
            Err(error) => {
                let again = match self.objects.len() {
                    0 => "not tried again".to_owned(),
                    _ => format!("tried again in {:?}", self.pause),
                };
                warn!("no hints from KVM, boosts start late; {again}: {error:#}");
                self.next = Instant::now() + self.pause;
                self.pause *= 2;
                None
            }
        }
    }
}

/// Lists of the kernel's functions, the cheaper one first. It is empty in a service with systemd's
/// `ProtectKernelTunables=`, and the other needs tracefs.
const FUNCTIONS: [&str; 2] = [
    "/proc/kallsyms",
    "/sys/kernel/tracing/available_filter_functions",
];

/// The functions of the kvm module; none where the kernel shows none.
///
/// # Errors
/// When no list can be read.
pub(super) fn kvm_functions() -> Result<BTreeSet<String>> {
    let mut failed = None;
    for path in FUNCTIONS {
        match fs::read_to_string(path) {
            Ok(list) => {
                let found = functions_in(&list);
                if !found.is_empty() {
                    return Ok(found);
                }
            }
            Err(error) => failed = Some(Err(error).context(format!("cannot read {path}"))),
        }
    }
    failed.unwrap_or_else(|| Ok(BTreeSet::new()))
}

/// Takes lines that end in `NAME [kvm]`.
fn functions_in(list: &str) -> BTreeSet<String> {
    list.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().rev();
            (words.next()? == "[kvm]").then_some(words.next()?.to_owned())
        })
        .collect()
}

/// Gives programs that are yet to be loaded all maps that others have by the same name.
fn share_maps(of: &Object, to: &mut OpenObject) -> Result<()> {
    for mut map in to.maps_mut() {
        let shared = of.maps().find(|of| of.name() == map.name());
        if let Some(shared) = shared {
            let name = map.name().to_owned();
            map.reuse_fd(shared.as_fd())
                .with_context(|| format!("cannot share the map {}", name.display()))?;
        }
    }
    Ok(())
}

impl<'obj> Hints<'obj> {
    /// Loads the programs with the maps and tunables of the running scheduler, and attaches them.
    ///
    /// # Errors
    /// When KVM lacks even the functions without which no hint is possible, or the kernel refuses
    /// a program.
    pub fn attach(main: &MainSkel, object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let sources = Sources::find()?;

        let mut open = HintsSkelBuilder::default()
            .open(object)
            .context("cannot open the KVM programs")?;
        choose!(sources, open.progs);

        // Without this the kernel's SCX_ constants are all zero in there, and kicks preempt nobody.
        scx_utils::import_enums!(open);
        let from = main
            .maps
            .rodata_data
            .as_ref()
            .context("the scheduler has no tunables")?;
        let to = open
            .maps
            .rodata_data
            .as_mut()
            .context("the KVM programs have no tunables")?;
        to.slice_ns = from.slice_ns;
        to.slice_min_ns = from.slice_min_ns;
        to.irq_boost_ns = from.irq_boost_ns;
        to.guard_ns = from.guard_ns;
        to.partial = from.partial;
        to.nr_llcs = from.nr_llcs;
        to.nr_cpu_ids = from.nr_cpu_ids;
        to.nr_cpus = from.nr_cpus;

        share_maps(main.object(), open.open_object_mut())?;
        let mut skel = open.load().context("the kernel refused the KVM programs")?;
        skel.attach().context("cannot attach to KVM")?;
        let newcomers = Rc::new(RefCell::new(Vec::new()));
        let found = Rc::clone(&newcomers);
        let mut news = RingBufferBuilder::new();
        news.add(&skel.maps.newcomers, move |tid| {
            if let Ok(tid) = tid.try_into() {
                found.borrow_mut().push(u32::from_ne_bytes(tid));
            }
            0
        })?;
        Ok(Self {
            news: news.build()?,
            newcomers,
            _skel: skel,
            live: sources.describe(),
        })
    }

    /// The threads that have turned out to be vCPUs since the last call; with `--partial` only.
    ///
    /// # Errors
    /// When the kernel's ring cannot be read.
    pub fn newcomers(&self) -> Result<Vec<u32>> {
        self.news.consume()?;
        Ok(self.newcomers.take())
    }

    /// The sources of hints that are live, for a person.
    #[must_use]
    pub fn live(&self) -> &str {
        &self.live
    }
}

/// The programs of `bpf/relay_kvm.bpf.c`, for an engine in user space; dropping it detaches them.
pub struct Relayed<'obj> {
    _skel: RelayKvmSkel<'obj>,
    live: String,
}

impl<'obj> Relayed<'obj> {
    /// Loads the programs with the maps of the running engine, and attaches them.
    ///
    /// # Errors
    /// As [`Hints::attach`].
    pub fn attach(
        options: &Options,
        maps: &MapIds,
        object: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        let sources = Sources::find()?;
        let mut open = RelayKvmSkelBuilder::default()
            .open(object)
            .context("cannot open the KVM programs")?;
        choose!(sources, open.progs);
        scx_utils::import_enums!(open);
        let to = open
            .maps
            .rodata_data
            .as_mut()
            .context("the KVM programs have no tunables")?;
        to.slice_ns = options.slice_us * 1000;
        to.irq_boost_ns = options.irq_boost_us * 1000;
        to.nr_cpu_ids = u32::try_from(*scx_utils::NR_CPU_IDS)?;
        let handle = MapHandle::from_map_id;
        open.maps.tasks.reuse_fd(handle(maps.tasks)?.as_fd())?;
        open.maps.pages.reuse_fd(handle(maps.pages)?.as_fd())?;
        open.maps.homes.reuse_fd(handle(maps.homes)?.as_fd())?;
        open.maps.dues.reuse_fd(handle(maps.dues)?.as_fd())?;
        open.maps.vms.reuse_fd(handle(maps.vms)?.as_fd())?;
        open.maps.cpus.reuse_fd(handle(maps.cpus)?.as_fd())?;
        open.maps.llcs.reuse_fd(handle(maps.llcs)?.as_fd())?;
        open.maps.stats.reuse_fd(handle(maps.stats)?.as_fd())?;
        open.maps.news.reuse_fd(handle(maps.news)?.as_fd())?;
        let engine_stats = handle(maps.engine_stats)?;
        open.maps.engine_stats.reuse_fd(engine_stats.as_fd())?;
        let mut skel = open.load().context("the kernel refused the KVM programs")?;
        skel.attach().context("cannot attach to KVM")?;
        Ok(Self {
            _skel: skel,
            live: sources.describe(),
        })
    }

    /// The sources of hints that are live, for a person.
    #[must_use]
    pub fn live(&self) -> &str {
        &self.live
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn functions(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_kvm_refuses_is_tried_again_after_longer_and_longer() {
        let mut objects = objects();
        let mut tries = Tries::new(&mut objects);
        for pause in [1, 2, 4] {
            assert_eq!(tries.pause, Duration::from_secs(pause));
            let outcome = tries.outcome(Err::<String, _>(anyhow!("not now")), String::as_str);
            assert_eq!(outcome, None);
            assert!(tries.due().is_none(), "that was tried just now");
        }
        let attached = tries.outcome(Ok("timer".to_owned()), String::as_str);
        assert_eq!(attached.as_deref(), Some("timer"));
    }

    #[test]
    fn only_functions_of_kvm_count() {
        let text =
            "0000000000000000 t apic_timer_fn\t[kvm]\n0000 T kvm_vcpu_kick [other]\n0000 T x\n";
        assert_eq!(functions_in(text), functions(&["apic_timer_fn"]));
        let text = "vfs_read\napic_timer_fn [kvm]\nkvm_vcpu_kick [other]\n";
        assert_eq!(functions_in(text), functions(&["apic_timer_fn"]));
    }

    #[test]
    fn kicks_serve_only_where_the_timer_cannot_be_seen() {
        let both = Sources::pick(&functions(&["apic_timer_fn", "__kvm_vcpu_kick"]));
        assert_eq!((both.timer, both.kick), (true, None));
        let neither = Sources::pick(&functions(&["kvm_vcpu_kick"]));
        assert_eq!(
            (neither.timer, neither.kick),
            (false, Some("kvm_vcpu_kick"))
        );
        assert_eq!(neither.describe(), "kick");
    }
}
