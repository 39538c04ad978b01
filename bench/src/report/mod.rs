//! Reports of runs: on the terminal, as JSON, as a page.

pub mod compare;
pub mod goals;
mod host;
mod page;
mod plot;
mod tables;
mod terminal;
mod words;

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

pub use host::Host;
pub use page::page;
pub use terminal::terminal;

use crate::figure::Figure;

/// Version of the JSON. Fields may be added without a new one.
const FORMAT: u64 = 1;

/// What a run found, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    format: u64,
    /// Whether the run came to its end.
    pub complete: bool,
    /// The machine.
    pub host: Host,
    /// What was asked for.
    pub options: Options,
    /// The scenarios that were run, in that order.
    pub scenarios: Vec<Outcome>,
    /// Everything measured.
    pub figures: Vec<Figure>,
    /// What must be reached. For readers of the JSON: judged anew when it is read.
    #[serde(skip_deserializing)]
    goals: Vec<goals::Verdict>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Machines at most.
    pub machines: u32,
    /// Rounds of each path.
    pub rounds: usize,
}

/// How a scenario ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The scenario.
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Why it has no figures.
    pub error: Option<String>,
}

impl Report {
    /// A report without figures.
    pub fn new(host: Host, options: Options) -> Self {
        Report {
            format: FORMAT,
            complete: false,
            host,
            options,
            scenarios: Vec::new(),
            figures: Vec::new(),
            goals: Vec::new(),
        }
    }

    /// Reads one that [`Report::save`] wrote.
    ///
    /// # Errors
    /// When there is no such file, or it is none of this format.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        Report::parse(&text).with_context(|| {
            format!("{name} is no report of this program, which writes them as `bench.json`")
        })
    }

    fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u64,
        }
        // Before the rest, which another version may have changed.
        let found: Versioned = serde_json::from_str(text)?;
        ensure!(
            found.format == FORMAT,
            "expected format {FORMAT}, found format {}",
            found.format
        );
        Ok(serde_json::from_str(text)?)
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<()> {
        self.goals = goals::judge(&self.figures);
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What else than the program may have changed figures, in words.
pub fn differences(now: &Report, before: &Report) -> Vec<String> {
    let text = |report: &Report| {
        let (host, options) = (&report.host, &report.options);
        [
            ("CPU", format!("{} × {}", host.cores, host.cpu)),
            ("kernel", host.kernel.clone()),
            ("build", host.build.clone()),
            ("number of machines", options.machines.to_string()),
            ("number of rounds", options.rounds.to_string()),
        ]
    };
    text(now)
        .into_iter()
        .zip(text(before))
        .filter(|((_, now), (_, before))| now != before)
        .map(|((what, now), (_, before))| format!("{what}: {now}, before {before}."))
        .collect()
}

/// An earlier report, and what to call it.
#[derive(Clone, Debug)]
pub struct Earlier {
    /// Its file, as the user named it.
    pub name: String,
    /// What it says.
    pub report: Report,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Unit;

    pub(super) fn report(figures: Vec<Figure>) -> Report {
        let options = Options {
            machines: 10_000,
            rounds: 3,
        };
        Report {
            complete: true,
            figures,
            ..Report::new(Host::example(), options)
        }
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let figure = Figure::new("tcp", "in", Unit::BitsPerSecond, "tc", 1_u64, vec![1e9]);
        let text = serde_json::to_string(&report(vec![figure.clone()])).expect("plain data");
        let back = Report::parse(&text).expect("what was written");
        assert_eq!(back.figures, [figure]);
        assert!(back.complete);
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let error = Report::parse(r#"{"format": 7, "rest": []}"#).expect_err("another version");
        assert_eq!(error.to_string(), "expected format 1, found format 7");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(Report::parse(r#"{"figures": []}"#).is_err());
        assert!(Report::parse("").is_err());
    }
}
