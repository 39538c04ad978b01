//! `guest`.

use super::DataPlane;
use crate::{
    cli::{Global, GuestArgs},
    outcome::Outcome,
};

/// Prints the network configuration of a machine, or installs it.
///
/// # Errors
/// When no such machine is declared.
pub fn run(_global: &Global, _args: &GuestArgs, _plane: &dyn DataPlane) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
