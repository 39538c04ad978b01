//! Incus.

use anyhow::Result;

use super::{
    Source,
    engine::{Engine, Machine},
};

/// Incus.
pub struct Incus;

impl Engine for Incus {
    const SOURCE: Source = Source::Incus;

    async fn open() -> Result<Self> {
        Err(std::io::Error::from(std::io::ErrorKind::NotFound).into())
    }

    async fn machines(&mut self) -> Result<Vec<Machine>> {
        Ok(Vec::new())
    }

    async fn changed(&mut self) -> Result<()> {
        std::future::pending().await
    }
}
