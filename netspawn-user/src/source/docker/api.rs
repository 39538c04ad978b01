//! The way to Docker's daemon.

use std::path::Path;

use anyhow::Result;
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error};
use hyper::{
    Response, Uri,
    body::Incoming,
    client::conn::http1,
    header::{HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;

use super::super::engine::socket;

const SOCKET: &str = "/run/docker.sock";
/// How long the daemon may take to begin an answer, in seconds: a list of thousands of
/// containers takes a while.
const PATIENCE: u64 = 25;

/// Reaches the daemon, of whichever version.
///
/// # Errors
/// When none listens, or it is another network namespace's.
pub async fn open() -> Result<Docker> {
    // For the error's kind, which is lost in a request.
    socket::connect(Path::new(SOCKET)).await?;
    let docker = Docker::connect_with_custom_transport(
        request,
        Some("http://docker"),
        PATIENCE,
        API_DEFAULT_VERSION,
    )?;
    Ok(docker.negotiate_version().await?)
}

/// Each request has a connection of its own: the daemon may be another one each time.
async fn request(mut request: BollardRequest) -> Result<Response<Incoming>, Error> {
    let stream = socket::connect(Path::new(SOCKET)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer's body.
    tokio::spawn(connection);
    if let Some(path) = request.uri().path_and_query() {
        *request.uri_mut() = Uri::from(path.clone());
    }
    let host = HeaderValue::from_static("docker");
    request.headers_mut().insert(HOST, host);
    Ok(sender.send_request(request).await?)
}
