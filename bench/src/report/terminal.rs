//! The report as text for a terminal.

use std::fmt::Write as _;

use console::{Alignment, Style, measure_text_width, pad_str};

use super::{
    Earlier, Report,
    compare::{Change, Mark},
    goals::{self, State},
    tables::{Ratio, Table, tables},
    words,
};

/// Everything that a run found, in colour where standard output is a terminal.
pub fn terminal(report: &Report, earlier: Option<&Earlier>) -> String {
    let bold = Style::new().bold();
    let mut text = String::new();
    if let Some(earlier) = earlier {
        let _ = writeln!(
            text,
            "changes are against {} of {}",
            earlier.name, earlier.report.host.date
        );
        for difference in super::differences(report, &earlier.report) {
            let _ = writeln!(text, "which had another {difference}");
        }
        text.push('\n');
    }
    for table in tables(report, earlier) {
        let title = format!("{}: {}", table.scenario, table.metric);
        let _ = writeln!(text, "{}", bold.apply_to(title));
        text += &figures(&table, earlier.is_some()).render();
        text.push('\n');
    }
    let _ = writeln!(text, "{}", bold.apply_to("goals"));
    text += &goals(report).render();
    let failed = report.scenarios.iter().filter_map(|outcome| {
        let error = outcome.error.as_ref()?;
        Some((&outcome.name, error))
    });
    for (name, error) in failed {
        let word = Style::new().red().bold().apply_to("failed");
        let _ = writeln!(text, "\n{word}: {name}: {error}");
    }
    if !report.complete {
        let word = Style::new().yellow().bold().apply_to("incomplete");
        let _ = writeln!(text, "\n{word}: the run did not come to its end");
    }
    text
}

fn figures(table: &Table, compared: bool) -> Grid {
    let mut grid = Grid::new(&[
        (table.size_word(), Alignment::Right),
        ("path", Alignment::Left),
        ("median", Alignment::Right),
        ("spread", Alignment::Right),
        ("ratio", Alignment::Left),
    ]);
    if compared {
        grid.column("change", Alignment::Right);
    }
    let mut above = None;
    for row in &table.rows {
        let figure = row.figure;
        let size = match above.replace(figure.size) {
            Some(size) if size == figure.size => String::new(),
            _ => words::size(figure.size),
        };
        let mut cells = vec![
            size,
            figure.path.clone(),
            words::value(table.unit, figure.median()),
            words::spread(table.unit, figure.spread()),
            row.ratio.as_ref().map(Ratio::words).unwrap_or_default(),
        ];
        if compared {
            cells.push(row.change.map_or_else(|| "new".into(), changed));
        }
        grid.rows.push(cells);
    }
    grid
}

fn changed(change: Change) -> String {
    let words = words::change(change.relative);
    match change.mark {
        Mark::Within => words,
        Mark::Better => Style::new().green().apply_to(words + " better").to_string(),
        Mark::Worse => Style::new()
            .red()
            .bold()
            .apply_to(words + " WORSE")
            .to_string(),
    }
}

fn goals(report: &Report) -> Grid {
    let mut grid = Grid::new(&[
        ("what", Alignment::Left),
        ("bound", Alignment::Left),
        ("found", Alignment::Right),
        ("rounds", Alignment::Right),
        ("", Alignment::Left),
    ]);
    for verdict in goals::judge(&report.figures) {
        let style = match verdict.state {
            State::Reached => Style::new().green(),
            State::Missed => Style::new().red().bold(),
            State::NotMeasured => Style::new().dim(),
        };
        let rounds = match verdict.state {
            State::NotMeasured => String::new(),
            _ => format!("{}/{}", verdict.reached_in, verdict.rounds),
        };
        grid.rows.push(vec![
            verdict.what,
            verdict.bound,
            verdict.found,
            rounds,
            style.apply_to(verdict.state).to_string(),
        ]);
    }
    grid
}

/// Cells in aligned columns.
struct Grid {
    columns: Vec<Alignment>,
    /// The first one is the head.
    rows: Vec<Vec<String>>,
}

impl Grid {
    fn new(columns: &[(&str, Alignment)]) -> Self {
        let mut grid = Grid {
            columns: Vec::new(),
            rows: vec![Vec::new()],
        };
        for (title, alignment) in columns {
            grid.column(title, *alignment);
        }
        grid
    }

    fn column(&mut self, title: &str, alignment: Alignment) {
        self.columns.push(alignment);
        self.rows[0].push(Style::new().dim().apply_to(title).to_string());
    }

    fn render(&self) -> String {
        let mut text = String::new();
        let widths: Vec<_> = (0..self.columns.len())
            .map(|at| {
                let widths = self.rows.iter().map(|row| measure_text_width(&row[at]));
                widths.max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), alignment) in row.iter().zip(&widths).zip(&self.columns) {
                line += "  ";
                line += &pad_str(cell, *width, *alignment, None);
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figure::{Figure, Unit},
        report::{Outcome, tests::report},
    };

    fn figure(path: &str, size: u64, rounds: &[f64]) -> Figure {
        let unit = Unit::Nanoseconds;
        Figure::new("local", "CPU per packet", unit, path, size, rounds.to_vec())
    }

    #[test]
    fn figures_are_rows_with_ratio_and_change() {
        console::set_colors_enabled(false);
        let now = report(vec![
            figure("bridge", 100, &[346.0, 330.0, 402.0]),
            figure("tc", 100, &[181.0, 170.0, 240.0]),
            figure("tc", 10_000, &[1210.0, 990.0, 1400.0]),
        ]);
        let earlier = Earlier {
            name: "earlier.json".into(),
            report: report(vec![
                figure("bridge", 100, &[340.0, 350.0, 401.0]),
                figure("tc", 100, &[150.0, 151.0, 152.0]),
            ]),
        };
        let text = terminal(&now, Some(&earlier));
        let (figures, goals) = text.split_once("goals\n").expect("both parts");
        assert_eq!(
            figures,
            "\
changes are against earlier.json of 2026-01-31T12:00:00Z

local: CPU per packet
  machines  path     median          spread  ratio                change
       100  bridge   346 ns      330–402 ns                         −1 %
            tc       181 ns      170–240 ns  0.523 × bridge  +20 % WORSE
    10,000  tc      1.21 µs  990 ns–1.40 µs                          new

"
        );
        assert!(goals.contains("not measured"));
    }

    #[test]
    fn failures_and_an_early_end_are_said() {
        console::set_colors_enabled(false);
        let mut report = report(Vec::new());
        report.complete = false;
        report.scenarios.push(Outcome {
            name: "tcp".into(),
            seconds: 1.0,
            error: Some("no iperf3".into()),
        });
        let text = terminal(&report, None);
        assert!(text.contains("\nfailed: tcp: no iperf3\n"), "{text}");
        assert!(text.contains("\nincomplete: "), "{text}");
    }
}
