//! `cargo xtask VERB`: everything done to this repository other than plain
//! `cargo` commands, from a fresh machine to the full test run.

mod bench;
mod build;
mod captures;
mod churn;
mod ci;
mod demo;
mod differential;
mod dist;
mod docs;
mod ebpf;
mod engines;
mod fuzz;
mod fuzz_live;
mod injection;
mod kernels;
mod lab;
mod links;
mod named_tests;
mod protocol;
mod run;
mod setup;
mod soak;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, shows and tests netspawn-xdp.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what building and testing need; steps already done are skipped
    Setup(setup::Args),
    /// Builds the programs of the workspace, or refreshes the prebuilt eBPF object
    Build(build::Args),
    /// Raises a lab, attaches, shows what happens, and takes the lab down again
    Demo(demo::Args),
    /// Runs the checks and every test suite, or only the suites named
    Test(test::Args),
    /// Holds the data plane against the kernel, frame by frame
    Differential(differential::Args),
    /// Fuzzes packet logic and parsers
    Fuzz(fuzz::Args),
    /// Fuzzes the attached data plane with all that senders can say beside their frames
    FuzzLive(fuzz_live::Args),
    /// Has every system call that may fail do so once, and the program killed at it
    Faults(injection::Args),
    /// Has links of hundreds of machines change in every way, against a model
    Churn(churn::Args),
    /// Has thousands of machines come and go, and shows by the minute what that takes
    Soak(soak::Args),
    /// Runs the benchmarks
    Bench(bench::Args),
    /// Draws the pictures of `top` that README.md shows
    Captures(captures::Args),
    /// Builds the Debian package and a static tarball
    Dist(dist::Args),
    /// Raises, enters or removes a lab of network namespaces
    Lab(lab::Args),
    /// Writes the parts of the documents that follow from the code
    Docs(docs::Args),
    /// Runs the checks alone: formatting, lints, freshness of the prebuilt object and of documents
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(args),
        Verb::Build(args) => build::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Test(args) => test::run(args),
        Verb::Differential(args) => differential::run(args),
        Verb::Fuzz(args) => fuzz::run(args),
        Verb::FuzzLive(args) => fuzz_live::run(args),
        Verb::Faults(args) => injection::run(args),
        Verb::Churn(args) => churn::run(args),
        Verb::Soak(args) => soak::run(args),
        Verb::Bench(args) => bench::run(args),
        Verb::Captures(args) => captures::run(args),
        Verb::Dist(args) => dist::run(args),
        Verb::Lab(args) => lab::run(args),
        Verb::Docs(args) => docs::run(args),
        Verb::Ci(args) => ci::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
