//! Writes Events beside the passes: an API server that does not answer delays no pass.
//!
//! [`EventQueue`] accepts drafts without waiting and holds a limited number of them.
//! [`EventWriter`] writes several at once. An Event that cannot be written is logged, counted and
//! dropped, because the conditions show the same facts.

use std::time::Duration;

use api::names::FIELD_MANAGER;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use logging::chain;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{Instrument, info_span};

use crate::plan::events::EventDraft;

/// Limit on queued drafts; further ones are dropped.
pub const QUEUE_LENGTH: usize = 4096;

/// Limit on Events written at once.
pub const AT_ONCE: usize = 8;

/// Time limit of one write.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Time limit of all queued Events at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Creates a queue and the writer that empties it. Events name `replica` as their source.
pub fn event_queue(client: Client, replica: String) -> (EventQueue, EventWriter) {
    let (sender, drafts) = mpsc::channel(QUEUE_LENGTH);
    let lost = Counter::default();
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: Some(replica),
    };
    let writer = EventWriter {
        recorder: Recorder::new(client, reporter),
        drafts,
        lost: lost.clone(),
    };
    (EventQueue { sender, lost }, writer)
}

/// Accepts drafts of Events. Clones share the queue.
#[derive(Debug, Clone)]
pub struct EventQueue {
    sender: mpsc::Sender<EventDraft>,
    lost: Counter,
}

impl EventQueue {
    /// Queues one Event and never waits: it is dropped when the queue is full.
    pub fn push(&self, draft: EventDraft) {
        if let Err(TrySendError::Full(draft)) = self.sender.try_send(draft) {
            tracing::debug!(reason = draft.reason, "event dropped: the queue is full");
            self.lost.inc();
        }
    }

    /// Number of Events that were not written since the start.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Registers the number of lost Events under `sqlite_backup_operator_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "sqlite_backup_operator_events_lost",
            "Events that were not written: the queue was full, or the API server did not take them",
            self.lost.clone(),
        );
    }
}

/// Writes the Events of one [`EventQueue`].
pub struct EventWriter {
    recorder: Recorder,
    drafts: mpsc::Receiver<EventDraft>,
    lost: Counter,
}

impl EventWriter {
    /// Runs until `shutdown`. Then the queued Events are still written, for at most 5 s.
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) {
        let EventWriter {
            recorder,
            mut drafts,
            lost,
        } = self;
        let mut writes = FuturesUnordered::new();
        loop {
            tokio::select! {
                draft = drafts.recv(), if writes.len() < AT_ONCE => match draft {
                    Some(draft) => writes.push(write(&recorder, draft, &lost)),
                    None => break,
                },
                Some(()) = writes.next() => {}
                _ = shutdown.wait_for(|down| *down) => break,
            }
        }
        drafts.close();
        let rest = async {
            loop {
                tokio::select! {
                    draft = drafts.recv(), if writes.len() < AT_ONCE => match draft {
                        Some(draft) => writes.push(write(&recorder, draft, &lost)),
                        None => break,
                    },
                    Some(()) = writes.next() => {}
                }
            }
            while writes.next().await.is_some() {}
        };
        if timeout(DRAIN_TIMEOUT, rest).await.is_err() {
            tracing::warn!("some events were not written before shutdown");
        }
    }
}

async fn write(recorder: &Recorder, draft: EventDraft, lost: &Counter) {
    let event = Event {
        type_: if draft.normal {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: draft.reason,
        note: (!draft.message.is_empty()).then_some(draft.message),
        action: draft.action.to_owned(),
        secondary: None,
    };
    let about = &draft.about;
    let span = info_span!(
        "object",
        kind = about.kind.as_deref().unwrap_or_default(),
        namespace = about.namespace.as_deref().unwrap_or_default(),
        object = about.name.as_deref().unwrap_or_default(),
    );
    let request = recorder.publish(&event, about).instrument(span.clone());
    let error = match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error).to_string(),
        Err(_) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
    };
    lost.inc();
    let _object = span.entered();
    tracing::warn!(reason = event.reason, error, "event not written");
}

impl std::fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventWriter").finish_non_exhaustive()
    }
}
