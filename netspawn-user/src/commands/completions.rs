//! `completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{cli::Cli, outcome::Outcome, output};

/// Prints the script for a shell.
///
/// # Errors
/// When stdout is closed.
pub fn run(shell: Shell) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "netspawn-xdp", &mut script);
    output::print(&String::from_utf8(script)?)?;
    Ok(Outcome::Done)
}
