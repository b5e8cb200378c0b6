//! Certificates and webhook against a real API server.
//!
//! `API_SERVER_KUBECONFIG` names a kubeconfig with all rights on a throw-away API server that can
//! reach this machine's 127.0.0.1; no kubelet is needed. `HELM_BIN` is the command line of helm.
//! `cargo xtask test` starts the one and sets both.
//! They use namespaces and webhook configurations of their own.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

mod certificates;
mod webhook;

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
