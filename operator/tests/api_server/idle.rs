//! Repeated writes of the operator at a real API server.

use std::time::Duration;

use api::SqliteBackup;
use api::names::FIELD_MANAGER;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use operator::plan::config::config_map;
use serde_json::json;

use crate::cluster;

#[tokio::test]
async fn what_is_applied_again_as_it_was_is_not_written() {
    let (client, namespace) = cluster("idle").await;
    let backup: SqliteBackup = serde_json::from_value(json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": "orders", "namespace": namespace, "uid": "some"},
        "spec": {
            "selector": {"matchLabels": {"app": "orders"}},
            "databases": [{"path": "/data/orders.db"}],
            "targets": [{"name": "primary", "s3": {"bucket": "shop"}}],
        },
    }))
    .unwrap();
    let map = config_map(&backup);
    let name = map.metadata.name.clone().unwrap();
    let api = Api::<ConfigMap>::namespaced(client, &namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let apply = async || {
        api.patch(&name, &params, &Patch::Apply(&map))
            .await
            .unwrap()
    };
    let first = apply().await;
    // `managedFields` has times in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await; // bounded: a second of that time
    assert_eq!(apply().await.metadata, first.metadata);
}
