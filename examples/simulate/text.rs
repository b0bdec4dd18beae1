// SPDX-License-Identifier: GPL-2.0-only
//! The timeline as text, in 100 columns.

use std::fmt::Write;

use scx_pvsched::policy::{Applied, Turn};
use scx_pvsched::simulator::scenario::{MS, US};

use crate::View;

/// Columns for time; before them is the row's name.
const COLUMNS: u64 = 90;
const NAME: usize = 9;

/// The part of a turn that is within a time.
fn overlap(turn: &Turn, from: u64, to: u64) -> u64 {
    (turn.began + turn.ran)
        .min(to)
        .saturating_sub(turn.began.max(from))
}

/// What is told of a column: the turn that has most of it.
fn longest<'a>(turns: impl Iterator<Item = &'a Turn>, from: u64, to: u64) -> Option<&'a Turn> {
    let within = turns.filter(|turn| overlap(turn, from, to) > 0);
    within.max_by_key(|turn| overlap(turn, from, to))
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
        let on_cpu = |number| {
            let (from, to) = column(number);
            longest(
                trace.turns.iter().filter(|turn| turn.cpu.0 == cpu),
                from,
                to,
            )
        };
        let letters: String = (0..columns)
            .map(|number| {
                let thread =
                    on_cpu(number).and_then(|turn| threads.iter().find(|one| one.0 == turn.task));
                thread.map_or('.', |thread| thread.2)
            })
            .collect();
        // A boost is short as a rule, so that it is marked wherever there is one.
        let marks: String = (0..columns)
            .map(|number| {
                let (from, to) = column(number);
                let turns = trace.turns.iter().filter(|turn| {
                    turn.cpu.0 == cpu && turn.applied.is_boost() && overlap(turn, from, to) > 0
                });
                match longest(turns, from, to).map(|turn| turn.applied) {
                    Some(Applied::BoostTask) => '!',
                    Some(_) => '^',
                    None => ' ',
                }
            })
            .collect();
        let lines = format!(
            "{:<NAME$}{letters}\n{:<NAME$}{marks}",
            format!("CPU {cpu}"),
            ""
        );
        let _ = writeln!(out, "{}", lines.trim_end());
    }

    let _ = writeln!(out, "\nover all {} ms", trace.ended / MS);
    let _ = writeln!(
        out,
        "      {:<16}{:>8}{:>12}{:>14}{:>17}",
        "", "CPU", "ahead", "longest wait", "late 50/90/99 %"
    );
    for (id, _, letter, name) in &threads {
        let percent = |ran: u64| format!("{:.1} %", ran as f64 * 100.0 / trace.ended as f64);
        let ahead = trace.ran_as(*id, Applied::BoostTask) + trace.ran_as(*id, Applied::BoostIrq);
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
