//! The operator's loops against a local HTTP server that implements the required part of the API.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

mod api_server;
mod events;
mod log;
mod polls;
mod webhook_keeper;

use std::sync::Arc;

use api_server::{ApiServer, within};
use operator::observe::Observer;
use serde_json::{Value, json};

/// Returns an observer that has received every list of this server.
async fn observer(server: &ApiServer) -> Arc<Observer> {
    let observer = Observer::new(server.client.clone());
    let mut changes = observer.changes();
    tokio::spawn(Arc::clone(&observer).run(server.client.clone()));
    within(async {
        while !observer.is_ready() {
            changes.changed().await.unwrap();
        }
    })
    .await;
    observer
}

/// The SqliteBackup `orders` of the namespace `shop`.
fn backup() -> Value {
    json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "b", "resourceVersion": "1"},
        "spec": {
            "selector": {"matchLabels": {"app": "orders"}},
            "databases": [{"path": "/data/orders.db"}],
            "targets": [{"name": "primary", "s3": {"bucket": "shop"}}],
        },
    })
}
