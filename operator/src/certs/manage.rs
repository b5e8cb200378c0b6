//! Driver of self-managed certificates: one Secret, which every replica reads and the leader
//! writes.
//!
//! The Secret is authoritative: a replica serves a certificate only after it has read it from there
//! or written it there. The operator needs `get` and `update` on this one name; the installation
//! creates the Secret empty. Each write carries the resource version that was read, so a former
//! leader cannot overwrite a newer state.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use logging::chain;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::mint::CertError;
use super::rotation::{Action, Facts, Published, State, advance, decide};
use super::secret::{self, SecretError};
use super::{Certs, Publisher, Serving};

/// Time between two reads of the Secret; far below [`super::rotation::SETTLE`].
pub const POLL: Duration = Duration::from_secs(30);

/// Time between two reads before the first load, and after a conflict.
const POLL_FIRST: Duration = Duration::from_secs(1);

/// Time limit of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The distinct values of `caBundle` in the webhook configuration, as the cluster has it.
///
/// `None` before the first list. Empty without entries: no API server verifies the webhook then.
pub type CaBundles = Option<BTreeSet<Vec<u8>>>;

/// Settings of the driver.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the Secret.
    pub secret: String,
    /// DNS names or addresses under which API servers call us, `<service>.<namespace>.svc`.
    pub names: Vec<String>,
    /// The clock.
    pub clock: fn() -> Timestamp,
}

/// Inputs of the driver while it runs.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Whether this replica leads: only the leader writes.
    pub leader: watch::Receiver<bool>,
    /// The CA bundles in the webhook configuration.
    pub published: watch::Receiver<CaBundles>,
}

