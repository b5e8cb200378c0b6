//! Health and metrics, over plain HTTP on a port of its own.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use crate::certs::Certs;
use crate::observe::Observer;

/// Sources of the answers.
#[derive(Clone, Debug)]
pub struct State {
    /// Source of readiness: every list is complete.
    pub observer: Arc<Observer>,
    /// Source of readiness: a certificate is served.
    pub certs: Certs,
    /// Metrics of `/metrics`.
    pub registry: Arc<Registry>,
}

/// The routes `/healthz`, `/readyz` and `/metrics`.
pub fn router(state: State) -> Router {
    let ready = state.clone();
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(move || async move { readiness(&ready) }))
        .route(
            "/metrics",
            get(move || async move { metrics(&state.registry) }),
        )
}

fn readiness(state: &State) -> (StatusCode, &'static str) {
    if !state.certs.loaded() {
        (StatusCode::SERVICE_UNAVAILABLE, "no certificate yet")
    } else if !state.observer.is_ready() {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "lists are not complete yet",
        )
    } else {
        (StatusCode::OK, "ok")
    }
}

fn metrics(registry: &Registry) -> impl IntoResponse + use<> {
    let mut text = String::new();
    encode(&mut text, registry).expect("writing to memory does not fail");
    (
        [(
            CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
}
