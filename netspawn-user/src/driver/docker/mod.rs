//! Docker's network driver `netspawn`: libnetwork's remote driver protocol on a unix
//! socket (docs/remote.md of libnetwork).
//!
//! Each endpoint is a veth without a bridge, whose port is left down: the agent sets it
//! up once it is guarded. Nothing is remembered here. Links are called after endpoints,
//! and what is asked of one later is kept with it in the kernel, so that a restart of
//! either side loses nothing.

mod driver;
mod protocol;
mod serve;

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use tokio::sync::oneshot;

use self::driver::Driver;

/// What `docker network create --driver` takes. It is the name of the file in Docker's
/// folder of plugins.
pub const DRIVER: &str = "netspawn";
/// The option of a network, and the label of a container, that names a tenant.
pub const TENANT: &str = "netspawn.tenant";

/// Digits of an endpoint's id in the names of its links, which have 15 bytes at most.
const DIGITS: usize = 12;

/// Name of the host's end of an endpoint's link.
pub fn link(endpoint: &str) -> String {
    format!("dk{}", endpoint.get(..DIGITS).unwrap_or(endpoint))
}

/// Name of the other end until it is in the container.
fn peer(endpoint: &str) -> String {
    format!("dp{}", endpoint.get(..DIGITS).unwrap_or(endpoint))
}

/// The driver's socket in RUNDIR.
pub fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("docker.sock")
}

/// The driver while it is served, by a thread of its own: a container that is started
/// does not wait for the agent. Dropped, it ends, and the socket goes.
#[derive(Debug)]
pub struct Served {
    path: PathBuf,
    // Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Served {
    /// Begins to serve at RUNDIR, for uplinks that BPFDIR tells of. The caller holds the
    /// lock, so that a socket that is there is a dead agent's.
    ///
    /// # Errors
    /// When the socket cannot be made, or no thread can be started.
    pub fn start(run_dir: &Path, bpf_dir: &Path) -> Result<Self> {
        let path = socket(run_dir);
        let listener = listen(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let driver = Driver::new(bpf_dir)?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("docker".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(serve::run(listener, driver, stopped)) {
                    tracing::error!("Docker's network driver is not served any more: {error}");
                }
            })
            .context("cannot start a thread")?;
        Ok(Served { path, _stop: stop })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may be gone, and its folder with it.
        let _ = fs::remove_file(&self.path);
    }
}

/// A socket that root alone may use.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
