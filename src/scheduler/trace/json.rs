// SPDX-License-Identifier: GPL-2.0-only
//! A trace file in the Trace Event Format, the JSON that <https://ui.perfetto.dev> and
//! chrome://tracing open: tracks with slices and instants, grouped under headings. What a track
//! has is in the order of time, and each slice that begins has an end.

use std::io::{self, Write};

use serde_json::{json, Map, Value};

/// Further facts about a slice or an instant.
pub type Facts = Map<String, Value>;

/// Facts in short: `facts! { "cpu": 1 }`.
macro_rules! facts {
    ($($name:literal: $value:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut facts = $crate::scheduler::trace::json::Facts::new();
        $(facts.insert($name.to_owned(), serde_json::json!($value));)*
        facts
    }};
}
pub(super) use facts;

/// A heading, under which tracks stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heading(u32);

/// A track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Track(usize);

#[derive(Debug)]
struct State {
    heading: u32,
    number: u32,
    /// Slices that have begun and have no end yet.
    open: usize,
    /// ns; of what was written last.
    at: u64,
}

/// A trace file while it is written.
pub struct TraceFile<W: Write> {
    out: W,
    written: u64,
    /// Nothing stands in the list of events.
    empty: bool,
    /// Headings and tracks share their numbers: readers take the number of a heading for a track, too.
    numbers: u32,
    tracks: Vec<State>,
}

impl<W: Write> TraceFile<W> {
    /// Begins the file.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn new(out: W) -> io::Result<Self> {
        let mut file = Self {
            out,
            written: 0,
            empty: true,
            numbers: 0,
            tracks: Vec::new(),
        };
        // Without "displayTimeUnit", which some readers take for the unit of all times.
        file.raw("{\"traceEvents\":[\n")?;
        Ok(file)
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// A new heading; headings stand in the order in which they are made.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn heading(&mut self, name: &str) -> io::Result<Heading> {
        self.numbers += 1;
        let number = self.numbers;
        self.describe("process_name", number, number, json!({ "name": name }))?;
        let order = json!({ "sort_index": number });
        self.describe("process_sort_index", number, number, order)?;
        Ok(Heading(number))
    }

    /// A new track under a heading; the lower its `order`, the higher up.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn track(&mut self, under: Heading, name: &str, order: u32) -> io::Result<Track> {
        self.numbers += 1;
        let number = self.numbers;
        self.describe("thread_name", under.0, number, json!({ "name": name }))?;
        let order = json!({ "sort_index": order });
        self.describe("thread_sort_index", under.0, number, order)?;
        self.tracks.push(State {
            heading: under.0,
            number,
            open: 0,
            at: 0,
        });
        Ok(Track(self.tracks.len() - 1))
    }

    /// A slice begins, inside of those that have begun and not ended; `at` in ns.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn begin(&mut self, track: Track, at: u64, name: &str, facts: Facts) -> io::Result<()> {
        self.tracks[track.0].open += 1;
        self.event(track, at, "B", Some(name), facts)
    }

    /// The slice that began last ends; without effect where none has begun.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn end(&mut self, track: Track, at: u64, facts: Facts) -> io::Result<()> {
        let state = &mut self.tracks[track.0];
        if state.open == 0 {
            return Ok(());
        }
        state.open -= 1;
        self.event(track, at, "E", None, facts)
    }

    /// Something that has no length.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn instant(&mut self, track: Track, at: u64, name: &str, facts: Facts) -> io::Result<()> {
        self.event(track, at, "i", Some(name), facts)
    }

    /// Ends all slices and the file, with facts about the whole; gives back what it was written to.
    ///
    /// # Errors
    /// When the file cannot be written to.
    pub fn finish(mut self, at: u64, about: &Facts) -> io::Result<W> {
        for track in 0..self.tracks.len() {
            while self.tracks[track].open > 0 {
                self.end(Track(track), at, Facts::new())?;
            }
        }
        let about = serde_json::to_string(about)?;
        self.raw(&format!("\n],\"metadata\":{about}}}\n"))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn event(
        &mut self,
        track: Track,
        at: u64,
        kind: &str,
        name: Option<&str>,
        facts: Facts,
    ) -> io::Result<()> {
        let state = &mut self.tracks[track.0];
        state.at = state.at.max(at);
        let mut event = json!({
            "ph": kind,
            "ts": microseconds(state.at),
            "pid": state.heading,
            "tid": state.number,
        });
        if let Some(name) = name {
            event["name"] = name.into();
        }
        if kind == "i" {
            event["s"] = "t".into();
        }
        if !facts.is_empty() {
            event["args"] = Value::Object(facts);
        }
        self.line(&event)
    }

    fn describe(&mut self, what: &str, pid: u32, tid: u32, args: Value) -> io::Result<()> {
        self.line(&json!({ "ph": "M", "name": what, "pid": pid, "tid": tid, "args": args }))
    }

    fn line(&mut self, event: &Value) -> io::Result<()> {
        let separator = if self.empty { "" } else { ",\n" };
        self.empty = false;
        let event = serde_json::to_string(event)?;
        self.raw(&format!("{separator}{event}"))
    }

    fn raw(&mut self, text: &str) -> io::Result<()> {
        self.written += text.len() as u64;
        self.out.write_all(text.as_bytes())
    }
}

/// The format's unit, of which nanoseconds are decimals. Exact for uptimes of up to 100 days.
#[allow(clippy::cast_precision_loss)]
fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: Vec<u8>) -> Vec<Value> {
        let trace: Value = serde_json::from_slice(&text).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        events.iter().filter(|e| e["ph"] != "M").cloned().collect()
    }

    #[test]
    fn an_empty_trace_is_a_trace() {
        let text = TraceFile::new(Vec::new()).unwrap();
        let text = text.finish(0, &facts! { "lost": 0 }).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&text).unwrap()["metadata"]["lost"],
            0
        );
        assert!(events(text).is_empty());
    }

    #[test]
    fn slices_are_balanced_and_time_goes_on() {
        let mut file = TraceFile::new(Vec::new()).unwrap();
        let heading = file.heading("guest").unwrap();
        let track = file.track(heading, "vCPU 0", 0).unwrap();
        file.end(track, 500, facts!()).unwrap();
        file.begin(track, 1500, "runs", facts! { "cpu": 1 })
            .unwrap();
        file.instant(track, 1200, "late \"one\"", facts!()).unwrap();
        file.begin(track, 2000, "boost", facts!()).unwrap();
        let events = events(file.finish(3001, &facts!()).unwrap());
        let kinds: Vec<_> = events.iter().map(|e| e["ph"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["B", "i", "B", "E", "E"]);
        let times: Vec<_> = events.iter().map(|e| e["ts"].as_f64().unwrap()).collect();
        assert_eq!(times, [1.5, 1.5, 2.0, 3.001, 3.001]);
        assert_eq!(events[0]["args"]["cpu"], 1);
        assert_eq!(events[1]["name"], "late \"one\"");
    }

    #[test]
    fn no_two_headings_or_tracks_have_the_same_number() {
        let mut file = TraceFile::new(Vec::new()).unwrap();
        let one = file.heading("one").unwrap();
        let two = file.heading("two").unwrap();
        for heading in [one, two] {
            file.track(heading, "track", 0).unwrap();
        }
        let mut numbers: Vec<_> = file.tracks.iter().map(|track| track.number).collect();
        numbers.extend([one.0, two.0]);
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4]);
    }
}
