//! Where declarations of machines come from.

mod files;
mod watch;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
};

pub(crate) use files::replace;
pub use files::{Files, Removed, machine_path, remove_machine, write_machine};
pub use watch::Watcher;

use crate::{
    model::{Declaration, SourceKind},
    problem::{Fault, Problem, did_you_mean},
};

/// A name that `--source` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `CONFIGDIR/machines` and `RUNDIR/machines`.
    Files,
}

impl Source {
    /// All names.
    pub const NAMES: &[&str] = &["files"];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Files => "files",
        }
    }
}

impl FromStr for Source {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        match text {
            "files" => Ok(Source::Files),
            _ => Err(Fault::new(
                format!("{text:?} is not a source"),
                did_you_mean(text, Source::NAMES),
            )),
        }
    }
}

/// Everything that the sources say at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Machines by name.
    pub declarations: BTreeMap<String, Declaration>,
    /// Machines that are named, but by files that cannot be used: they keep
    /// what they hold. With the file of highest rank that names each.
    pub unusable: BTreeMap<String, (SourceKind, PathBuf)>,
    /// A folder that could not be listed: whoever is not named keeps what it
    /// holds.
    pub unlisted: Option<(SourceKind, PathBuf)>,
    /// What is wrong, file by file.
    pub problems: Vec<Problem>,
}

impl Snapshot {
    /// Whether a machine without a usable declaration keeps what it holds, and
    /// the file or folder that is to blame.
    pub fn keeps(&self, name: &str) -> Option<(SourceKind, &Path)> {
        if self.declarations.contains_key(name) {
            return None;
        }
        self.unusable
            .get(name)
            .or(self.unlisted.as_ref())
            .map(|(kind, path)| (*kind, path.as_path()))
    }
}
