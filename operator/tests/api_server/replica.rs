//! The webhook of one replica, and entries that lead to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::SqliteBackup;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, Client};
use operator::certs::{Serving, mint};
use operator::inject;
use operator::plan::webhook::{Endpoint, configuration, entries};
use operator::webhook::metrics::Metrics;
use operator::webhook::server::{Limits, Webhook, serve};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A replica on 127.0.0.1. It ends when the value is dropped.
pub(crate) struct Replica {
    ca_pem: String,
    port: u16,
    calls: Arc<AtomicUsize>,
    _serving: watch::Sender<Option<Serving>>,
    _stop: watch::Sender<bool>,
}

impl Replica {
    /// Creates a replica that serves the webhook with these SqliteBackups.
    pub(crate) async fn start(backups: &[SqliteBackup]) -> Replica {
        let now = Timestamp::now();
        let authority = mint::Authority::mint(now).unwrap();
        let leaf = authority.issue(&["127.0.0.1".to_owned()], now).unwrap();
        let serving = Serving {
            key: leaf.certified_key().unwrap(),
            not_after: leaf.validity.not_after,
        };
        let (serving, certificate) = watch::channel(Some(serving));
        let (stop, stopped) = watch::channel(false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::new(AtomicUsize::new(0));
        let (backups, counter) = (backups.iter().cloned().map(Arc::new), calls.clone());
        let backups: Vec<_> = backups.collect();
        let webhook = Webhook {
            backups: Arc::new(move |_| {
                counter.fetch_add(1, Ordering::SeqCst);
                backups.clone()
            }),
            settings: Arc::new(inject::Settings::new("sqlite-backup:1")),
            metrics: Metrics::default(),
        };
        let limits = Limits::default();
        tokio::spawn(serve(listener, certificate, webhook, limits, stopped));
        Replica {
            ca_pem: authority.cert_pem,
            port,
            calls,
            _serving: serving,
            _stop: stop,
        }
    }

    /// Creates a replica that closes every connection.
    pub(crate) async fn down() -> Replica {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let calls = Arc::new(AtomicUsize::new(0));
        let counter = calls.clone();
        let (stop, mut stopped) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        drop(accepted);
                    }
                    _ = stopped.changed() => return,
                }
            }
        });
        Replica {
            ca_pem: mint::Authority::mint(Timestamp::now()).unwrap().cert_pem,
            port,
            calls,
            _serving: watch::channel(None).0,
            _stop: stop,
        }
    }

    /// Returns the number of calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Writes the entries of these SqliteBackups, as the operator would, into a configuration for
    /// this test alone.
    pub(crate) async fn install<'a>(
        &self,
        client: &Client,
        name: &str,
        backups: impl IntoIterator<Item = &'a SqliteBackup>,
    ) -> MutatingWebhookConfiguration {
        let endpoint = Endpoint::Url(format!("https://127.0.0.1:{}", self.port));
        let entries = entries(backups.into_iter(), &self.ca_pem, &endpoint);
        let mut configuration = configuration(entries);
        configuration.metadata.name = Some(name.to_owned());
        let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let (apply, patch) = (
            PatchParams::apply("test").force(),
            Patch::Apply(&configuration),
        );
        let written = api.patch(name, &apply, &patch).await.unwrap();
        assert_eq!(
            written.webhooks, configuration.webhooks,
            "what comes back compares as equal"
        );
        written
    }
}

/// Removes a configuration that [`Replica::install`] wrote.
pub(crate) async fn uninstall(client: &Client, name: &str) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    api.delete(name, &DeleteParams::default()).await.unwrap();
}
