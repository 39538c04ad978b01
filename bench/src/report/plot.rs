//! Plots as SVG.
//!
//! Colours stand for roles: the page's style sheet gives each its value, light or dark.

use anyhow::{Result, anyhow};
use plotters::{
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{tables::Table, words};
use crate::figure::{Figure, Unit};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Text and axes, less important text, grid.
pub const INK: RGBColor = RGBColor(0x1b, 0x1f, 0x24);
pub const MUTED: RGBColor = RGBColor(0x65, 0x6d, 0x76);
pub const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);

/// A path's colour on light and on dark ground.
pub struct Colour {
    path: &'static str,
    pub light: RGBColor,
    pub dark: RGBColor,
}

const fn colour(path: &'static str, light: u32, dark: u32) -> Colour {
    const fn rgb(code: u32) -> RGBColor {
        let [_, red, green, blue] = code.to_be_bytes();
        RGBColor(red, green, blue)
    }
    Colour {
        path,
        light: rgb(light),
        dark: rgb(dark),
    }
}

/// A path has the same colour in every plot; those that are not named take the ones that
/// are left.
pub const COLOURS: [Colour; 10] = [
    colour("tc", 0x0b6bcb, 0x5cabff),
    colour("xdp", 0x7a3ff2, 0xb79bff),
    colour("bridge", 0xd9480f, 0xff8f57),
    colour("routed", 0x2b8a3e, 0x5fd37a),
    colour("routed, default delay", 0x7d8600, 0xc5cf3f),
    colour("ndppd", 0xc2255c, 0xf783ac),
    colour("macvlan", 0xb07800, 0xf2bd4b),
    colour("bare redirect_peer", 0x2b3440, 0xd5dbe3),
    colour("link", 0x6b7280, 0x9aa3b0),
    colour("without us", 0x5c4033, 0xc9a58f),
];

/// The colour of a path, among those of the same plot.
fn colour_of(path: &str, paths: &[&str]) -> RGBColor {
    let named = |path: &str| COLOURS.iter().find(|colour| colour.path == path);
    if let Some(colour) = named(path) {
        return colour.light;
    }
    let free: Vec<_> = COLOURS
        .iter()
        .filter(|colour| !paths.contains(&colour.path))
        .collect();
    let at = paths
        .iter()
        .filter(|path| named(path).is_none())
        .position(|other| *other == path)
        .unwrap_or(0);
    free[at % free.len()].light
}

/// Size of text; the backend divides it by 1.24 for pixels.
const TEXT: f64 = 16.5;
/// Width of a letter, mostly at most: fonts are the reader's.
const LETTER: f64 = 7.6;
const WIDTH: u32 = 680;

/// Cost against size where there are sizes, bars where there is one.
///
/// # Errors
/// When there is nothing to draw.
pub fn plot(table: &Table) -> Result<String> {
    let mut svg = String::new();
    if table.sizes().len() > 1 {
        lines(table, &mut svg)?;
    } else {
        bars(table, &mut svg)?;
    }
    Ok(svg)
}

/// Values on an axis.
#[derive(Clone, Copy)]
struct Axis {
    log: bool,
    low: f64,
    high: f64,
}

impl Axis {
    /// Around these values, logarithmic where they allow it.
    fn around(values: &[f64]) -> Self {
        let fold = |by: fn(f64, f64) -> f64| values.iter().copied().fold(f64::NAN, by);
        let (low, high) = (fold(f64::min), fold(f64::max));
        let log = low > 0.0;
        let mut axis = Axis { log, low, high };
        if log {
            // A factor of two at least, lest noise look like a slope.
            let room = (high / low).powf(0.08).max(1.12);
            let room = room.max((2.0 * low / high).sqrt());
            (axis.low, axis.high) = (low / room, high * room);
        } else {
            let room = ((high - low) * 0.08).max(1.0);
            (axis.low, axis.high) = (low.min(0.0), high + room);
        }
        axis
    }

