//! Asks sidecars how they are: `GET /status` at each Pod's own address.
//!
//! Sidecars need no rights and know nothing of us. Looks are spread over the interval by a hash of
//! the Pod, and bounded in number, time and size. What answers comes from a Pod of a user, and may be
//! anything: no answer may take the memory that the others need.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use protocol::names::STATUS_VERSION;
use protocol::status::TargetState;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::answer::{self, Answer, Received, clipped};
use crate::cluster_state::{PodFacts, Report};
use crate::observe::Observer;
use crate::poll_queue::{PollResult, Queue};

/// One look takes at most this long.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Longest answer, in bytes: ten thousand databases with two targets each.
pub const ANSWER_BYTES: usize = 16 << 20;

/// Longest answer that is read beside any others, in bytes: some hundred databases.
pub const SMALL_BYTES: usize = 64 << 10;

/// Room for longer answers while they are read, of all together, in bytes. Who finds none waits, for
/// as long as a look may take.
pub const LARGE_BYTES: usize = ANSWER_BYTES;

/// Versions of the answer around ours that are understood: fields are only ever added.
const VERSION_SKEW: u32 = 2;

/// Time between two looks at which sidecars are due, and between two notes of answers.
const TICK: Duration = Duration::from_millis(500);

/// Why a sidecar could not be looked at. All of them mean that nothing is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PollError {
    /// The address is none.
    #[error("{0:?} is not an address")]
    Address(String),
    /// No answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection failed.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// Another answer than 200.
    #[error("answers {0}")]
    Status(StatusCode),
    /// The answer broke off.
    #[error("the answer broke off: {0}")]
    Body(String),
    /// The answer is too long.
    #[error("the answer is longer than {} MiB: are there too many databases?", ANSWER_BYTES >> 20)]
    TooLong,
    /// The answer is not understood.
    #[error("the answer is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// Too old or too new.
    #[error("the answer has version {0}, too far from ours, {STATUS_VERSION}")]
    Version(u32),
    /// Another Pod has this address now.
    #[error("the answer is about {0:?}")]
    Other(String),
}

/// Polls until `shutdown`, while this replica leads. Sidecars listen on `port` of their Pod's address.
///
/// Each answer counts as soon as it is there: sidecars that are slow or silent do not hold back the
/// others. Answers become visible together, every 500 ms, so that they cause few passes.
pub async fn run(
    observer: Arc<Observer>,
    port: u16,
    mut leader: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
) {
    let sidecars = Sidecars::new(port);
    loop {
        tokio::select! {
            // Without a lease there is nobody who could make us the leader again.
            led = leader.wait_for(|leads| *leads) => if led.is_err() { return },
            _ = shutdown.wait_for(|down| *down) => return,
        }
        tokio::select! {
            () = poll(&observer, &sidecars) => {}
            _ = leader.wait_for(|leads| !*leads) => {}
            _ = shutdown.wait_for(|down| *down) => return,
        }
    }
}

/// Polls for as long as this replica leads.
async fn poll(observer: &Observer, sidecars: &Sidecars) {
    let mut queue = Queue::default();
    let mut pods = BTreeMap::new();
    let mut answered = BTreeMap::new();
    let mut polls = FuturesUnordered::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                pods = running_sidecars(observer);
                queue.handle_sidecars(pods.keys().map(String::as_str), Instant::now());
                observer.note_reports(std::mem::take(&mut answered), |uid| pods.contains_key(uid));
            }
            Some((pod, answer)) = polls.next() => {
                let pod: Arc<PodFacts> = pod;
                let old = observer.report(&pod.uid);
                let report = report(old.as_deref(), answer, Timestamp::now());
                let result = match &report.answer {
                    Ok(answer) if is_well(answer) => PollResult::Healthy,
                    Ok(_) => PollResult::Unhealthy,
                    Err(_) => PollResult::Silent,
                };
                if queue.handle_result(&pod.uid, result, Instant::now()) {
                    answered.insert(pod.uid.clone(), Arc::new(report));
                }
            }
        }
        while let Some(uid) = queue.next(Instant::now()) {
            let pod = Arc::clone(pods.get(&uid).expect("the queue holds these Pods only"));
            polls.push(async move {
                let answer = sidecars.ask(&pod).await;
                (pod, answer.map_err(said))
            });
        }
    }
}

