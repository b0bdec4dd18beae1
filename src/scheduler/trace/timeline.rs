// SPDX-License-Identifier: GPL-2.0-only
//! What was recorded, as tracks: one for each CPU with what it runs, one for each vCPU with where
//! it is, why it is ahead, and what happens to it.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use super::super::bpf::intf;
use super::json::{facts, Facts, Heading, TraceFile, Track};
use super::words::{cause, hint_name, rank_name, Verdict};

/// A vCPU that was handed over, as the statistics have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Number of its VM, which is unique.
    pub vm: u32,
    pub vm_name: String,
    pub apic_id: u32,
}

/// Whom the scheduler knows, by thread id.
pub type Names = HashMap<i32, Known>;

/// Names of threads, by thread id.
pub type Comms = HashMap<i32, String>;

/// Where a vCPU is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Unknown,
    Sleeps,
    Waits,
    Runs,
}

struct Vcpu {
    name: String,
    track: Track,
    place: Place,
    /// In force while it runs; about to be while it does not.
    boost: Verdict,
    /// A slice for it has begun.
    boosted: bool,
    /// Where it waits once it has left the CPU.
    queue: Option<(u32, Verdict)>,
}

struct Cpu {
    track: Track,
    busy: bool,
}

/// What is in a trace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub records: u64,
    pub vcpus: usize,
    pub boosts: u64,
}

/// Turns records, in the order of time, into a file.
pub struct Timeline<W: Write> {
    file: TraceFile<W>,
    /// Which of the scheduler's programs a record is of.
    programs: Vec<String>,
    names: Names,
    comms: Comms,
    cpu_heading: Heading,
    cpus: BTreeMap<i32, Cpu>,
    vm_headings: BTreeMap<Option<u32>, Heading>,
    vcpus: HashMap<i32, Vcpu>,
    counts: Counts,
    last: u64,
}

