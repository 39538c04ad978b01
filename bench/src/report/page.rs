//! The report as a page: one file, which needs no other.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::style::RGBColor;

use super::{
    Earlier, Report,
    compare::{Change, Mark},
    goals::{self, State, Verdict},
    plot,
    tables::{Ratio, Row, Table, tables},
    words,
};
use crate::scenarios;

/// The whole page.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn page(report: &Report, earlier: Option<&Earlier>) -> Result<String> {
    let tables = tables(report, earlier);
    let mut names: Vec<&str> = Vec::new();
    for table in &tables {
        if !names.contains(&table.scenario) {
            names.push(table.scenario);
        }
    }
    let verdicts = goals::judge(&report.figures);
    let mut sections = Vec::new();
    for name in &names {
        let of_name: Vec<_> = tables.iter().filter(|t| t.scenario == *name).collect();
        sections.push(scenario(name, &of_name, earlier.is_some())?);
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "netspawn-xdp benchmarks, " (report.host.date) }
                style { (PreEscaped(include_str!("page.css"))) (PreEscaped(colours())) }
            }
            body {
                header {
                    h1 { "netspawn-xdp benchmarks" }
                    (host(report))
                    (tiles(report, &verdicts, &tables, earlier))
                    nav {
                        a href="#goals" { "goals" }
                        @for name in &names { a href={ "#" (name) } { (name) } }
                    }
                }
                main {
                    (notes(report, earlier))
                    (goal_table(&verdicts))
                    @for section in &sections { (section) }
                }
                footer {
                    p {
                        "Medians of the rounds, with the smallest and the largest. Ratios are taken "
                        "round by round, since rounds of all paths run next to each other. Figures "
                        "compare paths on this machine; they promise nothing about another one."
                    }
                }
            }
        }
    };
    Ok(page.into_string())
}

