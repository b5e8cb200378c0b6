//! The HTTPS server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::post;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use logging::chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, info_span, warn};

use super::metrics::{Metrics, ReviewOutcome};
use super::{Backups, MUTATE_PATH, review, tls};
use crate::certs::Serving;
use crate::inject::Settings;

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Limit on open connections; further ones wait to be accepted. API servers keep a few open.
    pub connections: usize,
    /// Limit on a body, in bytes. A Pod has at most 1.5 MB in the API server; an UPDATE, which is
    /// not reviewed, would carry two.
    pub body_bytes: usize,
    /// Time limit of a TLS handshake.
    pub handshake: Duration,
    /// Time limit of the head of a request, and of the idle time of a connection.
    pub head: Duration,
    /// Time limit of a request. The entries make the API server wait 5 s.
    pub request: Duration,
    /// Time limit of open requests at shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 512,
            body_bytes: 3 * 1024 * 1024,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(120),
            request: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}

/// Inputs of the answers.
#[derive(Clone)]
pub struct Webhook {
    /// The SqliteBackups of a namespace.
    pub backups: Backups,
    /// Settings of the injected containers.
    pub settings: Arc<Settings>,
    /// Counters.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// The routes: `POST /mutate`.
    pub fn router(self, limits: &Limits) -> Router {
        Router::new()
            .route(MUTATE_PATH, post(mutate))
            .layer(DefaultBodyLimit::max(limits.body_bytes))
            .with_state(self)
    }
}

/// Serves until `shutdown` turns true or its sender is gone, then finishes open requests.
///
/// Handshakes fail before the first certificate is loaded. Until then, readiness keeps API servers
/// away.
pub async fn serve(
    listener: TcpListener,
    serving: watch::Receiver<Option<Serving>>,
    webhook: Webhook,
    limits: Limits,
    mut shutdown: watch::Receiver<bool>,
) {
    let acceptor = TlsAcceptor::from(tls::server_config(serving));
    let service = TowerToHyperService::new(webhook.router(&limits));
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut http = hyper::server::conn::http1::Builder::new();
    // Send head and body in one write: with two, the second waits for an acknowledgement.
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .writev(false);
    loop {
        let (stream, slot) = tokio::select! {
            accepted = accept(&listener, &slots) => match accepted {
                Some(accepted) => accepted,
                None => continue,
            },
            _ = shutdown.wait_for(|stop| *stop) => break,
        };
        let (acceptor, http, service) = (acceptor.clone(), http.clone(), service.clone());
        let (watcher, limits) = (graceful.watcher(), limits.clone());
        tokio::spawn(async move {
            let _slot = slot;
            let stream = match tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await
            {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return debug!(error = %chain(&error), "TLS handshake failed"),
                Err(_) => return debug!("TLS handshake took too long"),
            };
            let service = Timed {
                inner: service,
                limit: limits.request,
            };
            let connection = http.serve_connection(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection).await {
                debug!(error = %chain(&error), "webhook connection ended");
            }
        });
    }
    drop(listener);
    match tokio::time::timeout(limits.drain, graceful.shutdown()).await {
        Ok(()) => info!("webhook drained"),
        Err(_) => warn!("webhook requests were still open at the end of the drain time"),
    }
}

/// Accepts one connection when there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots
        .clone()
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    match listener.accept().await {
        Ok((stream, _)) => {
            if let Err(error) = stream.set_nodelay(true) {
                debug!(error = %chain(&error), "cannot set TCP_NODELAY");
            }
            Some((stream, slot))
        }
        Err(error) => {
            // Usually the process has no free descriptor: an immediate retry would spin.
            warn!(error = %chain(&error), "cannot accept a webhook connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// A service with a time limit on each request, including its body.
#[derive(Clone)]
struct Timed<S> {
    inner: S,
    limit: Duration,
}

impl<S, Request> hyper::service::Service<Request> for Timed<S>
where
    S: hyper::service::Service<Request, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn call(&self, request: Request) -> Self::Future {
        let (answer, limit) = (self.inner.call(request), self.limit);
        Box::pin(async move {
            match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => Ok(plain(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request took too long\n".to_owned(),
                )),
            }
        })
    }
}

async fn mutate(State(webhook): State<Webhook>, body: Bytes) -> Response<Body> {
    let start = Instant::now();
    let backups = &*webhook.backups;
    let (outcome, reason, response) = match review::answer(&body, backups, &webhook.settings) {
        Ok(answer) => {
            if let Some(refusal) = &answer.refusal {
                let (namespace, object) = (&*answer.pod.0, &*answer.pod.1);
                let _pod = info_span!("object", kind = "Pod", namespace, object).entered();
                info!(
                    backup = refusal.backup,
                    reason = answer.reason,
                    error = %chain(refusal),
                    "Pod refused"
                );
            }
            (answer.outcome, answer.reason, json(answer.body))
        }
        Err(error) => {
            warn!(error = %chain(&error), "malformed admission review");
            (
                ReviewOutcome::Malformed,
                "",
                plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
            )
        }
    };
    webhook.metrics.record(outcome, reason, start.elapsed());
    response
}

fn json(body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
