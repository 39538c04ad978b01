//! The programs on several kernels: they load, attach, do to frames what they do here,
//! and a ping goes through, also with an 802.1Q tag.

use std::{
    env,
    fs::File,
    io::{self, Write as _},
    path::PathBuf,
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use netspawn_tests::{Guest, Kernel, Report};

const LIMIT: Duration = Duration::from_secs(300);

/// Those of Debian's releases; the newest served comes with them.
const SERIES: &[&str] = &["6.1", "6.12", "6.18"];

/// Before 6.6 there is no tcx.
const PROGRAMS: &[&str] = &[
    "uplink_ingress",
    "uplink_egress",
    "port_ingress",
    "uplink_xdp",
];

#[test]
fn programs_run_on_every_kernel_served() -> Result<()> {
    let frames = suite("frames")?;
    let mut failed = Vec::new();
    for kernel in kernels()? {
        if let Err(error) = one(&kernel, &frames) {
            failed.push(format!("{}: {error:#}", kernel.release()));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// The executable of a suite, which cargo makes beside this one.
pub fn suite(name: &str) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--no-run", "--package", "netspawn-tests"])
        .args(["--test", name, "--message-format", "json"])
        .output()
        .context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
        .with_context(|| format!("cargo names no executable of the suite `{name}`"))
}

/// The kernels that can be had: those of Debian's releases, and the newest.
pub fn kernels() -> Result<Vec<Kernel>> {
    // Tests ask at the same time, and apt's state is one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let newest = Kernel::newest_series().context("the archive cannot be read")?;
    let mut all: Vec<&str> = SERIES.to_vec();
    if !all.contains(&newest.as_str()) {
        all.push(&newest);
    }
    let mut kernels = Vec::new();
    for series in all {
        match Kernel::series(series) {
            Ok(kernel) => kernels.push(kernel),
            Err(error) => writeln!(io::stderr(), "kernel {series} cannot be had: {error:#}")?,
        }
    }
    ensure!(
        kernels.len() >= 2,
        "only {} kernels could be had",
        kernels.len()
    );
    Ok(kernels)
}

fn one(kernel: &Kernel, frames: &std::path::Path) -> Result<()> {
    let report = Guest::new(kernel)
        .modules(&["veth", "8021q", "sch_ingress", "cls_bpf"])?
        .programs(&["ip", "ping"])?
        .netspawn_xdp()?
        .executable("frames", frames)?
        .run(include_str!("matrix.sh"), LIMIT)?;
    writeln!(
        io::stderr(),
        "kernel {}\n{}",
        kernel.release(),
        report.console
    )?;
    ensure!(
        report.status == 0,
        "the script ended with {}",
        report.status
    );
    let passed = frames_passed(&report)?;
    let verified: Vec<&str> = PROGRAMS
        .iter()
        .map(|program| report.value(&format!("verified-{program}")))
        .collect::<Result<_>>()?;
    record(kernel.release(), report.value("hook")?, &verified, passed)
}

/// Adds a row to the table of kernels, where one is made.
fn record(release: &str, hook: &str, verified: &[&str], passed: u32) -> Result<()> {
    let Some(path) = env::var_os("NETSPAWN_KERNELS") else {
        return Ok(());
    };
    let verified = verified.join("\t");
    let mut file = File::options().create(true).append(true).open(path)?;
    writeln!(file, "{release}\t{hook}\t{verified}\t{passed}")?;
    Ok(())
}

/// How many tests of frames passed; all that ran have.
fn frames_passed(report: &Report) -> Result<u32> {
    let line = report
        .console
        .lines()
        .find_map(|line| line.trim().strip_prefix("test result: ok. "))
        .context("the tests of frames have no closing line")?;
    let passed = line.split(' ').next().unwrap_or_default().parse()?;
    ensure!(passed >= 10, "only {passed} tests of frames ran");
    Ok(passed)
}
