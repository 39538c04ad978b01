use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::{
    listen::Socket,
    page::{Form, Page},
};

/// Clients at a time; others wait until one of them is done.
const CLIENTS: usize = 16;
/// How long a client may take to ask.
const ASKING: Duration = Duration::from_secs(5);
/// How long it may take in all.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon connections are taken again after that failed.
const RETRY: Duration = Duration::from_millis(200);

type Shared = Arc<Mutex<Page>>;

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves until it is told to stop.
///
/// # Errors
/// When nothing can be waited for.
pub async fn run(socket: Socket, page: Page, mut stop: oneshot::Receiver<()>) -> Result<()> {
    let listener = match socket {
        Socket::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
        Socket::Unix(listener) => Listener::Unix(UnixListener::from_std(listener)?),
    };
    let page = Arc::new(Mutex::new(page));
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let place = Arc::clone(&clients).acquire_owned().await?;
        let page = Arc::clone(&page);
        let accepted = tokio::select! {
            // Told, or gone.
            _ = &mut stop => return Ok(()),
            accepted = accept(&listener, page) => accepted,
        };
        match accepted {
            Ok(client) => {
                tokio::spawn(async move {
                    let _ = timeout(PATIENCE, client).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!("cannot take a connection for metrics: {error}");
                sleep(RETRY).await;
            }
        }
    }
}

type Client = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn accept(listener: &Listener, page: Shared) -> std::io::Result<Client> {
    Ok(match listener {
        Listener::Tcp(listener) => Box::pin(serve(listener.accept().await?.0, page)),
        Listener::Unix(listener) => Box::pin(serve(listener.accept().await?.0, page)),
    })
}

/// Answers one request.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, page: Shared) {
    let service = service_fn(|request| {
        let response = answer(&request, &page);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKING)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a client of the metrics: {error}");
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread that has panicked leaves counts that are whole; text that is none is left out"
)]
fn answer<B>(request: &Request<B>, page: &Shared) -> Response<Full<Bytes>> {
    if request.uri().path() != "/metrics" {
        return words(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    // The server leaves the body out for HEAD.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = words(StatusCode::METHOD_NOT_ALLOWED, "ask with GET\n");
        let methods = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, methods);
        return response;
    }
    let form = form(request);
    let text = page
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .text(form);
    match text {
        Ok(text) => respond(StatusCode::OK, form.content_type(), text),
        Err(error) => {
            tracing::warn!("metrics cannot be read: {error:#}");
            words(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n"))
        }
    }
}

/// The form to answer in. What a client would rather have is not weighed: those that
/// know OpenMetrics ask for it first.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread that has panicked leaves counts that are whole; text that is none is left out"
)]
fn form<B>(request: &Request<B>) -> Form {
    let accepts = request.headers().get_all(ACCEPT);
    let open = accepts
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"));
    match open {
        true => Form::OpenMetrics,
        false => Form::Plain,
    }
}

impl Form {
    const fn content_type(self) -> &'static str {
        match self {
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Form::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

fn words(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text.into())
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
