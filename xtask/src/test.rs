//! `cargo xtask test`: the checks, then every test of the workspace.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, target_dir},
    ci::{self, cargo},
    dist, engines, fuzz, kernels, protocol,
    run::{read, show, step},
    setup,
};

/// Tests that need no privileges: all crates but the one of the suites.
const HOST: &str = "host";

/// The fuzz targets of the packet logic for a few seconds.
const FUZZ: &str = "fuzz";

/// Tests of the library that the suites share.
const SUPPORT: &str = "support";

/// Guests with other kernels; named, it also writes the table of kernels.
const KERNELS: &str = "kernels";

/// Packages in booted hosts; they are made for it.
const PACKAGE: &str = "package";

/// The tutorial, which installs such a package.
const TUTORIAL: &str = "tutorial";

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Suites to run alone, without the checks: `host`, `support`, `fuzz`, or a test target of the crate `tests`; after `engines`, names of engines
    suites: Vec<String>,
    /// For `engines incus` and `engines lxc`: the Debian release that they are taken from, a later one than this machine's
    #[arg(long, requires = "suites")]
    release: Option<String>,
}

/// Sets the machine up and runs everything, or the suites named.
pub fn run(args: Args) -> Result<()> {
    let toolchain = setup::ready()?;
    let mut known = vec![HOST.to_owned(), SUPPORT.to_owned()];
    known.extend(privileged()?);
    known.push(FUZZ.to_owned());
    let mut suites = args.suites;
    let names = match suites.iter().position(|suite| suite == engines::SUITE) {
        Some(at) => suites.split_off(at + 1),
        None => Vec::new(),
    };
    if args.release.is_some() && suites != [engines::SUITE] {
        bail!("--release is for engines: `cargo xtask test engines NAME --release NAME`");
    }
    if let Some(unknown) = suites.iter().find(|suite| !known.contains(suite)) {
        bail!("no suite `{unknown}`: there are {}", known.join(", "));
    }
    let mut failed = Vec::new();
    let whole = suites.is_empty();
    let suites = if whole {
        // A failed check does not hide what the tests say.
        if let Err(error) = ci::checks(toolchain.as_ref()) {
            eprintln!("error: {error:#}");
            failed.push("checks".to_owned());
        }
        known
    } else {
        suites
    };
    build::programs(false)?;
    protocol::start()?;
    let named = |suite: &str| !whole && suites.iter().any(|name| name == suite);
    let (kernels, protocol) = (named(KERNELS), protocol::RECORDING.into_iter().all(named));
    for suite in suites {
        step(format_args!("suite {suite}"));
        let result = match suite.as_str() {
            engines::SUITE if whole => engines::run_always(),
            engines::SUITE => engines::run(&names, args.release.as_deref()),
            _ => run_suite(&suite),
        };
        if let Err(error) = result {
            eprintln!("error: {error:#}");
            failed.push(suite);
        }
    }
    if kernels && failed.is_empty() {
        kernels::write()?;
    }
    if protocol && failed.is_empty() {
        protocol::write()?;
    }
    if whole && let Err(error) = protocol::finish() {
        eprintln!("error: {error:#}");
        failed.push("protocol".to_owned());
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    step("all passed");
    Ok(())
}

fn run_suite(suite: &str) -> Result<()> {
    if suite == KERNELS {
        // The suite appends.
        match std::fs::remove_file(kernels::record()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    if suite == FUZZ {
        return fuzz::short();
    }
    let mut command = command();
    if [PACKAGE, TUTORIAL].contains(&suite) {
        command.env("NETSPAWN_DEBS", dist::for_tests()?);
    }
    if suite == HOST {
        command.args(["--workspace", "--exclude", "netspawn-tests"]);
    } else {
        command.args(["--package", "netspawn-tests"]);
        if suite == SUPPORT {
            command.arg("--lib");
        } else {
            command.args(["--test", suite]);
        }
        let threads = match suite {
            "revert" => 4,
            // They mostly wait.
            "attacks" | "check" | "clients" | "explain" | "kernels" | "links" | "mtu" | "netns"
            | "ports" | "uplink" | "via_host" => 2,
            // They share the cores, and look at the clock. Boxes of one process share a
            // cgroup: one's systemd removes what the other's has just made (219/CGROUP).
            _ => 1,
        };
        command.args(["--", &format!("--test-threads={threads}")]);
    }
    show(&mut command)
}

fn command() -> Command {
    let mut command = cargo();
    command
        .args(["test", "--no-fail-fast"])
        // The suites start the program that `build::programs` made.
        .env("NETSPAWN_XDP", target_dir().join("debug/netspawn-xdp"))
        .env("NETSPAWN_PROTOCOL", protocol::record())
        .env("NETSPAWN_KERNELS", kernels::record());
    command
}

/// The command that runs one test target of the crate `tests`.
pub fn suite(name: &str) -> Command {
    let mut command = command();
    command.args(["--package", "netspawn-tests", "--test", name]);
    command
}

/// The test targets of the crate `tests`, as cargo knows them.
fn privileged() -> Result<Vec<String>> {
    let text = read(cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: serde_json::Value =
        serde_json::from_str(&text).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let targets = packages
        .iter()
        .filter(|package| package["name"] == "netspawn-tests")
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"] == serde_json::json!(["test"]));
    Ok(targets
        .filter_map(|target| target["name"].as_str())
        .map(str::to_owned)
        .collect())
}
