//! The loop that keeps webhook entries.

use std::sync::Arc;

use api::names::WEBHOOK_CONFIGURATION;
use operator::apply::Applier;
use operator::certs::Bundle;
use operator::event_writer::event_queue;
use operator::plan::webhook::Endpoint;
use operator::reconcile::WebhookKeeper;
use serde_json::json;
use tokio::sync::watch;

use crate::api_server::{ApiServer, within};
use crate::{backup, observer};

const CONFIGURATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

#[tokio::test]
async fn a_write_of_webhook_entries_is_given_up_when_leadership_ends() {
    let mut server = ApiServer::start().await;
    server.list(
        "/apis/sqlite-backup.dev/v1alpha1/sqlitebackups",
        vec![backup()],
    );
    server.list(
        CONFIGURATIONS,
        vec![json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": WEBHOOK_CONFIGURATION, "resourceVersion": "1"},
            "webhooks": [],
        })],
    );
    server.answer_writes(false);
    let observer = observer(&server).await;
    let (lead, leader) = watch::channel(true);
    let (_stop, stopped) = watch::channel(false);
    let bundle = Bundle {
        ca_pem: "an authority".to_owned(),
    };
    let (_publish, bundle) = watch::channel(Some(bundle));
    let (events, _writer) = event_queue(server.client.clone(), "replica-0".to_owned());
    let applier = Applier::new(server.client.clone(), Arc::clone(&observer), events);
    let keeper = WebhookKeeper {
        observer,
        applier: Arc::new(applier),
        endpoint: Endpoint::Url("https://127.0.0.1:9443".to_owned()),
        bundle,
        leader,
    };
    tokio::spawn(keeper.run(stopped));
    let mut write = server.next_write().await;
    assert_eq!(
        write.path,
        format!("{CONFIGURATIONS}/{WEBHOOK_CONFIGURATION}")
    );

    lead.send_replace(false);
    within(write.over()).await;

    // The next leadership begins with another write.
    lead.send_replace(true);
    server.next_write().await;
}
