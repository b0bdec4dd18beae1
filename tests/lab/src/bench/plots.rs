//! Pictures of a record: how late, in which share of the cases; who got how much; how costs grow.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{anyhow, Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use super::compare::{contenders, Row};
use super::contender::OURS;
use super::growth::Point;
use super::record::Record;
use super::report::COSTS;

/// Of a picture, in pixels; a page scales it.
const SIZE: (u32, u32) = (720, 440);

const FONT: &str = "sans-serif";
const TEXT: i32 = 15;
const TITLE: i32 = 19;

/// The smallest share that is drawn: beyond it are single samples.
const LEAST_SHARE: f64 = 1e-3;

/// What can be drawn of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plot {
    /// Part of a file's name.
    pub name: String,
    pub title: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Of a measure with distributions.
    Tail,
    Shares,
    /// Of the costs with these numbers in the list of costs.
    Growth(&'static [usize]),
}

impl Plot {
    /// All that there is something to draw for.
    pub fn all(record: &Record) -> Vec<Self> {
        let mut plots: Vec<Self> = Vec::new();
        for latency in &record.latencies {
            let measure = &latency.measure;
            if plots.iter().all(|plot| plot.name != *measure) {
                plots.push(Self {
                    name: measure.clone(),
                    title: format!("{measure}: share of the cases that take longer"),
                    kind: Kind::Tail,
                });
            }
        }
        if record.metrics.iter().any(|of| of.measure == "shares") {
            plots.push(Self {
                name: "shares".to_owned(),
                title: "CPU time, of what is theirs by weight".to_owned(),
                kind: Kind::Shares,
            });
        }
        if record.growth.len() > 1 {
            let growth = |name: &str, title: &str, costs| Self {
                name: name.to_owned(),
                title: title.to_owned(),
                kind: Kind::Growth(costs),
            };
            plots.push(growth(
                "growth-time",
                "Costs in time by number of vCPUs",
                &[0, 1, 2, 3, 4],
            ));
            plots.push(growth(
                "growth-memory",
                "Costs in memory by number of vCPUs",
                &[5, 6],
            ));
        }
        plots
    }

    /// As an element of a page.
    pub fn svg(&self, record: &Record) -> Result<String> {
        let mut text = String::new();
        self.draw(
            record,
            SVGBackend::with_string(&mut text, SIZE).into_drawing_area(),
        )?;
        Ok(text)
    }

    /// As a file, twice as large, since nothing scales it up without loss.
    pub fn png(&self, record: &Record, path: &Path) -> Result<()> {
        let backend = BitMapBackend::new(path, SIZE);
        self.draw(record, backend.into_drawing_area())
            .with_context(|| format!("cannot draw {}", path.display()))
    }

    fn draw<DB: DrawingBackend>(&self, record: &Record, area: DrawingArea<DB, Shift>) -> Result<()>
    where
        DB::ErrorType: 'static,
    {
        area.fill(&WHITE)?;
        let title = ("sans-serif", TITLE).into_font();
        let area = area.titled(&self.title, title)?;
        match self.kind {
            Kind::Tail => tail(record, &self.name, &area)?,
            Kind::Shares => shares(record, &area)?,
            Kind::Growth(costs) => growth(&record.growth, costs, &area)?,
        }
        area.present()?;
        Ok(())
    }
}

/// Lets texts be drawn in the first of these fonts' files that is there. Without one there are no
/// pictures.
pub fn use_font<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let font = |path: &Path| fs::read(path).ok();
    let mut files = files.into_iter();
    DONE.get_or_init(|| {
        let bytes = files
            .find_map(font)
            .ok_or("there is no font; install fonts-dejavu-core")?;
        // Once in the life of the process, which draws until its end.
        register_font(FONT, FontStyle::Normal, bytes.leak()).map_err(|_| "the font is none".into())
    })
    .clone()
    .map_err(|error| anyhow!(error))
}