/// The Pods with a running sidecar that has an address, by UID.
fn running_sidecars(observer: &Observer) -> BTreeMap<String, Arc<PodFacts>> {
    let pods = observer.pods().into_iter();
    pods.filter(|p| p.has_sidecar && p.sidecar_running && p.is_live() && p.ip.is_some())
        .map(|p| (p.uid.clone(), p))
        .collect()
}

/// What is kept of an error, which may quote what it does not understand.
fn said(error: PollError) -> String {
    clipped(&error.to_string())
}

/// Adds one answer to what was known before.
fn report(old: Option<&Report>, answer: Result<Answer, String>, at: Timestamp) -> Report {
    match answer.map(Arc::new) {
        Ok(answer) => Report {
            at,
            last_answer: Some(Arc::clone(&answer)),
            answer: Ok(answer),
            failures: 0,
        },
        Err(error) => Report {
            at,
            answer: Err(error),
            failures: old.map_or(0, |r| r.failures).saturating_add(1),
            last_answer: old.and_then(|r| r.last_answer.clone()),
        },
    }
}

fn is_well(answer: &Answer) -> bool {
    answer.databases.iter().all(|d| d.state.is_healthy())
        && answer.targets.iter().all(|t| t.state == TargetState::Ok)
}

/// What looks have in common.
struct Sidecars {
    client: Client<HttpConnector, Body>,
    large: Semaphore,
    port: u16,
}

impl Sidecars {
    fn new(port: u16) -> Sidecars {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(TIMEOUT));
        Sidecars {
            client: Client::builder(TokioExecutor::new())
                .pool_max_idle_per_host(0)
                // What comes while an answer waits for room stays in the other's socket.
                .http1_max_buf_size(SMALL_BYTES)
                .build(connector),
            large: Semaphore::new(LARGE_BYTES),
            port,
        }
    }

    async fn ask(&self, pod: &PodFacts) -> Result<Answer, PollError> {
        let text = pod.ip.as_deref().unwrap_or_default();
        let wrong = || PollError::Address(text.to_owned());
        let address: IpAddr = text.parse().map_err(|_| wrong())?;
        let host = match address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let uri = format!("http://{host}:{}/status", self.port);
        let uri: Uri = uri.parse().map_err(|_| wrong())?;
        let look = timeout(TIMEOUT, self.fetch(uri));
        check(look.await.map_err(|_| PollError::Timeout)??, pod)
    }

    /// Reads one answer. A long one takes its length out of the common room until it is summed up; one
    /// that does not tell its length takes the most.
    async fn fetch(&self, uri: Uri) -> Result<Received, PollError> {
        let request = Request::get(uri)
            .body(Body::empty())
            .expect("a request for a valid URI");
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|e| PollError::Connect(root_cause(&e)))?;
        if answer.status() != StatusCode::OK {
            return Err(PollError::Status(answer.status()));
        }
        let told = answer.body().size_hint().exact();
        let limit = told.map_or(ANSWER_BYTES, |bytes| {
            usize::try_from(bytes).unwrap_or(usize::MAX)
        });
        if limit > ANSWER_BYTES {
            return Err(PollError::TooLong);
        }
        let _room = match limit > SMALL_BYTES {
            true => {
                let bytes = u32::try_from(limit).expect("at most the longest answer");
                let room = self.large.acquire_many(bytes).await;
                Some(room.expect("it is never closed"))
            }
            false => None,
        };
        // Memory that nothing is written to costs nothing, and none is copied to grow.
        let mut json = Vec::with_capacity(limit);
        let mut parts = Body::new(answer.into_body()).into_data_stream();
        while let Some(part) = parts.next().await {
            let part = part.map_err(|e| PollError::Body(root_cause(&e)))?;
            if json.len() + part.len() > limit {
                return Err(PollError::TooLong);
            }
            json.extend_from_slice(&part);
        }
        Ok(answer::read(&json)?)
    }
}

/// The innermost cause: what the operating system said.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Addresses are used again: an answer counts only when it is about this Pod's SqliteBackup.
fn check(received: Received, pod: &PodFacts) -> Result<Answer, PollError> {
    if received.version.abs_diff(STATUS_VERSION) > VERSION_SKEW {
        return Err(PollError::Version(received.version));
    }
    let expected = format!(
        "{}/{}",
        pod.namespace,
        pod.backup.as_deref().unwrap_or_default()
    );
    match received.backup == expected {
        true => Ok(received.answer),
        false => Err(PollError::Other(received.backup)),
    }
}

#[cfg(test)]
#[path = "poll_tests.rs"]
mod tests;