    /// Where a value is.
    fn at(self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// Round values to draw lines at, eight at most.
    fn ticks(self, base: f64) -> Vec<f64> {
        let (low, high) = (self.low * base, self.high * base);
        let within = |ticks: Vec<f64>| -> Vec<f64> {
            ticks
                .into_iter()
                .filter(|tick| (low..=high).contains(tick))
                .map(|tick| tick / base)
                .collect()
        };
        if self.log {
            let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
            for steps in [&[1.0, 2.0, 5.0][..], &[1.0, 3.0], &[1.0]] {
                let ticks = decades
                    .clone()
                    .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)));
                let ticks = within(ticks.collect());
                if (3..=7).contains(&ticks.len()) {
                    return ticks;
                }
            }
            let all = decades.clone().map(|decade| 10_f64.powi(decade));
            let ticks = within(all.collect());
            if ticks.len() > 7 {
                let step = ticks.len().div_ceil(7);
                return ticks.into_iter().step_by(step).collect();
            }
        }
        let rough = (high - low) / 7.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|step| step * decade)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(rough);
        let first = (low / step).ceil() as i64;
        within((first..first + 8).map(|n| n as f64 * step).collect())
    }
}

/// How many of what ticks are round in is one of a unit: bytes are counted in KiB.
const fn base(unit: Unit) -> f64 {
    match unit {
        Unit::Bytes => 1.0 / 1024.0,
        _ => 1.0,
    }
}

fn style(colour: RGBColor, size: f64, horizontal: HPos) -> TextStyle<'static> {
    TextStyle {
        font: ("sans-serif", size).into_font(),
        color: colour.to_backend_color(),
        pos: Pos::new(horizontal, VPos::Center),
    }
}

fn draw<E>(result: Result<(), DrawingAreaErrorKind<E>>) -> Result<()>
where
    E: std::error::Error + Send + Sync,
{
    result.map_err(|error| anyhow!("cannot draw: {error}"))
}

fn write(area: &Area, text: &str, style: &TextStyle, (x, y): (f64, f64)) -> Result<()> {
    draw(area.draw_text(text, style, (x.round() as i32, y.round() as i32)))
}