/// The colour of a contender: ours stands out, the others are told apart.
fn colour(number: usize, name: &str) -> RGBColor {
    if name == OURS {
        return RGBColor(200, 0, 0);
    }
    const OTHERS: [RGBColor; 10] = [
        RGBColor(120, 120, 120),
        RGBColor(0, 0, 0),
        RGBColor(230, 159, 0),
        RGBColor(86, 180, 233),
        RGBColor(0, 158, 115),
        RGBColor(0, 90, 178),
        RGBColor(204, 121, 167),
        RGBColor(148, 103, 189),
        RGBColor(140, 86, 75),
        RGBColor(188, 189, 34),
    ];
    OTHERS[number % OTHERS.len()]
}

/// Steps of a distribution: microseconds, and the share of samples that take longer.
#[allow(clippy::cast_precision_loss)]
fn steps(counts: impl Iterator<Item = (u64, u64)>, samples: u64) -> Vec<(f64, f64)> {
    let mut longer = samples;
    let mut points = Vec::new();
    for (us, count) in counts {
        let us = us.max(1) as f64;
        points.push((us, longer as f64 / samples as f64));
        longer -= count;
        points.push((us, (longer as f64 / samples as f64).max(LEAST_SHARE)));
    }
    points
}

fn tail<DB: DrawingBackend>(
    record: &Record,
    measure: &str,
    area: &DrawingArea<DB, Shift>,
) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let lines: Vec<_> = contenders(record)
        .into_iter()
        .map(|name| (name, record.pooled(measure, name)))
        .filter(|(_, latency)| latency.samples() > 0)
        .map(|(name, latency)| (name, steps(latency.counts(), latency.samples())))
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let least = all().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = all().map(|point| point.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(30)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (least * 0.9..most * 1.1).log_scale(),
            (LEAST_SHARE..1.1).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("microseconds")
        .y_desc("share")
        .label_style((FONT, TEXT))
        .x_label_formatter(&|us| format!("{us:.0}"))
        .y_label_formatter(&|share| format!("{share}"))
        .draw()?;
    for (number, (name, points)) in lines.into_iter().enumerate() {
        let style = colour(number, name).stroke_width(if name == OURS { 3 } else { 2 });
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    // Distributions begin at the top and end at the right.
    legend(&mut chart, SeriesLabelPosition::LowerLeft)
}

fn legend<'a, DB: DrawingBackend + 'a, CT: plotters::coord::CoordTranslate>(
    chart: &mut ChartContext<'a, DB, CT>,
    position: SeriesLabelPosition,
) -> Result<()>
where
    DB::ErrorType: 'static,
{
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, TEXT))
        .position(position)
        .draw()?;
    Ok(())
}

