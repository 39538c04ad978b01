//! What commands print on stdout: data, as a table or as JSON.

mod check;
mod counters;
mod list;
mod status;

use std::io::{self, Write};

use anyhow::Context;
use serde::Serialize;
use tabwriter::TabWriter;

pub use check::{CheckReport, CheckRow};
pub use counters::CountersReport;
pub use list::{ListReport, ListRow};
pub use status::{AgentReport, MachineCounts, StatusReport, UplinkReport};

/// Data with a form for programs, which is a contract, and one for people,
/// which is not.
pub trait Report: Serialize {
    /// Writes the form for people: lines whose cells are separated by tabs.
    ///
    /// # Errors
    /// Those of `out`.
    fn cells(&self, out: &mut dyn Write) -> io::Result<()>;

    /// The text to print.
    ///
    /// # Errors
    /// None that a report could cause.
    fn render(&self, json: bool) -> anyhow::Result<String> {
        if json {
            return Ok(serde_json::to_string_pretty(self)? + "\n");
        }
        let mut out = TabWriter::new(Vec::new()).padding(2);
        self.cells(&mut out)?;
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

    /// Prints it on stdout.
    ///
    /// # Errors
    /// When stdout is closed or full.
    fn print(&self, json: bool) -> anyhow::Result<()> {
        print(&self.render(json)?)
    }
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
