//! Figures side by side, as both renderings show them.

use super::{
    Earlier, Report,
    compare::{Change, change},
    words,
};
use crate::figure::{Figure, Unit};

/// A metric of a scenario.
pub struct Table<'a> {
    /// The scenario.
    pub scenario: &'a str,
    /// The metric.
    pub metric: &'a str,
    /// Unit of all rows.
    pub unit: Unit,
    /// By size; paths in the order in which they were measured.
    pub rows: Vec<Row<'a>>,
}

/// A figure beside others.
pub struct Row<'a> {
    /// The figure.
    pub figure: &'a Figure,
    /// In multiples of another figure, which is named.
    pub ratio: Option<Ratio<'a>>,
    /// Against an earlier run.
    pub change: Option<Change>,
}

/// How many times another figure.
pub struct Ratio<'a> {
    value: f64,
    baseline: &'a Figure,
    /// The baseline is the same path at another size.
    own: bool,
}

impl Ratio<'_> {
    /// `0.53 × bridge`.
    pub fn words(&self) -> String {
        let value = words::number(self.value);
        if self.own {
            format!("{value} × at {}", words::size(self.baseline.size))
        } else {
            format!("{value} × {}", self.baseline.path)
        }
    }
}

/// What others are held against where it was measured, the first of these.
const BASELINES: [&str; 4] = ["bridge", "routed", "routed, default delay", "without us"];

/// A table for each metric, in the order in which they were measured.
pub fn tables<'a>(report: &'a Report, earlier: Option<&Earlier>) -> Vec<Table<'a>> {
    let mut tables: Vec<Table> = Vec::new();
    let before = earlier.map_or(&[][..], |earlier| &earlier.report.figures);
    for figure in &report.figures {
        let table = tables.iter_mut().find(|table| {
            table.scenario == figure.scenario
                && table.metric == figure.metric
                && table.unit == figure.unit
        });
        let row = Row {
            figure,
            ratio: None,
            change: change(figure, before),
        };
        match table {
            Some(table) => table.rows.push(row),
            None => tables.push(Table {
                scenario: &figure.scenario,
                metric: &figure.metric,
                unit: figure.unit,
                rows: vec![row],
            }),
        }
    }
    for table in &mut tables {
        // Stable: paths stay in their order.
        table.rows.sort_by_key(|row| row.figure.size);
        let figures: Vec<_> = table.rows.iter().map(|row| row.figure).collect();
        for row in &mut table.rows {
            row.ratio = ratio(row.figure, &figures);
        }
    }
    tables
}

/// Against a baseline of the same size; where there is no other path at all, against the
/// smallest size.
fn ratio<'a>(figure: &Figure, all: &[&'a Figure]) -> Option<Ratio<'a>> {
    let has_baseline = all
        .iter()
        .any(|other| BASELINES.contains(&other.path.as_str()));
    let baseline = if has_baseline {
        BASELINES.iter().find_map(|path| {
            all.iter()
                .find(|other| other.path == *path && other.size == figure.size)
        })?
    } else {
        all.iter().find(|other| other.path == figure.path)?
    };
    if baseline.is_like(figure) {
        return None;
    }
    Some(Ratio {
        value: figure.ratio(baseline),
        baseline,
        own: baseline.path == figure.path,
    })
}

impl<'a> Table<'a> {
    /// Paths in the order in which they appear.
    pub fn paths(&self) -> Vec<&'a str> {
        let mut paths = Vec::new();
        for row in &self.rows {
            let path = row.figure.path.as_str();
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }

    /// The figures of a path at a size.
    pub fn at(&self, path: &str, size: u64) -> impl Iterator<Item = &Row<'a>> {
        let rows = self.rows.iter();
        rows.filter(move |row| row.figure.path == path && row.figure.size == size)
    }

    /// Sizes, the smallest first.
    pub fn sizes(&self) -> Vec<u64> {
        let mut sizes: Vec<_> = self.rows.iter().map(|row| row.figure.size).collect();
        sizes.dedup();
        sizes
    }

    /// What its sizes count.
    pub fn size_word(&self) -> &'static str {
        crate::scenarios::find(self.scenario).map_or("size", |scenario| scenario.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    fn figure(path: &str, size: u64, rounds: &[f64]) -> Figure {
        Figure::new("arp", "CPU", Unit::Nanoseconds, path, size, rounds.to_vec())
    }

    fn ratios(figures: Vec<Figure>) -> Vec<(String, u64, Option<String>)> {
        let report = report(figures);
        let tables = tables(&report, None);
        assert_eq!(tables.len(), 1);
        tables[0]
            .rows
            .iter()
            .map(|row| {
                let words = row.ratio.as_ref().map(Ratio::words);
                (row.figure.path.clone(), row.figure.size, words)
            })
            .collect()
    }

    #[test]
    fn rows_are_held_against_the_best_known_baseline_of_their_size() {
        let rows = ratios(vec![
            figure("tc", 1, &[1.0]),
            figure("tc", 10_000, &[3.0]),
            figure("routed", 1, &[4.0]),
            figure("routed", 10_000, &[4.0]),
            figure("bridge", 1, &[2.0]),
            figure("tc", 100_000, &[9.0]),
        ]);
        let word = |text: &str| Some(text.to_owned());
        assert_eq!(
            rows,
            [
                ("tc".into(), 1, word("0.500 × bridge")),
                ("routed".into(), 1, word("2.00 × bridge")),
                ("bridge".into(), 1, None),
                ("tc".into(), 10_000, word("0.750 × routed")),
                ("routed".into(), 10_000, None),
                ("tc".into(), 100_000, None),
            ]
        );
    }

    #[test]
    fn without_a_baseline_sizes_are_held_against_the_smallest() {
        let rows = ratios(vec![figure("tc", 100, &[3.0]), figure("tc", 1, &[2.0])]);
        assert_eq!(rows[0], ("tc".into(), 1, None));
        assert_eq!(rows[1], ("tc".into(), 100, Some("1.50 × at 1".into())));
    }
}
