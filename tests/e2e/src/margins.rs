//! How far a measured value may be from the ideal one. All in one place, with the reasons, as they
//! are judgements: too tight and a noisy machine fails the test, too wide and nothing does.

use std::time::Duration;

/// A guest's real-time task: its p90 wake-up latency on a loaded host, of that under the kernel's
/// own scheduler in the same boot. What the project promises; measured: 0.12 to 0.35.
pub const LATENCY_OF_KERNELS: f64 = 1.0 / 3.0;

/// The same latency, of that on an idle host in the same boot, which nobody can beat. What the
/// project promises; measured: 1.2 to 1.6 on 6.18, 1.5 to 2.0 on 7.3, and far more in the rare rounds of
/// which the README tells.
pub const LATENCY_OF_FLOOR: f64 = 2.0;

/// The p90 of a real-time task in a busy guest with the engine in user space, of that under the kernel's scheduler;
/// measured: 0.09 to 0.17, and 4 to 5 while its boosts did not end in time. The kernel's is better on later kernels.
pub const ENGINE_OF_KERNELS: f64 = 1.0;

/// A turn of a busy vCPU for which two host tasks wait, whose guest does not publish. Two milliseconds is
/// its part of a slice; measured: 2.4 to 2.5, and 4.1 where turns end at ticks.
pub const SILENT_TURN_MS: f64 = 3.2;

/// From an interrupt's acceptance for a vCPU to guest mode: the p99 on a loaded host, of that under the
/// kernel's own scheduler in the same boot. What the project promises; measured: 0.07 to 0.19.
pub const INTERRUPT_OF_KERNELS: f64 = 1.0 / 5.0;

/// CPU time of a busy guest that takes interrupts, of its fair share. What the project promises is 3 %;
/// slices end at ticks, of which there are 2500 in 10 s.
pub const SHARE_OF_INTERRUPTED: (f64, f64) = (0.97, 1.03);

/// The p90 of ordinary tasks in a guest that places them, of that without, where one of two physical
/// CPUs has no room. What the project promises; measured: 0.06 to 0.13 in rounds that were slow without.
pub const PLACED_OF_UNPLACED: f64 = 1.0 / 3.0;

/// The p90 of a task whose vCPU has to wait for the other VM's bursts of 30 ms, of one that does
/// not: the bursts meet more than a tenth of the wake-ups.
pub const LOWER_PRIORITY_WAITS: f64 = 3.0;

/// What the host's tasks must keep of their rate under the kernel's own scheduler.
pub const HOST_RATE: f64 = 0.90;

/// CPU time of a guest that always wants to be boosted, of its fair share. The boost budget lets it
/// run ahead by 0.1 s a vCPU, which is 3 % of its share of 10 s; the rest is for QEMU's other threads.
/// Measured: 0.99 to 1.00.
pub const GREEDY_GUEST_SHARE: f64 = 1.06;

/// What each of the host's tasks beside it must get of their fair share.
pub const BESIDE_GREEDY_GUEST_SHARE: f64 = 0.95;

/// Percent of its wake-ups that a guest's real-time task must have had beside three busy vCPUs for
/// each CPU, and their p99. Measured: 100, and 1 to 2 ms; with a budget that was spent in vain half of
/// the wake-ups, and 370 ms.
pub const WAKE_UPS_HAD: u64 = 90;
pub const TAIL_BESIDE_NEIGHBOUR_US: u64 = 30_000;

/// How late a real-time task of a busy guest runs that another of its CPUs wakes: the p90 on a loaded
/// host, of that under the kernel's own scheduler in the same boot. What is late is those for which the
/// waking vCPU lost its CPU with the lock of the other's run queue held. Measured: 0.25 to 1.8, as medians of three
/// rounds 1.07 and 0.35 on 6.18, 0.33 on 7.3; 3.3 where the vCPU was put ahead in the place of the one that woke it.
pub const WOKEN_OF_KERNELS: f64 = 1.6;

/// How many times as many barriers between its vCPUs, two for each CPU, a guest must do as under the
/// kernel's scheduler. Measured: 1.5 to 2.0 on 6.18, and 0.63 to 0.95 on 7.3, whose own scheduler does twice
/// as many as that of 6.18. Where neither interrupts nor yields put a vCPU ahead it was 0.31 to 0.36 on 7.3.
pub const BARRIERS_OF_KERNELS: f64 = 0.5;

