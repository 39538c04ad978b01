//! Docker.

use anyhow::Result;

use super::{
    Source,
    engine::{Engine, Machine},
};

/// Docker.
pub struct Docker;

impl Engine for Docker {
    const SOURCE: Source = Source::Docker;

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
