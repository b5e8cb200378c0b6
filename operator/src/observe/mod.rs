//! Watches of the cluster, combined into the [`ClusterState`].
//!
//! The kinds of `sqlite-backup.dev`, restore test Jobs and the webhook configuration are watched in
//! all namespaces. Pods are watched only in namespaces with a SqliteBackup, so that the rest of a
//! large cluster costs nothing.

mod pods;
mod slim;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use api::names::{FIELD_MANAGER, MANAGED_BY_LABEL, WEBHOOK_CONFIGURATION};
use api::{RestoreTest, SqliteBackup, SqliteRestore};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use logging::chain;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::cache::{Cache, Entry, Key};
use crate::cluster_state::{ClusterState, JobFacts, PodFacts, Report, Unreadable};
use pods::PodWatches;
use slim::SlimJob;

/// Number of objects in one page of a list.
pub(crate) const PAGE: u32 = 500;

/// Age after which a ConfigMap is applied again, in case it was changed or deleted. The operator
/// has no right to read ConfigMaps.
const CONFIG_MAP_AGE: SignedDuration = SignedDuration::from_mins(10);

/// A SqliteBackup, or the metadata of one that cannot be read.
#[derive(Debug, PartialEq)]
pub enum Backup {
    /// The object is valid.
    Readable(Arc<SqliteBackup>),
    /// The object breaks the types of this version.
    Unreadable(Unreadable),
}

/// Observed state. Shared by the reconciler, the webhook, the poller and the metrics.
#[derive(Debug)]
pub struct Observer {
    changed: watch::Sender<()>,
    backups: Cache<Backup>,
    tests: Cache<RestoreTest>,
    restores: Cache<SqliteRestore>,
    jobs: Cache<JobFacts>,
    webhooks: Cache<MutatingWebhookConfiguration>,
    pods: PodWatches,
    notes: Mutex<Notes>,
}

/// State that no watch shows: reports of sidecars, and our own writes.
#[derive(Debug, Default)]
struct Notes {
    reports: BTreeMap<String, Arc<Report>>,
    config_maps: BTreeMap<Key, (Timestamp, Arc<ConfigMap>)>,
    reported: BTreeSet<(String, Option<i64>)>,
}

impl Observer {
    /// Creates an observer without any state.
    pub fn new(client: Client) -> Arc<Observer> {
        let changed = watch::Sender::new(());
        Arc::new(Observer {
            backups: Cache::new(changed.clone()),
            tests: Cache::new(changed.clone()),
            restores: Cache::new(changed.clone()),
            jobs: Cache::new(changed.clone()),
            webhooks: Cache::new(changed.clone()),
            pods: PodWatches::new(client, changed.clone()),
            notes: Mutex::default(),
            changed,
        })
    }

    /// Watches until it is dropped. Broken watches are restarted with exponential backoff.
    pub async fn run(self: Arc<Self>, client: Client) {
        let ours = format!("{MANAGED_BY_LABEL}={FIELD_MANAGER}");
        let everything = || watcher::Config::default().page_size(PAGE);
        let webhook = format!("metadata.name={WEBHOOK_CONFIGURATION}");
        tokio::join!(
            follow(
                Api::<DeserializeGuard<SqliteBackup>>::all(client.clone()),
                everything(),
                &self.backups,
                Backup::from,
            ),
            follow(
                Api::all(client.clone()),
                everything(),
                &self.tests,
                trimmed::<RestoreTest>
            ),
            follow(
                Api::all(client.clone()),
                everything(),
                &self.restores,
                trimmed
            ),
            follow(
                Api::all(client.clone()),
                everything().labels(&ours),
                &self.jobs,
                |job: SlimJob| { JobFacts::from(job) }
            ),
            follow(
                Api::all(client),
                everything().fields(&webhook),
                &self.webhooks,
                trimmed
            ),
        );
    }

    /// A channel that is notified of every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Whether every list is complete.
    pub fn is_ready(&self) -> bool {
        self.backups.is_ready()
            && self.tests.is_ready()
            && self.restores.is_ready()
            && self.jobs.is_ready()
            && self.webhooks.is_ready()
    }

    /// The SqliteBackups of a namespace, from memory.
    pub fn backups_in(&self, namespace: &str) -> Vec<Arc<SqliteBackup>> {
        readable(self.backups.in_namespace(namespace)).collect()
    }

    /// Every SqliteBackup that can be read, from memory.
    pub fn backups(&self) -> Vec<Arc<SqliteBackup>> {
        readable(self.backups.all()).collect()
    }

    /// Every Pod of the watched namespaces, from memory.
    pub fn pods(&self) -> Vec<Arc<PodFacts>> {
        self.pods.listed().into_values().flatten().collect()
    }