fn shares<DB: DrawingBackend>(record: &Record, area: &DrawingArea<DB, Shift>) -> Result<()>
where
    DB::ErrorType: 'static,
{
    const GROUPS: [(&str, RGBColor); 3] = [
        ("vCPUs", RGBColor(0, 90, 178)),
        ("host, nice 0", RGBColor(230, 159, 0)),
        ("host, nice 5", RGBColor(0, 158, 115)),
    ];
    let rows = Row::all(record);
    let value = |metric: &str, name: &str| Row::find(&rows, "shares", metric)?.median(name);
    let names: Vec<_> = contenders(record)
        .into_iter()
        .filter(|name| value(GROUPS[0].0, name).is_some())
        .collect();
    let count = f64::from(u32::try_from(names.len())?);
    let most = names
        .iter()
        .flat_map(|name| {
            GROUPS
                .iter()
                .filter_map(move |(metric, _)| value(metric, name))
        })
        .fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(30)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..count, 0.0..most * 1.5)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("of their share")
        .label_style((FONT, TEXT))
        .draw()?;
    for (number, (metric, colour)) in GROUPS.into_iter().enumerate() {
        let left = 0.1 + 0.27 * f64::from(u32::try_from(number)?);
        let bars = names.iter().enumerate().filter_map(|(index, name)| {
            let left = f64::from(u32::try_from(index).ok()?) + left;
            let corners = [(left, 0.0), (left + 0.25, value(metric, name)?)];
            Some(Rectangle::new(corners, colour.filled()))
        });
        chart
            .draw_series(bars)?
            .label(metric)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], colour.filled()));
    }
    let fair = [(0.0, 1.0), (count, 1.0)];
    chart.draw_series(LineSeries::new(fair, BLACK.stroke_width(1)))?;
    // Below the axis, two lines high by turns, as the names are longer than their bars are wide.
    let (origin, plane) = (
        chart.plotting_area().get_pixel_range(),
        area.get_pixel_range(),
    );
    for (index, name) in names.iter().enumerate() {
        let middle = f64::from(u32::try_from(index)?) + 0.5;
        let (x, _) = chart.backend_coord(&(middle, 0.0));
        let y = origin.1.end + if index % 2 == 0 { 4 } else { 20 };
        let style =
            (FONT, TEXT - 2)
                .into_font()
                .color(&BLACK)
                .pos(plotters::style::text_anchor::Pos::new(
                    plotters::style::text_anchor::HPos::Center,
                    plotters::style::text_anchor::VPos::Top,
                ));
        let at = (x - plane.0.start, y - plane.1.start);
        area.draw(&Text::new((*name).to_owned(), at, style))?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

fn growth<DB: DrawingBackend>(
    points: &[Point],
    costs: &[usize],
    area: &DrawingArea<DB, Shift>,
) -> Result<()>
where
    DB::ErrorType: 'static,
{
    let mut points = points.to_vec();
    points.sort_by_key(|point| point.vcpus);
    let lines: Vec<_> = costs
        .iter()
        .filter_map(|number| COSTS.get(*number))
        .map(|(name, unit, cost)| {
            // A logarithm has no place for none at all.
            let line = points
                .iter()
                .map(|point| (f64::from(point.vcpus), cost(point).max(0.01)));
            (format!("{name}, {unit}"), line.collect::<Vec<_>>())
        })
        .collect();
    let all = || lines.iter().flat_map(|(_, points)| points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let least = all().map(of).fold(f64::INFINITY, f64::min);
        let most = all().map(of).fold(least, f64::max);
        least * 0.8..most * 1.25
    };
    // Above the curves there is room for their names.
    let costs = range(|point| point.1);
    let costs = costs.start..costs.end * 60.0;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .margin_right(30)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(range(|point| point.0).log_scale(), costs.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("vCPUs")
        .label_style((FONT, TEXT))
        .x_label_formatter(&|vcpus| format!("{vcpus:.0}"))
        .y_label_formatter(&|cost| super::report::short(*cost))
        .draw()?;
    for (number, (name, line)) in lines.into_iter().enumerate() {
        let colour = colour(number + 2, &name);
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(
            line.into_iter()
                .map(|point| Circle::new(point, 3, colour.filled())),
        )?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    #[test]
    fn a_distribution_goes_down_to_its_longest() {
        let points = steps([(100, 1), (200, 2), (400, 1)].into_iter(), 4);
        assert_eq!(points[0], (100.0, 1.0));
        assert_eq!(points[1], (100.0, 0.75));
        assert_eq!(points[3], (200.0, 0.25));
        assert_eq!(points[5], (400.0, LEAST_SHARE));
    }

    #[test]
    fn there_is_a_plot_for_what_was_measured_only() {
        assert_eq!(Plot::all(&Record::default()), []);
        let record = Record {
            growth: vec![Point::default(), Point::default()],
            ..Record::default()
        };
        let names: Vec<_> = Plot::all(&record).into_iter().map(|p| p.name).collect();
        assert_eq!(names, ["growth-time", "growth-memory"]);
    }
}
