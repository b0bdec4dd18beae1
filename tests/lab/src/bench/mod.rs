//! The benchmark: what guests and ordinary work get from scx_pvsched, from the kernel's scheduler and
//! from other sched_ext schedulers, side by side in one boot.
//!
//! Each round measures everything once under every contender, in an order that goes on by one from
//! round to round and turns around each time. Emulated processors are slow and noisy: only ratios
//! within a round mean anything, and only medians of several rounds are told.
//!
//! A new measure is a file here and a line in the list of [`measure`].
//!
//! - who: [`contender`] runs any of them, [`peers`] builds those of others, [`stage`] has the guests
//! - of guests: [`wakeup`], [`audio`], [`requests`], [`entry`], [`shares`], [`neighbours`]
//! - of the host's tasks alone: [`programs`], [`echo`], [`messages`], [`compile`]
//! - what stands in the way: [`needs`], the CPU time that some of these take whoever schedules
//! - what it costs: [`decision`] with [`bpf_programs`], [`agent`], [`boost`], and how that [`growth`] grows
//! - how: [`options`], [`rounds`], [`record`] (also of an interrupted run), and [`machine`], which tells
//!   whether the machine was left alone
//! - what came of it: [`compare`], [`targets`], [`report`], and [`page`] with [`plots`]

mod agent;
pub mod audio;
mod boost;
mod bpf_programs;
mod compare;
mod compile;
mod contender;
mod decision;
pub mod echo;
mod entry;
mod growth;
pub mod machine;
mod measure;
mod messages;
pub mod needs;
mod neighbours;
mod options;
pub mod page;
mod peers;
mod plots;
mod programs;
mod record;
mod report;
mod requests;
mod rounds;
mod shares;
mod stage;
mod targets;
mod wakeup;

use std::time::Duration;

pub use options::Options;
pub use rounds::run;

/// From the start of a scheduler or of a load to the first measurement.
const SETTLE: Duration = Duration::from_secs(1);
