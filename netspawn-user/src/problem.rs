//! What is wrong in a file or a declaration, in words that name the place, the
//! expectation and the remedy.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// A value that cannot be used: what is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do next; empty when the message says it all.
    pub remedy: String,
}

impl Fault {
    /// A fault with its remedy.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Fault {
            message: message.into(),
            remedy: remedy.into(),
        }
    }

    /// The fault at a place.
    pub fn at(self, path: &Path, line: Option<usize>, field: Option<&str>) -> Problem {
        Problem {
            path: path.to_owned(),
            line,
            field: field.map(str::to_owned),
            fault: self,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.remedy.is_empty() {
            write!(f, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A [`Fault`] in a file. It concerns that file alone: all others are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file or folder; empty when none is to blame.
    pub path: PathBuf,
    /// Line, counted from 1, where one is to blame.
    pub line: Option<usize>,
    /// The key, where one is to blame.
    pub field: Option<String>,
    /// What and what to do.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.as_os_str().is_empty() {
            write!(f, "{}", self.path.display())?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        self.fault.fmt(f)
    }
}

impl std::error::Error for Problem {}

/// The known name that someone who wrote `given` most likely meant.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let given = given.to_lowercase();
    known
        .iter()
        .map(|name| (likeness(&given, name), *name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// From 0 to 1. One slip is near also in a short word, where two letters that
/// changed places leave Jaro and Winkler little.
fn likeness(given: &str, name: &str) -> f64 {
    let slip = given.len() > 2 && strsim::osa_distance(given, name) == 1;
    strsim::jaro_winkler(given, name).max(if slip { 0.8 } else { 0.0 })
}

/// The remedy for an unknown name.
pub fn did_you_mean(given: &str, known: &[&str]) -> String {
    match nearest(given, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_listed() {
        let known = ["interface", "addresses", "tenant", "mac", "vlan"];
        assert_eq!(did_you_mean("address", &known), "did you mean `addresses`?");
        assert_eq!(did_you_mean("Tennant", &known), "did you mean `tenant`?");
        assert_eq!(did_you_mean("amc", &known), "did you mean `mac`?");
        assert_eq!(
            did_you_mean("xyzzy", &known),
            "known are interface, addresses, tenant, mac, vlan"
        );
    }

    #[test]
    fn problem_names_file_line_and_field() {
        let problem =
            Fault::new("is empty", "remove it").at(Path::new("/a/b.toml"), Some(3), Some("tenant"));
        assert_eq!(
            problem.to_string(),
            "/a/b.toml:3: tenant: is empty; remove it"
        );
    }
}
