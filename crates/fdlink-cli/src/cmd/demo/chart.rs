//! The demo's result as a picture: bars of throughput, in groups by mode and MTU.
//!
//! Laid out here and not by plotters' charts: those know lines and histograms, and with labels of
//! text under groups of bars they have to be fought. Sizes are in pixels of the picture.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::{
    Color, DrawingArea, DrawingBackend, IntoDrawingArea, IntoFont, PathElement, RGBColor,
    Rectangle, SVGBackend, TextStyle,
};
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::place::Place;
use super::row::{Direction, Family, Row};

const WIDTH: i32 = 1_080;
const HEIGHT: i32 = 560;
/// Where the bars stand.
const LEFT: i32 = 76;
const RIGHT: i32 = WIDTH - 24;
const TOP: i32 = 132;
const BOTTOM: i32 = HEIGHT - 92;
/// Between groups, in widths of a bar.
const GAP: f64 = 1.6;

const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);
const PALE: RGBColor = RGBColor(0x61, 0x6e, 0x7c);
const GRID: RGBColor = RGBColor(0xe4, 0xe7, 0xeb);
const RED: RGBColor = RGBColor(0xba, 0x25, 0x25);

/// The bars of a group, from left to right. The two directions can be told apart without colours,
/// too: one pair is dark, the other light.
const SERIES: [Series; 4] = [
    Series { direction: Direction::Up, family: Family::V4, colour: RGBColor(0x0b, 0x4f, 0x8a) },
    Series { direction: Direction::Up, family: Family::V6, colour: RGBColor(0x4c, 0x8c, 0xc4) },
    Series { direction: Direction::Down, family: Family::V4, colour: RGBColor(0xe0, 0x8e, 0x0b) },
    Series { direction: Direction::Down, family: Family::V6, colour: RGBColor(0xf5, 0xc4, 0x6b) },
];

struct Series {
    direction: Direction,
    family: Family,
    colour: RGBColor,
}

impl Series {
    fn label(&self) -> String {
        let direction = match self.direction {
            Direction::Up => "sandbox → host",
            Direction::Down => "host → sandbox",
        };
        format!("{direction}, {}", self.family)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Error<'a> =
    plotters::drawing::DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// The picture, as SVG.
pub(crate) fn svg(rows: &[Row], place: &Place) -> Result<String, String> {
    let mut picture = String::new();
    {
        let size = (WIDTH.unsigned_abs(), HEIGHT.unsigned_abs());
        let area = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        draw(&area, rows, place).map_err(|error| error.to_string())?;
    }
    Ok(picture)
}

fn draw<'a>(area: &Area<'a>, rows: &[Row], place: &Place) -> Result<(), Error<'a>> {
    area.fill(&plotters::style::WHITE)?;
    let axis = Axis::up_to(highest(rows));
    heading(area, rows, place)?;
    legend(area)?;
    axis.draw(area)?;
    let groups = groups(rows);
    // How wide a bar is, when all the groups share the room.
    let units = groups.len().max(1) as f64 * (SERIES.len() as f64 + GAP);
    let bar = f64::from(RIGHT - LEFT) / units;
    for (number, group) in groups.iter().enumerate() {
        let left =
            f64::from(LEFT) + bar * (number as f64 * (SERIES.len() as f64 + GAP) + GAP / 2.0);
        draw_group(area, &axis, group, left, bar)?;
    }
    Ok(())
}

/// The rows of one mode and MTU stand together.
fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let same = |group: &&mut Vec<&Row>| {
            let trial = &group[0].trial;
            (trial.mode, trial.mtu) == (row.trial.mode, row.trial.mtu)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

fn highest(rows: &[Row]) -> f64 {
    let transfers = rows.iter().flat_map(|row| &row.transfers);
    transfers.map(|transfer| transfer.gbit_per_second).fold(0.0, f64::max)
}

fn heading<'a>(area: &Area<'a>, rows: &[Row], place: &Place) -> Result<(), Error<'a>> {
    let verified = rows.iter().filter(|row| row.verified()).count();
    let (middle, left) = (VPos::Center, HPos::Left);
    let title = "fdlink demo: TCP from a sandbox through a user-space stack";
    put(area, title, (LEFT, 32), &text(26, &INK, left, middle))?;
    put(area, place, (LEFT, 62), &text(16, &PALE, left, middle))?;
    let (colour, all) = match verified == rows.len() {
        true => (&PALE, format!("all {verified} rows verified by hash at both ends")),
        false => (&RED, format!("only {verified} of {} rows verified", rows.len())),
    };
    put(area, all, (RIGHT, 62), &text(16, colour, HPos::Right, middle))
}

