//! Containers that the CNI plugin has connected, one file each in `RUNDIR/cni`.

use std::path::{Path, PathBuf};

use super::engine::Machine;
use crate::{
    driver::cni::attachment::{self, Port},
    gone,
    model::Host,
    problem::{Fault, Problem},
};

/// The folder in RUNDIR.
pub fn folder(run_dir: &Path) -> PathBuf {
    attachment::folder(run_dir)
}

/// Ports of the containers whose files were last read, and whether there were these.
#[derive(Debug, Default)]
pub struct Cni {
    ports: Vec<(Port, bool)>,
}

impl Cni {
    /// All containers that are connected. One whose port is gone is dead, whether or
    /// not its runtime has said so.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub fn read(&mut self, run_dir: &Path, host: &Host) -> Result<Vec<Machine>, Problem> {
        let folder = folder(run_dir);
        let there = gone::is_there(&folder).map_err(|error| {
            Fault::new(format!("cannot be looked for: {error}"), "").at(&folder, None, None)
        })?;
        if !there && !self.ports.is_empty() {
            return Err(Fault::new(
                "is gone; the containers that were written down in it are served on",
                "their runtime's next call makes it again",
            )
            .at(&folder, None, None));
        }
        let attachments = attachment::list(run_dir)?;
        self.ports.clear();
        let mut machines = Vec::new();
        for attachment in attachments {
            let there = attachment.port.is_there(host);
            self.ports.push((attachment.port, there));
            if there {
                machines.push(attachment.machine);
            }
        }
        Ok(machines)
    }

    /// Whether ports have come or gone since.
    pub fn differs(&self, host: &Host) -> bool {
        self.ports
            .iter()
            .any(|(port, there)| port.is_there(host) != *there)
    }
}
