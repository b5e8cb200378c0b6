//! Asks sidecars how they are: `GET /status` at each Pod's own address.
//!
//! Sidecars need no rights and know nothing of us. Looks are spread over the interval by a hash of
//! the Pod, and bounded in number, time and size.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use protocol::names::{STATUS_PORT, STATUS_VERSION};
use protocol::status::{SidecarStatus, TargetState};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::observe::Observer;
use crate::world::{PodFacts, Report};

/// Time between two looks at a sidecar that is well.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Time between two looks while something is wrong or new.
pub const INTERVAL_UNWELL: Duration = Duration::from_secs(5);

/// One look takes at most this long.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// Looks at a time.
pub const AT_ONCE: usize = 64;

/// Longest answer, in bytes: ten thousand databases with two targets each.
pub const ANSWER_BYTES: usize = 16 << 20;

/// Versions of the answer around ours that are understood: fields are only ever added.
const VERSION_SKEW: u32 = 2;

/// How often we see who is due.
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
    /// The answer broke off or is too long.
    #[error("the answer broke off: {0}")]
    Body(String),
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

/// Asks until `shutdown`, while we lead.
pub async fn run(
    observer: Arc<Observer>,
    leader: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(TIMEOUT));
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector);
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = shutdown.wait_for(|down| *down) => return,
        }
        if !*leader.borrow() {
            due.clear();
            continue;
        }
        look(&observer, &client, &mut due).await;
    }
}

/// Looks at every sidecar that is due, and takes note of all answers at once.
async fn look(
    observer: &Observer,
    client: &Client<HttpConnector, Body>,
    due: &mut BTreeMap<String, Instant>,
) {
    let now = Instant::now();
    let pods: BTreeMap<String, Arc<PodFacts>> = observer
        .pods()
        .into_iter()
        .filter(|p| p.has_sidecar && p.sidecar_running && p.is_live() && p.ip.is_some())
        .map(|p| (p.uid.clone(), p))
        .collect();
    due.retain(|uid, _| pods.contains_key(uid));
    let asked: Vec<Arc<PodFacts>> = pods
        .iter()
        .filter(|(uid, _)| due.get(*uid).is_none_or(|at| *at <= now))
        .map(|(_, pod)| Arc::clone(pod))
        .collect();
    let mut reports = observer.reports();
    let known = reports.len();
    reports.retain(|uid, _| pods.contains_key(uid));
    if asked.is_empty() && reports.len() == known {
        return;
    }
    let answers = futures::stream::iter(asked)
        .map(|pod| async move {
            let answer = ask(client, &pod).await;
            (pod, answer)
        })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    for (pod, answer) in answers {
        let report = report(
            reports.get(&pod.uid).map(|r| &**r),
            answer,
            Timestamp::now(),
        );
        let wait = if is_well(&report) {
            INTERVAL
        } else {
            INTERVAL_UNWELL
        };
        due.insert(pod.uid.clone(), Instant::now() + spread(&pod.uid, wait));
        reports.insert(pod.uid.clone(), Arc::new(report));
    }
    observer.note_reports(reports);
}

/// A span around `wait`, up to a tenth shorter, that is always the same for one Pod.
fn spread(uid: &str, wait: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let share = u32::try_from(hasher.finish() % 100).expect("less than 100");
    wait - wait * share / 1000
}

/// Adds one answer to what was known before.
fn report(old: Option<&Report>, answer: Result<SidecarStatus, PollError>, at: Timestamp) -> Report {
    match answer {
        Ok(status) => Report {
            at,
            last_answer: Some(status.clone()),
            answer: Ok(status),
            failures: 0,
        },
        Err(error) => Report {
            at,
            answer: Err(error.to_string()),
            failures: old.map_or(0, |r| r.failures).saturating_add(1),
            last_answer: old.and_then(|r| r.last_answer.clone()),
        },
    }
}

fn is_well(report: &Report) -> bool {
    report.answer.as_ref().is_ok_and(|status| {
        status
            .databases
            .iter()
            .all(|d| d.state.is_healthy() && d.targets.iter().all(|t| t.state == TargetState::Ok))
    })
}

async fn ask(
    client: &Client<HttpConnector, Body>,
    pod: &PodFacts,
) -> Result<SidecarStatus, PollError> {
    let text = pod.ip.as_deref().unwrap_or_default();
    let address: IpAddr = text
        .parse()
        .map_err(|_| PollError::Address(text.to_owned()))?;
    let host = match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let uri: Uri = format!("http://{host}:{STATUS_PORT}/status")
        .parse()
        .map_err(|_| PollError::Address(text.to_owned()))?;
    let body = timeout(TIMEOUT, fetch(client, uri))
        .await
        .map_err(|_| PollError::Timeout)??;
    let status: SidecarStatus = serde_json::from_slice(&body)?;
    check(status, pod)
}

async fn fetch(client: &Client<HttpConnector, Body>, uri: Uri) -> Result<Vec<u8>, PollError> {
    let request = Request::get(uri)
        .body(Body::empty())
        .expect("a request for a valid URI");
    let answer = client
        .request(request)
        .await
        .map_err(|e| PollError::Connect(root_cause(&e)))?;
    if answer.status() != StatusCode::OK {
        return Err(PollError::Status(answer.status()));
    }
    let body = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_BYTES).await;
    body.map(|bytes| bytes.to_vec())
        .map_err(|e| PollError::Body(e.to_string()))
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
fn check(status: SidecarStatus, pod: &PodFacts) -> Result<SidecarStatus, PollError> {
    if status.version.abs_diff(STATUS_VERSION) > VERSION_SKEW {
        return Err(PollError::Version(status.version));
    }
    let expected = format!(
        "{}/{}",
        pod.namespace,
        pod.backup.as_deref().unwrap_or_default()
    );
    match status.backup == expected {
        true => Ok(status),
        false => Err(PollError::Other(status.backup)),
    }
}
