use std::fmt::Write as _;

use console::{StyledObject, style};
use serde::Serialize;

use super::print;
use crate::check::{Finding, Findings, Remedy, Severity};

/// Commands shown on the terminal for one finding; `--json` has all.
const COMMANDS: usize = 6;

/// Subjects that are longer, such as paths, are not aligned with.
const LONG: usize = 24;

/// A finding in `check --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckRow {
    /// What kind of thing was found; see the reference.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// Why it matters.
    pub why: &'static str,
    /// Commands that make it go away; `null` where a person has to decide.
    pub fix: Option<Vec<String>>,
    /// What there is to decide; `null` where commands do.
    pub advice: Option<String>,
}

impl From<&Finding> for CheckRow {
    fn from(finding: &Finding) -> Self {
        let (fix, advice) = match finding.remedy.clone() {
            Remedy::Commands(commands) => (Some(commands), None),
            Remedy::Decide(text) => (None, Some(text)),
        };
        CheckRow {
            id: finding.rule.id,
            severity: finding.rule.severity,
            subject: finding.subject.clone(),
            found: finding.found.clone(),
            why: finding.rule.why,
            fix,
            advice,
        }
    }
}

/// `check`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    rows: Vec<CheckRow>,
    looked_at: usize,
}

impl CheckReport {
    /// From what was found.
    pub fn new(findings: &Findings) -> Self {
        CheckReport {
            rows: findings.list.iter().map(CheckRow::from).collect(),
            looked_at: findings.looked_at,
        }
    }

    /// Prints it on stdout, coloured where that is a terminal.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json {
            serde_json::to_string_pretty(&self.rows)? + "\n"
        } else {
            self.text()
        };
        print(&text)
    }

    /// Lines for people: what was found, why it matters, what to do.
    fn text(&self) -> String {
        let wide = |column: fn(&CheckRow) -> &str| {
            let lengths = self.rows.iter().map(|row| column(row).chars().count());
            lengths.max().unwrap_or(0)
        };
        let severities = wide(|row| row.severity.name());
        let subjects = wide(|row| &row.subject).min(LONG);
        let indent = severities + 2;
        let mut text = String::new();
        for row in &self.rows {
            let severity = coloured(row.severity);
            let _ = writeln!(
                text,
                "{severity:severities$}  {:subjects$}  {} ({})",
                row.subject, row.found, row.id
            );
            let _ = writeln!(text, "{:indent$}{}", "", row.why);
            for line in row.remedy() {
                let _ = writeln!(text, "{:indent$}{line}", "");
            }
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let looked_at = self.looked_at;
        if self.rows.is_empty() {
            return format!("check: all well ({looked_at} looked at)\n");
        }
        let count = |severity, one: &str, many: &str| {
            let of = |row: &&CheckRow| row.severity == severity;
            match self.rows.iter().filter(of).count() {
                1 => format!("1 {one}"),
                count => format!("{count} {many}"),
            }
        };
        format!(
            "check: {}, {}, {} ({looked_at} looked at)\n",
            count(Severity::Error, "error", "errors"),
            count(Severity::Warning, "warning", "warnings"),
            count(Severity::Info, "note", "notes"),
        )
    }
}

impl CheckRow {
    /// Commands as a root shell has them, or words.
    fn remedy(&self) -> Vec<String> {
        let Some(fix) = &self.fix else {
            let advice = self.advice.as_deref().unwrap_or_default();
            return vec![format!("-> {advice}")];
        };
        let mut lines: Vec<String> = fix
            .iter()
            .take(COMMANDS)
            .map(|command| format!("$ {command}"))
            .collect();
        if fix.len() > COMMANDS {
            let more = fix.len() - COMMANDS;
            lines.push(format!("… and {more} more commands; --json has them"));
        }
        lines
    }
}

/// Its name, in colour where stdout is a terminal.
fn coloured(severity: Severity) -> StyledObject<&'static str> {
    let name = style(severity.name()).bold();
    match severity {
        Severity::Error => name.red(),
        Severity::Warning => name.yellow(),
        Severity::Info => name.cyan(),
    }
}