fn legend<'a>(area: &Area<'a>) -> Result<(), Error<'a>> {
    let mut left = LEFT;
    for series in &SERIES {
        area.draw(&Rectangle::new([(left, 88), (left + 14, 102)], series.colour.filled()))?;
        let style = text(16, &INK, HPos::Left, VPos::Center);
        put(area, series.label(), (left + 22, 95), &style)?;
        left += 200;
    }
    Ok(())
}

/// The axis of throughput.
struct Axis {
    step: f64,
    steps: u32,
}

impl Axis {
    /// One with round steps, between four and eight, to `highest` or a little above.
    fn up_to(highest: f64) -> Self {
        let highest = if highest.is_finite() && highest > 0.0 { highest } else { 1.0 };
        let power = 10_f64.powf((highest / 8.0).log10().floor());
        let steps = |step: &f64| (highest / step).ceil();
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
        let step = step.into_iter().find(|step| steps(step) <= 8.0).unwrap_or(highest);
        let count = (1..=8).find(|&count| f64::from(count) * step >= highest).unwrap_or(8);
        Self { step, steps: count }
    }

    /// Where that much is.
    fn y(&self, value: f64) -> i32 {
        let whole = self.step * f64::from(self.steps);
        BOTTOM - pixels(value / whole * f64::from(BOTTOM - TOP))
    }

    fn draw<'a>(&self, area: &Area<'a>) -> Result<(), Error<'a>> {
        let style = text(15, &PALE, HPos::Right, VPos::Center);
        for number in 0..=self.steps {
            let value = self.step * f64::from(number);
            let y = self.y(value);
            let colour = if number == 0 { PALE } else { GRID };
            area.draw(&PathElement::new([(LEFT, y), (RIGHT, y)], colour.stroke_width(1)))?;
            let decimals = usize::from(self.step.fract() > 0.0) + usize::from(self.step < 0.1);
            put(area, format!("{value:.decimals$}"), (LEFT - 8, y), &style)?;
        }
        let centre = Pos::new(HPos::Center, VPos::Center);
        let font = ("sans-serif", 16).into_font().transform(FontTransform::Rotate270);
        let style = TextStyle::from(font).color(&INK).pos(centre);
        put(area, "throughput, Gbit/s", (LEFT - 54, i32::midpoint(TOP, BOTTOM)), &style)?;
        let style = text(16, &INK, HPos::Center, VPos::Center);
        let middle = i32::midpoint(LEFT, RIGHT);
        put(
            area,
            "how frames cross the descriptor, and MTU in bytes",
            (middle, HEIGHT - 20),
            &style,
        )
    }
}

fn draw_group<'a>(
    area: &Area<'a>,
    axis: &Axis,
    group: &[&Row],
    left: f64,
    bar: f64,
) -> Result<(), Error<'a>> {
    for (place, series) in SERIES.iter().enumerate() {
        let Some(row) = group.iter().find(|row| row.trial.direction == series.direction) else {
            continue;
        };
        let from = left + bar * place as f64;
        let (from, to) = (pixels(from), pixels(from + bar) - 2);
        let middle = i32::midpoint(from, to);
        let rate = row.gbit_per_second(series.family).filter(|_| row.verified());
        match rate {
            Some(rate) => {
                let top = axis.y(rate);
                area.draw(&Rectangle::new([(from, top), (to, BOTTOM)], series.colour.filled()))?;
                let style = text(14, &INK, HPos::Center, VPos::Bottom);
                put(area, short(rate), (middle, top - 2), &style)?;
            }
            None if row.verified() => {}
            None => {
                let font = ("sans-serif", 14).into_font().transform(FontTransform::Rotate270);
                let anchor = Pos::new(HPos::Left, VPos::Center);
                let style = TextStyle::from(font).color(&RED).pos(anchor);
                put(area, "failed", (middle, BOTTOM - 6), &style)?;
            }
        }
    }
    let Some(first) = group.first() else { return Ok(()) };
    let middle = pixels(left + bar * SERIES.len() as f64 / 2.0);
    let style = text(17, &INK, HPos::Center, VPos::Center);
    put(area, first.trial.mode, (middle, BOTTOM + 20), &style)?;
    let style = text(15, &PALE, HPos::Center, VPos::Center);
    put(area, format!("MTU {}", first.trial.mtu), (middle, BOTTOM + 42), &style)
}

