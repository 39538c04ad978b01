//! The machine that a run was on.

use std::{fs, path::Path, process::Command, thread};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What tells one machine, and one state of it, from another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// When the run began, RFC 3339.
    pub date: String,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that the run may use.
    pub cores: usize,
    /// Memory in bytes.
    pub memory: u64,
    /// Processes that were running or waiting in the last minute before it began.
    pub load: f64,
    /// The commit, with `-dirty` where files were changed; null without git.
    pub revision: Option<String>,
    /// `release` or `debug`.
    pub build: String,
}

const UNKNOWN: &str = "unknown";

impl Host {
    /// This machine, now.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(Path::new("/proc").join(path));
        let kernel = read("sys/kernel/osrelease").unwrap_or_else(|_| UNKNOWN.into());
        let kilobytes = value(&read("meminfo").unwrap_or_default(), "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let cpu = value(&read("cpuinfo").unwrap_or_default(), "model name");
        let load = read("loadavg").ok().and_then(|text| {
            let first = text.split(' ').next()?;
            first.parse().ok()
        });
        Host {
            date: Timestamp::now()
                .round(jiff::Unit::Second)
                .unwrap_or_default()
                .to_string(),
            kernel: kernel.trim().to_owned(),
            cpu: cpu.unwrap_or_else(|| UNKNOWN.into()),
            cores: thread::available_parallelism().map_or(1, usize::from),
            memory: kilobytes.unwrap_or(0) * 1024,
            load: load.unwrap_or(0.0),
            revision: revision(),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            }
            .to_owned(),
        }
    }

    #[cfg(test)]
    pub(super) fn example() -> Self {
        Host {
            date: "2026-01-31T12:00:00Z".into(),
            kernel: "6.18.0".into(),
            cpu: "Some CPU".into(),
            cores: 2,
            memory: 24 << 30,
            load: 0.5,
            revision: Some("0123456789ab".into()),
            build: "release".into(),
        }
    }
}

/// The value of a line `name : value`.
fn value(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The commit of the sources that this program was built from.
fn revision() -> Option<String> {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR")])
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text =
            "MemTotalOther:  1 kB\nMemTotal:       2 kB\nmodel name\t: A CPU @ 2 GHz: fast\n";
        assert_eq!(value(text, "MemTotal").as_deref(), Some("2 kB"));
        assert_eq!(
            value(text, "model name").as_deref(),
            Some("A CPU @ 2 GHz: fast")
        );
        assert_eq!(value(text, "absent"), None);
    }
}
