//! `confirm`.

use std::io::{self, Write};

use crate::{
    cli::Global,
    control::RunDir,
    outcome::Outcome,
    output::Report,
    revert::{self, Kept},
};

/// Keeps what `attach --revert-after` has attached, and says what that is.
///
/// # Errors
/// When no revert is pending, or its time is over.
pub fn run(global: &Global) -> anyhow::Result<Outcome> {
    RunDir::new(&global.run_dir).check_namespace()?;
    revert::confirm(global)?.print(global.json)?;
    Ok(Outcome::Done)
}

impl Report for Kept {
    fn cells(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.kept.is_empty() {
            writeln!(out, "kept: nothing is attached")?;
        }
        for uplink in &self.kept {
            writeln!(out, "kept: {} ({})", uplink.name, uplink.mode.name())?;
        }
        Ok(())
    }
}
