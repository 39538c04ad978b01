//! The data plane against the kernel: the same frames go to `proxy_arp`, `proxy_ndp` and
//! forwarding in a namespace set up the old way, and to the library and the programs.
//! What they do must be the same to the byte, or a named rule says why it is not.
//!
//! `NETSPAWN_DIFFERENTIAL_FRAMES` and `NETSPAWN_DIFFERENTIAL_SEED` make it longer and
//! different (`cargo xtask differential`).

mod compare;
mod generate;
mod kernel;
mod mend;
mod ours;
mod rules;
mod tap;

#[path = "../../../netspawn-ebpf/tests/host/mod.rs"]
#[allow(dead_code, reason = "smoltcp's opinion is asked elsewhere")]
mod host;
#[path = "../../../netspawn-ebpf/tests/rows/mod.rs"]
#[allow(dead_code, reason = "the outcomes of the rows are for other tests")]
mod rows;
mod session;

use std::{
    env,
    io::{self, Write as _},
    thread,
};

use anyhow::{Context as _, Result};

use rows::At;
use session::{Report, Session};

/// Without a word about it: the same frames on every machine with as many cores, in about
/// a minute.
const FRAMES: u64 = 2_000_000;

fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else {
        return Ok(None);
    };
    let number = text.parse().with_context(|| format!("{name} is `{text}`"));
    number.map(Some)
}

/// `uplink:DIGITS` or the number of a machine instead of `uplink`.
fn frame(text: &str) -> Option<(At, Vec<u8>)> {
    let (at, digits) = text.split_once(':')?;
    let at = match at {
        "uplink" => At::Uplink,
        id => At::Port(id.parse().ok()?),
    };
    let bytes = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(digits.get(at * 2..at * 2 + 2)?, 16).ok())
        .collect::<Option<_>>()?;
    Some((at, bytes))
}

#[test]
fn data_plane_and_kernel_agree() -> Result<()> {
    let frames = number("NETSPAWN_DIFFERENTIAL_FRAMES")?.unwrap_or(FRAMES);
    let seed = number("NETSPAWN_DIFFERENTIAL_SEED")?.unwrap_or(1);
    if let Ok(text) = env::var("NETSPAWN_DIFFERENTIAL_FRAME") {
        let (at, frame) = frame(&text)
            .with_context(|| format!("`{text}` is not `uplink:DIGITS` or `MACHINE:DIGITS`"))?;
        return Session::new(seed, 0)?.replay(at, &frame);
    }
    let jobs = thread::available_parallelism()?.get() as u64;
    let mut report = Report::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|job| {
                scope
                    .spawn(move || Session::new(seed * jobs + job, job)?.run(frames.div_ceil(jobs)))
            })
            .collect();
        for worker in workers {
            report += worker.join().expect("a session does not panic")?;
        }
        anyhow::Ok(())
    })?;
    // The harness hides what `eprintln` says of tests that pass.
    writeln!(io::stderr(), "{report}")?;
    assert_eq!(report.unexplained, 0, "seed {seed}");
    Ok(())
}
