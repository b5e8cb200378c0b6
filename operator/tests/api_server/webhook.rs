//! Answers of the webhook at a real API server.

use std::time::Duration;

use kube::Api;
use kube::api::{DynamicObject, ObjectMeta};
use serde_json::{Value, json};

use crate::replica::{Replica, uninstall};
use crate::{cluster, dry_run, pods};

fn backup(namespace: &str, name: &str) -> api::SqliteBackup {
    let backup = json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": "orders"}},
            "databases": [{"path": "/data/orders.db"}],
            "targets": [{"name": "primary", "s3": {"bucket": "shop"},
                         "credentials": {"secretRef": {"name": "orders-s3"}}}],
        },
    });
    serde_json::from_value(backup).unwrap()
}

fn pod(volume: Value) -> DynamicObject {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "orders-", "labels": {"app": "orders"}},
        "spec": {
            "containers": [{"name": "app", "image": "app",
                            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [volume],
        },
    });
    serde_json::from_value(pod).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_accepts_what_the_webhook_answers() {
    let (client, namespace) = cluster("webhook").await;
    let orders = backup(&namespace, "orders");
    let replica = Replica::start(std::slice::from_ref(&orders)).await;
    let name = format!("test-{namespace}");
    replica.install(&client, &name, [&orders]).await;

    let pods = pods(&client, &namespace);
    let fitting = pod(json!({"name": "data", "emptyDir": {}}));
    let created = injected(&pods, &fitting).await;
    let inits = created.data["spec"]["initContainers"].as_array().unwrap();
    assert_eq!(inits[0]["name"], "sqlite-backup-restore");
    assert_eq!(
        (&inits[1]["name"], &inits[1]["restartPolicy"]),
        (&json!("sqlite-backup"), &json!("Always"))
    );
    for container in inits {
        let mounts = container["volumeMounts"].as_array().unwrap();
        let token = mounts
            .iter()
            .filter(|m| m["mountPath"] == api::names::SERVICE_ACCOUNT_DIR);
        let volumes: Vec<&Value> = token.map(|mount| &mount["name"]).collect();
        assert_eq!(
            volumes,
            [api::names::NO_TOKEN_VOLUME],
            "no token for our containers"
        );
    }
    assert_eq!(created.data["spec"]["terminationGracePeriodSeconds"], 60);

    // Create the injected Pod again, as other backup tools do when they restore a namespace.
    let mut again = created.clone();
    again.metadata = ObjectMeta {
        name: Some("again".to_owned()),
        labels: created.metadata.labels.clone(),
        annotations: created.metadata.annotations.clone(),
        ..ObjectMeta::default()
    };
    let twice = pods.create(&dry_run(), &again).await.unwrap();
    assert_eq!(
        twice.data["spec"]["initContainers"],
        created.data["spec"]["initContainers"]
    );

    let unfit = pod(json!({"name": "data", "nfs": {"server": "s", "path": "/"}}));
    let error = pods
        .create(&dry_run(), &unfit)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&format!("orders.{namespace}.sqlite-backup.dev")),
        "{error}"
    );
    assert!(
        error.contains(&format!("SqliteBackup {namespace}/orders: spec.databases")),
        "{error}"
    );
    uninstall(&client, &name).await;
}

/// Creates until the new webhook configuration has reached the API server's admission chain, which
/// takes a few milliseconds.
async fn injected(pods: &Api<DynamicObject>, pod: &DynamicObject) -> DynamicObject {
    for _ in 0..200 {
        let created = pods.create(&dry_run(), pod).await.unwrap();
        if created.data["spec"].get("initContainers").is_some() {
            return created;
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // bounded: limited tries
    }
    panic!("the webhook was never called");
}
