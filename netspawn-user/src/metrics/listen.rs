use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::FileTypeExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::stat::{Mode, umask};

use super::Address;

/// A place that has been taken for metrics. Clients wait until they are served.
#[derive(Debug)]
pub struct Listener {
    /// Where it is.
    pub(super) address: Address,
    pub(super) socket: Socket,
    /// A unix socket's file.
    pub(super) file: Option<SocketFile>,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket's file, which goes with the value.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone, and its folder with it.
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Takes the place. While the process has one thread: files that others made at the
    /// same time would get the rights of the socket.
    ///
    /// # Errors
    /// When it cannot be taken: then nothing has changed.
    pub fn bind(address: &Address) -> Result<Self> {
        let bound = match address {
            Address::Off => Err(anyhow!("nothing is served there")),
            Address::Tcp(at) => bind_tcp(*at).map(|socket| (Socket::Tcp(socket), None)),
            Address::Unix(path) => {
                bind_unix(path).map(|socket| (Socket::Unix(socket), Some(SocketFile(path.clone()))))
            }
        };
        let (socket, file) = bound.with_context(|| format!("cannot serve metrics at {address}"))?;
        Ok(Listener {
            address: address.clone(),
            socket,
            file,
        })
    }
}

fn bind_tcp(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "another process listens there (`ss -ltnp 'sport = :{}'` shows which); end it, or \
             choose another port",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => anyhow!(
            "the host has no address {} (see `ip address`)",
            address.ip()
        ),
        _ => error.into(),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread that has panicked leaves counts that are whole; text that is none is left out"
)]
fn bind_unix(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent()
        && !folder.is_dir()
    {
        bail!("there is no folder {}; make it first", folder.display());
    }
    if let Ok(there) = path.symlink_metadata() {
        if !there.file_type().is_socket() {
            bail!("that file is no socket; move it away, or choose another path");
        }
        match UnixStream::connect(path) {
            Ok(_) => bail!(
                "another process listens there (`ss -lxp` shows which); end it, or choose \
                 another path"
            ),
            // One that was killed has left it.
            Err(_) => fs::remove_file(path).context("cannot remove what is left there")?,
        }
    }
    // The file has its rights from the start: for root and its group.
    let before = umask(Mode::from_bits_truncate(0o117));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn refusal(address: &Address) -> String {
        format!("{:#}", Listener::bind(address).unwrap_err())
    }

    #[test]
    fn place_that_is_taken_is_refused() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let port = address.port();
        assert_eq!(
            refusal(&Address::Tcp(address)),
            format!(
                "cannot serve metrics at 127.0.0.1:{port}: another process listens there (`ss \
                 -ltnp 'sport = :{port}'` shows which); end it, or choose another port"
            )
        );
        let elsewhere = "192.0.2.1:9469".parse().unwrap();
        assert_eq!(
            refusal(&elsewhere),
            "cannot serve metrics at 192.0.2.1:9469: the host has no address 192.0.2.1 (see `ip \
             address`)"
        );
    }

    #[test]
    fn socket_is_for_root_and_its_group_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.sock");
        let address = Address::Unix(path.clone());
        // One that nobody listens at any more.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&address).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(refusal(&address).contains("another process listens there"));
        assert!(path.exists(), "the other's socket was removed");
        drop(listener);
        assert!(!path.exists());

        fs::write(&path, "a file of somebody").unwrap();
        assert!(refusal(&address).contains("is no socket"));
        assert!(path.exists());
        let nowhere = Address::Unix(folder.path().join("none/metrics.sock"));
        assert!(refusal(&nowhere).contains("there is no folder"));
    }
}
