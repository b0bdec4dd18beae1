// SPDX-License-Identifier: GPL-2.0-only
//! Statistics as text of 80 columns, and the client of the statistics server.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::stats::{quantile_us, Metrics, OBSERVED};

/// Writes one report: what changed since `before`, then a line for each vCPU.
///
/// # Errors
/// When `out` cannot be written to.
pub fn write_report(out: &mut dyn Write, before: &Metrics, now: &Metrics) -> Result<()> {
    let since = |field: fn(&Metrics) -> u64| field(now).saturating_sub(field(before));
    writeln!(out, "{} VMs, {} vCPUs", now.nr_vms, now.nr_vcpus)?;
    writeln!(
        out,
        "  turns: idle {} fair {} boosted {} held {} resumed {}",
        since(|m| m.direct),
        since(|m| m.enqueued_fair),
        since(|m| m.enqueued_boost) + since(|m| m.moved),
        since(|m| m.held),
        since(|m| m.resumed),
    )?;
    writeln!(
        out,
        "  hints: timer {} irq {} wake {} kick {}; idle {} due {}",
        since(|m| m.hints_timer),
        since(|m| m.hints_irq),
        since(|m| m.hints_wake),
        since(|m| m.hints_kick),
        since(|m| m.hints_idle),
        since(|m| m.hints_due),
    )?;
    writeln!(
        out,
        "  boosts: task {} irq {} throttled {}; moved {} of {} posted",
        since(|m| m.boosts_task),
        since(|m| m.boosts_irq),
        since(|m| m.throttled_task) + since(|m| m.throttled_irq),
        since(|m| m.moved),
        since(|m| m.posted),
    )?;
    let stage = |field: fn(&Metrics) -> &Vec<u64>| {
        let (old, new) = (field(before), field(now));
        let delta: Vec<u64> = new
            .iter()
            .enumerate()
            .map(|(i, count)| count.saturating_sub(old.get(i).copied().unwrap_or(0)))
            .collect();
        let bound =
            |share| quantile_us(&delta, share).map_or_else(|| "-".into(), |us| us.to_string());
        format!("{}/{}/{}", bound(0.5), bound(0.9), bound(0.99))
    };
    writeln!(
        out,
        "  hint to running {} entered {} taken {} us (p50/p90/p99, below)",
        stage(|m| &m.hint_to_running),
        stage(|m| &m.hint_to_entered),
        stage(|m| &m.hint_to_taken),
    )?;
    writeln!(
        out,
        "  guests' urgent tasks: due to handled {} running {} us",
        stage(|m| &m.due_to_handled),
        stage(|m| &m.due_to_task),
    )?;
    for vm in now.vms.values() {
        writeln!(out, "  {} ({})", vm.name, vm.protocol)?;
        writeln!(
            out,
            "    granted: {}, nice {}, budgets task {} irq {} us",
            vm.class, vm.nice, vm.task_budget_us, vm.irq_budget_us,
        )?;
        for (apic_id, vcpu) in &vm.vcpus {
            write!(
                out,
                "    {:<4} tid {:<8} {:<12} {:<12} ",
                apic_id, vcpu.tid, vcpu.published, vcpu.applied,
            )?;
            if vcpu.applied == OBSERVED {
                writeln!(
                    out,
                    "would-be task {:<7} irq {}",
                    vcpu.would_task, vcpu.would_irq,
                )?;
            } else {
                writeln!(
                    out,
                    "task {:<7} irq {:<8} thr {}",
                    vcpu.boosts_task, vcpu.boosts_irq, vcpu.throttles,
                )?;
            }
            writeln!(
                out,
                "         ran {} ms, waited {} ms, of late {} us for a turn",
                vcpu.ran_us / 1000,
                vcpu.waited_us / 1000,
                vcpu.wait_us
            )?;
            if vcpu.group != 0 || vcpu.role != "none" {
                let home = match vcpu.home {
                    -1 => "any CPU".to_owned(),
                    cpu => format!("CPU {cpu}"),
                };
                writeln!(
                    out,
                    "         role {}, group {}, on {home}",
                    vcpu.role, vcpu.group
                )?;
            }
        }
    }
    out.flush()?;
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
    use super::super::stats::{VcpuMetrics, VmMetrics};
    use super::*;

    #[test]
    fn a_report_shows_each_vcpu_and_fits_80_columns() {
        let vcpu = VcpuMetrics {
            tid: 12345,
            published: "rt 90".into(),
            applied: "boost: task".into(),
            role: "interrupt".into(),
            group: 65535,
            home: 1023,
            boosts_task: 7,
            ran_us: 4_294_967_296_000,
            waited_us: 4_294_967_297_000,
            wait_us: 4_294_967,
            ..Default::default()
        };
        let observed = VcpuMetrics {
            tid: 1_234_567,
            published: "deadline".into(),
            applied: OBSERVED.into(),
            would_task: 1_234_567,
            would_irq: 8901,
            ..Default::default()
        };
        let vm = VmMetrics {
            name: "guest".into(),
            protocol: "latency v1".into(),
            class: "deadline".into(),
            nice: "-20..19".into(),
            task_budget_us: 10_000_000,
            irq_budget_us: 1_000_000,
            vcpus: [(1, vcpu), (2, observed)].into(),
        };
        let before = Metrics {
            direct: 10,
            ..Default::default()
        };
        let now = Metrics {
            nr_vms: 1,
            nr_vcpus: 1,
            direct: 10 + 5,
            hints_timer: 12_345_678,
            hints_irq: 12_345_678,
            hint_to_running: vec![0, 0, 4],
            vms: [(1, vm)].into(),
            ..Default::default()
        };
        let mut text = Vec::new();
        write_report(&mut text, &before, &now).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("idle 5 "), "{text}");
        assert!(text.contains("running 4/4/4"), "{text}");
        assert!(
            text.contains("rt 90") && text.contains("boost: task"),
            "{text}"
        );
        let granted = "granted: deadline, nice -20..19, budgets task 10000000 irq 1000000 us";
        assert!(text.contains(granted), "{text}");
        let times = "ran 4294967296 ms, waited 4294967297 ms, of late 4294967 us for a turn";
        assert!(text.contains(times), "{text}");
        assert!(text.contains("would-be task 1234567 irq 8901"), "{text}");
        assert!(
            text.contains("role interrupt, group 65535, on CPU 1023"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