/// As many digits as fit above a bar.
fn short(rate: f64) -> String {
    // From 9.95 it would be rounded to 10.0.
    if rate < 9.95 { format!("{rate:.1}") } else { format!("{rate:.0}") }
}

fn text(size: u32, colour: &'static RGBColor, across: HPos, down: VPos) -> TextStyle<'static> {
    TextStyle::from(("sans-serif", size).into_font()).color(colour).pos(Pos::new(across, down))
}

fn put<'a>(
    area: &Area<'a>,
    text: impl Display,
    at: (i32, i32),
    style: &TextStyle<'_>,
) -> Result<(), Error<'a>> {
    area.draw_text(&text.to_string(), style, at)
}

/// The nearest whole pixel.
#[expect(clippy::cast_possible_truncation, reason = "a float is cut to what an i32 can hold")]
fn pixels(value: f64) -> i32 {
    value.round() as i32
}

#[cfg(test)]
mod tests {
    use super::super::row::Trial;
    use super::super::row::tests::good;
    use super::*;

    fn place() -> Place {
        Place {
            kernel: "6.18 <&>".into(),
            cpu: "A \"CPU\"".into(),
            cores: 2,
            congestion_control: "cubic".into(),
        }
    }

    /// Well-formed as far as plotters' XML goes: tags close in order, `<` and `&` only where they
    /// may be; the texts.
    fn texts(svg: &str) -> Vec<String> {
        let (mut open, mut texts) = (Vec::new(), Vec::new());
        for piece in svg.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').expect("a tag ends");
            assert!(!text.contains('>'), "{text}");
            for entity in text.split('&').skip(1) {
                assert!(
                    ["lt;", "gt;", "amp;", "quot;", "apos;"].iter().any(|e| entity.starts_with(e))
                );
            }
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name.to_owned()));
            } else if !tag.ends_with('/') && !tag.starts_with('?') {
                open.push(tag.split_whitespace().next().unwrap().to_owned());
            }
            if !text.trim().is_empty() {
                texts.push(text.trim().to_owned());
            }
        }
        assert!(open.is_empty(), "{open:?}");
        texts
    }

    #[test]
    fn every_row_is_in_it() {
        let rows: Vec<_> = Trial::all().into_iter().map(good).collect();
        let texts = texts(&svg(&rows, &place()).unwrap());
        let count = |wanted: &str| texts.iter().filter(|text| *text == wanted).count();
        for mode in ["readv", "recvmmsg", "packet-mmap"] {
            assert_eq!(count(mode), 2, "{mode}");
        }
        assert_eq!((count("MTU 1500"), count("MTU 65520")), (3, 3));
        assert_eq!(count("20"), 12);
        assert_eq!(count("throughput, Gbit/s"), 1);
        assert_eq!(count("sandbox → host, IPv4"), 1);
        assert_eq!(count("failed"), 0);
        assert_eq!(count("all 12 rows verified by hash at both ends"), 1);
    }

    #[test]
    fn a_failed_row_has_no_bar_and_says_so() {
        let mut rows: Vec<_> = Trial::all().into_iter().map(good).collect();
        rows[3].fault = Some("another hash".into());
        let texts = texts(&svg(&rows, &place()).unwrap());
        assert_eq!(texts.iter().filter(|text| *text == "failed").count(), 2);
        assert!(texts.contains(&"only 11 of 12 rows verified".to_owned()));
    }

    #[test]
    fn nothing_at_all_is_a_picture_too() {
        texts(&svg(&[], &place()).unwrap());
    }

    #[test]
    fn the_axis_has_round_steps() {
        for (highest, step, steps) in [
            (0.0, 0.2, 5),
            (0.07, 0.01, 7),
            (7.9, 1.0, 8),
            (23.0, 5.0, 5),
            (40.0, 5.0, 8),
            (95.0, 20.0, 5),
        ] {
            let axis = Axis::up_to(highest);
            assert!((axis.step - step).abs() < 1e-9, "{highest}: {}", axis.step);
            assert_eq!(axis.steps, steps, "{highest}");
            assert!(axis.y(highest) >= TOP && axis.y(0.0) == BOTTOM);
        }
    }
}
