//! Executes plans by server-side apply under one field manager. Makes no decisions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::names::{FIELD_MANAGER, WEBHOOK_CONFIGURATION};
use api::{RestoreTest, SqliteBackup, SqliteRestore};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::DeserializeGuard;
use kube::{Api, Client, Error, Resource};
use logging::chain;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::timeout;
use tracing::{Instrument, Span, info_span};

use crate::cache::Key;
use crate::event_writer::EventQueue;
use crate::observe::Observer;
use crate::plan::{Change, Plan};

/// Limit on objects written at once.
const AT_ONCE: usize = 8;

/// Time limit of one write.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Writes plans to the API server.
pub struct Applier {
    client: Client,
    observer: Arc<Observer>,
    events: EventQueue,
}

/// Result of one plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Number of successful writes.
    pub written: u64,
    /// Number of writes that failed, or were skipped after a failure for the same object.
    pub failed: u64,
}

/// Failure of a write. The next plan contains the write again.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Api(#[from] Box<Error>),
    #[error("no answer in time")]
    Timeout,
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        ApplyError::Api(Box::new(error))
    }
}

impl Applier {
    /// Creates an applier that queues Events in `events`.
    pub fn new(client: Client, observer: Arc<Observer>, events: EventQueue) -> Self {
        Applier {
            client,
            observer,
            events,
        }
    }

    /// Executes the writes of a plan: 8 objects at once, writes for one object in order. Then
    /// queues the Events of objects whose writes succeeded, without waiting for them.
    pub async fn apply(&self, plan: Plan) -> Outcome {
        let mut groups: Vec<(Subject, Vec<Change>)> = Vec::new();
        for change in plan.changes {
            let subject = subject(&change);
            match groups.iter_mut().find(|(s, _)| *s == subject) {
                Some((_, changes)) => changes.push(change),
                None => groups.push((subject, vec![change])),
            }
        }
        let results = futures::stream::iter(groups)
            .map(|(subject, changes)| async move {
                let planned = changes.len() as u64;
                let writes = self.apply_in_order(changes).instrument(subject.span());
                let written = writes.await;
                (
                    subject,
                    Outcome {
                        written,
                        failed: planned - written,
                    },
                )
            })
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;

        let failed: BTreeSet<&Subject> = results
            .iter()
            .filter(|(_, o)| o.failed > 0)
            .map(|(s, _)| s)
            .collect();
        for draft in plan.events {
            let about = &draft.about;
            let key = (
                about.namespace.clone().unwrap_or_default(),
                about.name.clone().unwrap_or_default(),
            );
            let subject = match about.kind.as_deref() {
                Some("RestoreTest") => Subject::Test(key),
                _ => Subject::Backup(key),
            };
            if !failed.contains(&subject) {
                self.events.push(draft);
            }
        }
        results
            .iter()
            .fold(Outcome::default(), |sum, (_, o)| Outcome {
                written: sum.written + o.written,
                failed: sum.failed + o.failed,
            })
    }

