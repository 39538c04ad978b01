//! How `top` looks. Only the rows that are seen are made. Colours repeat what
//! words and signs say.

use jiff::Timestamp;
use netspawn_ebpf::verdict::{Kind, Reason};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Sparkline, Table},
};

use super::{
    Top, interface,
    machines::{Column, Machine},
};
use crate::output;

/// Fewer lines than this have no room for details of the machine chosen.
const TALL: u16 = 16;
/// Lines of details.
const DETAILS: u16 = 7;
/// Fewer columns than this have room for the most important alone.
const NARROW: u16 = 70;
/// So many have room for addresses, and so many for port and tenant.
const WIDE: u16 = 120;
const WIDEST: u16 = 160;
/// Columns of a rate.
const RATE: u16 = 7;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

impl Top<'_> {
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let details = if area.height >= TALL { DETAILS } else { 0 };
        let [head, sums, table, below, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(details),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(self.head(head.width), head);
        frame.render_widget(self.sums(), sums);
        self.table(frame, table);
        if details > 0 {
            self.details(frame, below);
        }
        frame.render_widget(self.foot(), foot);
        if self.help {
            help(frame, table);
        }
    }

    fn head(&self, width: u16) -> Line<'_> {
        let (all, up) = self.machines.count();
        let agent = match self.agent {
            Some(pid) => format!("agent pid {pid}"),
            None => "no agent".to_owned(),
        };
        let uplinks = match self.uplinks.as_slice() {
            [] => "no uplink".to_owned(),
            uplinks => uplinks.join(", "),
        };
        let left = format!("{uplinks}  {up} of {all} machines up  {agent}");
        let now = output::time(Timestamp::now());
        // The time of day is enough where there is little room.
        let clock = now.get(11..).unwrap_or(&now).to_owned();
        let right = format!("every {} s  {clock}", self.interval.as_secs_f64());
        let gap = usize::from(width).saturating_sub(left.chars().count() + right.len());
        Line::from(vec![
            left.bold(),
            " ".repeat(gap.max(2)).into(),
            right.into(),
        ])
    }

    /// What stands in the way, or the sums of all machines.
    fn sums(&self) -> Line<'_> {
        if let Some(problem) = &self.problem {
            return Line::from(format!("! {problem}")).style(loud());
        }
        let all = &self.machines;
        let of = |reason| short(all.per_second(reason));
        Line::from(format!(
            "in {}/s  out {}/s  local {}/s  answered {}/s  dropped {}/s",
            of(Reason::ForwardedIn),
            of(Reason::ForwardedOut),
            of(Reason::ForwardedLocal),
            short(all.per_second_of(Kind::Answer)),
            short(all.per_second_of(Kind::Drop)),
        ))
    }

    fn table(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let rows = usize::from(area.height.saturating_sub(1));
        let place = self.place();
        self.rows = rows;
        self.from = self
            .from
            .min(place)
            .max((place + 1).saturating_sub(rows))
            .min(self.machines.shown().saturating_sub(rows));
        let shape = Shape::of(area.width);
        // As many points as the column of the trend has room for; more are cut.
        let trend = usize::from(area.width) / 3;
        let shown: Vec<Row<'_>> = self
            .machines
            .rows(self.from, rows)
            .enumerate()
            .map(|(line, (_, machine))| {
                let chosen = self.from + line == place;
                let row = shape.row(machine, chosen, trend);
                match chosen {
                    true => row.style(Modifier::REVERSED),
                    false => row,
                }
            })
            .collect();
        if shown.is_empty() && self.problem.is_none() {
            let text = match self.machines.filtered_by() {
                "" => "no machine is declared; see `netspawn-xdp add --help`".to_owned(),
                filter => format!("no machine has \"{filter}\"; Esc shows all"),
            };
            let [_, below] =
                Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
            frame.render_widget(Paragraph::new(text), below);
        }
        let mut titles: Vec<Cell<'_>> = shape
            .columns
            .iter()
            .map(|column| self.title(*column))
            .collect();
        if shape.trend {
            titles.push("TREND".into());
        }
        if shape.addresses {
            titles.push("ADDRESSES".into());
        }
        if shape.rest {
            titles.push("PORT".into());
            titles.push("TENANT".into());
        }
        let header = Row::new(titles).style(Modifier::BOLD);
        frame.render_widget(Table::new(shown, shape.widths()).header(header), area);
    }

    /// A heading, with the way that the column is sorted if it is.
    fn title(&self, column: Column) -> Cell<'static> {
        let title = column.title();
        let text = match (self.machines.sort == column, self.machines.descending) {
            (false, _) => title.to_owned(),
            (true, true) => format!("{title}▼"),
            (true, false) => format!("{title}▲"),
        };
        match column {
            Column::Name => Cell::new(format!("  {text}")),
            Column::State => Cell::new(text),
            _ => number(text),
        }
    }

    /// The machine chosen: what it has, its packets, why frames were dropped.
    fn details(&self, frame: &mut Frame<'_>, area: Rect) {
        let chosen = self.machines.rows(self.place(), 1).next();
        let Some((id, machine)) = chosen else {
            return;
        };
        let tenant = match machine.tenant.as_str() {
            "" => String::new(),
            tenant => format!(", tenant {tenant}"),
        };
        let room = usize::from(area.width).saturating_sub(machine.name.len() + tenant.len() + 24);
        let title = format!(
            " {} on {}: {}{tenant} ",
            machine.name,
            interface(machine.port),
            addresses(machine, room)
        );
        let block = Block::new().borders(Borders::TOP).title(title.bold());
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let [left, right] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(inner);
        let [rx, rx_bars, tx, tx_bars] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Length(1),
            Constraint::Length(2),
        ])
        .areas(left);
        let total = &machine.traffic;
        for (words, bars, text, points) in [
            (
                rx,
                rx_bars,
                format!(
                    "rx {} packets, {}B",
                    total.rx_packets,
                    short_count(total.rx_bytes)
                ),
                machine
                    .history
                    .iter()
                    .map(|point| u64::from(point.0))
                    .collect::<Vec<_>>(),
            ),
            (
                tx,
                tx_bars,
                format!(
                    "tx {} packets, {}B",
                    total.tx_packets,
                    short_count(total.tx_bytes)
                ),
                machine
                    .history
                    .iter()
                    .map(|point| u64::from(point.1))
                    .collect(),
            ),
        ] {
            let most = points.iter().max().copied().unwrap_or(0);
            #[expect(clippy::cast_precision_loss, reason = "a rate is for people")]
            let text = format!("{text}, at most {}/s", short(most as f64));
            frame.render_widget(Line::from(text), words);
            let room = usize::from(bars.width.saturating_sub(2));
            let seen = &points[points.len().saturating_sub(room)..];
            let seen: Vec<u64> = seen.to_vec();
            frame.render_widget(Sparkline::default().data(&seen).style(Color::Cyan), bars);
        }
        let reasons = self.machines.reasons(id);
        let mut lines = vec![Line::from(match reasons.len() {
            0 => "nothing was dropped".to_owned(),
            _ => format!("dropped {}:", machine.drops),
        })];
        let room = usize::from(right.height).saturating_sub(1);
        for (line, (reason, count, per_second)) in reasons.iter().enumerate() {
            if line + 1 == room && reasons.len() > room {
                lines.push(Line::from(format!(
                    "  and {} reasons more",
                    reasons.len() - line
                )));
                break;
            }
            let text = format!(
                "  {:18} {count:>9} {:>7}/s",
                reason.name(),
                short(*per_second)
            );
            lines.push(Line::from(text));
        }
        frame.render_widget(Paragraph::new(lines), right);
    }

    fn foot(&self) -> Line<'_> {
        if let Some(text) = &self.typed {
            return Line::from(vec![
                Span::from(format!("/{text}")).bold(),
                Span::from(" ").reversed(),
                Span::from("  Enter keeps the filter, Esc shows all"),
            ]);
        }
        let mut spans = vec![Span::from(
            "q end  ↑↓ choose  n s r t R T d sort  / filter  ? help",
        )];
        let (all, _) = self.machines.count();
        if !self.machines.filtered_by().is_empty() {
            let shown = self.machines.shown();
            let filter = self.machines.filtered_by();
            spans.push(format!("  \"{filter}\": {shown} of {all}").bold());
        }
        Line::from(spans)
    }
}