/// A line through the medians of each path, with spreads.
fn lines(table: &Table, svg: &mut String) -> Result<()> {
    const HEIGHT: u32 = 390;
    const TOP: f64 = 14.0;
    const BOTTOM: f64 = 58.0;
    let paths = table.paths();
    let figures: Vec<_> = table
        .rows
        .iter()
        .map(|row| row.figure)
        .filter(|figure| figure.median().is_finite())
        .collect();
    let values: Vec<_> = figures
        .iter()
        .flat_map(|figure| [figure.spread().0, figure.spread().1])
        .collect();
    if figures.is_empty() {
        return Err(anyhow!("there are no values"));
    }
    let sizes = table.sizes();
    let x = Axis {
        log: sizes[0] > 0,
        low: sizes[0] as f64,
        high: sizes[sizes.len() - 1] as f64,
    };
    let y = Axis::around(&values);
    let ticks = y.ticks(base(table.unit));
    let labels: Vec<_> = ticks
        .iter()
        .map(|tick| words::tick(table.unit, *tick))
        .collect();
    let left = width_of(labels.iter().map(String::as_str)) + 18.0;
    let right = width_of(paths.iter().copied()) + 44.0;

    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    // Points at the edges are whole.
    const INSET: f64 = 12.0;
    let (from_x, to_x) = (left + INSET, f64::from(WIDTH) - right - INSET);
    let (from_y, to_y) = (TOP, f64::from(HEIGHT) - BOTTOM);
    let plane: Plane = root.apply_coord_spec(Cartesian2d::new(
        x.at(x.low)..x.at(x.high),
        y.at(y.low)..y.at(y.high),
        (from_x as i32..to_x as i32, to_y as i32..from_y as i32),
    ));
    let pixel = |size: f64, value: f64| {
        let (x, y) = plane.map_coordinate(&(x.at(size), y.at(value)));
        (f64::from(x), f64::from(y))
    };

    for (tick, label) in ticks.iter().zip(&labels) {
        let (_, at) = pixel(x.low, *tick);
        let ends = [left, f64::from(WIDTH) - right].map(|x| (x as i32, at as i32));
        draw(root.draw(&PathElement::new(ends.to_vec(), GRID.stroke_width(1))))?;
        write(
            &root,
            label,
            &style(MUTED, TEXT, HPos::Right),
            (left - 8.0, at),
        )?;
    }
    let mut free = f64::INFINITY;
    // Where two are close, the larger one is named.
    for size in sizes.iter().rev() {
        let (at, bottom) = pixel(*size as f64, y.low);
        let ends = [bottom, bottom + 5.0].map(|y| (at as i32, y as i32));
        draw(root.draw(&PathElement::new(ends.to_vec(), MUTED.stroke_width(1))))?;
        let label = words::size(*size);
        let half = width_of([label.as_str()]) / 2.0;
        if at + half < free {
            let place = (at, bottom + 19.0);
            write(&root, &label, &style(MUTED, TEXT, HPos::Center), place)?;
            free = at - half - 8.0;
        }
    }
    let axis = [left, f64::from(WIDTH) - right].map(|x| (x as i32, to_y as i32));
    draw(root.draw(&PathElement::new(axis.to_vec(), MUTED.stroke_width(1))))?;
    let below = ((from_x + to_x) / 2.0, f64::from(HEIGHT) - 12.0);
    write(
        &root,
        table.size_word(),
        &style(MUTED, TEXT, HPos::Center),
        below,
    )?;

    let mut names = Vec::new();
    // Ours lie above.
    let (ours, others): (Vec<&str>, Vec<_>) = paths.iter().partition(|path| is_ours(path));
    for path in others.into_iter().chain(ours) {
        let colour = colour_of(path, &paths);
        let of_path: Vec<&Figure> = figures
            .iter()
            .copied()
            .filter(|figure| figure.path == path)
            .collect();
        let Some(last) = of_path.last() else { continue };
        for figure in &of_path {
            let (low, high) = figure.spread();
            let size = figure.size as f64;
            let ends = [low, high].map(|value| (x.at(size), y.at(value)));
            let thin = colour.mix(0.35).stroke_width(3);
            draw(plane.draw(&PathElement::new(ends.to_vec(), thin)))?;
        }
        let points: Vec<_> = of_path
            .iter()
            .map(|figure| (x.at(figure.size as f64), y.at(figure.median())))
            .collect();
        let width = if is_ours(path) { 3 } else { 2 };
        draw(plane.draw(&PathElement::new(
            points.clone(),
            colour.stroke_width(width),
        )))?;
        for point in points {
            draw(plane.draw(&Circle::new(point, 4, colour.filled())))?;
        }
        names.push((pixel(last.size as f64, last.median()), path, colour));
    }

    let wanted: Vec<_> = names.iter().map(|((_, y), ..)| *y).collect();
    let places = apart(&wanted, TEXT + 1.5, (from_y, to_y));
    for (((end_x, end_y), path, colour), place) in names.into_iter().zip(places) {
        let text_x = f64::from(WIDTH) - right + 26.0;
        let leader = [(end_x + 7.0, end_y), (text_x - 6.0, place)];
        let leader = leader.map(|(x, y)| (x as i32, y as i32)).to_vec();
        let faint = colour.mix(0.4).stroke_width(1);
        draw(root.draw(&PathElement::new(leader, faint)))?;
        let style = style(colour, TEXT, HPos::Left);
        write(&root, path, &style, (text_x, place))?;
    }
    draw(root.present())
}

/// A bar for each path.
fn bars(table: &Table, svg: &mut String) -> Result<()> {
    const ROW: f64 = 34.0;
    const BAR: f64 = 18.0;
    const EDGE: f64 = 8.0;
    let paths = table.paths();
    let values: Vec<_> = table
        .rows
        .iter()
        .map(|row| words::value(table.unit, row.figure.median()))
        .collect();
    let left = width_of(paths.iter().copied()) + 16.0;
    let right = width_of(values.iter().map(String::as_str)) + 16.0;
    let height = (table.rows.len() as f64 * ROW + 2.0 * EDGE) as u32;
    let most = table
        .rows
        .iter()
        .map(|row| row.figure.spread().1)
        .fold(0.0, f64::max);
    let room = f64::from(WIDTH) - left - right;
    let pixel = |value: f64| {
        let part = if most > 0.0 {
            value.max(0.0) / most
        } else {
            0.0
        };
        left + part * room
    };

    let root = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let rect = |from: (f64, f64), to: (f64, f64), style: ShapeStyle| {
        let corners = [from, to].map(|(x, y)| (x.round() as i32, y.round() as i32));
        draw(root.draw(&Rectangle::new(corners, style)))
    };
    for (at, (row, value)) in table.rows.iter().zip(&values).enumerate() {
        let figure = row.figure;
        let colour = colour_of(&figure.path, &paths);
        let middle = EDGE + (at as f64 + 0.5) * ROW;
        let name = style(INK, TEXT, HPos::Right);
        write(&root, &figure.path, &name, (left - 10.0, middle))?;
        let (low, high) = figure.spread();
        if figure.median().is_finite() {
            let end = pixel(figure.median()).max(left + 2.0);
            let (top, bottom) = (middle - BAR / 2.0, middle + BAR / 2.0);
            rect((left, top), (end, bottom), colour.filled())?;
            // From the smallest to the largest round.
            let whisker = [low, high].map(|value| (pixel(value) as i32, middle as i32));
            let thin = INK.mix(0.55).stroke_width(2);
            draw(root.draw(&PathElement::new(whisker.to_vec(), thin)))?;
        }
        let place = pixel(high.max(0.0)) + 8.0;
        write(&root, value, &style(INK, TEXT, HPos::Left), (place, middle))?;
    }
    let ends = [0.0, f64::from(height)].map(|y| (left as i32, y as i32));
    draw(root.draw(&PathElement::new(ends.to_vec(), MUTED.stroke_width(1))))?;
    draw(root.present())
}

