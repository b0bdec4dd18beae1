//! What is measured, and the numbers that each measure gives.

use std::borrow::Cow;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::contender::{Contender, Running};
use super::stage::Stage;
use super::{
    agent, audio, boost, compile, decision, echo, entry, messages, neighbours, programs, requests,
    shares, wakeup,
};
use crate::latency::Histogram;

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Higher,
    Lower,
}

/// A number that a measure gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub name: Cow<'static, str>,
    pub unit: Cow<'static, str>,
    pub better: Better,
    /// How many times as good as the best of the others scx_pvsched is to be; `None` where the
    /// number only helps to understand others.
    pub floor: Option<f64>,
}

/// Throughput may be a little less: knowing what VMs do is not free.
const THROUGHPUT_FLOOR: f64 = 0.95;

impl Metric {
    pub const fn new(name: &'static str, unit: &'static str, better: Better) -> Self {
        Self {
            name: Cow::Borrowed(name),
            unit: Cow::Borrowed(unit),
            better,
            floor: None,
        }
    }

    /// With what is asked of it.
    pub const fn at_least(mut self, floor: f64) -> Self {
        self.floor = Some(floor);
        self
    }
}

pub const TIME: Metric = Metric::new("time", "s", Better::Lower).at_least(THROUGHPUT_FLOOR);
pub const RATE: Metric = Metric::new("rate", "/s", Better::Higher).at_least(THROUGHPUT_FLOOR);
pub const P50: Metric = Metric::new("wake-up p50", "us", Better::Lower);
pub const P90: Metric = Metric::new("wake-up p90", "us", Better::Lower);
pub const P99: Metric = Metric::new("wake-up p99", "us", Better::Lower).at_least(1.0);
/// Of one sample in a round, so too noisy to ask anything of it.
pub const MAX: Metric = Metric::new("wake-up max", "us", Better::Lower);
/// A guest's, which is what scx_pvsched is for.
pub const GUEST_P99: Metric = P99.at_least(8.0);
/// CPU time of busy host tasks, of what is theirs by weight.
pub const HOST_SHARE: Metric = Metric::new("host tasks", "of share", Better::Higher);
/// The same of the vCPUs of a busy guest.
pub const VM_SHARE: Metric = Metric::new("vCPUs", "of share", Better::Higher);

/// How often a vCPU was too far ahead of its share for a boost. Where that happens its urgent tasks wait as
/// others do: they take more than the share.
const SPENT: Metric = Metric::new("budget spent", "times", Better::Lower);

/// How much to do.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// CPUs of the machine.
    pub cpus: usize,
    /// A third of it.
    pub quick: bool,
}

impl Scale {
    pub fn count(&self, full: u32) -> u32 {
        if self.quick {
            (full / 3).max(1)
        } else {
            full
        }
    }

    pub fn duration(&self, full: Duration) -> Duration {
        if self.quick {
            full / 3
        } else {
            full
        }
    }

    /// Host tasks that make the host busy: there is always one that waits.
    pub fn hogs(&self) -> usize {
        2 * self.cpus
    }
}

/// Numbers.
pub type Results = Vec<(Metric, f64)>;

/// What a measure of a guest gives.
#[derive(Debug, Default)]
pub struct Outcome {
    pub results: Results,
    /// The distribution behind them, where there is one.
    pub latency: Option<Histogram>,
}

impl From<Results> for Outcome {
    fn from(results: Results) -> Self {
        Self {
            results,
            latency: None,
        }
    }
}

/// Where a measure takes place.
pub struct Scene<'a> {
    pub stage: &'a mut Stage,
    pub contender: &'a Contender,
    pub running: &'a mut Running,
    pub scale: Scale,
    /// From 0 on, and how many there are.
    pub round: usize,
    pub rounds: usize,
}

impl Scene<'_> {
    /// Busy host tasks; none for the floor.
    pub fn hogs(&self) -> usize {
        match self.contender {
            Contender::Floor => 0,
            _ => self.scale.hogs(),
        }
    }

    /// Takes a measure of a guest here, and sees how often budgets were spent meanwhile.
    pub fn of_guest(&mut self, measure: fn(&mut Scene) -> Result<Outcome>) -> Result<Outcome> {
        let before = self.spent()?;
        let mut outcome = measure(self)?;
        #[allow(clippy::cast_precision_loss)]
        let times = |before, after: u64| after.saturating_sub(before) as f64;
        if let (Some(before), Some(after)) = (before, self.spent()?) {
            outcome.results.push((SPENT, times(before, after)));
        }
        Ok(outcome)
    }

    /// How often budgets have been spent since the scheduler started; `None` where there are none.
    fn spent(&self) -> Result<Option<u64>> {
        match self.running.pvsched() {
            Ok(scheduler) if self.contender.cooperates() => {
                Ok(scheduler.stats()?["throttled_task"].as_u64())
            }
            _ => Ok(None),
        }
    }

    /// Whether what a guest's work needs is to be found out here; a quick run has no time for it.
    pub fn finds_needs(&self) -> bool {
        matches!(self.contender, Contender::Floor) && !self.scale.quick
    }
}

pub enum Run {
    /// Of tasks of the host; no VM runs for it.
    Host(fn(&Scale) -> Result<Results>),
    /// Of a guest, which the scheduler has when it begins.
    Guest(fn(&mut Scene) -> Result<Outcome>),
    /// Of the scheduler itself, which the kernel's is not asked for.
    Scheduler(fn(&mut Scene) -> Result<Outcome>),
    /// Of what only scx_pvsched has.
    Ours(fn(&mut Scene) -> Result<Outcome>),
}

pub struct Measure {
    pub name: &'static str,
    /// What it is, for the report.
    pub about: &'static str,
    /// About how many seconds it takes on two emulated processors.
    pub seconds: u32,
    pub run: Run,
}

