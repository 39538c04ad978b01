//! What commands print on stdout: data, as a table or as JSON.

mod check;
mod counters;
mod list;
mod status;

use std::io::{self, IsTerminal as _, Write};

use anyhow::Context;
use console::{Term, measure_text_width, truncate_str};
use jiff::Timestamp;
use serde::Serialize;
use tabwriter::TabWriter;

pub use check::{CheckReport, CheckRow};
pub use counters::{CountersReport, Groups};
pub use list::{ListReport, ListRow, Rates};
pub use status::{AgentReport, ClosedPort, MachineCounts, StatusReport, UplinkReport};

/// Data with a form for programs, which is a contract, and one for people,
/// which is not.
pub trait Report: Serialize {
    /// Writes the form for people: lines whose cells are separated by tabs.
    ///
    /// # Errors
    /// Those of `out`.
    fn cells(&self, out: &mut dyn Write) -> io::Result<()>;

    /// The form for a terminal with so many columns, which may have colours and
    /// leaves out what finds no room.
    ///
    /// # Errors
    /// None that a report could cause.
    fn screen(&self, columns: usize) -> anyhow::Result<String> {
        let _ = columns;
        self.render(false)
    }

    /// The text for a file or a program.
    ///
    /// # Errors
    /// None that a report could cause.
    fn render(&self, json: bool) -> anyhow::Result<String> {
        if json {
            return Ok(serde_json::to_string_pretty(self)? + "\n");
        }
        align(|out| self.cells(out))
    }

    /// Prints it on stdout.
    ///
    /// # Errors
    /// When stdout is closed or full.
    fn print(&self, json: bool) -> anyhow::Result<()> {
        match columns() {
            Some(columns) if !json => print(&self.screen(columns)?),
            _ => print(&self.render(json)?),
        }
    }
}

/// Columns of the terminal that stdout is, if it is one.
pub fn columns() -> Option<usize> {
    let (_, columns) = Term::stdout().size_checked().filter(|_| is_terminal())?;
    Some(usize::from(columns))
}

/// Whether stdout is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Aligns cells that are separated by tabs.
fn align(cells: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<String> {
    let mut out = TabWriter::new(Vec::new()).padding(2).ansi(true);
    cells(&mut out)?;
    out.flush()?;
    let bytes = out
        .into_inner()
        .map_err(|error| io::Error::other(error.to_string()))?;
    let text = String::from_utf8(bytes)?;
    // The last column is padded like the others.
    Ok(text
        .lines()
        .fold(String::new(), |all, line| all + line.trim_end() + "\n"))
}

/// The widest line, in columns.
fn width(text: &str) -> usize {
    text.lines().map(measure_text_width).max().unwrap_or(0)
}

/// Lines that fit, cut where they do not.
pub fn cut(text: &str, columns: usize) -> String {
    text.lines().fold(String::new(), |all, line| {
        all + &truncate_str(line, columns, "…") + "\n"
    })
}

/// Lines of words that fit behind their head.
fn wrap(head: &str, text: &str, columns: usize) -> String {
    let indent = measure_text_width(head);
    let mut out = head.to_owned();
    let mut at = indent;
    for word in text.split(' ') {
        let width = measure_text_width(word);
        if at > indent && at + 1 + width > columns {
            out += &format!("\n{:indent$}", "");
            at = indent;
        } else if at > indent {
            out.push(' ');
            at += 1;
        }
        out += word;
        at += width;
    }
    out + "\n"
}

/// Numbers of one column, aligned at the right.
fn right(numbers: &mut [String]) {
    let width = numbers.iter().map(String::len).max().unwrap_or(0);
    for number in numbers {
        *number = format!("{number:>width$}");
    }
}

/// Something a second.
pub fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 10.0 {
        format!("{per_second:.1}")
    } else {
        format!("{per_second:.0}")
    }
}

/// A time to the second.
#[expect(
    clippy::disallowed_methods,
    reason = "this parses text or bytes; no system call can fail here"
)]
pub fn time(at: Timestamp) -> String {
    let whole = at.round(jiff::Unit::Second).unwrap_or(at);
    whole.to_string()
}

/// Writes to stdout, without the panic that `print!` has for a closed pipe.
///
/// # Errors
/// When stdout is closed or full.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")
}

/// A cell for what may be unknown.
fn cell<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
