//! The nested lab: boots a host VM whose kernel has sched_ext and KVM, and guests inside it, on a
//! machine that has neither.
//!
//! On the machine: [`cache`], [`root`] and [`kernels`] prepare what is costly, [`published`] builds
//! programs of others, [`host_vm`] boots.
//! Inside the host VM: [`guest`] boots guests, [`chain`] adds the scheduler and the device,
//! [`hog`] loads the host, [`latency`] measures, [`systemd`] manages services, and [`kernel_log`] has
//! what the kernel complains of. [`bench`] compares schedulers, [`matrix`] tries one host kernel after
//! another, and [`steady`] mixes everything at random. On both: [`agent`] and [`channel`] are the two
//! ends over which commands run in a machine.

pub mod accel;
pub mod agent;
pub mod barriers;
pub mod bench;
pub mod cache;
pub mod chain;
pub mod channel;
pub mod checkout;
pub mod daemon;
pub mod demo;
pub mod demo_report;
mod emulator;
pub mod guest;
mod guest_initrd;
pub mod here;
pub mod hog;
pub mod host_args;
pub mod host_vm;
mod initrd;
pub mod kernel_log;
pub mod kernels;
pub mod latency;
pub mod matrix;
mod mirror;
pub mod module;
pub mod monitor;
pub mod network;
pub mod paths;
pub mod prepare;
mod priority;
mod process;
pub mod promises;
pub mod protocol;
pub mod published;
mod qemu;
pub mod root;
pub mod steady;
pub mod survey;
pub mod systemd;
pub mod topology;
mod turns;
mod vmlinux;
pub mod wakes;
