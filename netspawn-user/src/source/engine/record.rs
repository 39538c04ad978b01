//! What engines last said, in `RUNDIR/engines`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Machine;
use crate::{
    problem::{Fault, Problem},
    source::{Source, replace},
};

/// The folder in RUNDIR.
pub fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("engines")
}

fn file(run_dir: &Path, source: Source) -> PathBuf {
    folder(run_dir).join(format!("{}.json", source.name()))
}

/// The machines that an engine last told of; none when it never has.
///
/// # Errors
/// When the file cannot be read: its machines keep what they hold.
pub fn read(run_dir: &Path, source: Source) -> Result<Vec<Machine>, Problem> {
    let path = file(run_dir, source);
    let remedy = "the engine is asked again within half a minute, which replaces the file";
    let problem = |message: String| Fault::new(message, remedy).at(&path, None, None);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| problem(format!("is not what was written: {error}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(problem(format!("cannot be read: {error}"))),
    }
}

/// Keeps what an engine has told.
///
/// # Errors
/// When the file cannot be written; the old one is whole then.
pub fn keep(run_dir: &Path, source: Source, machines: &[Machine]) -> io::Result<()> {
    let path = file(run_dir, source);
    if machines.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    replace(&path, &serde_json::to_vec(machines)?)
}
