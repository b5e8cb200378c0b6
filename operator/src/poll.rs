//! Polls the status of sidecars: `GET /status` at each Pod's own address.
//!
//! Sidecars need no Kubernetes rights and do not know the operator. Polls are spread over the
//! interval by a hash of the Pod, and limited in number, time and size. Answers come from Pods of
//! users and are not trusted: no answer may use the memory that other answers need.

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

/// Time limit of one poll.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Limit on one answer, in bytes: enough for 10,000 databases with two targets each.
pub const ANSWER_BYTES: usize = 16 << 20;

/// Limit on an answer that is read without waiting for room, in bytes: enough for about 100
/// databases.
pub const SMALL_BYTES: usize = 64 << 10;

/// Room for all longer answers that are being read, in bytes. A poll waits for room until its time
/// limit.
pub const LARGE_BYTES: usize = ANSWER_BYTES;

/// Largest difference from our version of the answer. Versions only ever add fields.
const VERSION_SKEW: u32 = 2;

/// Interval at which Pods are compared with the queue, and at which answers become visible.
const TICK: Duration = Duration::from_millis(500);

/// Failure of a poll. The state of the sidecar is unknown then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PollError {
    /// The Pod's address is invalid.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The sidecar did not answer in time.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection failed.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The HTTP status is not 200.
    #[error("HTTP status {0}")]
    Status(StatusCode),
    /// The connection broke during the answer.
    #[error("the connection broke during the answer: {0}")]
    Body(String),
    /// The answer is too long.
    #[error("the answer is longer than {} MiB; distribute the databases over more Pods", ANSWER_BYTES >> 20)]
    TooLong,
    /// The answer is not a status.
    #[error("the answer is not a valid status: {0}")]
    Json(#[from] serde_json::Error),
    /// The version of the answer is too old or too new.
    #[error(
        "the answer has version {0}, expected {STATUS_VERSION}; update the older of operator and sidecar"
    )]
    Version(u32),
    /// A sidecar of another SqliteBackup answered: the address was reused.
    #[error("the answer is from a sidecar of {0:?}: the address was reused")]
    Other(String),
}

/// Polls until `shutdown`, while this replica leads. Sidecars listen on `port` of their Pod's
/// address.
///
/// Each answer counts on arrival: slow or silent sidecars do not delay the others. Answers become
/// visible together every 500 ms, so that they cause few passes.
pub async fn run(
    observer: Arc<Observer>,
    port: u16,
    mut leader: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
) {
    let sidecars = Sidecars::new(port);
    loop {
        tokio::select! {
            // Without the election this replica can never lead again.
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

/// Polls as long as this replica leads.
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

/// Limits the text of an error, which may quote the answer.
fn said(error: PollError) -> String {
    clipped(&error.to_string())
}

/// Combines a new result with the previous report.
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

/// Client and limits that polls share.
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
                // While a poll waits for room, the rest of its answer stays in the sidecar's
                // socket.
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

    /// Reads one answer. A long answer reserves its length until it is summarized; an answer
    /// without a length reserves [`ANSWER_BYTES`].
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
        // Reserved memory costs nothing until it is written, and growing would copy it.
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

/// The innermost cause, which is the error of the operating system.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Checks version and origin. Pod addresses are reused: only an answer for the Pod's own
/// SqliteBackup counts.
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