impl Measure {
    /// Whether there is something to be learnt of this contender.
    pub fn concerns(&self, contender: &Contender) -> bool {
        match self.run {
            Run::Host(_) => !matches!(
                contender,
                Contender::Floor | Contender::Chrt | Contender::Unmodified(_)
            ),
            Run::Guest(_) => {
                !matches!(contender, Contender::Floor) || !WITHOUT_FLOOR.contains(&self.name)
            }
            Run::Scheduler(_) => matches!(
                contender,
                Contender::Peer(_)
                    | Contender::Base(..)
                    | Contender::Engine(_)
                    | Contender::Pvsched(_)
            ),
            Run::Ours(_) => matches!(contender, Contender::Pvsched(_)),
        }
    }

    /// Whether the batch VM has to be there, too.
    pub fn needs_batch(&self) -> bool {
        self.name.starts_with("neighbours")
    }

    /// Whether a VM has to be there.
    pub fn has_guest(&self) -> bool {
        matches!(self.run, Run::Guest(_) | Run::Ours(_))
    }
}

/// Who gets how much of an idle host is no question.
const WITHOUT_FLOOR: &[&str] = &["shares"];

pub const MEASURES: &[Measure] = &[
    Measure {
        name: "wakeup",
        about: "a FIFO task of a busy guest that sleeps for 10 ms, beside busy host tasks",
        seconds: 17,
        run: Run::Guest(wakeup::measure),
    },
    Measure {
        name: "audio",
        about: "a FIFO task of a busy guest that works for a twentieth of each 1.33 ms, beside a busy host task for each CPU",
        seconds: 17,
        run: Run::Guest(audio::short),
    },
    Measure {
        name: "audio-256",
        about: "the same with periods of 5.33 ms, as of 256 frames at 48 kHz",
        seconds: 17,
        run: Run::Guest(audio::long),
    },
    Measure {
        name: "requests",
        about: "memcached in a busy guest, as a FIFO task, asked over virtio-net, beside busy host tasks",
        seconds: 21,
        run: Run::Guest(requests::measure),
    },
    Measure {
        name: "entry",
        about: "from a device interrupt's acceptance for a vCPU of a busy guest to guest mode, beside busy host tasks",
        seconds: 17,
        run: Run::Guest(entry::measure),
    },
    Measure {
        name: "shares",
        about: "CPU time by weight: a busy guest with a FIFO task that sleeps and wakes up, host tasks of nice 0 and of nice 5",
        seconds: 17,
        run: Run::Guest(shares::measure),
    },
    Measure {
        name: "neighbours-2",
        about: "wakeup with a busy batch VM in place of the host tasks: two vCPUs for each CPU",
        seconds: 17,
        run: Run::Guest(neighbours::two),
    },
    Measure {
        name: "neighbours-4",
        about: "the same with four vCPUs for each CPU",
        seconds: 17,
        run: Run::Guest(neighbours::four),
    },
    Measure {
        name: "decision",
        about: "what the scheduler itself uses while threads wake workers: its BPF programs, its process, its memory",
        seconds: 5,
        run: Run::Scheduler(decision::measure),
    },
    Measure {
        name: "agent",
        about: "what it costs a guest to publish: a byte to and fro within it, on an idle host",
        seconds: 20,
        run: Run::Ours(agent::measure),
    },
    Measure {
        name: "boost",
        about: "from a VM's start to its first boosts, with a FIFO task as soon as its agent runs",
        seconds: 20,
        run: Run::Ours(boost::measure),
    },
    Measure {
        name: "hackbench",
        about: "groups of 40 processes that send messages over sockets",
        seconds: 5,
        run: Run::Host(programs::hackbench),
    },
    Measure {
        name: "hackbench-cgroup",
        about: "the same in a cgroup with a weight",
        seconds: 5,
        run: Run::Host(programs::hackbench_in_cgroup),
    },
    Measure {
        name: "switch",
        about: "stress-ng --switch: pairs of processes that wake each other",
        seconds: 5,
        run: Run::Host(programs::switch),
    },
    Measure {
        name: "pipe",
        about: "a byte to and fro between two processes, as perf bench sched pipe",
        seconds: 4,
        run: Run::Host(echo::load),
    },
    Measure {
        name: "messages",
        about: "threads that wake workers, which compute, as schbench",
        seconds: 5,
        run: Run::Host(messages::measure),
    },
    Measure {
        name: "compile",
        about: "make with twice as many jobs as CPUs",
        seconds: 7,
        run: Run::Host(compile::compile),
    },
    Measure {
        name: "mixed",
        about: "the same beside a task that wakes up every few milliseconds",
        seconds: 7,
        run: Run::Host(compile::mixed),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_measures_differ() {
        let mut names: Vec<_> = MEASURES.iter().map(|measure| measure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), MEASURES.len());
    }

    #[test]
    fn a_metric_survives_a_report() {
        let text = serde_json::to_string(&GUEST_P99).unwrap();
        assert_eq!(serde_json::from_str::<Metric>(&text).unwrap(), GUEST_P99);
    }

    #[test]
    fn a_floor_is_no_contender_for_host_tasks_alone() {
        let of = |name: &str| {
            MEASURES
                .iter()
                .find(|measure| measure.name == name)
                .unwrap()
        };
        assert!(!of("hackbench").concerns(&Contender::Floor));
        assert!(of("wakeup").concerns(&Contender::Floor));
        assert!(!of("shares").concerns(&Contender::Floor));
        assert!(!of("decision").concerns(&Contender::Kernel));
        assert!(of("agent").concerns(&Contender::Pvsched(Vec::new())));
        assert!(!of("agent").concerns(&Contender::Unmodified(Vec::new())));
    }
}
