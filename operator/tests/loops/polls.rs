//! Polls of sidecars, some of which never answer.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use operator::observe::Observer;
use operator::poll;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api_server::{ApiServer, within};
use crate::{backup, observer};

/// Number of sidecars that accept a connection and never answer: more than the concurrent polls.
const SILENT: u8 = 200;

fn pod(name: &str, ip: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": name, "uid": name, "resourceVersion": "1",
            "labels": {"app": "orders"},
            "annotations": {"sqlite-backup.dev/backup": "orders"},
        },
        "spec": {"initContainers": [{"name": "sqlite-backup", "restartPolicy": "Always"}]},
        "status": {
            "phase": "Running", "podIP": ip.to_string(),
            "initContainerStatuses": [{"name": "sqlite-backup", "state": {"running": {}}}],
        },
    })
}

/// Serves `GET /status` on a given address, and returns the port.
async fn healthy(ip: Ipv4Addr) -> u16 {
    let status = json!({
        "version": 1, "program": "1", "backup": "shop/orders", "configHash": "",
        "started": "2026-11-20T08:00:00Z", "now": "2026-11-20T12:00:00Z", "databases": [],
    });
    let router = Router::new().route("/status", get(|| async { axum::Json(status) }));
    let listener = TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

async fn wait_for(observer: &Observer, happened: impl Fn() -> bool) {
    let mut changes = observer.changes();
    within(async {
        while !happened() {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_is_noted_while_other_sidecars_do_not_answer() {
    let server = ApiServer::start().await;
    let healthy_ip = Ipv4Addr::new(127, 9, 3, 1);
    let port = healthy(healthy_ip).await;
    let silent: Vec<Ipv4Addr> = (1..=SILENT).map(|n| Ipv4Addr::new(127, 9, 4, n)).collect();
    let mut listeners = Vec::new();
    for ip in &silent {
        let address = SocketAddr::from((*ip, port));
        listeners.push(TcpListener::bind(address).await.unwrap());
    }
    let mut pods = vec![pod("a-healthy", healthy_ip)];
    pods.extend(silent.iter().map(|ip| pod(&format!("silent-{ip}"), *ip)));
    server.list("/api/v1/namespaces/shop/pods", pods);
    server.list(
        "/apis/sqlite-backup.dev/v1alpha1/sqlitebackups",
        vec![backup()],
    );
    let observer = observer(&server).await;
    observer.watch_pods();
    wait_for(&observer, || observer.pods().len() > usize::from(SILENT)).await;

    let (_lead, leader) = watch::channel(true);
    let (_stop, stopped) = watch::channel(false);
    tokio::spawn(poll::run(Arc::clone(&observer), port, leader, stopped));
    wait_for(&observer, || !observer.reports().is_empty()).await;
    let reports = observer.reports();
    let known: Vec<&str> = reports.keys().map(String::as_str).collect();
    assert_eq!(known, ["a-healthy"], "the others are still under way");
    assert!(reports["a-healthy"].answer.is_ok());
}