fn is_ours(path: &str) -> bool {
    matches!(path, "tc" | "xdp" | "ours")
}

/// Pixels of the longest of these texts, roughly.
fn width_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> f64 {
    let letters = texts.into_iter().map(|text| text.chars().count()).max();
    letters.unwrap_or(0) as f64 * LETTER
}

/// Places near those wanted, at least `gap` from one another and within bounds.
fn apart(wanted: &[f64], gap: f64, (low, high): (f64, f64)) -> Vec<f64> {
    let mut order: Vec<_> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*a].total_cmp(&wanted[*b]));
    let mut places = wanted.to_vec();
    let mut free = low;
    for &at in &order {
        places[at] = places[at].max(free);
        free = places[at] + gap;
    }
    let mut free = high;
    for &at in order.iter().rev() {
        places[at] = places[at].min(free);
        free = places[at] - gap;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{tables::tables, tests::report};

    fn svg(figures: Vec<Figure>) -> Result<String> {
        plot(&tables(&report(figures), None)[0])
    }

    fn figure(path: &str, size: u64, rounds: &[f64]) -> Figure {
        let unit = Unit::Nanoseconds;
        Figure::new("local", "CPU per packet", unit, path, size, rounds.to_vec())
    }

    #[test]
    fn labels_keep_apart_and_within_bounds() {
        let places = apart(&[50.0, 52.0, 51.0, 99.0], 10.0, (0.0, 100.0));
        assert_eq!(places, [50.0, 70.0, 60.0, 99.0]);
        assert_eq!(apart(&[99.0, 98.0], 10.0, (0.0, 100.0)), [100.0, 90.0]);
    }

    #[test]
    fn ticks_are_round_and_few() {
        for (low, high) in [
            (130.0, 350.0),
            (1.0, 1e6),
            (9.5, 10.2),
            (0.0, 7.0),
            (1e-9, 1e9),
        ] {
            let axis = Axis::around(&[low, high]);
            let ticks = axis.ticks(1.0);
            assert!((2..=8).contains(&ticks.len()), "{low} {high}: {ticks:?}");
        }
        let axis = Axis::around(&[130.0, 350.0]);
        assert_eq!(axis.ticks(1.0), [150.0, 200.0, 250.0, 300.0, 350.0]);
    }

    #[test]
    fn every_path_is_named_whatever_its_values() {
        for rounds in [&[0.0][..], &[f64::NAN], &[5.0, 6.0], &[-1.0, 2.0]] {
            for sizes in [&[1][..], &[1, 1000], &[0, 10]] {
                let figures = sizes
                    .iter()
                    .flat_map(|size| {
                        [
                            figure("tc", *size, rounds),
                            figure("other", *size, &[7.0, 8.0]),
                        ]
                    })
                    .collect();
                let svg = svg(figures).expect("a plot");
                assert!(svg.contains("other"), "{svg}");
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }

    #[test]
    fn paths_without_a_colour_of_their_own_differ() {
        let paths = ["tc", "one", "another"];
        let colours = paths.map(|path| colour_of(path, &paths));
        assert_ne!(colours[1], colours[2]);
        assert_ne!(colours[0], colours[1]);
    }
}
