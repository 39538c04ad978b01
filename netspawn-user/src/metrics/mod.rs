//! Metrics for Prometheus: what the agent knows and what the kernel counts, as text over
//! HTTP.
//!
//! A thread of its own reads the maps, writes the text and serves it, so that neither
//! ten thousand machines nor a slow client hold the agent up. The agent leaves there
//! what only it knows.

mod address;
pub mod catalog;
mod clients;
mod encode;
mod known;
mod listen;
mod page;
mod serve;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::sync::oneshot;

use self::listen::{Socket, SocketFile};
pub use self::{address::Address, known::Known, listen::Listener};
use crate::datapath::reader::Reader;

/// The agent's end of its metrics. They are served until it is dropped.
#[derive(Debug)]
pub struct Metrics {
    known: Arc<Mutex<Known>>,
    bpf_dir: PathBuf,
    address: Address,
    socket: Option<Socket>,
    _file: Option<SocketFile>,
    // Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
}

impl Metrics {
    /// Metrics that are to be served at a place: of an agent that started then, and of
    /// what is pinned in BPFDIR.
    pub fn new(listener: Listener, bpf_dir: &Path, since: Timestamp) -> Self {
        Metrics {
            known: Arc::new(Mutex::new(Known::new(since))),
            bpf_dir: bpf_dir.to_owned(),
            address: listener.address,
            socket: Some(listener.socket),
            _file: listener.file,
            stop: None,
        }
    }

    /// Where they are served.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What only the agent knows. Nobody holds it for long.
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread that has panicked leaves counts that are whole; text that is none is left out"
    )]
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to serve.
    ///
    /// # Errors
    /// When the maps cannot be opened, or no thread can be started.
    pub fn serve(&mut self) -> Result<()> {
        let Some(socket) = self.socket.take() else {
            return Ok(());
        };
        let reader = Reader::open(&self.bpf_dir).context("cannot read what metrics are made of")?;
        let page = page::Page::new(reader, Arc::clone(&self.known));
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serve::run(socket, page, stopped)) {
                    tracing::error!("metrics are not served any more: {error}");
                }
            })
            .context("cannot start a thread")?;
        tracing::info!("metrics are served at {}", self.address);
        Ok(())
    }
}
