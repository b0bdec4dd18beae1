//! One page that stands by itself, with tables and pictures, and the pictures as files.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::compare::{contenders, Row};
use super::plots::{use_font, Plot};
use super::record::Record;
use super::report::{short, Report};
use super::targets;

/// Where fonts of Debian's `fonts-dejavu-core` are, below a root.
const FONT: &str = "usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

const STYLE: &str = "
body { font: 16px/1.5 sans-serif; max-width: 62em; margin: 0 auto; padding: 0 1em; color: #111; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2em .6em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr.ours { font-weight: bold }
.missed { color: #a00 }
figure { margin: 1em 0 } svg { width: 100%; height: auto; max-width: 50em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em }
@media print { body { max-width: none; font-size: 10pt } h2, figure, table { break-inside: avoid } .wide { overflow: visible } }
";

/// Writes `index.html` and `plots/*.png` beside a report; gives the page's path. `root` is one in which
/// a font may be, else it is looked for on this machine.
///
/// # Errors
/// When there is no such report, there is no font, or a file cannot be written.
pub fn write(report: &Path, root: &Path) -> Result<PathBuf> {
    let record = Record::read(report)?;
    let folder = report.parent().unwrap_or(Path::new("."));
    let fonts = [root.join(FONT), Path::new("/").join(FONT)];
    use_font(fonts.iter().map(PathBuf::as_path))?;
    let pictures = folder.join("plots");
    fs::create_dir_all(&pictures).with_context(|| pictures.display().to_string())?;
    for plot in Plot::all(&record) {
        plot.png(&record, &pictures.join(format!("{}.png", plot.name)))?;
    }
    let page = folder.join("index.html");
    fs::write(&page, html(&record)?).with_context(|| page.display().to_string())?;
    Ok(page)
}

/// Text within an element.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn html(record: &Record) -> Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>scx_pvsched: benchmark</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>scx_pvsched: benchmark</h1>\n"
    );
    let host = &record.setup["host"];
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => escape(text),
        None => escape(&value.to_string()),
    };
    // Writing to a string does not fail.
    let _ = writeln!(
        page,
        "<p>Kernel {}, {} CPUs ({}); guests' kernel {}; {} of {} rounds done{}. All comparisons are within \
         rounds of one boot; the tables have medians of the rounds.</p>",
        text(&host["kernel"]),
        text(&host["cpus"]),
        text(&host["cpu_model"]),
        text(&record.setup["guest_kernel"]),
        record.rounds_done,
        text(&record.setup["rounds"]),
        if record.setup["quick"] == true { ", quick" } else { "" },
    );
    page += &asked(record);
    let plots = Plot::all(record);
    let picture = |page: &mut String, name: &str| -> Result<()> {
        for plot in plots.iter().filter(|plot| plot.name.starts_with(name)) {
            *page += &format!("<figure>{}</figure>\n", plot.svg(record)?);
        }
        Ok(())
    };
    let mut measures: Vec<&str> = Vec::new();
    for of in &record.metrics {
        if !measures.contains(&of.measure.as_str()) {
            measures.push(&of.measure);
        }
    }
    for measure in measures {
        let about = text(&record.setup["measures"][measure]);
        let _ = writeln!(page, "<h2>{}</h2>\n<p>{about}</p>", escape(measure));
        if plots.iter().any(|plot| plot.name == measure) {
            picture(&mut page, measure)?;
        }
        page += &table(record, measure);
    }
    if !record.growth.is_empty() {
        page += "<h2>growth</h2>\n";
        picture(&mut page, "growth")?;
    }
    if !record.failures.is_empty() {
        page += "<h2>What failed</h2>\n<p>Each is tried twice.</p>\n<ul>\n";
        for failure in &record.failures {
            let _ = writeln!(page, "<li>{}</li>", escape(&failure.to_string()));
        }
        page += "</ul>\n";
    }
    let _ = write!(
        page,
        "<h2>As text</h2>\n<pre>{}</pre>\n<h2>Setup</h2>\n<pre>{}</pre>\n</body>\n</html>\n",
        escape(&Report::new(record).to_string()),
        escape(&serde_json::to_string_pretty(&record.setup)?)
    );
    Ok(page)
}

fn asked(record: &Record) -> String {
    let targets = targets::all(record);
    if targets.is_empty() {
        return String::new();
    }
    let mut text = "<h2>What is asked, and what was measured</h2>\n<div class=\"wide\"><table>\n\
                    <tr><th>ratio</th><th>with</th><th>asked</th><th>measured</th></tr>\n"
        .to_owned();
    for target in targets {
        let class = if target.is_met() { "met" } else { "missed" };
        let bound = if target.at_least { "≥" } else { "≤" };
        let _ = writeln!(
            text,
            "<tr class=\"{class}\"><td>{}</td><td>{}</td><td>{bound} {}</td><td>{}</td></tr>",
            escape(target.claim),
            escape(&target.with),
            target.asked,
            short(target.measured)
        );
    }
    text + "</table></div>\n"
}

/// A row for each contender, a column for each metric.
fn table(record: &Record, measure: &str) -> String {
    let rows: Vec<_> = Row::all(record)
        .into_iter()
        .filter(|row| row.measure == measure)
        .collect();
    let mut text = "<div class=\"wide\"><table>\n<tr><th></th>".to_owned();
    for row in &rows {
        let _ = write!(
            text,
            "<th>{}<br>{}</th>",
            escape(&row.metric.name),
            escape(&row.metric.unit)
        );
    }
    text += "</tr>\n";
    for name in contenders(record) {
        let values: Vec<_> = rows.iter().map(|row| row.median(name)).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let class = if name == super::contender::OURS {
            "ours"
        } else {
            "other"
        };
        let _ = write!(text, "<tr class=\"{class}\"><td>{}</td>", escape(name));
        for value in values {
            let value = value.map_or_else(|| "–".to_owned(), short);
            let _ = write!(text, "<td>{value}</td>");
        }
        text += "</tr>\n";
    }
    text + "</table></div>\n"
}

#[cfg(test)]
mod tests {
    use super::super::compare::tests::record;
    use super::super::measure::TIME;
    use super::*;

    #[test]
    fn a_page_has_every_contender_and_no_markup_of_others() {
        let mut record = record(&TIME, &[("kernel", &[1.0]), ("scx_pvsched", &[2.0])]);
        record.setup = serde_json::json!({"measures": {"load": "a <b> & c"}});
        let page = html(&record).unwrap();
        assert!(page.contains("<td>kernel</td><td>1.00</td>"), "{page}");
        assert!(page.contains("<tr class=\"ours\"><td>scx_pvsched</td><td>2.00</td>"));
        assert!(page.contains("a &lt;b&gt; &amp; c"));
        // Stands by itself: nothing is fetched from elsewhere.
        assert!(!page.contains("http"), "{page}");
    }
}
