//! `/status`, `/metrics` and `/healthz`.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::serve::Listener;
use jiff::Timestamp;
use protocol::exit::ExitCode;
use protocol::status::SidecarStatus;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use crate::commands::Shown;
use crate::failure::Failure;
use crate::metrics;

/// Pause between attempts to listen on an address that is in use.
const BIND_PAUSE: Duration = Duration::from_secs(5);

/// Limit on concurrent connections; further ones wait to be accepted. Each takes a descriptor, and
/// capture needs some.
const CONNECTIONS: usize = 32;
/// Lifetime of a connection. A monitoring system opens a new one each time.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Served {
    shown: Shown,
    started: Timestamp,
}

/// Listens, and serves until the process ends. No answer waits for a store.
///
/// # Errors
///
/// The address cannot be used. A worker continues without it and tries again: backups matter more.
pub async fn start(
    addr: &str,
    shown: Shown,
    started: Timestamp,
    is_worker: bool,
) -> Result<(), Failure> {
    let served = Served { shown, started };
    match TcpListener::bind(addr).await {
        Ok(listener) => {
            tokio::spawn(serve(listener, served));
        }
        Err(error) if is_worker => {
            tracing::error!("listen on {addr}: {error}: trying again");
            tokio::spawn(keep_binding(addr.to_owned(), served));
        }
        Err(error) => {
            let message = format!("listen on {addr}: {error}; give another address with --addr");
            return Err(Failure::message(ExitCode::Usage, message));
        }
    }
    Ok(())
}

async fn keep_binding(addr: String, served: Served) {
    loop {
        tokio::time::sleep(BIND_PAUSE).await;
        if let Ok(listener) = TcpListener::bind(&addr).await {
            return serve(listener, served).await;
        }
    }
}

async fn serve(listener: TcpListener, served: Served) {
    if let Ok(addr) = listener.local_addr() {
        tracing::info!(%addr, "listening");
    }
    let router = Router::new()
        .route("/status", get(status))
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .with_state(served);
    let router = router.layer(axum::middleware::map_response(close));
    let listener = Limited {
        listener,
        places: Arc::new(Semaphore::new(CONNECTIONS)),
    };
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("the status endpoint ended: {error}");
    }
}

/// Closes the connection after each answer: otherwise its end could cut off a later request.
async fn close(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A listener that limits the number and lifetime of connections.
struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

/// A connection that holds one of the permits.
struct Accepted {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Listener for Limited {
    type Io = Accepted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Accepted, SocketAddr) {
        let places = Arc::clone(&self.places);
        let place = places.acquire_owned().await.expect("nothing closes it");
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        let accepted = Accepted {
            stream,
            end: Box::pin(sleep(CONNECTION_TIME)),
            _place: place,
        };
        (accepted, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Accepted {
    /// Ready with an error when the lifetime has passed.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let end = self.end.as_mut().poll(context);
        end.map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(over) = self.poll_end(context) {
            return Poll::Ready(Err(over));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(over) = self.poll_end(context) {
            return Poll::Ready(Err(over));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn status(State(served): State<Served>) -> Json<SidecarStatus> {
    Json(served.shown.status(served.started))
}

async fn show_metrics(State(served): State<Served>) -> Response {
    let text = metrics::render(&served.shown.databases());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_that_say_nothing_do_not_keep_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = Served {
            shown: Shown::default(),
            started: Timestamp::UNIX_EPOCH,
        };
        let server = tokio::spawn(serve(listener, served));
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS * 2 {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        let mut asking = TcpStream::connect(addr).await.unwrap();
        let request = b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        server.abort();
    }
}
