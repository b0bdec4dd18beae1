// SPDX-License-Identifier: GPL-2.0-only
//! The scheduler process: checks the host, loads the BPF programs, serves the handoff socket and
//! the statistics, and reports why it ended.
//!
//! - [`options`]: the command line
//! - [`config`]: what each VM may have, from a file that can be changed meanwhile
//! - [`preflight`]: what must be true of the host, with an error that says what to do
//! - [`bpf`]: the generated skeletons and the map values
//! - [`instance`]: one loaded scheduler, from load to exit
//! - [`user_space`]: the same for an engine that decides in user space, in a process of its own
//! - [`hints`]: the KVM half, which comes and goes with the kvm module
//! - [`groups`]: what weights of cgroups need of this process
//! - [`registry`]: the VMs that were handed over
//! - [`partial`]: which threads are scheduled where not all are
//! - [`placement`]: CPUs for the vCPUs of exclusion groups
//! - [`realtime`]: priority over those whom it schedules
//! - [`measure`]: how long interrupts wait, whoever schedules
//! - [`trace`]: a file of what the running instance decides, for Perfetto
//! - [`stats`]: every counter with its description
//! - [`columns`]: text of 80 columns
//! - [`monitor`]: the statistics as text

pub mod bpf;
pub mod columns;
pub mod config;
pub mod groups;
pub mod hints;
pub mod instance;
pub mod measure;
pub mod monitor;
pub mod options;
pub mod partial;
pub mod placement;
pub mod preflight;
pub mod realtime;
pub mod registry;
pub mod stats;
pub mod trace;
pub mod user_space;
