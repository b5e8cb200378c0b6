//! Certificates and webhook against a real API server.
//!
//! `API_SERVER_KUBECONFIG` names a kubeconfig with all rights on a throw-away API server that can
//! reach this machine's 127.0.0.1; no kubelet is needed. `HELM_BIN` is the command line of helm.
//! `cargo xtask test` starts the server and sets both variables. The tests use their own namespaces
//! and webhook configurations.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{ApiResource, DynamicObject, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

mod certificates;
mod crowded;
#[path = "../helm/mod.rs"]
mod helm;
mod idle;
mod policy;
mod replica;
#[path = "../selectors/mod.rs"]
mod selectors;
mod webhook;

/// Returns a client, and a namespace for this test alone.
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
    // Pods need it. Admission in the API server would mount its token into our containers.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    let metadata = ObjectMeta {
        name: Some("default".to_owned()),
        ..ObjectMeta::default()
    };
    let account = ServiceAccount {
        metadata,
        ..ServiceAccount::default()
    };
    accounts
        .create(&PostParams::default(), &account)
        .await
        .unwrap();
    (client, name)
}

/// The Pods of a namespace as generic JSON.
fn pods(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = ApiResource::erase::<Pod>(&());
    Api::namespaced_with(client.clone(), namespace, &kind)
}

/// Runs a request completely, but stores nothing.
fn dry_run() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}