/// How much longer, in nine of ten times, workers of all CPUs may take than on an idle host, where they took 2 to 7 ms.
/// Measured: 0.8 to 1.1 ms in all, and 3.3 to 5.6 ms with the engine in user space. Where a boosted vCPU took its CPU
/// back from one at once it was 16 to 29 ms longer.
pub const KERNEL_THREADS_WAIT: Duration = Duration::from_millis(8);

/// What each of the host's tasks beside a guest that lies in its pages must get of their fair share over
/// 10 s. What the project promises; measured: 0.989 to 1.00.
pub const BESIDE_LIAR_SHARE: f64 = 0.97;

/// The longest that a host task may sleep beyond its time beside a guest that always wants a boost, and
/// has spent its budget: measured 7 to 16 ms, which is two turns of two vCPUs. Where a budget has to be
/// repaid all at once, it is that budget, 100 ms.
pub const OVERSLEPT_BESIDE_LIAR: Duration = Duration::from_millis(60);

/// The same beside one that wants to be put last at times, and is owed what it leaves to others: the
/// budget by which it may be ahead, 100 ms, and half of that for the emulated machine.
pub const OVERSLEPT_BESIDE_CAPRICE: Duration = Duration::from_millis(150);

/// The times that two tasks of nice 0 and 5 get differ by 1024/335 = 3.06.
pub const NICE_5_RATIO: (f64, f64) = (2.3, 4.0);

/// What cgroups get of what their weights make their shares; slices end at ticks.
pub const SHARE_BY_WEIGHT: (f64, f64) = (0.95, 1.05);

/// Context switches of a load in a cgroup, of those of the same load outside. 0.7 to 1.1 as it should be; 2.5
/// to 5 where its tasks waited by what they were charged in other units of virtual time.
pub const LIKE_TURNS: f64 = 1.8;

/// What a cgroup with cpu.idle may get, of one with a weight of 300. Its own is 3/1024 of 100; a turn may
/// last for two slices, in 8 s.
pub const IDLE_CGROUP: f64 = 0.01;

/// What a cgroup with a quota of half a CPU gets of one; as promised, 3 %, and a tick for each task of
/// it at the beginning and end of 8 s.
pub const HALF_A_CPU: (f64, f64) = (0.485, 0.515);

/// How far from its quota a cgroup may be, of a CPU.
pub const OF_A_QUOTA: f64 = 0.02;

/// What a guest that has SCHED_IDLE work only may take from busy host tasks. Its weight is 3 to
/// their 1024; the rest is for its interrupts, and for turns that end at ticks.
pub const IDLE_GUEST_SHARE: f64 = 0.05;

/// A half, of CPUs that two vCPUs and two host tasks of the same weight share.
pub const HALF: (f64, f64) = (0.45, 0.55);

/// From ordinary work that wakes up in a guest of SCHED_IDLE work to its running, half of the time:
/// the vCPU is asked when it has waited 10 ms, and then has to take the CPU.
pub const NORMAL_AGAIN: Duration = Duration::from_millis(20);

/// From a scheduler's new socket to a VM that is attached again. The device tries every 0.5 s, the
/// rest is for the handover itself and for tests that run on emulated CPUs.
pub const REATTACH: Duration = Duration::from_secs(2);

/// Exits of a guest that publishes, of those of the same guest while it does not: the host's ticks and
/// the guest's own are nearly all, and what an agent does when it starts is over by then.
pub const EXITS_OF_SILENT: f64 = 1.1;

/// Notifications per second of a guest of which nobody has asked one. The host asks when somebody
/// waits for a CPU that is boosted, which its house-keeping does now and then.
pub const STEADY_HYPERCALLS: f64 = 5.0;

/// Things that happen at once, on emulated CPUs that share two real ones.
pub const AT_ONCE: Duration = Duration::from_secs(10);

/// From a vCPU's end to its page's release. The kernel frees a BPF task storage, which unpins the
/// page, after grace periods of RCU tasks trace; on busy emulated CPUs those took over 10 s twice.
pub const UNPINNED: Duration = Duration::from_secs(40);

/// Loading and starting takes 2 s on an idle machine; a busy one is many times slower.
pub const START: Duration = Duration::from_secs(60);

/// A guest command that does not wait for anything.
pub const COMMAND: Duration = Duration::from_secs(60);
