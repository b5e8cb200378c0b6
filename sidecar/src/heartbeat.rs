//! Sends requests to the user's own monitor, as long as everything is stored.
//!
//! The monitor alerts a person when requests stop, which also covers the loss of this process or
//! its machine. No other work waits for the answer, and a failed request has no effect.

use std::error::Error;
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::HttpConnector;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use axum::http::Uri;
use protocol::status::{DatabaseStatus, TargetStatus};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::commands::Shown;

/// Pause between polls while something is not stored.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Time limit of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Heartbeat settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// URL of the request, with a scheme and a host. Its path may be a secret.
    pub url: Uri,
    /// Time between two requests, and the greatest allowed age of a commit that is not stored.
    pub interval: Duration,
}

/// The request task of this process, which ends when dropped.
#[derive(Default)]
pub struct Heart {
    beating: Option<(Heartbeat, JoinHandle<()>)>,
}

impl Heart {
    /// Applies the settings. Unchanged settings have no effect.
    pub fn follow(&mut self, heartbeat: Option<&Heartbeat>, shown: &Shown) {
        if self.beating.as_ref().map(|(beating, _)| beating) == heartbeat {
            return;
        }
        self.stop();
        self.beating = heartbeat.map(|heartbeat| {
            let (heartbeat, shown) = (heartbeat.clone(), shown.clone());
            let task = tokio::task::spawn_local(start(heartbeat.clone(), shown));
            (heartbeat, task)
        });
    }

    fn stop(&mut self) {
        if let Some((_, task)) = self.beating.take() {
            task.abort();
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn start(heartbeat: Heartbeat, shown: Shown) {
    let client = client();
    let statuses = || {
        let databases = shown.databases();
        databases.iter().map(|database| database.status()).collect()
    };
    let mut said = None;
    run(heartbeat.interval, statuses, async || {
        let outcome = get(&client, &heartbeat.url).await;
        let host = heartbeat.url.host().unwrap_or_default();
        match news(&mut said, outcome) {
            Some(Err(message)) => tracing::warn!("heartbeat to {host} failed: {message}"),
            Some(Ok(())) => tracing::info!("heartbeat to {host} is answered again"),
            None => {}
        }
    })
    .await;
}

/// Sends requests forever: at once when everything is stored, then each interval, or as soon after
/// it as everything is stored again.
async fn run(
    interval: Duration,
    statuses: impl Fn() -> Vec<DatabaseStatus>,
    mut beat: impl AsyncFnMut(),
) {
    loop {
        while !all_stored(&statuses(), interval) {
            sleep(LOOK_PAUSE).await;
        }
        let next = Instant::now() + interval;
        beat().await;
        sleep_until(next).await;
    }
}

/// Returns whether databases exist and each of their targets has every commit that is older than
/// `within`. A database without new commits counts as stored.
fn all_stored(databases: &[DatabaseStatus], within: Duration) -> bool {
    let is_stored = |target: &TargetStatus| {
        target.position.is_some() && u128::from(target.lag_ms) <= within.as_millis()
    };
    !databases.is_empty()
        && databases
            .iter()
            .all(|database| database.state.is_healthy() && database.targets.iter().all(is_stored))
}

/// Returns the outcome for the log if it differs from the last logged one.
fn news(said: &mut Option<String>, outcome: Result<(), String>) -> Option<Result<(), String>> {
    let failure = outcome.err();
    if *said == failure {
        return None;
    }
    said.clone_from(&failure);
    Some(failure.map_or(Ok(()), Err))
}

fn client() -> Connector {
    Connector::builder()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        // The next request is at least a minute away.
        .pool_max_idle_per_host(0)
        .build()
}

async fn get(client: &Connector, url: &Uri) -> Result<(), String> {
    let mut request = HttpRequest::new(SdkBody::empty());
    request
        .set_uri(url.clone())
        .map_err(|error| error.to_string())?;
    let answer = timeout(ANSWER_TIMEOUT, client.call(request)).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?;
    let status = answer.map_err(|error| deepest(&error))?.status();
    if !status.is_success() {
        return Err(format!("HTTP {}", status.as_u16()));
    }
    Ok(())
}

/// Returns the innermost error: the errors above it only report that no answer came.
fn deepest(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), deepest)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use jiff::Timestamp;
    use protocol::status::{DatabaseState, Position, TargetState};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn database(lags_ms: &[u64]) -> DatabaseStatus {
        let target = |lag_ms: &u64| TargetStatus {
            name: "primary".into(),
            state: TargetState::Ok,
            message: String::new(),
            position: Some(Position {
                txid: "0000000000000001".into(),
                checksum: "0000000000000001".into(),
                time: Timestamp::UNIX_EPOCH,
            }),
            lag_ms: *lag_ms,
            backlog_bytes: 0,
            last_sync: None,
            last_snapshot: None,
            epoch: 1,
            credentials: None,
        };
        DatabaseStatus {
            path: "/data/app.db".into(),
            state: DatabaseState::Replicating,
            message: String::new(),
            position: None,
            size_bytes: 0,
            targets: lags_ms.iter().map(target).collect(),
        }
    }

    #[test]
    fn all_is_stored_only_when_every_target_of_every_database_has_it() {
        let idle = || DatabaseStatus {
            state: DatabaseState::Idle,
            ..database(&[0])
        };
        let missing = || DatabaseStatus {
            state: DatabaseState::Missing,
            ..database(&[0])
        };
        let mut never = database(&[0, 0]);
        never.targets[1].position = None;
        for (databases, expected) in [
            (vec![], false),
            (vec![idle()], true),
            (vec![database(&[0, 60_000])], true),
            (vec![database(&[0, 60_001])], false),
            (vec![idle(), missing()], false),
            (vec![idle(), never], false),
        ] {
            assert_eq!(all_stored(&databases, MINUTE), expected, "{databases:?}");
        }
    }

    #[test]
    fn a_failure_is_told_once_and_so_is_its_end() {
        let mut said = None;
        let refused = || Err("refused".to_owned());
        assert_eq!(news(&mut said, Ok(())), None);
        assert_eq!(news(&mut said, refused()), Some(refused()));
        assert_eq!(news(&mut said, refused()), None);
        let other = Err("HTTP 500".to_owned());
        assert_eq!(news(&mut said, other.clone()), Some(other));
        assert_eq!(news(&mut said, Ok(())), Some(Ok(())));
        assert_eq!(news(&mut said, Ok(())), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_monitor_that_never_answers_is_given_up() {
        // The kernel accepts the connection, but no process reads from it.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let answer = get(&client(), &url.parse().unwrap()).await;
        assert_eq!(answer, Err("no answer in time".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn beats_come_each_interval_and_stay_away_while_something_is_not_stored() {
        let (start, lag_ms) = (Instant::now(), Cell::new(90_000));
        let beats = RefCell::new(Vec::new());
        let beating = run(
            MINUTE,
            || vec![database(&[lag_ms.get()])],
            async || {
                beats.borrow_mut().push(start.elapsed().as_secs());
            },
        );
        let story = async {
            // Between two polls.
            sleep(Duration::from_millis(10_500)).await;
            lag_ms.set(0);
            sleep(Duration::from_secs(130)).await;
            // Another request would be due at 191 s.
            lag_ms.set(90_000);
            sleep(Duration::from_secs(100)).await;
            lag_ms.set(0);
            sleep(Duration::from_secs(30)).await;
        };
        tokio::select! {
            () = beating => unreachable!("it beats for ever"),
            () = story => {}
        }
        assert_eq!(*beats.borrow(), [11, 71, 131, 241]);
    }
}
