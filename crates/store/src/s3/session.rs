//! Keeps the credentials of a store current: the driver of [`Rotation`].

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

/// Minimum time between two reads of the directory, unless the store refuses us.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// The credentials of a store.
pub(super) struct Session {
    /// `None`: the SDK's provider chain refreshes its own credentials.
    rotation: Option<Arc<Mutex<Rotation>>>,
    directory: Option<PathBuf>,
    /// Time of the last read of the directory. The mutex is held during a read.
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

    /// Returns a provider of the keys in use; `None` for the SDK's provider chain.
    pub(super) fn provider(&self) -> Option<SharedCredentialsProvider> {
        let rotation = self.rotation.as_ref()?;
        Some(SharedCredentialsProvider::new(InUse(Arc::clone(rotation))))
    }

    pub(super) fn status(&self) -> Option<CredentialsStatus> {
        Some(lock(self.rotation.as_ref()?).status())
    }

    /// Reads the directory when it is due, and returns the keys in use; `None` for the SDK's
    /// provider chain.
    ///
    /// # Errors
    /// [`StoreError::CredentialsMissing`] when the directory has not contained keys yet.
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
            // One call reads for all; the others continue with the current keys.
            let Ok(mut looked) = self.looked.try_lock() else {
                return Ok(Some(keys));
            };
            if looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                return Ok(Some(keys));
            }
            // Ignore the error: keys were present before, and the status reports their absence.
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

    /// Reads the directory at once, because the store refused `used`. Returns the keys in use if
    /// they have changed.
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

    /// Handles the result of a call that was signed with `keys`.
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
            // A missing permission for one call says nothing about the keys.
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

/// Tests with one cheap request whether the store accepts these keys.
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

/// Provides the keys in use for signatures.
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