    /// The CA bundles in the webhook configuration; `None` before the first list.
    pub fn published_bundles(&self) -> Option<BTreeSet<Vec<u8>>> {
        if !self.webhooks.is_ready() {
            return None;
        }
        let configurations = self.webhooks.all();
        let entries = configurations
            .iter()
            .filter_map(|c| c.webhooks.as_ref())
            .flatten();
        Some(
            entries
                .filter_map(|e| e.client_config.ca_bundle.clone())
                .map(|b| b.0)
                .collect(),
        )
    }

    /// Starts and ends watches of Pods: they are watched in namespaces with a SqliteBackup or an
    /// unfinished RestoreTest. Needs a runtime. Call it before each [`Observer::cluster_state`].
    pub fn watch_pods(&self) {
        let unfinished =
            |t: &Arc<RestoreTest>| !t.status.as_ref().is_some_and(|s| s.phase.is_finished());
        let tests = self.tests.all().into_iter().filter(unfinished);
        let backups = self.backups.all().into_iter().map(|b| b.key().0);
        let namespaces = backups.chain(tests.filter_map(|t| t.namespace())).collect();
        self.pods.keep(&namespaces);
    }

    /// Returns the observed state at `now`. Changes nothing.
    pub fn cluster_state(&self, now: Timestamp) -> ClusterState {
        let all = self.backups.all();
        let notes = self.notes();
        let bad = all.iter().filter_map(|b| match &**b {
            Backup::Unreadable(bad) => Some(bad.clone()),
            Backup::Readable(_) => None,
        });
        let unreadable = bad
            .filter(|b| !notes.reported.contains(&(b.uid.clone(), b.generation)))
            .collect();
        let fresh = |at: &Timestamp| now.duration_since(*at) < CONFIG_MAP_AGE;
        let config_maps = notes.config_maps.iter();
        ClusterState {
            now,
            backups: readable(all).collect(),
            unreadable,
            tests: self.tests.all(),
            restores: self.restores.all(),
            pods: self.pods.listed(),
            jobs: self.jobs.all().into_iter().map(|j| (j.key(), j)).collect(),
            config_maps: config_maps
                .filter(|(_, (at, _))| fresh(at))
                .map(|(k, (_, v))| (k.clone(), Arc::clone(v)))
                .collect(),
            reports: notes.reports.clone(),
        }
    }

    /// The entries of the webhook configuration; `None` when it does not exist. The installation
    /// creates and removes it: an operator that is being uninstalled must not create it again.
    pub fn webhook_entries(&self) -> Option<Vec<MutatingWebhook>> {
        let configuration = self.webhooks.all().into_iter().next()?;
        Some(configuration.webhooks.clone().unwrap_or_default())
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets reports and own writes: another replica may have led meanwhile.
    pub fn forget(&self) {
        *self.notes() = Notes::default();
    }

    /// Records reports, by Pod UID. Forgets the reports of Pods for which `exists` is false.
    pub fn note_reports(
        &self,
        answered: BTreeMap<String, Arc<Report>>,
        exists: impl Fn(&str) -> bool,
    ) {
        let mut notes = self.notes();
        let known = notes.reports.len();
        notes.reports.retain(|uid, _| exists(uid));
        let changed = notes.reports.len() != known || !answered.is_empty();
        notes.reports.extend(answered);
        drop(notes);
        if changed {
            self.changed.send_replace(());
        }
    }

    /// The last report of one sidecar.
    pub fn report(&self, uid: &str) -> Option<Arc<Report>> {
        self.notes().reports.get(uid).cloned()
    }

    /// The last report of each sidecar, by Pod UID.
    pub fn reports(&self) -> BTreeMap<String, Arc<Report>> {
        self.notes().reports.clone()
    }

    /// Records an applied ConfigMap.
    pub fn note_config_map(&self, config_map: ConfigMap, now: Timestamp) {
        let key = (
            config_map.metadata.namespace.clone().unwrap_or_default(),
            config_map.metadata.name.clone().unwrap_or_default(),
        );
        let mut notes = self.notes();
        let fresh = |at: &Timestamp| now.duration_since(*at) < CONFIG_MAP_AGE;
        notes.config_maps.retain(|_, (at, _)| fresh(at));
        notes.config_maps.insert(key, (now, Arc::new(config_map)));
    }

    /// Records that the status of an unreadable SqliteBackup reports it.
    pub fn note_reported(&self, key: &Key) {
        for backup in self.backups.in_namespace(&key.0) {
            if let Backup::Unreadable(bad) = &*backup
                && bad.key == *key
            {
                self.notes()
                    .reported
                    .insert((bad.uid.clone(), bad.generation));
            }
        }
    }

    /// Applies the API server's answer to a write, ahead of the watch.
    pub fn note_backup(&self, backup: DeserializeGuard<SqliteBackup>) {
        self.backups.refresh(Backup::from(backup));
    }

    /// As [`Observer::note_backup`], for a RestoreTest.
    pub fn note_test(&self, test: RestoreTest) {
        self.tests.refresh(trimmed(test));
    }

    /// As [`Observer::note_backup`], for a SqliteRestore.
    pub fn note_restore(&self, restore: SqliteRestore) {
        self.restores.refresh(trimmed(restore));
    }

    /// As [`Observer::note_backup`], for the webhook configuration.
    pub fn note_webhooks(&self, configuration: MutatingWebhookConfiguration) {
        self.webhooks.refresh(trimmed(configuration));
    }
}

fn readable(all: Vec<Arc<Backup>>) -> impl Iterator<Item = Arc<SqliteBackup>> {
    all.into_iter().filter_map(|backup| match &*backup {
        Backup::Readable(backup) => Some(Arc::clone(backup)),
        Backup::Unreadable(_) => None,
    })
}

/// Runs one watch forever.
async fn follow<K, V>(
    api: Api<K>,
    config: watcher::Config,
    cache: &Cache<V>,
    convert: impl Fn(K) -> V,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    V: Entry,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let mut buffer = BTreeMap::new();
    let mut events = watcher(api, config).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => cache.take(map(event, &convert), &mut buffer),
            Err(error) => {
                tracing::warn!(kind, error = %chain(&error), "watch failed; it is started again")
            }
        }
    }
}