/// What finds room in a row.
struct Shape {
    columns: &'static [Column],
    trend: bool,
    addresses: bool,
    rest: bool,
}

impl Shape {
    fn of(width: u16) -> Self {
        const FEW: [Column; 4] = [
            Column::Name,
            Column::RxPackets,
            Column::TxPackets,
            Column::Drops,
        ];
        Shape {
            columns: if width < NARROW { &FEW } else { &Column::ALL },
            trend: width >= NARROW,
            addresses: width >= WIDE,
            rest: width >= WIDEST,
        }
    }

    fn widths(&self) -> Vec<Constraint> {
        let mut widths = Vec::new();
        for column in self.columns {
            widths.push(match column {
                Column::Name => Constraint::Fill(2),
                Column::State => Constraint::Length(9),
                _ => Constraint::Length(RATE),
            });
        }
        if self.trend {
            widths.push(Constraint::Fill(if self.addresses { 2 } else { 1 }));
        }
        if self.addresses {
            widths.push(Constraint::Fill(3));
        }
        if self.rest {
            widths.push(Constraint::Length(15));
            widths.push(Constraint::Fill(1));
        }
        widths
    }

    fn row(&self, machine: &Machine, chosen: bool, trend: usize) -> Row<'static> {
        let rates = &machine.rates;
        let mut cells = Vec::new();
        for column in self.columns {
            cells.push(match column {
                Column::Name => {
                    let sign = if chosen { '>' } else { ' ' };
                    Cell::new(format!("{sign} {}", machine.name))
                }
                // The chosen row is reversed, in which colours would be patches.
                Column::State if chosen => Cell::new(machine.state),
                Column::State => Cell::new(machine.state).style(match machine.state {
                    "up" => Color::Green,
                    _ => Color::Yellow,
                }),
                Column::RxPackets => number(short(rates.rx_packets)),
                Column::TxPackets => number(short(rates.tx_packets)),
                Column::RxBytes => number(short(rates.rx_bytes)),
                Column::TxBytes => number(short(rates.tx_bytes)),
                Column::Drops if rates.drops > 0.0 => {
                    number(short(rates.drops)).style(Style::new().fg(Color::Red).bold())
                }
                Column::Drops => number("0".to_owned()),
            });
        }
        if self.trend {
            let bars = Cell::new(bars(machine, trend));
            cells.push(if chosen {
                bars
            } else {
                bars.style(Color::Cyan)
            });
        }
        if self.addresses {
            cells.push(Cell::new(addresses(machine, 44)));
        }
        if self.rest {
            cells.push(Cell::new(interface(machine.port)));
            cells.push(Cell::new(machine.tenant.clone()));
        }
        Row::new(cells)
    }
}

