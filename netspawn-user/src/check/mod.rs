//! `check`: what keeps the data plane from working, or makes it work badly or
//! otherwise than expected.
//!
//! [`facts`] reads everything there is to know, and changes nothing. Each of the
//! other modules judges a part of it: pure functions from facts to findings.

pub mod facts;
pub mod rules;

mod addresses;
mod firewall;
mod guests;
mod kernel;
mod machines;
mod neighbors;
mod networkd;
mod offloads;
mod routes;
mod settings;
mod uplink;

#[cfg(test)]
mod tests;

pub use facts::Facts;
pub use rules::{Area, Rule, Severity};

/// What to do about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Commands that make it go away, in this order.
    Commands(Vec<String>),
    /// Only a person can decide; what there is to choose from.
    Decide(String),
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub rule: &'static Rule,
    /// What it is about: an interface, a machine, a file.
    pub subject: String,
    /// What was found, with values.
    pub found: String,
    /// What to do.
    pub remedy: Remedy,
}

impl Finding {
    fn new(
        rule: &'static Rule,
        subject: impl Into<String>,
        found: impl Into<String>,
        remedy: Remedy,
    ) -> Self {
        Finding {
            rule,
            subject: subject.into(),
            found: found.into(),
            remedy,
        }
    }
}

/// Commands.
fn run<S: Into<String>>(commands: impl IntoIterator<Item = S>) -> Remedy {
    Remedy::Commands(commands.into_iter().map(Into::into).collect())
}

/// A choice that is left to a person.
fn decide(text: impl Into<String>) -> Remedy {
    Remedy::Decide(text.into())
}

/// What was found, and how much was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// The worst first, those of a severity in the order of [`rules::ALL`].
    pub list: Vec<Finding>,
    /// How many rules were judged.
    pub looked_at: usize,
}

impl Findings {
    /// How many are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        let of = |finding: &&Finding| finding.rule.severity == severity;
        self.list.iter().filter(of).count()
    }
}

/// Judges everything.
pub fn judge(facts: &Facts) -> Findings {
    const PARTS: [fn(&Facts) -> Vec<Finding>; 11] = [
        kernel::findings,
        uplink::findings,
        offloads::findings,
        settings::findings,
        neighbors::findings,
        routes::findings,
        addresses::findings,
        guests::findings,
        machines::findings,
        firewall::findings,
        networkd::findings,
    ];
    let mut list: Vec<Finding> = PARTS.iter().flat_map(|part| part(facts)).collect();
    let place = |rule: &Rule| rules::ALL.iter().position(|other| other.id == rule.id);
    list.sort_by_key(|finding| (finding.rule.severity, place(finding.rule)));
    let read = |rule: &&&Rule| facts.has_read(rule.area);
    Findings {
        list,
        looked_at: rules::ALL.iter().filter(read).count(),
    }
}

/// A list for people: all of a few, the first ones of many.
fn sum_up<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> String {
    const SHOWN: usize = 3;
    let items: Vec<S> = items.into_iter().collect();
    let shown: Vec<&str> = items.iter().take(SHOWN).map(AsRef::as_ref).collect();
    match items.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// The subject of a finding about several of a kind.
fn subject<S: AsRef<str>>(names: &[S], kind: &str) -> String {
    match names {
        [one] => one.as_ref().to_owned(),
        many => format!("{} {kind}", many.len()),
    }
}
