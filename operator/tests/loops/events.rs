//! Events beside the passes.

use std::collections::BTreeSet;

use api::SqliteBackup;
use operator::apply::Applier;
use operator::event_writer::{AT_ONCE, EventQueue, QUEUE_LENGTH, event_queue};
use operator::plan::Plan;
use operator::plan::events::EventDraft;
use tokio::sync::watch;

use crate::api_server::{ApiServer, within};
use crate::{backup, observer};

fn plan(count: usize) -> Plan {
    let backup: SqliteBackup = serde_json::from_value(backup()).unwrap();
    let draft = |n: usize| EventDraft::new(&backup, false, "Ready", &format!("Reason{n}"), "why");
    Plan {
        events: (0..count).map(draft).collect(),
        ..Plan::default()
    }
}

/// Executes a plan with this many Events, on a server that answers no write.
async fn apply(server: &ApiServer, count: usize) -> EventQueue {
    server.answer_writes(false);
    let observer = observer(server).await;
    let (events, writer) = event_queue(server.client.clone(), "replica-0".to_owned());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        writer.run(stopped).await;
        drop(stop);
    });
    let applier = Applier::new(server.client.clone(), observer, events.clone());
    let outcome = within(applier.apply(plan(count))).await;
    assert_eq!(outcome.failed, 0);
    events
}

#[tokio::test]
async fn a_pass_does_not_wait_for_its_events() {
    let mut server = ApiServer::start().await;
    let events = apply(&server, 50).await;
    server.answer_writes(true);
    let mut reasons = BTreeSet::new();
    for _ in 0..50 {
        let event = server.next_write().await;
        assert_eq!(event.path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        reasons.insert(event.body["reason"].as_str().unwrap().to_owned());
    }
    assert_eq!(reasons.len(), 50, "each is written once");
    assert_eq!(events.lost(), 0);
}

#[tokio::test]
async fn events_that_are_queued_at_shutdown_are_still_written() {
    let mut server = ApiServer::start().await;
    let observer = observer(&server).await;
    let (events, writer) = event_queue(server.client.clone(), "replica-0".to_owned());
    let applier = Applier::new(server.client.clone(), observer, events.clone());
    applier.apply(plan(AT_ONCE * 2)).await;
    let (_stop, stopped) = watch::channel(true);
    within(writer.run(stopped)).await;
    for _ in 0..AT_ONCE * 2 {
        server.next_write().await;
    }
    assert_eq!(events.lost(), 0);
}

#[tokio::test]
async fn events_are_bounded_in_number_while_the_api_server_takes_none() {
    let mut server = ApiServer::start().await;
    let events = apply(&server, QUEUE_LENGTH + AT_ONCE + 10).await;
    for _ in 0..AT_ONCE {
        server.next_write().await;
    }
    // The writer may have taken some out of the queue before the last ones were pushed.
    let lost = events.lost();
    let least = 10;
    assert!((least..=least + AT_ONCE as u64).contains(&lost), "{lost}");
    assert_eq!(server.writes_waiting(), 0, "no more are under way");
    server.answer_writes(true);
    for _ in 0..AT_ONCE {
        server.next_write().await;
    }
}