fn map<K, V>(event: Event<K>, convert: impl Fn(K) -> V) -> Event<V> {
    match event {
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(convert(object)),
        Event::InitDone => Event::InitDone,
        Event::Apply(object) => Event::Apply(convert(object)),
        Event::Delete(object) => Event::Delete(convert(object)),
    }
}

/// Removes `managedFields`, which is half of an object's size.
fn trimmed<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

impl From<DeserializeGuard<SqliteBackup>> for Backup {
    fn from(DeserializeGuard(read): DeserializeGuard<SqliteBackup>) -> Backup {
        match read {
            Ok(backup) => Backup::Readable(Arc::new(trimmed(backup))),
            Err(invalid) => Backup::Unreadable(Unreadable {
                key: (
                    invalid.metadata.namespace.unwrap_or_default(),
                    invalid.metadata.name.unwrap_or_default(),
                ),
                uid: invalid.metadata.uid.unwrap_or_default(),
                generation: invalid.metadata.generation,
                resource_version: invalid.metadata.resource_version,
                error: invalid.error,
            }),
        }
    }
}

fn object_key(object: &impl ResourceExt) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl Entry for Backup {
    fn key(&self) -> Key {
        match self {
            Backup::Readable(backup) => object_key(&**backup),
            Backup::Unreadable(bad) => bad.key.clone(),
        }
    }

    fn resource_version(&self) -> Option<&str> {
        match self {
            Backup::Readable(backup) => backup.metadata.resource_version.as_deref(),
            Backup::Unreadable(bad) => bad.resource_version.as_deref(),
        }
    }
}

/// Entries that are whole objects.
macro_rules! object_entry {
    ($($kind:ty),*) => {$(
        impl Entry for $kind {
            fn key(&self) -> Key {
                object_key(self)
            }

            fn resource_version(&self) -> Option<&str> {
                self.metadata.resource_version.as_deref()
            }
        }
    )*};
}

object_entry!(RestoreTest, SqliteRestore, MutatingWebhookConfiguration);

/// Entries that are facts about an object.
macro_rules! facts_entry {
    ($($facts:ty),*) => {$(
        impl Entry for $facts {
            fn key(&self) -> Key {
                (self.namespace.clone(), self.name.clone())
            }

            fn resource_version(&self) -> Option<&str> {
                self.resource_version.as_deref()
            }
        }
    )*};
}

facts_entry!(PodFacts, JobFacts);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_malformed_object_does_not_hide_the_others() {
        let list = json!([
            {"metadata": {"name": "bad", "namespace": "shop", "uid": "b", "generation": 3},
             "spec": {"selector": 5}},
            {"metadata": {"name": "good", "namespace": "shop"},
             "spec": {"selector": {"matchLabels": {"app": "x"}}, "databases": [], "targets": []}},
        ]);
        let list: Vec<DeserializeGuard<SqliteBackup>> = serde_json::from_value(list).unwrap();
        let list: Vec<Backup> = list.into_iter().map(Backup::from).collect();
        assert!(matches!(&list[0], Backup::Unreadable(bad) if bad.generation == Some(3)));
        assert!(matches!(&list[1], Backup::Readable(_)));
        assert_eq!(list[0].key(), ("shop".into(), "bad".into()));
    }
}
