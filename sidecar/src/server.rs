//! `/status`, `/metrics` and `/healthz`.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use jiff::Timestamp;
use protocol::exit::ExitCode;
use protocol::status::SidecarStatus;
use tokio::net::TcpListener;

use crate::commands::Shown;
use crate::failure::Failure;
use crate::metrics;

/// Pause between attempts to listen where somebody else does.
const BIND_PAUSE: Duration = Duration::from_secs(5);

#[derive(Clone)]
struct Served {
    shown: Shown,
    started: Timestamp,
}

/// Listens, and serves until the process ends. None of the answers waits for a store.
///
/// # Errors
///
/// The address cannot be used. A worker goes on without, and tries again: backups matter more.
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
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!("the status endpoint ended: {error}");
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
