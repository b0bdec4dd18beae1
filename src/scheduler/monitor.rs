// SPDX-License-Identifier: GPL-2.0-only
//! Statistics as text of 80 columns, and the client of the statistics server.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::columns::{count, exact_time, line, name, time};
use super::stats::{quantile_us, Metrics, VcpuMetrics, VmMetrics, OBSERVED};

/// Columns of what stands at the left of a line of counters, with a space.
const HEADING: usize = 8;
/// Columns for the name of a VM.
const VM_NAME: usize = 32;
/// Columns at the left of what belongs to a VM.
const OF_VM: usize = 2;
/// The same of further words about a vCPU.
const OF_VCPU: usize = 7;

/// Writes one report: what changed since `before`, for the host and for each vCPU.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_report(out: &mut dyn Write, before: &Metrics, now: &Metrics) -> Result<()> {
    write_counters(out, before, now)?;
    write_latencies(out, before, now)?;
    for (id, vm) in &now.vms {
        write_vm(out, before.vms.get(id), vm)?;
    }
    writeln!(out)?;
    out.flush()?;
    Ok(())
}

type Counter = (&'static str, fn(&Metrics) -> u64);
type Latency = (&'static str, fn(&Metrics) -> &Vec<u64>);

const TURNS: &[Counter] = &[
    ("fair", |m| m.enqueued_fair),
    ("ahead", |m| m.enqueued_boost.saturating_add(m.moved)),
    ("idle CPU", |m| m.direct),
    ("kernel", |m| m.enqueued_kthread),
    ("kept", |m| m.held),
    ("resumed", |m| m.resumed),
    ("guarded", |m| m.guarded),
    ("preempted", |m| m.preempted),
    ("yields to", |m| m.yields_to),
    ("held back", |m| m.held_back),
];
const HINTS: &[Counter] = &[
    ("timer", |m| m.hints_timer),
    ("interrupt", |m| m.hints_irq),
    ("wake-up", |m| m.hints_wake),
    ("kick", |m| m.hints_kick),
    ("timer due", |m| m.hints_due),
    ("repeated", |m| m.hints_repeated),
    ("not urgent", |m| m.hints_idle),
    ("too far ahead", |m| m.hints_ahead),
    ("budget spent", |m| m.hints_spent),
    ("posted", |m| m.posted),
    ("moved", |m| m.moved),
    ("dropped", |m| m.dropped),
];
const BOOSTS: &[Counter] = &[
    ("task", |m| m.boosts_task),
    ("interrupt", |m| m.boosts_irq),
    ("ended at exit", |m| m.ended_exit),
    ("at tick", |m| m.ended_tick),
    ("throttled task", |m| m.throttled_task),
    ("interrupt", |m| m.throttled_irq),
];
const LIGHT: &[Counter] = &[
    ("reweighed", |m| m.reweighed),
    ("asked", |m| m.asked),
    ("looks", |m| m.looks),
    ("unstuck", |m| m.unstuck),
];
const LATENCIES: &[Latency] = &[
    ("hint to vCPU running", |m| &m.hint_to_running),
    ("hint to guest entered", |m| &m.hint_to_entered),
    ("hint to taken by the guest", |m| &m.hint_to_taken),
    ("guest's urgent timer handled", |m| &m.due_to_handled),
    ("guest's urgent task running", |m| &m.due_to_task),
];

fn write_counters(out: &mut dyn Write, before: &Metrics, now: &Metrics) -> io::Result<()> {
    let sources = match now.hint_sources.as_str() {
        "" => "no hints from KVM".to_owned(),
        sources => format!("hints by {sources}"),
    };
    let vms = format!("{} VMs, {} vCPUs; {sources}", now.nr_vms, now.nr_vcpus);
    line(out, OF_VM, vms.split(' '))?;
    for (heading, counters) in [
        ("turns", TURNS),
        ("hints", HINTS),
        ("boosts", BOOSTS),
        ("light", LIGHT),
    ] {
        let last = counters.len() - 1;
        let counted = counters.iter().enumerate().map(|(i, (what, field))| {
            let since = count(field(now).saturating_sub(field(before)));
            format!("{what} {since}{}", if i < last { "," } else { "" })
        });
        let heading = format!("{heading:<0$}", HEADING - 1);
        line(out, HEADING, std::iter::once(heading).chain(counted))?;
    }
    for (what, number) in [
        (
            "vCPUs that share a CPU with one of their group",
            now.shared_placements,
        ),
        (
            "cgroups without a weight or quota of their own",
            now.groups_missing,
        ),
    ] {
        if number > 0 {
            line(out, OF_VM, [format!("{what}:"), count(number)])?;
        }
    }
    Ok(())
}

fn write_latencies(out: &mut dyn Write, before: &Metrics, now: &Metrics) -> io::Result<()> {
    let row = |cells: [&str; 5]| {
        let [what, number, p50, p90, p99] = cells;
        [
            format!("{what:<30}"),
            format!("{number:>7}"),
            format!("{p50:>7}"),
            format!("{p90:>7}"),
            format!("{p99:>7}"),
        ]
    };
    line(
        out,
        OF_VM,
        row(["latencies, below", "number", "p50", "p90", "p99"]),
    )?;
    for (what, field) in LATENCIES {
        let old = field(before);
        let delta: Vec<u64> = field(now)
            .iter()
            .enumerate()
            .map(|(i, count)| count.saturating_sub(old.get(i).copied().unwrap_or(0)))
            .collect();
        let bound = |share| quantile_us(&delta, share).map_or_else(|| "-".to_owned(), time);
        let [number, p50, p90, p99] = [
            count(delta.iter().sum()),
            bound(0.5),
            bound(0.9),
            bound(0.99),
        ];
        let what = format!("  {what}");
        line(out, OF_VM, row([&what, &number, &p50, &p90, &p99]))?;
    }
    Ok(())
}

fn write_vm(out: &mut dyn Write, before: Option<&VmMetrics>, vm: &VmMetrics) -> io::Result<()> {
    let granted = format!(
        "{}; up to {}, nice {}, budgets task {}, interrupt {}",
        vm.protocol,
        vm.class,
        vm.nice,
        exact_time(vm.task_budget_us),
        exact_time(vm.irq_budget_us)
    );
    let title = format!("VM {}:", name(&vm.name, VM_NAME));
    line(
        out,
        OF_VM,
        std::iter::once(title.as_str()).chain(granted.split(' ')),
    )?;
    if vm.vcpus.values().any(|vcpu| vcpu.applied == OBSERVED) {
        writeln!(out, "  observed: boosts are those that it would have had")?;
    }
    line(
        out,
        OF_VCPU,
        row([
            "vCPU",
            "thread",
            "published",
            "applied",
            "task",
            "irq",
            "thr",
            "ran",
            "boost",
            "wait",
            "turn",
        ]),
    )?;
    for (apic_id, vcpu) in &vm.vcpus {
        // Another thread is another vCPU, which counts from zero.
        let before = before
            .and_then(|before| before.vcpus.get(apic_id))
            .filter(|before| before.tid == vcpu.tid)
            .cloned()
            .unwrap_or_default();
        write_vcpu(out, *apic_id, &before, vcpu)?;
    }
    Ok(())
}

/// One line of the table of vCPUs.
fn row(cells: [&str; 11]) -> Vec<String> {
    const COLUMNS: [usize; 11] = [4, 7, 10, 11, 5, 5, 5, 5, 5, 5, 5];
    const TEXTS: std::ops::Range<usize> = 2..4;
    let mut row: Vec<_> = cells
        .into_iter()
        .zip(COLUMNS)
        .enumerate()
        .map(|(i, (cell, columns))| {
            if TEXTS.contains(&i) {
                format!("{cell:<columns$}")
            } else {
                format!("{cell:>columns$}")
            }
        })
        .collect();
    row[0].insert_str(0, "  ");
    row
}

fn write_vcpu(
    out: &mut dyn Write,
    apic_id: u32,
    before: &VcpuMetrics,
    now: &VcpuMetrics,
) -> io::Result<()> {
    let since = |field: fn(&VcpuMetrics) -> u64| field(now).saturating_sub(field(before));
    let (task, irq) = if now.applied == OBSERVED {
        (since(|v| v.would_task), since(|v| v.would_irq))
    } else {
        (since(|v| v.boosts_task), since(|v| v.boosts_irq))
    };
    line(
        out,
        OF_VCPU,
        row([
            &apic_id.to_string(),
            &now.tid.to_string(),
            &now.published,
            &now.applied,
            &count(task),
            &count(irq),
            &count(since(|v| v.throttles)),
            &time(since(|v| v.ran_us)),
            &time(since(|v| v.boosted_us)),
            &time(since(|v| v.waited_us)),
            &time(now.wait_us),
        ]),
    )?;
    if now.group != 0 || now.role != "none" {
        let home = match now.home {
            -1 => "any CPU".to_owned(),
            cpu => format!("CPU {cpu}"),
        };
        writeln!(
            out,
            "{:OF_VCPU$}role {}, group {}, on {home}",
            "", now.role, now.group
        )?;
    }
    Ok(())
}

/// Prints reports of the running instance until `stop`.
///
/// # Errors
/// When there is no instance, or it cannot be reached.
pub fn run(interval: Duration, stop: Arc<AtomicBool>) -> Result<()> {
    let mut before = None;
    scx_utils::monitor_stats::<Metrics>(
        &[],
        interval,
        || stop.load(Ordering::Relaxed),
        |now| {
            let mut out = std::io::stdout().lock();
            write_report(
                &mut out,
                before.as_ref().unwrap_or(&Metrics::default()),
                &now,
            )?;
            before = Some(now);
            Ok(())
        },
    )
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::super::columns::WIDTH;
    use super::*;

    fn report(before: &Metrics, now: &Metrics) -> String {
        let mut text = Vec::new();
        write_report(&mut text, before, now).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn assert_fits(text: &str) {
        for line in text.lines() {
            assert!(line.width() <= WIDTH, "{} columns: {line}", line.width());
            assert_eq!(line, line.trim_end());
        }
    }

    fn vm(name: &str, vcpus: impl IntoIterator<Item = (u32, VcpuMetrics)>) -> VmMetrics {
        VmMetrics {
            name: name.into(),
            protocol: "latency v1".into(),
            class: "deadline".into(),
            nice: "-20..19".into(),
            task_budget_us: 100_000,
            irq_budget_us: 1500,
            vcpus: vcpus.into_iter().collect(),
        }
    }

    #[test]
    fn a_report_tells_what_changed() {
        let vcpu = VcpuMetrics {
            tid: 12345,
            published: "rt 90".into(),
            applied: "boost: task".into(),
            role: "interrupt".into(),
            group: 7,
            home: 3,
            boosts_task: 17,
            boosts_irq: 8,
            throttles: 2,
            ran_us: 600_000,
            boosted_us: 50_000,
            waited_us: 401_000,
            wait_us: 1250,
            ..Default::default()
        };
        let earlier = VcpuMetrics {
            boosts_task: 10,
            ran_us: 100_000,
            ..vcpu.clone()
        };
        let before = Metrics {
            direct: 10,
            vms: [(1, vm("guest", [(0, earlier)]))].into(),
            ..Default::default()
        };
        let now = Metrics {
            nr_vms: 1,
            nr_vcpus: 1,
            direct: 10 + 5,
            hint_to_running: vec![0, 0, 4],
            vms: [(1, vm("guest", [(0, vcpu)]))].into(),
            ..Default::default()
        };
        let text = report(&before, &now);
        assert_fits(&text);
        assert!(text.contains("1 VMs, 1 vCPUs; no hints from KVM"), "{text}");
        assert!(text.contains("idle CPU 5,"), "{text}");
        let has = |words: &str| {
            let words: Vec<_> = words.split(' ').collect();
            text.lines()
                .any(|line| line.split_whitespace().collect::<Vec<_>>() == words)
        };
        assert!(has("hint to vCPU running 4 4us 4us 4us"), "{text}");
        assert!(
            has("0 12345 rt 90 boost: task 7 0 0 500ms 0us 0us 1.2ms"),
            "{text}"
        );
        assert!(has("role interrupt, group 7, on CPU 3"), "{text}");
        let granted = "VM guest: latency v1; up to deadline, nice -20..19, budgets task 100ms,";
        assert!(text.contains(granted), "{text}");
    }

    #[test]
    fn a_vcpu_with_another_thread_counts_from_zero() {
        let with = |tid, boosts_irq| Metrics {
            vms: [(
                1,
                vm(
                    "guest",
                    [(
                        0,
                        VcpuMetrics {
                            tid,
                            boosts_irq,
                            ..Default::default()
                        },
                    )],
                ),
            )]
            .into(),
            ..Default::default()
        };
        let irq = |text: String| {
            let row = text
                .lines()
                .find(|line| line.starts_with("     0 "))
                .unwrap();
            row.split_whitespace().nth(3).unwrap().to_owned()
        };
        assert_eq!(irq(report(&with(5, 100), &with(5, 130))), "30");
        assert_eq!(irq(report(&with(5, 100), &with(6, 30))), "30");
    }

    #[test]
    fn whatever_the_values_a_report_fits_80_columns_and_keeps_its_numbers() {
        // Every counter there is, by way of its name.
        let mut all = serde_json::to_value(Metrics::default()).unwrap();
        for (_, value) in all.as_object_mut().unwrap() {
            if value.is_u64() {
                *value = u64::MAX.into();
            }
        }
        let extreme: Metrics = serde_json::from_value(all).unwrap();
        let vcpu = VcpuMetrics {
            tid: u32::MAX,
            published: "SCHED_IDLE".into(),
            applied: "boost: task".into(),
            role: "interrupt".into(),
            group: u32::MAX,
            home: i32::MAX,
            boosts_task: u64::MAX,
            boosts_irq: u64::MAX,
            throttles: u64::MAX,
            would_task: u64::MAX,
            would_irq: u64::MAX,
            ran_us: u64::MAX,
            boosted_us: u64::MAX,
            waited_us: u64::MAX,
            wait_us: u64::MAX,
        };
        let observed = VcpuMetrics {
            applied: OBSERVED.into(),
            ..vcpu.clone()
        };
        let vcpus = (u32::MAX - 300..=u32::MAX).map(|apic_id| (apic_id, vcpu.clone()));
        let long = VmMetrics {
            task_budget_us: u64::MAX,
            irq_budget_us: u64::MAX,
            protocol: format!("{} v65535", "p".repeat(16)),
            ..vm(&"n".repeat(64), vcpus)
        };
        let wide = vm(&"客".repeat(21), [(1, observed)]);
        let now = Metrics {
            nr_vms: u64::MAX,
            nr_vcpus: u64::MAX,
            hint_sources: "timer, interrupt, wake-up, kick, due timer".into(),
            hint_to_running: vec![u64::MAX / 32; 20],
            hint_to_taken: [vec![0; 19], vec![u64::MAX]].concat(),
            vms: [(1, long), (u32::MAX, wide)].into(),
            ..extreme
        };
        let text = report(&Metrics::default(), &now);
        assert_fits(&text);
        for number in [
            format!("{} VMs", u64::MAX),
            u32::MAX.to_string(),
            format!("group {}", u32::MAX),
            format!("CPU {}", i32::MAX),
            format!("{}us", u64::MAX),
            "213503982d".into(),
            "524ms".into(),
            "18.4E".into(),
            "v65535".into(),
        ] {
            assert!(text.contains(&number), "{number} is not in\n{text}");
        }
        assert!(text.contains("nnn…:") && text.contains("客…:"), "{text}");
        // A host where nothing has happened yet has a report, too.
        assert_fits(&report(&Metrics::default(), &Metrics::default()));
    }
}