/// A number at the right of its column.
fn number(text: String) -> Cell<'static> {
    Cell::new(Line::from(text).right_aligned())
}

/// Packets a second in and out as bars, the last look first: what finds no room is
/// what is oldest.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be shown is left out of the screen, until the next time"
)]
fn bars(machine: &Machine, count: usize) -> String {
    let packets = machine.history.iter().rev().take(count);
    let packets: Vec<u64> = packets
        .map(|(rx, tx)| u64::from(*rx) + u64::from(*tx))
        .collect();
    let most = packets.iter().max().copied().unwrap_or(0).max(1);
    let bar = |packets: u64| match packets {
        0 => ' ',
        packets => BARS[usize::try_from(packets * 7 / most).unwrap_or(7)],
    };
    packets.into_iter().map(bar).collect()
}

/// Addresses that fit, and how many do not.
fn addresses(machine: &Machine, room: usize) -> String {
    let mut text = String::new();
    for (index, prefix) in machine.addresses.iter().enumerate() {
        let more = match prefix.prefix_len() == prefix.max_prefix_len() {
            true => prefix.addr().to_string(),
            false => prefix.to_string(),
        };
        if index > 0 && text.len() + 1 + more.len() + 4 > room {
            text += &format!(" +{}", machine.addresses.len() - index);
            break;
        }
        if index > 0 {
            text.push(' ');
        }
        text += &more;
    }
    text
}

