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
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    clients::{Client, Clients},
    listen::Socket,
    page::{Form, Page},
};

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
    let clients = Clients::default();
    loop {
        let accepted = tokio::select! {
            // Told, or gone.
            _ = &mut stop => return Ok(()),
            accepted = accept(&listener) => accepted,
        };
        match accepted {
            Ok(stream) => {
                let client = clients.client();
                let number = client.number();
                let page = Arc::clone(&page);
                let task = tokio::spawn(async move {
                    // One that takes longer is let go.
                    let _ = timeout(PATIENCE, serve(stream, page, client)).await;
                });
                clients.comes(number, task.abort_handle());
            }
            Err(error) => {
                tracing::debug!("cannot take a connection for metrics: {error}");
                sleep(RETRY).await;
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &Listener) -> std::io::Result<Box<dyn Stream>> {
    Ok(match listener {
        Listener::Tcp(listener) => Box::new(listener.accept().await?.0),
        Listener::Unix(listener) => Box::new(listener.accept().await?.0),
    })
}

/// Answers one request.
async fn serve(stream: Box<dyn Stream>, page: Shared, client: Client) {
    let service = service_fn(|request| {
        client.has_asked();
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