    async fn apply_in_order(&self, changes: Vec<Change>) -> u64 {
        let mut written = 0;
        for change in changes {
            let result = match timeout(REQUEST_TIMEOUT, self.write(change)).await {
                Ok(result) => result,
                Err(_) => Err(ApplyError::Timeout),
            };
            match result {
                Ok(()) => written += 1,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "write failed; it is tried again");
                    break;
                }
            }
        }
        written
    }

    async fn write(&self, change: Change) -> Result<(), ApplyError> {
        match change {
            Change::ConfigMap(config_map) => {
                let namespace = config_map.metadata.namespace.clone().unwrap_or_default();
                let api = Api::<ConfigMap>::namespaced(self.client.clone(), &namespace);
                let name = config_map.metadata.name.clone().unwrap_or_default();
                api.patch(&name, &params(), &Patch::Apply(&*config_map))
                    .await?;
                self.observer.note_config_map(*config_map, Timestamp::now());
            }
            Change::Webhooks(configuration) => {
                let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
                let patch = Patch::Apply(&*configuration);
                let answer = api.patch(WEBHOOK_CONFIGURATION, &params(), &patch).await?;
                self.observer.note_webhooks(answer);
            }
            Change::CreateTest(test) => {
                self.create::<RestoreTest>(*test).await?;
            }
            Change::CreateJob(job) => {
                self.create::<Job>(*job).await?;
            }
            Change::DeleteTest((namespace, name)) => {
                let api = Api::<RestoreTest>::namespaced(self.client.clone(), &namespace);
                absent_is_done(api.delete(&name, &DeleteParams::background()).await)?;
            }
            Change::BackupStatus(key, status) => {
                let answer = self
                    .status::<DeserializeGuard<SqliteBackup>>(&key, &*status)
                    .await?;
                self.observer.note_reported(&key);
                if let Some(backup) = answer {
                    self.observer.note_backup(backup);
                }
            }
            Change::TestStatus(key, status) => {
                if let Some(test) = self.status::<RestoreTest>(&key, &*status).await? {
                    self.observer.note_test(test);
                }
            }
            Change::RestoreStatus(key, status) => {
                if let Some(restore) = self.status::<SqliteRestore>(&key, &*status).await? {
                    self.observer.note_restore(restore);
                }
            }
        }
        Ok(())
    }

    /// Creates an object whose name is derived from its purpose. An existing one counts as success.
    async fn create<K>(&self, object: K) -> Result<(), ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        match api.create(&params, &object).await {
            Ok(_) => Ok(()),
            Err(Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Applies a status. `None`: the object no longer exists.
    async fn status<K>(&self, key: &Key, status: &impl Serialize) -> Result<Option<K>, ApplyError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let (namespace, name) = key;
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "namespace": namespace},
            "status": status,
        });
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        absent_is_done(
            api.patch_status(name, &params(), &Patch::Apply(patch))
                .await,
        )
    }
}

impl std::fmt::Debug for Applier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Applier").finish_non_exhaustive()
    }
}

fn params() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}

fn absent_is_done<T>(result: Result<T, Error>) -> Result<Option<T>, ApplyError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Object whose writes are executed in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Webhooks,
    Backup(Key),
    Test(Key),
    Restore(Key),
}

impl Subject {
    /// The span of every event about this object.
    fn span(&self) -> Span {
        let (kind, namespace, object) = match self {
            Subject::Webhooks => ("MutatingWebhookConfiguration", "", WEBHOOK_CONFIGURATION),
            Subject::Backup((namespace, name)) => ("SqliteBackup", &**namespace, &**name),
            Subject::Test((namespace, name)) => ("RestoreTest", &**namespace, &**name),
            Subject::Restore((namespace, name)) => ("SqliteRestore", &**namespace, &**name),
        };
        info_span!("object", kind, namespace, object)
    }
}

fn subject(change: &Change) -> Subject {
    let namespaced = |meta: &kube::api::ObjectMeta, name: &str| {
        (meta.namespace.clone().unwrap_or_default(), name.to_owned())
    };
    match change {
        Change::Webhooks(_) => Subject::Webhooks,
        Change::ConfigMap(config_map) => Subject::Backup(owner(&config_map.metadata)),
        Change::CreateTest(test) => {
            Subject::Backup(namespaced(&test.metadata, &test.spec.backup_ref.name))
        }
        Change::CreateJob(job) => Subject::Test(owner(&job.metadata)),
        Change::BackupStatus(key, _) => Subject::Backup(key.clone()),
        Change::TestStatus(key, _) | Change::DeleteTest(key) => Subject::Test(key.clone()),
        Change::RestoreStatus(key, _) => Subject::Restore(key.clone()),
    }
}

/// Namespace and name of the owner, which each created object has.
fn owner(meta: &kube::api::ObjectMeta) -> Key {
    let owner = meta.owner_references.iter().flatten().next();
    (
        meta.namespace.clone().unwrap_or_default(),
        owner.map(|o| o.name.clone()).unwrap_or_default(),
    )
}
