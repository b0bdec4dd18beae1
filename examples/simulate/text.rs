// SPDX-License-Identifier: GPL-2.0-only
//! The timeline as text, in 100 columns.

use std::fmt::Write;

use scx_pvsched::policy::Applied;
use scx_pvsched::simulator::scenario::{MS, US};

use crate::View;

/// Columns for time; before them is the row's name.
const COLUMNS: u64 = 90;
const NAME: usize = 9;

/// What is told of a column: that which has most of it, of `(from, to, what)`.
fn longest<T>(all: impl Iterator<Item = (u64, u64, T)>, (from, to): (u64, u64)) -> Option<T> {
    let part = |one: &(u64, u64, T)| one.1.min(to).saturating_sub(one.0.max(from));
    let most = all.filter(|one| part(one) > 0).max_by_key(part)?;
    Some(most.2)
}

pub fn timeline(view: &View) -> String {
    let mut out = String::new();
    let (threads, trace) = (view.threads(), view.trace);
    let step = (view.to - view.from).div_ceil(COLUMNS).max(1);
    let column = |number: u64| {
        (
            view.from + number * step,
            (view.from + (number + 1) * step).min(view.to),
        )
    };
    // A write to a String cannot fail.
    let _ = writeln!(
        out,
        "{}\n{} to {} ms, {} us a column; a mark under a turn that is ahead: ! task, ^ interrupt\n",
        view.title,
        view.from / MS,
        view.to / MS,
        step / US
    );
    let columns = (view.to - view.from).div_ceil(step);
    for cpu in 0..view.scenario.topology.len() {
        let turns = trace.turns.iter().filter(|turn| turn.cpu.0 == cpu);
        let turns = turns.map(|turn| (turn.began, turn.began + turn.ran, turn.task));
        let ahead = trace.ahead.iter().filter(|one| one.cpu.0 == cpu);
        let ahead = ahead.map(|one| (one.began, one.ended, one.applied));
        let letter = |number| {
            let task = longest(turns.clone(), column(number));
            let thread = task.and_then(|task| threads.iter().find(|one| one.0 == task));
            thread.map_or('.', |thread| thread.2)
        };
        // A boost is short as a rule, so that it is marked wherever there is one.
        let mark = |number| match longest(ahead.clone(), column(number)) {
            Some(Applied::BoostTask) => '!',
            Some(_) => '^',
            None => ' ',
        };
        let letters: String = (0..columns).map(letter).collect();
        let marks: String = (0..columns).map(mark).collect();
        let lines = format!(
            "{:<NAME$}{letters}\n{:<NAME$}{marks}",
            format!("CPU {cpu}"),
            ""
        );
        let _ = writeln!(out, "{}", lines.trim_end());
    }

    let (ms, calls) = (trace.ended / MS, trace.calls);
    let _ = writeln!(out, "\nover all {ms} ms, with {calls} calls of the policy");
    let _ = writeln!(
        out,
        "      {:<16}{:>8}{:>12}{:>14}{:>17}",
        "", "CPU", "ahead", "longest wait", "late 50/90/99 %"
    );
    for (id, _, letter, name) in &threads {
        let percent = |ran: u64| format!("{:.1} %", ran as f64 * 100.0 / trace.ended as f64);
        let ahead =
            trace.ran_ahead(*id, Applied::BoostTask) + trace.ran_ahead(*id, Applied::BoostIrq);
        let late: Vec<_> = [50, 90, 99]
            .iter()
            .filter_map(|of| trace.late((*id, 0), *of))
            .map(|ns| format!("{:.2}", ns as f64 / MS as f64))
            .collect();
        let unit = if late.is_empty() { "" } else { " ms" };
        let line = format!(
            "  {letter}   {name:<16}{:>8}{:>12}{:>11} ms{:>20}",
            percent(trace.ran(*id)),
            percent(ahead),
            trace.longest_wait(*id) / MS,
            late.join("/") + unit
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}
