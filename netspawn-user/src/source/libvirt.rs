//! Libvirt.

use anyhow::Result;

use super::{
    Source,
    engine::{Engine, Machine},
};

/// Libvirt.
pub struct Libvirt;

impl Engine for Libvirt {
    const SOURCE: Source = Source::Libvirt;

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