/// Failure of one step. Every step is tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The Secret does not exist; the chart creates it.
    #[error("secret {name} does not exist; the installation must create it empty")]
    NoSecret {
        /// The Secret's name.
        name: String,
    },
    /// The API server refuses or cannot be reached.
    #[error("{verb} secret {name}")]
    Api {
        /// `get` or `update`.
        verb: &'static str,
        /// The Secret's name.
        name: String,
        /// Error of the client.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("secret {name}: no answer in time")]
    Timeout {
        /// The Secret's name.
        name: String,
    },
    /// Another writer wrote first; the next read returns its state.
    #[error("secret {name} was changed by another writer")]
    Conflict {
        /// The Secret's name.
        name: String,
    },
    /// The Secret does not hold a valid state.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A certificate cannot be made or served.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// Renews the certificates in the Secret and publishes them.
#[derive(Debug)]
pub struct Manager {
    api: Api<Secret>,
    settings: Settings,
    inputs: Inputs,
    publisher: Publisher,
    /// The state last read or written.
    held: Option<State>,
    /// The bundle last observed in every entry, and the time of the first observation.
    seen: Option<(String, Timestamp)>,
}

impl Manager {
    /// Creates a manager and its channels. Nothing is read before [`Manager::run`].
    pub fn new(api: Api<Secret>, settings: Settings, inputs: Inputs) -> (Self, Certs) {
        let (publisher, certs) = Publisher::new();
        (
            Manager {
                api,
                settings,
                inputs,
                publisher,
                held: None,
                seen: None,
            },
            certs,
        )
    }

    /// Runs until `shutdown` turns true or its sender is gone.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut leader = self.inputs.leader.clone();
        let mut published = self.inputs.published.clone();
        loop {
            let pause = match self.look().await {
                Ok(pause) => pause,
                Err(ManageError::Conflict { name }) => {
                    debug!(
                        secret = name,
                        "another replica wrote the certificates first"
                    );
                    POLL_FIRST
                }
                Err(error) => {
                    error!(
                        error = %chain(&error),
                        "certificates not renewed; the step is tried again"
                    );
                    if self.held.is_some() {
                        POLL
                    } else {
                        POLL_FIRST
                    }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // A closed channel never changes again; the polls continue without it.
                Ok(()) = leader.changed() => {}
                Ok(()) = published.changed() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads the Secret, takes at most one step, publishes. Returns the time to the next read.
    async fn look(&mut self) -> Result<Duration, ManageError> {
        let now = (self.settings.clock)();
        let object = self.read().await?;
        let (state, emptied) = self.decode(&object);
        if let Some(state) = &state
            && !emptied
        {
            self.publish(state)?;
        }
        if !*self.inputs.leader.borrow() {
            return Ok(if state.is_some() { POLL } else { POLL_FIRST });
        }
        let published = self.published(state.as_ref(), now);
        let facts = Facts {
            names: &self.settings.names,
            published,
            forced: emptied,
        };
        let action = decide(now, state.as_ref(), &facts);
        let next = advance(action, state.as_ref(), &self.settings.names, now)?;
        match (next, state, action) {
            (Some(next), _, _) => {
                self.write(object, &next).await?;
                info!(?action, leaf_until = %next.leaf.validity.not_after, "wrote certificates");
                self.publish(&next)?;
                Ok(POLL_FIRST)
            }
            (None, Some(state), _) if emptied => {
                self.write(object, &state).await?;
                Ok(POLL_FIRST)
            }
            (None, _, Action::Wait(until)) => Ok(pause(now, until)),
            (None, _, _) => Ok(POLL),
        }
    }

    /// Returns the present state, and whether the Secret was emptied while the operator runs. In
    /// that case the copy in memory stays in force while new keys are introduced.
    fn decode(&self, object: &Secret) -> (Option<State>, bool) {
        let data = object.data.clone().unwrap_or_default();
        match secret::decode(&data) {
            Ok(Some(state)) => (Some(state), false),
            Ok(None) => (self.held.clone(), self.held.is_some()),
            Err(error) => {
                warn!(
                    error = %chain(&error),
                    "the certificate secret is damaged; it will be replaced"
                );
                (self.held.clone(), self.held.is_some())
            }
        }
    }

    fn publish(&mut self, state: &State) -> Result<(), ManageError> {
        if self.held.as_ref() != Some(state) {
            let serving = Serving {
                key: state.leaf.certified_key()?,
                not_after: state.leaf.validity.not_after,
            };
            self.publisher.publish(state.bundle(), serving);
            self.held = Some(state.clone());
        }
        Ok(())
    }

    /// Whether every entry of the webhook configuration holds the bundle of the state, and since
    /// when.
    fn published(&mut self, state: Option<&State>, now: Timestamp) -> Published {
        let bundle = state.map(|state| state.bundle().ca_pem);
        let carried = match (&bundle, &*self.inputs.published.borrow()) {
            (Some(wanted), Some(found)) => found.iter().all(|found| found == wanted.as_bytes()),
            _ => false,
        };
        match (bundle, &self.seen) {
            (Some(bundle), Some((seen, since))) if carried && *seen == bundle => {
                Published::Since(*since)
            }
            (Some(bundle), _) if carried => {
                self.seen = Some((bundle, now));
                Published::Since(now)
            }
            _ => {
                self.seen = None;
                Published::NotYet
            }
        }
    }

    async fn read(&self) -> Result<Secret, ManageError> {
        let name = &self.settings.secret;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.api.get_opt(name)).await;
        match answer {
            Err(_) => Err(ManageError::Timeout { name: name.clone() }),
            Ok(Ok(Some(object))) => Ok(object),
            Ok(Ok(None)) => Err(ManageError::NoSecret { name: name.clone() }),
            Ok(Err(error)) => Err(self.api_error("get", error)),
        }
    }

    /// Replaces the data. The resource version of the read makes the second of two writers fail.
    async fn write(&self, mut object: Secret, state: &State) -> Result<(), ManageError> {
        object.data = Some(secret::encode(state));
        let name = &self.settings.secret;
        let params = PostParams::default();
        let answer = self.api.replace(name, &params, &object);
        match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Err(_) => Err(ManageError::Timeout { name: name.clone() }),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                Err(ManageError::Conflict { name: name.clone() })
            }
            Ok(Err(error)) => Err(self.api_error("update", error)),
        }
    }

    fn api_error(&self, verb: &'static str, source: kube::Error) -> ManageError {
        ManageError::Api {
            verb,
            name: self.settings.secret.clone(),
            source: Box::new(source),
        }
    }
}

/// Time until `until`, at most [`POLL`], because other replicas write as well.
fn pause(now: Timestamp, until: Timestamp) -> Duration {
    let wait = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    wait.clamp(POLL_FIRST, POLL)
}
