//! Sockets that engines listen on.

use std::{io, path::Path};

use tokio::net::UnixStream;

use crate::net::namespace;

/// Connects to an engine of this network namespace.
///
/// # Errors
/// When nobody listens there. One that is in another network namespace is `NotFound`:
/// what it says of links is not about this one.
pub async fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path).await?;
    // 0 is a process of another process namespace.
    let pid = stream.peer_cred()?.pid().filter(|pid| *pid > 0);
    match pid.map(|pid| (pid, namespace::is_shared_with(pid.cast_unsigned()))) {
        Some((pid, Ok(false))) => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "process {pid} behind {} is in another network namespace",
                path.display()
            ),
        )),
        _ => Ok(stream),
    }
}