/// A number in six columns at most.
fn short(value: f64) -> String {
    if value <= 0.0 {
        return "0".to_owned();
    }
    if value < 9.95 {
        return format!("{value:.1}");
    }
    if value < 9999.5 {
        return format!("{value:.0}");
    }
    let mut value = value;
    for unit in ["k", "M", "G", "T"] {
        value /= 1000.0;
        if value < 99.95 {
            return format!("{value:.1}{unit}");
        }
        if value < 9999.5 {
            return format!("{value:.0}{unit}");
        }
    }
    format!("{value:.0}T")
}

#[expect(clippy::cast_precision_loss, reason = "it is rounded for people")]
fn short_count(value: u64) -> String {
    match value {
        0..10_000 => format!("{value} "),
        _ => {
            let text = short(value as f64);
            let at = text.len() - 1;
            format!("{} {}", &text[..at], &text[at..])
        }
    }
}

fn loud() -> Style {
    Style::new().fg(Color::Red).bold().reversed()
}

#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be shown is left out of the screen, until the next time"
)]
fn help(frame: &mut Frame<'_>, over: Rect) {
    const TEXT: &str = "\
 q, Ctrl-C      end
 ↑ ↓ j k        choose a machine; Home, End, pages
 n s            sort by name, state
 r t            sort by packets a second in, out
 R T            sort by bytes a second in, out
 d              sort by drops a second
                the same key again: the other way round
 /              filter by name, state, tenant, address
 Esc            show all
 rx is to the machine, tx from it; any key goes back";
    let height = u16::try_from(TEXT.lines().count()).unwrap_or(10) + 2;
    let width = 56.min(over.width);
    let area = Rect {
        x: over.x + (over.width - width) / 2,
        y: over.y,
        width,
        height: height.min(over.height),
    };
    frame.render_widget(Clear, area);
    frame.render_widget(
        Paragraph::new(TEXT).block(Block::bordered().title(" help ")),
        area,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (9.96, "10"),
            (1234.0, "1234"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (1_234_567.0, "1235k"),
            (12_345_678.0, "12.3M"),
            (98_765_432_109.0, "98.8G"),
        ] {
            assert_eq!(short(value), text);
            assert!(text.len() < usize::from(RATE));
        }
        assert_eq!(short_count(512), "512 ");
        assert_eq!(short_count(12_345_678), "12.3 M");
    }

    #[test]
    fn addresses_end_in_how_many_are_left() {
        let machine = Machine {
            addresses: ["203.0.113.2/32", "2001:db8::2/128", "2001:db8:1::/64"]
                .map(|text| text.parse().unwrap())
                .to_vec(),
            ..Machine::default()
        };
        assert_eq!(
            addresses(&machine, 60),
            "203.0.113.2 2001:db8::2 2001:db8:1::/64"
        );
        assert_eq!(addresses(&machine, 30), "203.0.113.2 2001:db8::2 +1");
        assert_eq!(addresses(&machine, 5), "203.0.113.2 +2");
    }
}
