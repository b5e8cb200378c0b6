//! Certificates and webhook against a real API server.
//!
//! `API_SERVER_KUBECONFIG` names a kubeconfig with all rights on a throw-away API server that can
//! reach this machine's 127.0.0.1; no kubelet is needed. `cargo xtask test` starts one.
//! They use namespaces and webhook configurations of their own.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Secret, ServiceAccount};
use kube::api::{DeleteParams, DynamicObject, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use operator::certs::manage::{CaBundles, Inputs, Manager, Settings};
use operator::certs::rotation::{PROPAGATION, SETTLE};
use operator::certs::{Certs, mint, secret};
use operator::webhook::metrics::Metrics;
use operator::webhook::server::{Limits, Webhook, serve};
use operator::{inject, webhook};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A client, and a namespace of the test's own.
async fn cluster(test: &str) -> (Client, String) {
    let path = std::env::var("API_SERVER_KUBECONFIG")
        .expect("API_SERVER_KUBECONFIG is set: run `cargo xtask test`");
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    config.proxy_url = None;
    let client = Client::try_from(config).unwrap();
    let name = format!("{test}-{}", Timestamp::now().as_millisecond());
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        ..ObjectMeta::default()
    };
    let namespace = Namespace {
        metadata,
        ..Namespace::default()
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    (client, name)
}

/// Hours that the managers' clock is ahead.
static AHEAD: AtomicU64 = AtomicU64::new(0);

fn clock() -> Timestamp {
    Timestamp::now() + Duration::from_secs(AHEAD.load(Ordering::SeqCst))
}

/// One replica of the operator, as far as certificates go.
struct Replica {
    certs: Certs,
    leader: watch::Sender<bool>,
    published: watch::Sender<CaBundles>,
    stop: watch::Sender<bool>,
}

impl Replica {
    fn start(api: Api<Secret>, leads: bool) -> Self {
        let (leader, leader_rx) = watch::channel(leads);
        let (published, published_rx) = watch::channel(None);
        let (stop, stop_rx) = watch::channel(false);
        let settings = Settings {
            secret: "tls".to_owned(),
            names: vec!["hook.ns.svc".to_owned()],
            clock,
        };
        let inputs = Inputs {
            leader: leader_rx,
            published: published_rx,
        };
        let (manager, certs) = Manager::new(api, settings, inputs);
        tokio::spawn(manager.run(stop_rx));
        Replica {
            certs,
            leader,
            published,
            stop,
        }
    }

    /// The webhook configuration now carries what this replica publishes.
    fn publish(&self) {
        let bundle = self.bundle().into_bytes();
        self.published.send_replace(Some(BTreeSet::from([bundle])));
    }

    /// Makes it look at the Secret at once rather than at the next poll.
    fn look(&self) {
        self.leader.send_modify(|_| {});
    }

    fn bundle(&self) -> String {
        self.certs
            .bundle
            .borrow()
            .clone()
            .map(|bundle| bundle.ca_pem)
            .unwrap_or_default()
    }

    /// Waits until so many authorities are published.
    async fn authorities(&self, count: usize) {
        let mut bundle = self.certs.bundle.clone();
        self.look();
        let published = bundle.wait_for(|bundle| {
            let pem = bundle
                .as_ref()
                .map(|b| b.ca_pem.as_str())
                .unwrap_or_default();
            pem.matches("BEGIN CERTIFICATE").count() == count
        });
        let waited = tokio::time::timeout(Duration::from_secs(60), published).await;
        waited
            .unwrap_or_else(|_| panic!("never {count} authorities"))
            .unwrap();
    }

    /// The served certificate, once there is one.
    async fn served(&self) -> Vec<u8> {
        let mut serving = self.certs.serving.clone();
        let serving = serving.wait_for(Option::is_some).await.unwrap();
        serving.as_ref().unwrap().key.cert[0].to_vec()
    }

    /// Waits until this certificate is served.
    async fn serves(&self, wanted: &[u8]) {
        let mut serving = self.certs.serving.clone();
        self.look();
        let served =
            serving.wait_for(|s| s.as_ref().is_some_and(|s| s.key.cert[0].as_ref() == wanted));
        let waited = tokio::time::timeout(Duration::from_secs(60), served).await;
        waited.expect("serves it").unwrap();
    }
}

fn advance(by: Duration) {
    AHEAD.fetch_add(by.as_secs(), Ordering::SeqCst);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_rotate_through_one_secret() {
    let (client, namespace) = cluster("certs").await;
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let metadata = ObjectMeta {
        name: Some("tls".to_owned()),
        ..ObjectMeta::default()
    };
    let empty = Secret {
        metadata,
        ..Secret::default()
    };
    api.create(&PostParams::default(), &empty).await.unwrap();

    let (leader, follower) = (
        Replica::start(api.clone(), true),
        Replica::start(api.clone(), false),
    );
    leader.authorities(1).await;
    follower.authorities(1).await;
    follower.serves(&leader.served().await).await;

    // Phase 1: both authorities are published, and the certificate stays.
    advance(mint::AUTHORITY_LIFE * 2 / 3);
    leader.authorities(2).await;
    let leaf_of_the_old = leader.served().await;
    advance(PROPAGATION * 2);
    leader.look();
    assert_eq!(
        leader.served().await,
        leaf_of_the_old,
        "nobody has seen the new authority yet"
    );

    // Phase 2: seen everywhere, so a certificate of the new one is served.
    leader.publish();
    let mut switched = false;
    for _ in 0..100 {
        // The time counts from when the manager sees the bundle, which may be after this step.
        advance(PROPAGATION);
        leader.look();
        let mut serving = leader.certs.serving.clone();
        let other = serving.wait_for(|s| {
            s.as_ref()
                .is_some_and(|s| *s.key.cert[0] != *leaf_of_the_old)
        });
        switched = tokio::time::timeout(Duration::from_millis(200), other)
            .await
            .is_ok();
        if switched {
            break;
        }
    }
    assert!(switched, "a certificate of the new authority is served");
    follower.authorities(2).await;

    // The end: the old authority goes once every replica has had time.
    advance(SETTLE);
    leader.publish();
    leader.authorities(1).await;
    follower.authorities(1).await;
    let leaf_of_the_new = leader.served().await;
    assert_ne!(leaf_of_the_new, leaf_of_the_old);
    follower.serves(&leaf_of_the_new).await;

    // An emptied Secret means new keys, introduced in the same two phases.
    let before = leader.bundle();
    let mut emptied = api.get("tls").await.unwrap();
    emptied.data = None;
    api.replace("tls", &PostParams::default(), &emptied)
        .await
        .unwrap();
    leader.authorities(2).await;
    assert!(
        leader.bundle().starts_with(&before),
        "the current one stays published"
    );
    let held = api.get("tls").await.unwrap().data.unwrap();
    assert!(secret::decode(&held).unwrap().unwrap().next.is_some());
    leader.stop.send_replace(true);
    follower.stop.send_replace(true);
}

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
