//! The server over real sockets and real TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::metrics::Metrics;
use super::server::{Limits, Webhook, serve};
use crate::certs::Serving;
use crate::certs::mint::{Authority, Leaf};
use crate::inject::Settings;

const NAME: &str = "hook.ns.svc";

fn backup(name: &str) -> Arc<api::SqliteBackup> {
    let backup = json!({
        "apiVersion": "sqlite-backup.dev/v1alpha1",
        "kind": "SqliteBackup",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "orders"}},
            "databases": [{"path": "/data/orders.db"}],
            "targets": [{"name": "primary", "s3": {"bucket": "shop"},
                         "credentials": {"secretRef": {"name": "orders-s3"}}}],
        },
    });
    Arc::new(serde_json::from_value(backup).unwrap())
}

fn webhook(names: &'static [&'static str]) -> Webhook {
    let backups = move |namespace: &str| match namespace {
        "shop" => names.iter().map(|name| backup(name)).collect(),
        _ => Vec::new(),
    };
    Webhook {
        backups: Arc::new(backups),
        settings: Arc::new(Settings::new("sqlite-backup:1")),
        metrics: Metrics::default(),
    }
}

fn review(namespace: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": namespace,
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": {
                "metadata": {"name": "orders-0", "labels": {"app": "orders"}},
                "spec": {
                    "containers": [{"name": "app", "image": "app",
                                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                    "volumes": [{"name": "data", "emptyDir": {}}],
                },
            },
        },
    })
}