impl<W: Write> Timeline<W> {
    /// Begins a file; `programs` has the names of the scheduler's programs by `pv_record.by`, `comms`
    /// those of threads that might be told of before they run.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn new(out: W, programs: Vec<String>, names: Names, comms: Comms) -> io::Result<Self> {
        let mut file = TraceFile::new(out)?;
        let cpu_heading = file.heading("CPUs")?;
        Ok(Self {
            file,
            programs,
            names,
            comms,
            cpu_heading,
            cpus: BTreeMap::new(),
            vm_headings: BTreeMap::new(),
            vcpus: HashMap::new(),
            counts: Counts::default(),
            last: 0,
        })
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.file.written()
    }

    /// Whether there is a vCPU of which no name is known.
    pub fn wants_names(&self) -> bool {
        self.vcpus.keys().any(|tid| !self.names.contains_key(tid))
    }

    /// Names for vCPUs that are seen for the first time from now on.
    pub fn set_names(&mut self, names: Names) {
        self.names = names;
    }

    /// Ends the file, and says what is in it.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn finish(self, about: &Facts) -> io::Result<(W, Counts)> {
        let counts = Counts {
            vcpus: self.vcpus.len(),
            ..self.counts
        };
        Ok((self.file.finish(self.last, about)?, counts))
    }

    /// Adds one record.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn add(&mut self, record: &intf::pv_record) -> io::Result<()> {
        self.counts.records += 1;
        self.last = self.last.max(record.at);
        match record.what {
            intf::pv_recorded_PV_RECORDED_SWITCH => self.switch(record),
            intf::pv_recorded_PV_RECORDED_ENTRY => self.happens(record, "guest entry", facts!()),
            intf::pv_event_PV_EVENT_HINT => {
                let facts = facts! { "worth": rank_name(record.more), "by": self.by(record) };
                self.happens(record, &format!("hint: {}", hint_name(record.value)), facts)
            }
            intf::pv_event_PV_EVENT_REFUSED => {
                let why = match u32::try_from(record.value) {
                    Ok(intf::pv_refusal_PV_REFUSED_AHEAD) => "too far ahead of its share",
                    Ok(intf::pv_refusal_PV_REFUSED_SPENT) => "budget spent",
                    _ => "unknown",
                };
                let facts = facts! { "worth": rank_name(record.more), "by": self.by(record) };
                self.happens(record, &format!("hint refused: {why}"), facts)
            }
            intf::pv_event_PV_EVENT_QUEUED => self.queued(record),
            intf::pv_event_PV_EVENT_BOOST => self.boost(record),
            intf::pv_event_PV_EVENT_SPENT => {
                let which = match u32::try_from(record.value) {
                    Ok(crate::policy::arithmetic::PV_BOOST_TASK) => "tasks",
                    _ => "interrupts",
                };
                let name = format!("throttled: budget for {which} spent");
                let facts = facts! { "by": self.by(record) };
                self.happens(record, &name, facts)
            }
            intf::pv_event_PV_EVENT_PREEMPT => {
                let name = format!("preempt for {}", self.name(record.tid));
                let facts = facts! { "rank": rank_name(record.more), "by": self.by(record) };
                self.on_cpu(record, &name, facts)
            }
            intf::pv_event_PV_EVENT_YIELD => {
                let from = i32::try_from(record.value).unwrap_or_default();
                let name = format!("directed yield from {}", self.name(from));
                self.happens(record, &name, facts!())
            }
            intf::pv_event_PV_EVENT_GUARD => self.on_cpu(record, "guard: fair turn", facts!()),
            // Of a newer scheduler: what it means is not known here.
            _ => Ok(()),
        }
    }

    /// The scheduler's program that a record is of.
    fn by(&self, record: &intf::pv_record) -> &str {
        let by = usize::try_from(record.by).unwrap_or(usize::MAX);
        self.programs.get(by).map_or("", String::as_str)
    }

    /// How a task is called in what is told of others.
    fn name(&self, tid: i32) -> String {
        if let Some(vcpu) = self.vcpus.get(&tid) {
            return vcpu.name.clone();
        }
        if let Some(known) = self.names.get(&tid) {
            return known.name();
        }
        self.comms
            .get(&tid)
            .cloned()
            .unwrap_or_else(|| format!("thread {tid}"))
    }

    fn cpu(&mut self, cpu: i32) -> io::Result<&mut Cpu> {
        if !self.cpus.contains_key(&cpu) {
            let order = u32::try_from(cpu).unwrap_or_default();
            let track = self
                .file
                .track(self.cpu_heading, &format!("CPU {cpu}"), order)?;
            self.cpus.insert(cpu, Cpu { track, busy: false });
        }
        Ok(self.cpus.get_mut(&cpu).expect("it was just made"))
    }

    /// The vCPU with this thread id, which is one because something was told of it.
    fn vcpu(&mut self, tid: i32) -> io::Result<&mut Vcpu> {
        if !self.vcpus.contains_key(&tid) {
            let known = self.names.get(&tid).cloned();
            let vm = known.as_ref().map(|known| known.vm);
            if !self.vm_headings.contains_key(&vm) {
                let name = known
                    .as_ref()
                    .map_or("VMs that nobody has handed over".to_owned(), |known| {
                        format!("VM {}", known.vm_name)
                    });
                let heading = self.file.heading(&name)?;
                self.vm_headings.insert(vm, heading);
            }
            let (name, title, order) = match known {
                Some(known) => {
                    let title = format!("vCPU {} (thread {tid})", known.apic_id);
                    (known.name(), title, known.apic_id)
                }
                None => {
                    let comm = self.comms.get(&tid).map_or("vCPU", String::as_str);
                    let title = format!("{comm} (thread {tid})");
                    (title.clone(), title, u32::try_from(tid).unwrap_or_default())
                }
            };
            let track = self.file.track(self.vm_headings[&vm], &title, order)?;
            let vcpu = Vcpu {
                name,
                track,
                place: Place::Unknown,
                boost: Verdict::NONE,
                boosted: false,
                queue: None,
            };
            self.vcpus.insert(tid, vcpu);
        }
        Ok(self.vcpus.get_mut(&tid).expect("it was just made"))
    }

    /// Something without length on a vCPU's track.
    fn happens(&mut self, record: &intf::pv_record, name: &str, facts: Facts) -> io::Result<()> {
        let track = self.vcpu(record.tid)?.track;
        self.file.instant(track, record.at, name, facts)
    }

    /// The same on the track of the CPU in `value`.
    fn on_cpu(&mut self, record: &intf::pv_record, name: &str, facts: Facts) -> io::Result<()> {
        let cpu = i32::try_from(record.value).unwrap_or_default();
        let track = self.cpu(cpu)?.track;
        self.file.instant(track, record.at, name, facts)
    }

    fn switch(&mut self, record: &intf::pv_record) -> io::Result<()> {
        let (at, next) = (record.at, record.tid);
        let prev = i32::try_from(record.value).unwrap_or_default();
        let was_busy = std::mem::replace(&mut self.cpu(record.cpu)?.busy, next != 0);
        let track = self.cpu(record.cpu)?.track;
        if was_busy {
            self.file.end(track, at, facts!())?;
        }
        if next != 0 {
            self.comms.insert(next, comm_of(record));
            let name = self.name(next);
            self.file
                .begin(track, at, &name, facts! { "thread": next })?;
        }
        if self.is_vcpu(prev) {
            self.leaves(prev, at, record.more != 0)?;
        }
        if self.is_vcpu(next) {
            self.runs(next, at, record.cpu)?;
        }
        Ok(())
    }

    fn is_vcpu(&self, tid: i32) -> bool {
        self.vcpus.contains_key(&tid) || self.names.contains_key(&tid)
    }

    fn runs(&mut self, tid: i32, at: u64, cpu: i32) -> io::Result<()> {
        // Only if records were lost.
        self.close_boost(tid, at, "not recorded", "")?;
        let vcpu = self.vcpu(tid)?;
        (vcpu.place, vcpu.queue) = (Place::Runs, None);
        let track = vcpu.track;
        self.file.end(track, at, facts!())?;
        let name = format!("runs on CPU {cpu}");
        self.file.begin(track, at, &name, facts! { "cpu": cpu })?;
        self.open_boost(tid, at)
    }

    fn leaves(&mut self, tid: i32, at: u64, runnable: bool) -> io::Result<()> {
        let why = if runnable { "turn over" } else { "vCPU sleeps" };
        self.close_boost(tid, at, why, "")?;
        let vcpu = self.vcpu(tid)?;
        vcpu.boost = Verdict::NONE;
        vcpu.place = if runnable {
            Place::Waits
        } else {
            Place::Sleeps
        };
        let queue = vcpu.queue.take();
        let track = vcpu.track;
        self.file.end(track, at, facts!())?;
        if runnable {
            let (queue, verdict) = queue.unwrap_or((intf::pv_queue_PV_QUEUE_FAIR, Verdict::NONE));
            self.open_wait(track, at, queue, verdict)
        } else {
            self.file.begin(track, at, "sleeps", facts!())
        }
    }

    /// A vCPU waits from now on, or elsewhere than before. One that runs loses the CPU just now.
    fn queued(&mut self, record: &intf::pv_record) -> io::Result<()> {
        let queue = u32::try_from(record.value).unwrap_or(intf::pv_queue_PV_QUEUE_FAIR);
        let verdict = Verdict::from(record.more);
        let vcpu = self.vcpu(record.tid)?;
        let track = vcpu.track;
        if vcpu.place == Place::Runs {
            vcpu.queue = Some((queue, verdict));
            return Ok(());
        }
        vcpu.place = Place::Waits;
        self.file.end(track, record.at, facts!())?;
        self.open_wait(track, record.at, queue, verdict)
    }

    fn open_wait(&mut self, track: Track, at: u64, queue: u32, verdict: Verdict) -> io::Result<()> {
        let name = match queue {
            intf::pv_queue_PV_QUEUE_AHEAD => format!("waits ahead: {}", cause(verdict)),
            intf::pv_queue_PV_QUEUE_HELD => "held back by cpu.max".to_owned(),
            _ => "waits".to_owned(),
        };
        self.file.begin(track, at, &name, facts!())
    }

    /// A judgement is in force: for a vCPU that runs, or that is about to.
    fn boost(&mut self, record: &intf::pv_record) -> io::Result<()> {
        let (tid, at) = (record.tid, record.at);
        let verdict = Verdict::from(record.value);
        let by = self.by(record).to_owned();
        let vcpu = self.vcpu(tid)?;
        let (track, runs) = (vcpu.track, vcpu.place == Place::Runs);
        let before = std::mem::replace(&mut vcpu.boost, verdict);
        if runs && before == verdict {
            return Ok(());
        }
        let why = if verdict.is_boost() {
            "another cause"
        } else if record.more != 0 {
            "budget spent"
        } else if before.is_for_task() {
            "nothing urgent is left"
        } else {
            "interrupt taken"
        };
        self.close_boost(tid, at, why, &by)?;
        if verdict.is_boost() {
            self.counts.boosts += 1;
            let facts = facts! { "rank": rank_name(verdict.rank()), "by": by };
            let name = format!("boost begins: {}", cause(verdict));
            self.file.instant(track, at, &name, facts)?;
        }
        if runs {
            self.open_boost(tid, at)?;
        }
        Ok(())
    }

    /// What is in force for a vCPU that runs.
    fn open_boost(&mut self, tid: i32, at: u64) -> io::Result<()> {
        let vcpu = self.vcpu(tid)?;
        let (track, boost) = (vcpu.track, vcpu.boost);
        vcpu.boosted = boost.is_boost();
        if !boost.is_boost() {
            return Ok(());
        }
        let facts = facts! { "rank": rank_name(boost.rank()) };
        self.file
            .begin(track, at, &format!("boost: {}", cause(boost)), facts)
    }

    fn close_boost(&mut self, tid: i32, at: u64, why: &str, by: &str) -> io::Result<()> {
        let vcpu = self.vcpu(tid)?;
        let track = vcpu.track;
        if !std::mem::take(&mut vcpu.boosted) {
            return Ok(());
        }
        self.file.end(track, at, facts! { "ended": why })?;
        let facts = if by.is_empty() {
            facts!()
        } else {
            facts! { "by": by }
        };
        self.file
            .instant(track, at, &format!("boost ends: {why}"), facts)
    }
}

impl Known {
    fn name(&self) -> String {
        format!("{} vCPU {}", self.vm_name, self.apic_id)
    }
}

/// The name of the task that begins.
fn comm_of(record: &intf::pv_record) -> String {
    let bytes: Vec<u8> = record
        .comm
        .iter()
        .map(|c| c.cast_unsigned())
        .take_while(|c| *c != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
