//! Which row of the protocol is held by which test: the record that `cargo xtask test`
//! makes a table of.

use std::{env, fs::File, io::Write as _, thread};

use crate::Mode;

/// Names the file that records go to; without it nothing is recorded.
const FILE: &str = "NETSPAWN_PROTOCOL";

/// Records that a test has held rows, such as `F2`, in a mode (`tc`, `xdp`, or `-` where
/// no frame is looked at), and whether they held.
pub fn record(row: &str, mode: &str, test: &str, passed: bool) {
    let Some(path) = env::var_os(FILE) else {
        return;
    };
    let line = format!("{row}\t{mode}\t{test}\t{passed}\n");
    // One write: several processes append.
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .expect("the record of protocol rows can be written");
}

/// Rows that a test holds from here to its end.
pub struct Holds {
    rows: &'static [&'static str],
    mode: &'static str,
    test: &'static str,
}

/// Says which rows a test holds; recorded when the test ends, with how it ended.
pub fn holds(test: &'static str, mode: Option<Mode>, rows: &'static [&'static str]) -> Holds {
    Holds {
        rows,
        mode: mode.map_or("-", Mode::name),
        test,
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        for row in self.rows {
            record(row, self.mode, self.test, !thread::panicking());
        }
    }
}
