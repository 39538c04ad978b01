//! What engines last said, in `RUNDIR/engines`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Listed, Machine, Named, Users};
use crate::{
    problem::{Fault, Problem},
    source::{PRIVATE, Source, replace},
};

/// The folder in RUNDIR.
pub fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("engines")
}

fn file(run_dir: &Path, source: Source) -> PathBuf {
    folder(run_dir).join(format!("{}.json", source.name()))
}

/// What a file may be.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    Listed(Listed),
    /// Without what users have named, as it was written at first.
    Machines(Vec<Machine>),
}

/// What an engine last told; nothing when it never has.
///
/// # Errors
/// When the file cannot be read: its machines keep what they hold.
pub fn read(run_dir: &Path, source: Source) -> Result<Listed, Problem> {
    let path = file(run_dir, source);
    let remedy = "the engine is asked again within half a minute, which replaces the file";
    let problem = |message: String| Fault::new(message, remedy).at(&path, None, None);
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(|kept| match kept {
                Kept::Listed(listed) => listed,
                Kept::Machines(machines) => of_machines(machines),
            })
            .map_err(|error| problem(format!("is not what was written: {error}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Listed::default()),
        Err(error) => Err(problem(format!("cannot be read: {error}"))),
    }
}

/// What a list of machines alone says of users: where one has named a machine there are
/// some, and a link's name that was refused stands in what is said of it.
fn of_machines(machines: Vec<Machine>) -> Listed {
    let mut users = Users::default();
    for machine in machines.iter().filter(|machine| machine.named_by_user) {
        users.any = true;
        let refused = machine.faults.iter();
        for wrong in refused.filter(|wrong| wrong.field.ends_with(".host_name")) {
            let link = wrong.message.split(' ').next().unwrap_or_default();
            let origin = machine.origin.clone();
            let named = Named { origin, made: true };
            users.links.insert(link.to_owned(), named);
        }
    }
    Listed {
        machines,
        users: users.any.then_some(users),
    }
}

/// Keeps what an engine has told.
///
/// # Errors
/// When the file cannot be written; the old one is whole then.
pub fn keep(run_dir: &Path, source: Source, said: &Listed) -> io::Result<()> {
    let path = file(run_dir, source);
    if *said == Listed::default() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    replace(&path, &serde_json::to_vec(said)?, PRIVATE)
}
