//! Processes in this network namespace that matter.

use std::{fs, path::Path};

use crate::{gone, net::namespace};

/// Daemons that answer ARP or neighbor solicitations for others.
const ANSWERING: [&str; 4] = ["ndppd", "npd6", "ndprbrd", "parprouted"];
/// systemd-networkd, as the kernel cuts names.
const NETWORKD: &str = "systemd-network";

/// A daemon that answers for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// Its systemd unit, where it has one.
    pub unit: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    /// Daemons that answer for others.
    pub daemons: Vec<Daemon>,
    /// Whether networkd runs.
    pub networkd: bool,
}

/// Looks through all processes.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
pub fn read() -> Processes {
    let mut found = Processes::default();
    let all = gone::list(Path::new("/proc")).unwrap_or_default();
    for entry in all.into_iter().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else {
            continue;
        };
        let name = name.trim_end();
        if name != NETWORKD && !ANSWERING.contains(&name) {
            continue;
        }
        // Without CAP_SYS_PTRACE that of another user's process cannot be told.
        if !namespace::is_shared_with(pid).unwrap_or(false) {
            continue;
        }
        if name == NETWORKD {
            found.networkd = true;
        } else {
            found.daemons.push(Daemon {
                name: name.to_owned(),
                pid,
                unit: unit(pid),
            });
        }
    }
    found.daemons.sort_by_key(|daemon| daemon.pid);
    found
}

/// The system service that a process belongs to.
#[expect(
    clippy::disallowed_methods,
    reason = "what cannot be read is unknown to `check`, which then says nothing of it"
)]
fn unit(pid: u32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut names = groups.lines().filter_map(|line| line.rsplit('/').next());
    names
        .find(|name| name.ends_with(".service"))
        .map(str::to_owned)
}
