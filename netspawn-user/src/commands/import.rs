//! `import`.

use crate::{
    cli::{Global, ImportArgs},
    outcome::Outcome,
};

/// Prints what the kernel's routes and proxy neighbors declare, or writes it.
///
/// # Errors
/// When the host's network cannot be read.
pub fn run(_global: &Global, _args: &ImportArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
