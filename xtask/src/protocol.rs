//! `docs/protocol.md`: which test holds which row of the protocol, as a run has found it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};

use crate::build::target_dir;

const DOCUMENT: &str = "docs/protocol.md";

/// Every row there is: a letter for the table, and the numbers of its rows.
const ROWS: [(&str, &[&str], &str); 8] = [
    (
        "A",
        &["1", "2", "3", "4", "5", "6", "6b", "7"],
        "ARP on the uplink",
    ),
    (
        "N",
        &["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
        "Neighbor solicitation on the uplink",
    ),
    (
        "P",
        &["1", "2", "3", "4", "5", "6", "7", "8"],
        "ARP and NDP on a port",
    ),
    (
        "F",
        &["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
        "Forwarding, uplink to port",
    ),
    (
        "G",
        &["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"],
        "Forwarding, port to anywhere",
    ),
    ("M", &["1", "2", "3"], "Announcements and group membership"),
    (
        "S",
        &["1", "2", "3", "5"],
        "What a sender says beside the bytes",
    ),
    ("U", &["1", "2", "3"], "Ports without a machine"),
];

/// Where tests record what they hold.
pub fn record() -> PathBuf {
    target_dir().join("protocol.tsv")
}

/// Starts a new record.
///
/// # Errors
/// When the old one cannot be removed.
pub fn start() -> Result<()> {
    let path = record();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The suites whose records make the document. Others hold rows as well, at length.
pub const RECORDING: [&str; 4] = ["beside", "frames", "ports", "uplink"];

/// Writes the document from the record of these suites.
///
/// # Errors
/// When there is no record.
pub fn write() -> Result<()> {
    let (document, _) = document(&read()?)?;
    fs::write(DOCUMENT, document).with_context(|| format!("cannot write {DOCUMENT}"))
}

fn read() -> Result<String> {
    let path = record();
    fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}, which the suites write", path.display()))
}

/// Writes the document from the record of a whole run.
///
/// # Errors
/// When a row is held by no test, or the document was not what it is now.
pub fn finish() -> Result<()> {
    let (document, missing) = document(&read()?)?;
    let old = fs::read_to_string(DOCUMENT).unwrap_or_default();
    if old != document {
        fs::write(DOCUMENT, &document).with_context(|| format!("cannot write {DOCUMENT}"))?;
    }
    if !missing.is_empty() {
        bail!("no test holds {}", missing.join(", "));
    }
    if old != document {
        bail!("{DOCUMENT} was out of date; it is written anew, commit it");
    }
    Ok(())
}

/// What a test has held of a row.
#[derive(Default)]
struct Held {
    cases: usize,
    failed: usize,
}

/// The document, and the rows that are missing in it.
fn document(record: &str) -> Result<(String, Vec<String>)> {
    let mut held: BTreeMap<(&str, &str, &str), Held> = BTreeMap::new();
    for line in record.lines() {
        let [row, mode, test, passed] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("not a record: {line:?}");
        };
        let suite = test.split("::").next().unwrap_or(test);
        if !RECORDING.contains(&suite) {
            continue;
        }
        let entry = held.entry((row, mode, test)).or_default();
        entry.cases += 1;
        entry.failed += usize::from(passed != "true");
    }
    let found: BTreeSet<&str> = held.keys().map(|(row, ..)| *row).collect();
    let mut missing = Vec::new();
    let mut text = String::from(
        "# Rows of the protocol, and the tests that hold them\n\n\
         Written by `cargo xtask test beside frames ports uplink` from what these suites record; in a whole\n\
         run a row without a test, or a change here, is a failure. `cases` counts frames, or runs of a test with real peers.\n",
    );
    for (letter, numbers, title) in ROWS {
        let _ = write!(
            text,
            "\n## {title}\n\n| row | mode | test | cases | passed |\n|---|---|---|---|---|\n"
        );
        for number in numbers {
            let row = format!("{letter}{number}");
            if !found.contains(row.as_str()) {
                missing.push(row);
                continue;
            }
            let tests = held.iter().filter(|((name, ..), _)| *name == row);
            for ((_, mode, test), Held { cases, failed }) in tests {
                let passed = if *failed == 0 { "yes" } else { "NO" };
                let _ = writeln!(text, "| {row} | {mode} | `{test}` | {cases} | {passed} |");
            }
        }
    }
    Ok((text, missing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_and_missing_ones_named() {
        let record = "F2\ttc\tframes::a\ttrue\nF2\ttc\tframes::a\tfalse\nM1\t-\tuplink::b\ttrue\n";
        let (text, missing) = document(record).unwrap();
        assert!(text.contains("| F2 | tc | `frames::a` | 2 | NO |"));
        assert!(text.contains("| M1 | - | `uplink::b` | 1 | yes |"));
        assert!(missing.contains(&"F1".to_owned()) && !missing.contains(&"F2".to_owned()));
        assert!(document("F2 tc").is_err());
    }
}
