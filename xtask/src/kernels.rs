//! `docs/kernels.md`: the kernels that the suite `kernels` has run on.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::build::target_dir;

const DOCUMENT: &str = "docs/kernels.md";

/// Where the suite records its rows.
pub fn record() -> PathBuf {
    target_dir().join("kernels.tsv")
}

/// Writes the document from the record. It is not held against the one that is there:
/// the archive's kernels change by themselves.
///
/// # Errors
/// When the record is not there.
pub fn write() -> Result<()> {
    let path = record();
    let record = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}, which the suite writes", path.display()))?;
    fs::write(DOCUMENT, document(&record)).with_context(|| format!("cannot write {DOCUMENT}"))
}

fn document(record: &str) -> String {
    let mut text = String::from(
        "# Kernels\n\n\
         Written by `cargo xtask test kernels`, which boots Debian's kernels in qemu. In each the\n\
         programs load, the suite `frames` passes, and pings go through on plain and tagged\n\
         uplinks; `instructions` is what the verifier walked.\n\n\
         | kernel | hook | uplink_ingress | uplink_egress | port_ingress | uplink_xdp | tests of frames passed |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for line in record.lines() {
        let _ = writeln!(text, "| {} |", line.replace('\t', " | "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_rows() {
        let text = document("6.1.0-1\tclsact\t1\t2\t3\t4\t15\n");
        assert!(text.ends_with("| 6.1.0-1 | clsact | 1 | 2 | 3 | 4 | 15 |\n"));
    }
}