fn host(report: &Report) -> Markup {
    let host = &report.host;
    let gibibytes = host.memory as f64 / f64::from(1 << 30);
    html! {
        dl.host {
            @for (name, value) in [
                ("date", host.date.clone()),
                ("CPU", format!("{} × {}", host.cores, host.cpu)),
                ("memory", format!("{gibibytes:.0} GiB")),
                ("kernel", host.kernel.clone()),
                ("load at start", format!("{:.2}", host.load)),
                ("revision", host.revision.clone().unwrap_or_else(|| "–".into())),
                ("build", host.build.clone()),
                ("options", format!(
                    "{} machines, {} rounds",
                    words::size(report.options.machines.into()),
                    report.options.rounds,
                )),
            ] {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

fn tiles(
    report: &Report,
    verdicts: &[Verdict],
    tables: &[Table],
    earlier: Option<&Earlier>,
) -> Markup {
    let count = |state| verdicts.iter().filter(|v| v.state == state).count();
    let missed = count(State::Missed);
    let failed = report
        .scenarios
        .iter()
        .filter(|s| s.error.is_some())
        .count();
    let marked = |mark| {
        let rows = tables.iter().flat_map(|table| &table.rows);
        rows.filter(|row| row.change.is_some_and(|change| change.mark == mark))
            .count()
    };
    let worse = marked(Mark::Worse);
    html! {
        div.tiles {
            (tile("goals reached", count(State::Reached), "good"))
            (tile("goals missed", missed, "bad"))
            (tile("goals not measured", count(State::NotMeasured), ""))
            @if failed > 0 { (tile("scenarios failed", failed, "bad")) }
            @if earlier.is_some() {
                (tile("figures worse", worse, "bad"))
                (tile("figures better", marked(Mark::Better), "good"))
            }
        }
    }
}

fn tile(name: &str, count: usize, class: &str) -> Markup {
    let class = if count > 0 { class } else { "" };
    html! { div.tile { b class=(class) { (count) } span { (name) } } }
}

fn notes(report: &Report, earlier: Option<&Earlier>) -> Markup {
    html! {
        @if !report.complete {
            p.note.bad { b { "Incomplete: " } "the run did not come to its end." }
        }
        @for outcome in &report.scenarios {
            @if let Some(error) = &outcome.error {
                p.note.bad { b { (outcome.name) " failed: " } (error) }
            }
        }
        @if let Some(earlier) = earlier {
            p.note {
                "Changes are against " b { (earlier.name) } " of " (earlier.report.host.date)
                @if let Some(revision) = &earlier.report.host.revision { ", revision " (revision) }
                ". Worse and better are those of which every round is beyond every round before."
                @for difference in super::differences(report, &earlier.report) {
                    " " b { "Another " (difference) }
                }
            }
        }
    }
}

fn goal_table(verdicts: &[Verdict]) -> Markup {
    html! {
        section id="goals" {
            h2 { "Goals" }
            div.scroll {
                table {
                    thead {
                        tr {
                            th { "what" }
                            th { "bound" }
                            th.number { "found" }
                            th.number { "rounds" }
                            th { }
                        }
                    }
                    tbody {
                        @for verdict in verdicts {
                            @let (class, sign) = match verdict.state {
                                State::Reached => ("good", "✓ "),
                                State::Missed => ("bad", "✗ "),
                                State::NotMeasured => ("muted", ""),
                            };
                            tr {
                                td { (verdict.what) }
                                td.nowrap { (verdict.bound) }
                                td.number { (verdict.found) }
                                td.number {
                                    @if verdict.rounds > 0 {
                                        (verdict.reached_in) "/" (verdict.rounds)
                                    }
                                }
                                td class={ "nowrap " (class) } { (sign) (verdict.state) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn scenario(name: &str, tables: &[&Table], compared: bool) -> Result<Markup> {
    let mut figures = Vec::new();
    for table in tables {
        figures.push(metric(table, compared, tables.len() == 1)?);
    }
    Ok(html! {
        section id=(name) {
            h2 { (name) }
            @if let Some(scenario) = scenarios::find(name) {
                p.about { (scenario.about) }
            }
            // Alone, a plot has room for its table beside it.
            div.metrics.alone[tables.len() == 1] { @for figure in &figures { (figure) } }
        }
    })
}

fn metric(table: &Table, compared: bool, open: bool) -> Result<Markup> {
    let better = match (table.unit, table.unit.less_is_better()) {
        (crate::figure::Unit::Count, _) => "",
        (_, true) => "less is better",
        (_, false) => "more is better",
    };
    let single = match table.sizes()[..] {
        [size] => Some(format!("{} {}", words::size(size), table.size_word())),
        _ => None,
    };
    // Without a single value there is nothing to draw; the table says so.
    let drawn = table.rows.iter().any(|row| row.figure.median().is_finite());
    let drawing = if drawn {
        plot::plot(table)?
    } else {
        String::new()
    };
    Ok(html! {
        figure.metric {
            figcaption {
                h3 { (table.metric) }
                p {
                    @if let Some(single) = &single { span { (single) } }
                    @if !better.is_empty() { span { (better) } }
                }
            }
            div.plot role="img" aria-label={ (table.scenario) ": " (table.metric) } {
                (PreEscaped(drawing))
            }
            details open[open] {
                summary { "Table" }
                (figure_table(table, compared))
            }
        }
    })
}

/// Paths below one another; sizes beside one another where there are several.
fn figure_table(table: &Table, compared: bool) -> Markup {
    let sizes = table.sizes();
    let median = |row: &Row| words::value(table.unit, row.figure.median());
    let spread = |row: &Row| words::spread(table.unit, row.figure.spread());
    let ratio = |row: &Row| row.ratio.as_ref().map(Ratio::words).unwrap_or_default();
    html! {
        div.scroll {
            @if sizes.len() == 1 {
                table {
                    thead {
                        tr {
                            th { "path" }
                            th.number { "median" }
                            th.number { "spread" }
                            th.number { "ratio" }
                            @if compared { th.number { "change" } }
                        }
                    }
                    tbody {
                        @for row in &table.rows {
                            tr {
                                td { (row.figure.path) }
                                td.number { (median(row)) }
                                td.number { (spread(row)) }
                                td.number { (ratio(row)) }
                                @if compared { td.number { (changed(row.change)) } }
                            }
                        }
                    }
                }
            } @else {
                table.sizes {
                    thead {
                        tr {
                            th { (table.size_word()) }
                            @for size in &sizes { th.number { (words::size(*size)) } }
                        }
                    }
                    tbody {
                        @for path in table.paths() {
                            tr {
                                td { (path) }
                                @for size in &sizes {
                                    td.number {
                                        @for row in table.at(path, *size) {
                                            b { (median(row)) }
                                            small { (spread(row)) }
                                            small { (ratio(row)) }
                                            @if compared { small { (changed(row.change)) } }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn changed(change: Option<Change>) -> Markup {
    let Some(change) = change else {
        return html! { span.muted { "new" } };
    };
    let (class, word) = match change.mark {
        Mark::Better => ("good", " better"),
        Mark::Within => ("", ""),
        Mark::Worse => ("bad", " worse"),
    };
    html! { span class=(class) { (words::change(change.relative)) (word) } }
}

/// Roles of colours in the plots, on dark ground.
fn colours() -> String {
    let code = |RGBColor(red, green, blue): RGBColor| format!("#{red:02X}{green:02X}{blue:02X}");
    let mut rules = String::new();
    let mut rule = |light: RGBColor, dark: &str| {
        for part in ["fill", "stroke"] {
            rules += &format!(".plot [{part}=\"{}\"]{{{part}:{dark}}}", code(light));
        }
    };
    rule(plot::INK, "var(--ink)");
    rule(plot::MUTED, "var(--muted)");
    rule(plot::GRID, "var(--grid)");
    for colour in &plot::COLOURS {
        let both = format!("light-dark({},{})", code(colour.light), code(colour.dark));
        rule(colour.light, &both);
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figure::{Figure, Unit},
        report::{Outcome, tests::report},
    };

    fn example() -> Report {
        let figure = |path, size: u64, rounds: &[f64]| {
            let unit = Unit::Nanoseconds;
            Figure::new(
                "local",
                "CPU <per> packet",
                unit,
                path,
                size,
                rounds.to_vec(),
            )
        };
        let mut report = report(vec![
            figure("bridge", 100, &[346.0, 402.0]),
            figure("tc", 100, &[181.0, 240.0]),
            figure("tc", 1000, &[182.0, 250.0]),
        ]);
        report.scenarios.push(Outcome {
            name: "tcp".into(),
            seconds: 1.0,
            error: Some("no <iperf3>".into()),
        });
        report
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = page(&example(), None).expect("a page");
        for word in ["src=", "url(", "@import", "<link", "<script"] {
            assert!(!page.contains(word), "{word}");
        }
        let addresses: Vec<_> = page
            .match_indices("http")
            .map(|(at, _)| &page[at..])
            .collect();
        // The name of a namespace, which nothing is fetched from.
        assert!(
            addresses
                .iter()
                .all(|text| text.starts_with("http://www.w3.org/2000/svg\""))
        );
    }

    #[test]
    fn words_of_others_are_escaped() {
        let page = page(&example(), None).expect("a page");
        assert!(page.contains("CPU &lt;per&gt; packet"));
        assert!(page.contains("no &lt;iperf3&gt;"));
        assert!(!page.contains("<per>"));
    }

    #[test]
    fn regressions_are_marked() {
        let mut now = example();
        now.figures[1].rounds = vec![500.0, 600.0];
        let earlier = Earlier {
            name: "earlier.json".into(),
            report: example(),
        };
        let page = page(&now, Some(&earlier)).expect("a page");
        let marked = r#"<span class="bad">+161 % worse</span>"#;
        assert_eq!(page.matches(marked).count(), 1);
    }
}
