//! `cargo xtask ci`: what a submission is checked for besides its tests.

use std::{fs, process::Command};

use anyhow::{Result, bail};

use crate::{
    build::{self, target_dir, workspace},
    docs,
    ebpf::{Prebuilt, Toolchain},
    links, named_tests,
    run::{show, step},
    setup,
};

/// Arguments of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Args {}

/// Sets the machine up, then runs the checks.
pub fn run(_args: Args) -> Result<()> {
    checks(setup::ready()?.as_ref())
}

/// Formatting, lints for the host and for the bpf target, documents, the prebuilt object. Goes on
/// after a failure, and fails with the names of all that failed.
pub fn checks(toolchain: Option<&Toolchain>) -> Result<()> {
    type Check = fn(Option<&Toolchain>) -> Result<()>;
    let all: [(&str, Check); 8] = [
        ("formatting", |_| {
            show(cargo().args(["fmt", "--all", "--check"]))
        }),
        ("lints for the host", |_| {
            show(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ]))
        }),
        ("lints for the bpf target", bpf_lints),
        ("freshness of documents", |_| docs::check()),
        ("links in documents", |_| links::check()),
        ("tests that SECURITY.md names", |_| named_tests::check()),
        ("freshness of the prebuilt object", prebuilt_is_fresh),
        ("a build from the prebuilt object", |_| prebuilt_is_used()),
    ];
    let mut failed = Vec::new();
    for (name, check) in all {
        step(name);
        if let Err(error) = check(toolchain) {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("failed checks: {}", failed.join(", "));
    }
    Ok(())
}

fn bpf_lints(toolchain: Option<&Toolchain>) -> Result<()> {
    let Some(toolchain) = toolchain else {
        step("skipped: the eBPF toolchain is missing");
        return Ok(());
    };
    let linker = toolchain.usable_linker().map_err(anyhow::Error::msg)?;
    show(
        toolchain
            .cargo("clippy", &linker, workspace(), &target_dir().join("bpf"))?
            .args(["--lib", "--bin", "netspawn", "--", "-D", "warnings"]),
    )
}

/// The kept object is what these sources make, to the byte.
fn prebuilt_is_fresh(toolchain: Option<&Toolchain>) -> Result<()> {
    let remedy = "run `cargo xtask build --prebuilt` and commit netspawn-ebpf/prebuilt";
    let path = match Prebuilt::usable(workspace()) {
        Ok(path) => path,
        Err(error) => bail!("{error:#}: {remedy}"),
    };
    let Some(toolchain) = toolchain else {
        step("digests compared, not bytes: the eBPF toolchain is missing");
        return Ok(());
    };
    let kept = fs::read(path)?;
    let built = build::object(toolchain)?;
    let made_by = Prebuilt::read(workspace())?.rustc;
    if made_by != toolchain.version {
        step(format_args!(
            "the prebuilt object was made by rustc {made_by}, this is {}: digests compared, not bytes",
            toolchain.version
        ));
    } else if built != kept {
        bail!("the prebuilt object differs from what these sources make: {remedy}");
    }
    Ok(())
}

/// A build that may not use the toolchain ends in a program that carries the kept object.
///
/// In the usual target folder this compiles one crate. That the object loads is what
/// the suites show, as it is the same to the byte as the one they use.
fn prebuilt_is_used() -> Result<()> {
    show(
        cargo()
            .args(["build", "--package", "netspawn-user"])
            .env("NETSPAWN_PREBUILT", "1"),
    )?;
    let program = target_dir().join("debug/netspawn-xdp");
    let carried = fs::read(&program)?;
    let object = fs::read(Prebuilt::object_path(workspace()))?;
    if memchr::memmem::find(&carried, &object).is_none() {
        bail!("{} does not carry the prebuilt object", program.display());
    }
    show(Command::new(&program).arg("--version"))
}

/// A cargo command in this workspace.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace());
    command
}
