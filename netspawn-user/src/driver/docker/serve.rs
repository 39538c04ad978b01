use std::{convert::Infallible, os::unix::net::UnixListener, sync::Arc, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::UnixStream,
    sync::{Mutex, oneshot},
    time::{sleep, timeout},
};

use super::driver::Driver;

/// Bytes of a request at most.
const MAX: usize = 1024 * 1024;
/// How long Docker may take to ask.
const ASKING: Duration = Duration::from_secs(5);
/// How long a request may take in all.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon connections are taken again after that failed.
const RETRY: Duration = Duration::from_millis(200);

/// Serves until it is told to stop.
///
/// # Errors
/// When nothing can be waited for.
pub async fn run(
    listener: UnixListener,
    driver: Driver,
    mut stop: oneshot::Receiver<()>,
) -> Result<()> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let driver = Arc::new(Mutex::new(driver));
    loop {
        let accepted = tokio::select! {
            // Told, or gone.
            _ = &mut stop => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let client = serve(stream, Arc::clone(&driver));
                tokio::spawn(async move { timeout(PATIENCE, client).await });
            }
            Err(error) => {
                tracing::debug!("cannot take a connection of Docker's: {error}");
                sleep(RETRY).await;
            }
        }
    }
}

/// Answers one request: a connection that stays would be one to an agent that may have
/// ended since.
async fn serve(stream: UnixStream, driver: Arc<Mutex<Driver>>) {
    let service = service_fn(|request| {
        let driver = Arc::clone(&driver);
        async move { Ok::<_, Infallible>(answer(request, &driver).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKING)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a request of Docker's: {error}");
    }
}

async fn answer(request: Request<Incoming>, driver: &Mutex<Driver>) -> Response<Full<Bytes>> {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let body = match Limited::new(request.into_body(), MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refusal(StatusCode::BAD_REQUEST, format!("{method}: {error}")),
    };
    let answered = driver.lock().await.answer(&method, &body);
    match answered {
        Some(Ok(value)) => respond(StatusCode::OK, &value),
        Some(Err(error)) => {
            tracing::warn!("Docker's {method} is refused: {error:#}");
            refusal(StatusCode::OK, format!("{error:#}"))
        }
        // Docker goes without what is optional.
        None => refusal(StatusCode::NOT_FOUND, format!("{method} is not known here")),
    }
}

fn refusal(status: StatusCode, words: String) -> Response<Full<Bytes>> {
    respond(status, &json!({ "Err": words }))
}

fn respond(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(value.to_string().into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/vnd.docker.plugins.v1.1+json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
