//! Keeping the credentials of a store current: the driver of [`Rotation`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials as Signer;
use jiff::Timestamp;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use super::{answer, client};
use crate::body::blocking;
use crate::credentials::{Keys, Missing, Probe, Rotation, Step, read_directory};
use crate::{Credentials, CredentialsState, CredentialsStatus, StoreError, key};

/// The least time between two looks at the directory, unless the store refuses us.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The credentials of a store.
pub(super) struct Session {
    /// `None`: the chain of the SDK looks after itself.
    rotation: Option<Arc<Mutex<Rotation>>>,
    directory: Option<PathBuf>,
    /// When the directory was last looked at; held during a look.
    looked: AsyncMutex<Option<Instant>>,
}

impl Session {
    pub(super) fn new(credentials: &Credentials) -> Self {
        let (rotation, directory) = match credentials {
            Credentials::Default => (None, None),
            Credentials::Static(keys) => (
                Some(Rotation::new(
                    "static".to_owned(),
                    Some(keys.clone()),
                    now_ms(),
                )),
                None,
            ),
            Credentials::Directory(path) => {
                let source = format!("directory {}", path.display());
                (
                    Some(Rotation::new(source, None, now_ms())),
                    Some(path.clone()),
                )
            }
        };
        let rotation = rotation.map(|rotation| Arc::new(Mutex::new(rotation)));
        Self {
            rotation,
            directory,
            looked: AsyncMutex::new(None),
        }
    }

    /// Returns what signs with the keys in use; `None` for the chain of the SDK.
    pub(super) fn provider(&self) -> Option<SharedCredentialsProvider> {
        let rotation = self.rotation.as_ref()?;
        Some(SharedCredentialsProvider::new(InUse(Arc::clone(rotation))))
    }

    pub(super) fn status(&self) -> Option<CredentialsStatus> {
        Some(lock(self.rotation.as_ref()?).status())
    }

    /// Looks at the directory when it is time to, and returns the keys to sign with: `None` for
    /// the chain of the SDK.
    ///
    /// # Errors
    /// [`StoreError::CredentialsMissing`] when the directory has given no keys yet.
    pub(super) async fn ready(
        &self,
        client: &Client,
        bucket: &str,
        prefix: &str,
    ) -> Result<Option<Keys>, StoreError> {
        let Some(directory) = &self.directory else {
            return Ok(self.active());
        };
        if let Some(keys) = self.active() {
            // Whoever looks already looks for all: the others go on with the keys they have.
            let Ok(mut looked) = self.looked.try_lock() else {
                return Ok(Some(keys));
            };
            if looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                return Ok(Some(keys));
            }
            // What is missing now was there before; the status tells.
            let _ = self.look(directory, client, bucket, prefix).await;
            *looked = Some(Instant::now());
            return Ok(self.active());
        }
        let mut looked = self.looked.lock().await;
        if self.active().is_none() {
            self.look(directory, client, bucket, prefix)
                .await
                .map_err(|missing| {
                    let source = missing.source.map(|source| source.into());
                    StoreError::CredentialsMissing {
                        what: missing.what,
                        source,
                    }
                })?;
            *looked = Some(Instant::now());
        }
        Ok(self.active())
    }

    /// Looks at the directory at once, because the store refused `used`; returns the keys in use
    /// when they are others now.
    pub(super) async fn renew(
        &self,
        used: Option<&Keys>,
        client: &Client,
        bucket: &str,
        prefix: &str,
    ) -> Option<Keys> {
        let directory = self.directory.as_ref()?;
        let mut looked = self.looked.lock().await;
        if self.active().as_ref() == used {
            let _ = self.look(directory, client, bucket, prefix).await;
            *looked = Some(Instant::now());
        }
        self.active().filter(|active| Some(active) != used)
    }

    /// Takes in how a call went that was signed with `keys`.
    pub(super) fn observe<T>(&self, keys: Option<&Keys>, result: &Result<T, StoreError>) {
        let Some(rotation) = &self.rotation else {
            return;
        };
        match result {
            Ok(_)
            | Err(
                StoreError::Missing { .. }
                | StoreError::Exists { .. }
                | StoreError::Conflict { .. }
                | StoreError::NoBucket { .. },
            ) => lock(rotation).handle_accepted(keys, now_ms()),
            // A right that is lacking for one call says nothing about the keys.
            Err(StoreError::Denied { code, .. })
                if answer::is_authentication(answer::refusal_code(code)) =>
            {
                lock(rotation).handle_denied(keys, now_ms());
            }
            Err(_) => {}
        }
    }

    fn active(&self) -> Option<Keys> {
        lock(self.rotation.as_ref()?).active().cloned()
    }

    async fn look(
        &self,
        directory: &std::path::Path,
        client: &Client,
        bucket: &str,
        prefix: &str,
    ) -> Result<(), Missing> {
        let Some(rotation) = &self.rotation else {
            return Ok(());
        };
        let path = directory.to_owned();
        let (found, missing) = match blocking(move || read_directory(&path)).await {
            Ok(keys) => (Some(keys), None),
            Err(missing) => (None, Some(missing)),
        };
        let before = lock(rotation).status();
        let step = lock(rotation).handle_read(found, now_ms());
        if let Step::Probe(keys) = step {
            let outcome = probe(client, bucket, prefix, &keys).await;
            lock(rotation).handle_probe(keys, outcome, now_ms());
        }
        report(&before, &lock(rotation).status());
        missing.map_or(Ok(()), Err)
    }
}

