//! Injection as a whole, with one Pod and one SqliteBackup that each test changes.

use serde_json::{Value, json};

use super::*;

mod examples;
mod random;
mod refusals;

fn settings() -> Settings {
    Settings::new("registry.example/sqlite-backup:1.2.3")
}

fn backup(spec: Value) -> SqliteBackup {
    serde_json::from_value(json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": spec,
    }))
    .unwrap()
}

fn orders() -> SqliteBackup {
    backup(json!({
        "selector": {"matchLabels": {"app": "orders"}},
        "databases": [{"path": "/data/orders.db"}],
        "targets": [{
            "name": "primary",
            "s3": {"bucket": "shop", "prefix": "{namespace}/{backup}/{member}/{database}"},
            "credentials": {"secretRef": {"name": "orders-s3"}},
        }],
    }))
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "orders-0", "labels": {"app": "orders"}},
        "spec": {
            "containers": [{
                "name": "app",
                "image": "app",
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

fn apply(pod: &Value, patch: &Patch) -> Value {
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, patch).unwrap();
    patched
}

fn injected(pod: &Value, backup: &SqliteBackup) -> Value {
    match inject(pod, backup, &settings()).unwrap() {
        Outcome::Patch(patch) => apply(pod, &patch),
        other => panic!("expected a patch, got {other:?}"),
    }
}

fn refused(pod: &Value, backup: &SqliteBackup) -> String {
    inject(pod, backup, &settings()).unwrap_err().to_string()
}

fn own<'a>(pod: &'a Value, name: &str) -> &'a Value {
    pod::items(pod.pointer("/spec/initContainers"))
        .find(|c| pod::text(c, "name") == Some(name))
        .unwrap()
}

/// Changes a Pod and its SqliteBackup.
type Change = fn(&mut Value, &mut SqliteBackup);
