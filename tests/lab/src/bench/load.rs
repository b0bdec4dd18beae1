//! The loads, and what each is measured by.

use std::time::Duration;

use anyhow::Result;

use super::{compile, echo, messages, programs};

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// Something that a load measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub better: Better,
    /// How many times as good as the best of the others scx_pvsched is to be; `None` where the
    /// number only helps to understand others.
    pub floor: Option<f64>,
}

/// Throughput may be a little less: knowing what VMs do is not free.
const THROUGHPUT_FLOOR: f64 = 0.95;

pub const TIME: Metric = Metric {
    name: "time",
    unit: "s",
    better: Better::Lower,
    floor: Some(THROUGHPUT_FLOOR),
};
pub const RATE: Metric = Metric {
    name: "rate",
    unit: "/s",
    better: Better::Higher,
    floor: Some(THROUGHPUT_FLOOR),
};
pub const P50: Metric = Metric {
    name: "wake-up p50",
    unit: "us",
    better: Better::Lower,
    floor: None,
};
pub const P99: Metric = Metric {
    name: "wake-up p99",
    unit: "us",
    better: Better::Lower,
    floor: Some(1.0),
};
/// Of one sample in a round, so too noisy to ask anything of it.
pub const MAX: Metric = Metric {
    name: "wake-up max",
    unit: "us",
    better: Better::Lower,
    floor: None,
};

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
}

/// What a load measured.
pub type Results = Vec<(Metric, f64)>;

pub struct Load {
    pub name: &'static str,
    /// What it is, for the report.
    pub about: &'static str,
    pub run: fn(&Scale) -> Result<Results>,
}

pub const LOADS: &[Load] = &[
    Load {
        name: "hackbench",
        about: "groups of 40 processes that send messages over sockets",
        run: programs::hackbench,
    },
    Load {
        name: "hackbench-cgroup",
        about: "the same in a cgroup with a weight",
        run: programs::hackbench_in_cgroup,
    },
    Load {
        name: "switch",
        about: "stress-ng --switch: pairs of processes that wake each other",
        run: programs::switch,
    },
    Load {
        name: "pipe",
        about: "a byte to and fro between two processes, as perf bench sched pipe",
        run: echo::load,
    },
    Load {
        name: "messages",
        about: "threads that wake workers, which compute, as schbench",
        run: messages::load,
    },
    Load {
        name: "compile",
        about: "make with twice as many jobs as CPUs",
        run: compile::compile,
    },
    Load {
        name: "mixed",
        about: "the same beside a task that wakes up every few milliseconds",
        run: compile::mixed,
    },
];
