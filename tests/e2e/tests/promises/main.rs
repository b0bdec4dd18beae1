//! The project's promises, a file for each kind. They share one host VM and run one at a time, as
//! there is one scheduler for all; see the library for what they have in common.

mod bench;
mod capacity;
mod cgroups;
mod chain;
mod cheat;
mod command_line;
mod config;
mod death;
mod driver;
mod engine;
mod exits;
mod fairness;
mod handoff;
mod host;
mod interrupts;
mod latency;
mod leftovers;
mod observability;
mod partial;
mod placement;
mod priority;
mod protocol;
mod service;
mod spinning;
mod steady;
mod vm;
mod weights;
