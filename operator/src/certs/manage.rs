//! The driver of self-managed certificates: one Secret, read by every replica, written by the
//! leader.
//!
//! The Secret is the truth: a certificate is served only after it was read from there or written
//! there, so replicas never serve something that the others do not know. Needs the rights `get` and
//! `update` on that one name; the Secret itself is created empty by whoever installs us.

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

/// Time between two looks at the Secret; far below [`super::rotation::SETTLE`].
pub const POLL: Duration = Duration::from_secs(30);

/// Time between two looks before anything was loaded, and after a conflict.
const POLL_FIRST: Duration = Duration::from_secs(1);

/// A look takes at most this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The distinct values of `caBundle` in the webhook configuration, as the cluster has it.
///
/// `None` before the first look. Empty when there is no entry: nobody verifies us then.
pub type CaBundles = Option<BTreeSet<Vec<u8>>>;

/// What to manage.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the Secret.
    pub secret: String,
    /// DNS names or addresses under which API servers call us, `<service>.<namespace>.svc`.
    pub names: Vec<String>,
    /// The clock.
    pub clock: fn() -> Timestamp,
}

/// What the driver must be told while it runs.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Whether this replica leads: only the leader writes.
    pub leader: watch::Receiver<bool>,
    /// What the webhook configuration carries.
    pub published: watch::Receiver<CaBundles>,
}

/// Why one look failed. Each is tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// The Secret does not exist; the chart creates it.
    #[error("secret {name} does not exist; it must be created empty by the installation")]
    NoSecret {
        /// Its name.
        name: String,
    },
    /// The API server refuses or cannot be reached.
    #[error("{verb} secret {name}")]
    Api {
        /// `get` or `update`.
        verb: &'static str,
        /// The Secret's name.
        name: String,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("secret {name}: no answer in time")]
    Timeout {
        /// The Secret's name.
        name: String,
    },
    /// Another writer was faster; the next look sees what it wrote.
    #[error("secret {name} was changed meanwhile")]
    Conflict {
        /// The Secret's name.
        name: String,
    },
    /// The Secret holds something else than our state.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A certificate cannot be made or served.
    #[error(transparent)]
    Cert(#[from] CertError),
}

/// Keeps the Secret's certificates fresh and publishes them.
#[derive(Debug)]
pub struct Manager {
    api: Api<Secret>,
    settings: Settings,
    inputs: Inputs,
    publisher: Publisher,
    /// The state last read or written.
    held: Option<State>,
    /// The bundle last seen in force, and since when.
    seen: Option<(String, Timestamp)>,
}

impl Manager {
    /// A manager and the channels that it feeds; nothing happens before [`Manager::run`].
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
                        "certificates not refreshed"
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
                // A closed channel never changes again; the poll goes on without it.
                Ok(()) = leader.changed() => {}
                Ok(()) = published.changed() => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Reads the Secret, takes at most one step, publishes. Returns when to look again.
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

    /// The state to work from, and whether the Secret was emptied under us: then our own copy keeps
    /// running connections verifiable while new keys are introduced.
    fn decode(&self, object: &Secret) -> (Option<State>, bool) {
        let data = object.data.clone().unwrap_or_default();
        match secret::decode(&data) {
            Ok(Some(state)) => (Some(state), false),
            Ok(None) => (self.held.clone(), self.held.is_some()),
            Err(error) => {
                warn!(
                    error = %chain(&error),
                    "the certificate secret is damaged and will be replaced"
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

    /// Whether every entry of the webhook configuration carries the state's bundle, and since when.
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

    /// Replaces the data; the resource version that was read makes a second writer lose.
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

/// Until the time, but never beyond [`POLL`], for others write too.
fn pause(now: Timestamp, until: Timestamp) -> Duration {
    let wait = Duration::try_from(until.duration_since(now)).unwrap_or_default();
    wait.clamp(POLL_FIRST, POLL)
}
