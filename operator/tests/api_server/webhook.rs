//! What the webhook answers, and what the API server makes of it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use operator::certs::mint;
use operator::webhook::metrics::Metrics;
use operator::webhook::server::{Limits, Webhook, serve};
use operator::{inject, webhook};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cluster;

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

fn configuration(name: &str, namespace: &str, port: u16, ca_pem: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": format!("orders.{namespace}.sqlite-backup.dev"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "url": format!("https://127.0.0.1:{port}/mutate"),
                "caBundle": ByteString(ca_pem.as_bytes().to_vec()),
            },
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "reinvocationPolicy": "IfNeeded",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "objectSelector": {"matchLabels": {"app": "orders"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                       "resources": ["pods"]}],
        }],
    })
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
    // The token of this account is what in-tree admission would mount into our containers.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let metadata = ObjectMeta {
        name: Some("default".to_owned()),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata,
        ..ServiceAccount::default()
    };
    accounts.create(&PostParams::default(), &account).await.ok();

    let now = Timestamp::now();
    let authority = mint::Authority::mint(now).unwrap();
    let leaf = authority.issue(&["127.0.0.1".to_owned()], now).unwrap();
    let serving = operator::certs::Serving {
        key: leaf.certified_key().unwrap(),
        not_after: leaf.validity.not_after,
    };
    let (_serving, serving) = watch::channel(Some(serving));
    let (_stop, stop) = watch::channel(false);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let orders = Arc::new(backup(&namespace, "orders"));
    let backups: webhook::Backups = Arc::new(move |_| vec![orders.clone()]);
    let settings = Arc::new(inject::Settings::new("sqlite-backup:1"));
    let webhook = Webhook {
        backups,
        settings,
        metrics: Metrics::default(),
    };
    tokio::spawn(serve(listener, serving, webhook, Limits::default(), stop));

    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let name = format!("test-{namespace}");
    let body = configuration(&name, &namespace, port, &authority.cert_pem);
    let apply = PatchParams::apply("test");
    configurations
        .patch(&name, &apply, &Patch::Apply(&body))
        .await
        .unwrap();

    let kind = kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let pods: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind);
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

    // What came out goes in again, as after a backup of the namespace by other tools.
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
    configurations
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
}

fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

/// Creates until the new webhook configuration has reached the API server's admission chain, which
/// takes a few milliseconds.
async fn injected(pods: &Api<DynamicObject>, pod: &DynamicObject) -> DynamicObject {
    for _ in 0..200 {
        let created = pods.create(&dry_run(), pod).await.unwrap();
        if created.data["spec"].get("initContainers").is_some() {
            return created;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the webhook was never called");
}