/// Asks the store, once and cheaply, whether it takes these keys.
async fn probe(client: &Client, bucket: &str, prefix: &str, keys: &Keys) -> Probe {
    let request = client
        .list_objects_v2()
        .bucket(bucket)
        .prefix(key::join(prefix, ""));
    let credentials = SharedCredentialsProvider::new(signer(keys));
    let answer = request.max_keys(1).customize();
    let answer = answer
        .config_override(client::for_probe(credentials))
        .send()
        .await;
    let call = answer::Call {
        operation: "list",
        bucket,
        prefix,
        key: "",
    };
    match answer.map_err(|error| call.failure(error)) {
        Ok(_) | Err(StoreError::NoBucket { .. }) => Probe::Accepted,
        Err(StoreError::Denied { .. }) => Probe::Denied,
        Err(_) => Probe::Unknown,
    }
}

fn report(before: &CredentialsStatus, after: &CredentialsStatus) {
    if before.state == after.state && before.fingerprint == after.fingerprint {
        return;
    }
    let fingerprint = after.fingerprint.as_deref().unwrap_or("none");
    let source = after.source.as_str();
    match after.state {
        CredentialsState::Valid => tracing::info!(source, fingerprint, "credentials changed"),
        CredentialsState::RotationPending => {
            tracing::warn!(
                source,
                fingerprint,
                "new credentials not accepted yet, old ones stay"
            );
        }
        CredentialsState::Missing => {
            tracing::warn!(
                source,
                fingerprint,
                "credentials went missing, old ones stay"
            );
        }
        CredentialsState::Denied => tracing::warn!(source, fingerprint, "credentials refused"),
    }
}

/// Signs with the keys in use.
#[derive(Debug)]
struct InUse(Arc<Mutex<Rotation>>);

impl ProvideCredentials for InUse {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let keys = lock(&self.0).active().map(signer);
        let none = || CredentialsError::not_loaded("no keys have been read yet");
        future::ProvideCredentials::ready(keys.ok_or_else(none))
    }
}

fn signer(keys: &Keys) -> Signer {
    let (id, secret) = (keys.access_key_id.as_str(), keys.secret_access_key.as_str());
    Signer::new(
        id,
        secret,
        keys.session_token.clone(),
        None,
        "sqlite-backup",
    )
}

fn lock(rotation: &Mutex<Rotation>) -> MutexGuard<'_, Rotation> {
    rotation.lock().expect("no panic happens under this lock")
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}