struct Running {
    address: SocketAddr,
    authority: Authority,
    serving: watch::Sender<Option<Serving>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn serving(leaf: &Leaf) -> Option<Serving> {
    Some(Serving {
        key: leaf.certified_key().unwrap(),
        not_after: leaf.validity.not_after,
    })
}

async fn start(webhook: Webhook, limits: Limits) -> Running {
    let now = Timestamp::now();
    let authority = Authority::mint(now).unwrap();
    let leaf = authority.issue(&[NAME.to_owned()], now).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (serving, serving_rx) = watch::channel(serving(&leaf));
    let (stop, stop_rx) = watch::channel(false);
    let task = tokio::spawn(serve(listener, serving_rx, webhook, limits, stop_rx));
    Running {
        address,
        authority,
        serving,
        stop,
        task,
    }
}

impl Running {
    async fn connect(&self, authority: &Authority) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(authority.cert_pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
    }
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Reads one response: status and body.
async fn response(stream: &mut TlsStream<TcpStream>) -> (u16, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        let head_end = bytes
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .map(|at| at + 4);
        if let Some(head_end) = head_end {
            let head = String::from_utf8(bytes[..head_end].to_vec())
                .unwrap()
                .to_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.unwrap().parse().unwrap();
            if bytes.len() >= head_end + length {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return (status, bytes[head_end..head_end + length].to_vec());
            }
        }
        let read = stream.read_buf(&mut bytes).await.unwrap();
        assert!(
            read > 0,
            "closed after {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

async fn ask(stream: &mut TlsStream<TcpStream>, body: &[u8]) -> (u16, Vec<u8>) {
    stream
        .write_all(&request("POST", "/mutate", body))
        .await
        .unwrap();
    response(stream).await
}

async fn ask_json(stream: &mut TlsStream<TcpStream>, body: &Value) -> Value {
    let (status, body) = ask(stream, body.to_string().as_bytes()).await;
    assert_eq!(status, 200);
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn a_selected_pod_gets_a_patch_in_base64_and_the_request_uid_back() {
    let server = start(webhook(&["orders"]), Limits::default()).await;
    let mut stream = server.connect(&server.authority).await.unwrap();
    let answer = ask_json(&mut stream, &review("shop")).await;
    let response = &answer["response"];
    assert_eq!(
        (&response["uid"], &response["allowed"]),
        (&json!("u-1"), &json!(true))
    );
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(response["auditAnnotations"]["injected-by"], "shop/orders");
    let patch: k8s_openapi::ByteString = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch.0).unwrap();
    let mut pod = review("shop")["request"]["object"].clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"]["initContainers"][1]["name"], "sqlite-backup");
    // The same connection serves the next review.
    let other = ask_json(&mut stream, &review("elsewhere")).await;
    assert_eq!(other["response"], json!({"uid": "u-1", "allowed": true}));
}

#[tokio::test]
async fn a_pod_of_two_backups_is_refused_and_both_are_named() {
    let server = start(webhook(&["orders", "invoices"]), Limits::default()).await;
    let mut stream = server.connect(&server.authority).await.unwrap();
    let answer = ask_json(&mut stream, &review("shop")).await;
    assert_eq!(answer["response"]["allowed"], json!(false));
    let status = &answer["response"]["status"];
    assert_eq!(status["code"], 403);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("invoices, orders")
    );
}

#[tokio::test]
async fn malformed_questions_get_400_and_say_why() {
    let server = start(webhook(&[]), Limits::default()).await;
    let mut stream = server.connect(&server.authority).await.unwrap();
    let mut update = review("shop");
    update["request"]["operation"] = json!("UPDATE");
    let mut old = review("shop");
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut no_object = review("shop");
    no_object["request"]
        .as_object_mut()
        .unwrap()
        .remove("object");
    for (body, expected) in [
        ("{".to_owned(), "the body is not JSON"),
        (
            "[]".to_owned(),
            "expected kind AdmissionReview of admission.k8s.io/v1",
        ),
        (old.to_string(), "admission.k8s.io/v1beta1"),
        (no_object.to_string(), "request.object is missing"),
        (
            update.to_string(),
            "only CREATE of pods is reviewed, not UPDATE of pods",
        ),
    ] {
        let (status, text) = ask(&mut stream, body.as_bytes()).await;
        let text = String::from_utf8(text).unwrap();
        assert_eq!(status, 400, "{text}");
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn other_paths_methods_and_huge_bodies_are_refused() {
    let limits = Limits {
        body_bytes: 1000,
        ..Limits::default()
    };
    let server = start(webhook(&[]), limits).await;
    for (method, path, body, expected) in [
        ("POST", "/", vec![], 404),
        ("GET", "/mutate", vec![], 405),
        ("POST", "/mutate", vec![b' '; 2000], 413),
    ] {
        let mut stream = server.connect(&server.authority).await.unwrap();
        stream
            .write_all(&request(method, path, &body))
            .await
            .unwrap();
        assert_eq!(response(&mut stream).await.0, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up() {
    let limits = Limits {
        request: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = start(webhook(&[]), limits).await;
    let mut stream = server.connect(&server.authority).await.unwrap();
    stream
        .write_all(b"POST /mutate HTTP/1.1\r\nhost: h\r\ncontent-length: 10\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(response(&mut stream).await.0, 408);
}

#[tokio::test]
async fn a_new_certificate_is_served_without_dropping_connections() {
    let server = start(webhook(&["orders"]), Limits::default()).await;
    let mut before = server.connect(&server.authority).await.unwrap();
    ask_json(&mut before, &review("shop")).await;

    let next = Authority::mint(Timestamp::now()).unwrap();
    let leaf = next.issue(&[NAME.to_owned()], Timestamp::now()).unwrap();
    server.serving.send(serving(&leaf)).unwrap();
    assert!(
        server.connect(&server.authority).await.is_err(),
        "the old authority is gone"
    );
    let mut after = server.connect(&next).await.unwrap();
    ask_json(&mut after, &review("shop")).await;
    ask_json(&mut before, &review("shop")).await;
}

#[tokio::test]
async fn shutdown_answers_what_was_asked_and_takes_no_more() {
    let server = start(webhook(&["orders"]), Limits::default()).await;
    let mut idle = server.connect(&server.authority).await.unwrap();
    let mut busy = server.connect(&server.authority).await.unwrap();
    let body = review("shop").to_string();
    let length = body.len();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\nexpect: 100-continue\r\n\r\n"
    );
    busy.write_all(head.as_bytes()).await.unwrap();
    // The server asks for the body, so the request is open.
    let mut go_on = [0; 25];
    busy.read_exact(&mut go_on).await.unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    ask_json(&mut idle, &review("shop")).await;
    server.stop.send(true).unwrap();
    let mut end = Vec::new();
    assert_eq!(
        idle.read_to_end(&mut end).await.unwrap_or_default(),
        0,
        "idle ones are closed"
    );
    busy.write_all(body.as_bytes()).await.unwrap();
    assert_eq!(response(&mut busy).await.0, 200);
    server.task.await.unwrap();
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn metrics_count_reviews_by_outcome() {
    let webhook = webhook(&["orders"]);
    let metrics = webhook.metrics.clone();
    let server = start(webhook, Limits::default()).await;
    let mut stream = server.connect(&server.authority).await.unwrap();
    ask_json(&mut stream, &review("shop")).await;
    ask_json(&mut stream, &review("elsewhere")).await;
    ask(&mut stream, b"{").await;
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for outcome in ["Patched", "NotSelected", "Malformed"] {
        let line =
            format!("sqlite_backup_webhook_reviews_total{{outcome=\"{outcome}\",reason=\"\"}} 1");
        assert!(text.contains(&line), "{text}");
    }
}

/// Prints latencies. Asserts none of them, because a machine may be busy. Run it with `cargo test
/// --release -p operator --lib latency -- --nocapture`.
#[tokio::test]
async fn latency_of_the_handler_and_of_a_whole_request() {
    let count = 2000;
    let mut pod_review = review("shop");
    // About as large as a busy Pod of a mesh: 60 variables, 20 volumes.
    let spec = &mut pod_review["request"]["object"]["spec"];
    spec["containers"][0]["env"] = (0..60)
        .map(|i| json!({"name": format!("V{i}"), "value": "x".repeat(60)}))
        .collect();
    for i in 0..20 {
        spec["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": format!("v{i}"), "emptyDir": {}}));
    }
    let body = pod_review.to_string();
    let webhook = webhook(&["orders"]);
    let sample = |mut samples: Vec<Duration>, what: &str| {
        samples.sort();
        let at = |per_mille: usize| samples[samples.len() * per_mille / 1000];
        println!(
            "{what}: p50 {:?} p99 {:?} p99.9 {:?}",
            at(500),
            at(990),
            at(999)
        );
    };
    let handler = (0..count).map(|_| {
        let start = Instant::now();
        super::review::answer(body.as_bytes(), &*webhook.backups, &webhook.settings).unwrap();
        start.elapsed()
    });
    sample(handler.collect(), "handler");

    let server = start(webhook.clone(), Limits::default()).await;
    let mut stream = server.connect(&server.authority).await.unwrap();
    let mut samples = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        ask(&mut stream, body.as_bytes()).await;
        samples.push(start.elapsed());
    }
    sample(samples, "request over TLS");
}
