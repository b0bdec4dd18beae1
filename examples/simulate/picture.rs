// SPDX-License-Identifier: GPL-2.0-only
//! The timeline as a picture.

use scx_pvsched::policy::{Applied, Owner, TaskId};
use scx_pvsched::simulator::scenario::MS;
use svg::node::element::{Group, Line, Rectangle, Text, Title};
use svg::Document;

use crate::View;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 64.0;
const ROW: f64 = 26.0;
const GAP: f64 = 10.0;
/// Colours that people who see few of them tell apart as well (Okabe and Ito), for VMs.
const COLOURS: [&str; 7] = [
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800",
];
const HOST: &str = "#9a9a9a";
const INK: &str = "#222222";
const BOOST: &str = "#d00000";

fn colour(owner: Owner) -> &'static str {
    match owner {
        Owner::Host(_) => HOST,
        Owner::Vm(vm) => COLOURS[vm.0 as usize % COLOURS.len()],
    }
}

fn text(x: f64, y: f64, size: u32, anchor: &str, words: impl Into<String>) -> Text {
    Text::new(words)
        .set("x", x)
        .set("y", y)
        .set("font-size", size)
        .set("text-anchor", anchor)
        .set("fill", INK)
}

fn boxed(x: f64, y: f64, width: f64, height: f64, fill: &str) -> Rectangle {
    Rectangle::new()
        .set("x", x)
        .set("y", y)
        .set("width", width)
        .set("height", height)
        .set("fill", fill)
}

/// A step between marks of the axis: so that there are about ten, and round.
fn axis_step(span: u64) -> u64 {
    let steps = (0..).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power) * MS / 100));
    steps
        .take(40)
        .find(|step| span / step <= 12)
        .unwrap_or(span)
}

/// Physical CPUs above, vCPUs and tasks below, time from left to right.
pub fn draw(view: &View) -> Document {
    let threads = view.threads();
    let row_of = |task: TaskId| {
        let row = threads.iter().position(|one| one.0 == task)?;
        Some((row as f64, &threads[row]))
    };
    let cpus = view.scenario.topology.len();
    let rows = f64::from(cpus) + threads.len() as f64;
    let height = TOP + rows * ROW + 2.0 * GAP + 34.0 + 22.0 * (view.scenario.vms.len() / 10) as f64;
    let scale = (WIDTH - LEFT - RIGHT) / (view.to - view.from) as f64;
    let x =
        |time: u64| LEFT + time.clamp(view.from, view.to).saturating_sub(view.from) as f64 * scale;
    let tasks_top = TOP + f64::from(cpus) * ROW + GAP;
    let bottom = tasks_top + threads.len() as f64 * ROW;

    let mut all = Group::new().set("font-family", "sans-serif");
    all = all.add(text(LEFT, 26.0, 17, "start", &view.title).set("font-weight", "bold"));

    let step = axis_step(view.to - view.from);
    let mut mark = view.from.div_ceil(step) * step;
    while mark <= view.to {
        let line = Line::new()
            .set("x1", x(mark))
            .set("x2", x(mark))
            .set("y1", TOP - 6.0)
            .set("y2", bottom)
            .set("stroke", "#dddddd");
        let label = format!("{} ms", mark as f64 / MS as f64);
        all = all
            .add(line)
            .add(text(x(mark), TOP - 11.0, 12, "middle", label));
        mark += step;
    }

    for cpu in 0..cpus {
        let y = TOP + f64::from(cpu) * ROW;
        all = all.add(text(
            LEFT - 10.0,
            y + ROW * 0.68,
            13,
            "end",
            format!("CPU {cpu}"),
        ));
    }
    for (number, (_, _, _, name)) in threads.iter().enumerate() {
        let y = tasks_top + number as f64 * ROW;
        all = all.add(text(LEFT - 10.0, y + ROW * 0.68, 13, "end", name));
    }

    for wait in &view.trace.waits {
        let Some((row, _)) = row_of(wait.task) else {
            continue;
        };
        if wait.ended <= view.from || wait.began >= view.to {
            continue;
        }
        let y = tasks_top + (row + 0.5) * ROW;
        let line = Line::new()
            .set("x1", x(wait.began))
            .set("x2", x(wait.ended))
            .set("y1", y)
            .set("y2", y)
            .set("stroke", "#888888")
            .set("stroke-dasharray", "2 3");
        all = all.add(line);
    }

    for turn in &view.trace.turns {
        let Some((row, (_, owner, _, name))) = row_of(turn.task) else {
            continue;
        };
        let ended = turn.began + turn.ran;
        if ended <= view.from || turn.began >= view.to {
            continue;
        }
        let spent = if turn.applied == Applied::Throttled {
            ", budget spent"
        } else {
            ""
        };
        let words = format!(
            "{name} on CPU {}, {} us{spent}",
            turn.cpu.0,
            turn.ran / 1000
        );
        let width = (x(ended) - x(turn.began)).max(0.6);
        let mut group = Group::new().add(Title::new(words));
        for top in [TOP + f64::from(turn.cpu.0) * ROW, tasks_top + row * ROW] {
            let edge = boxed(x(turn.began), top + 3.0, width, ROW - 6.0, colour(*owner))
                .set("stroke", "white")
                .set("stroke-width", 0.5);
            group = group.add(edge);
        }
        all = all.add(group);
    }

    for one in &view.trace.ahead {
        let Some((row, _)) = row_of(one.task) else {
            continue;
        };
        if one.ended <= view.from || one.began >= view.to {
            continue;
        }
        let fill = if one.applied == Applied::BoostTask {
            BOOST
        } else {
            INK
        };
        let width = (x(one.ended) - x(one.began)).max(2.0);
        for top in [TOP + f64::from(one.cpu.0) * ROW, tasks_top + row * ROW] {
            all = all.add(boxed(x(one.began), top, width, 5.0, fill));
        }
    }
    Document::new()
        .set("viewBox", (0, 0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .add(
            Rectangle::new()
                .set("width", "100%")
                .set("height", "100%")
                .set("fill", "white"),
        )
        .add(all)
        .add(legend(view, bottom + GAP))
}

fn legend(view: &View, top: f64) -> Group {
    let mut entries: Vec<(&str, &str, String)> = Vec::new();
    if !view.scenario.tasks.is_empty() {
        entries.push((HOST, "box", "host".into()));
    }
    for (number, colour) in (1..=view.scenario.vms.len()).zip(COLOURS.iter().cycle()) {
        entries.push((colour, "box", format!("VM {number}")));
    }
    entries.push((BOOST, "bar", "ahead for an urgent task".into()));
    entries.push((INK, "bar", "ahead for an interrupt".into()));
    entries.push(("#888888", "line", "waits".into()));
    let mut group = Group::new().set("font-family", "sans-serif");
    let (mut x, mut y) = (LEFT, top + 10.0);
    for (fill, shape, words) in entries {
        let width = 48.0 + 6.4 * words.len() as f64;
        if x + width > WIDTH - RIGHT {
            (x, y) = (LEFT, y + 22.0);
        }
        let (offset, height) = match shape {
            "box" => (0.0, 14.0),
            "bar" => (5.0, 4.0),
            _ => (6.5, 1.0),
        };
        let mark = boxed(x, y + offset, 18.0, height, fill);
        group = group
            .add(mark)
            .add(text(x + 24.0, y + 12.0, 13, "start", words));
        x += width;
    }
    group
}
