//! `cargo xtask fuzz`: coverage-guided fuzzing of packet logic and parsers.
//!
//! cargo-fuzz asks rustc for sanitizers and coverage, which stable gives to those who set
//! `RUSTC_BOOTSTRAP`: no nightly toolchain is needed.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build::{target_dir, workspace},
    run::{show, step},
    setup::{self, tool},
};

/// The cargo-fuzz that is installed.
const VERSION: &str = "0.13.2";

/// Crates of targets, and the targets.
const CRATES: &[(&str, &[&str])] = &[
    ("netspawn-ebpf/fuzz", &["uplink", "egress", "port", "wire"]),
    (
        "netspawn-user/fuzz",
        &["machine", "config", "nspawn", "netlink"],
    ),
];

/// Longest input: a head and a frame of an MTU of 1,500.
const LONGEST: u32 = 1600;

/// Time for each target in a test run.
const SHORT: Duration = Duration::from_secs(8);

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Args {
    /// Targets to run; all without one
    targets: Vec<String>,
    /// Minutes for all targets together, one after the other
    #[arg(long, default_value_t = 4)]
    minutes: u32,
    /// Runs the one target named on this input alone
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// Sets the machine up, then fuzzes.
pub fn run(args: Args) -> Result<()> {
    setup::ready()?;
    let all: Vec<_> = targets().map(|(_, target)| target).collect();
    if let Some(unknown) = args
        .targets
        .iter()
        .find(|name| !all.contains(&name.as_str()))
    {
        bail!("no fuzz target `{unknown}`: there are {}", all.join(", "));
    }
    let wanted =
        |target: &str| args.targets.is_empty() || args.targets.iter().any(|name| name == target);
    let chosen: Vec<_> = targets().filter(|(_, target)| wanted(target)).collect();
    if let Some(input) = args.input {
        ensure!(chosen.len() == 1, "name the one target of --input");
        let input =
            fs::canonicalize(&input).with_context(|| format!("no input {}", input.display()))?;
        let (folder, target) = chosen[0];
        build(folder)?;
        return show(Command::new(program(target)).arg(input));
    }
    let share = Duration::from_secs(u64::from(args.minutes) * 60) / chosen.len() as u32;
    fuzz(&chosen, share)
}

/// The targets of the packet logic for a few seconds each. The loader with all that it links
/// takes some minutes to build with coverage, longer than a run of all tests has for it.
pub fn short() -> Result<()> {
    let (packets, _) = CRATES[0];
    let chosen: Vec<_> = targets().filter(|(folder, _)| *folder == packets).collect();
    step("parsers of the loader are left to `cargo xtask fuzz`");
    fuzz(&chosen, SHORT)
}

fn targets() -> impl Iterator<Item = (&'static str, &'static str)> {
    let each = |(folder, targets): &(&'static str, &'static [&'static str])| {
        let folder = *folder;
        targets.iter().map(move |target| (folder, *target))
    };
    CRATES.iter().flat_map(each)
}

/// Goes on after a finding, and fails with the names of all targets that have one.
fn fuzz(chosen: &[(&str, &str)], share: Duration) -> Result<()> {
    for (folder, _) in CRATES {
        if chosen.iter().any(|(other, _)| other == folder) {
            build(folder)?;
        }
    }
    let mut failed = Vec::new();
    for (folder, target) in chosen {
        step(format_args!("fuzzing {target} for {} s", share.as_secs()));
        if let Err(error) = one(folder, target, share) {
            eprintln!("error: {error:#}");
            failed.push(*target);
        }
    }
    ensure!(failed.is_empty(), "findings in {}", failed.join(", "));
    step(format_args!("{} targets without a finding", chosen.len()));
    Ok(())
}

fn one(folder: &str, target: &str, share: Duration) -> Result<()> {
    let place = target_dir().join("fuzz");
    let corpus = place.join("corpus").join(target);
    let findings = place.join("findings").join(target);
    for dir in [&corpus, &findings] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let seeds = workspace().join(folder).join("seeds").join(target);
    show(
        Command::new(program(target))
            .args([&corpus, &seeds])
            .arg(format!("-max_total_time={}", share.as_secs()))
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-print_final_stats=1", "-verbosity=0", "-timeout=10"])
            // Memory that AddressSanitizer keeps back is none that leaks.
            .arg("-rss_limit_mb=4096"),
    )
    .with_context(|| {
        format!(
            "a finding: run `cargo xtask fuzz {target} --input FILE` with the newest file in {}",
            findings.display()
        )
    })
}

fn program(target: &str) -> PathBuf {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    target_dir()
        .join("fuzz")
        .join(triple)
        .join("release")
        .join(target)
}

fn build(folder: &str) -> Result<()> {
    let tool = tool::install("fuzz", VERSION)?;
    step(format_args!("building the targets of {folder}"));
    show(
        Command::new(tool)
            .args(["fuzz", "build", "--fuzz-dir"])
            .arg(workspace().join(folder))
            .arg("--target-dir")
            .arg(target_dir().join("fuzz"))
            .current_dir(workspace().join(folder))
            .env("RUSTC_BOOTSTRAP", "1"),
    )
}
