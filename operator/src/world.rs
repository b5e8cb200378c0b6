//! What was observed, as plain values: the only input of [`crate::plan`].

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{RestoreTest, SqliteBackup, SqliteRestore};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use protocol::verify::StartupNotes;

use crate::answer::Answer;
use crate::cache::Key;

/// One consistent look at the cluster.
#[derive(Debug, Clone)]
pub struct World {
    /// When it was taken.
    pub now: Timestamp,
    /// Every SqliteBackup that could be read.
    pub backups: Vec<Arc<SqliteBackup>>,
    /// Those that could not, and have not been told so yet.
    pub unreadable: Vec<Unreadable>,
    /// Every RestoreTest.
    pub tests: Vec<Arc<RestoreTest>>,
    /// Every SqliteRestore.
    pub restores: Vec<Arc<SqliteRestore>>,
    /// Pods by namespace. A namespace that is absent has not been listed yet: nothing may be
    /// concluded about it.
    pub pods: BTreeMap<String, Vec<Arc<PodFacts>>>,
    /// Our Jobs.
    pub jobs: BTreeMap<Key, Arc<JobFacts>>,
    /// Our ConfigMaps as we applied them not long ago: there is no right to read any.
    pub config_maps: BTreeMap<Key, Arc<ConfigMap>>,
    /// What sidecars answered, by Pod UID.
    pub reports: BTreeMap<String, Arc<Report>>,
}

/// A SqliteBackup that breaks our types: stored by another version, or with rules switched off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Where it is.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// What does not fit.
    pub error: String,
}

/// What matters of a Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodFacts {
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Kind of its controlling owner.
    pub owner_kind: Option<String>,
    /// Annotation of the SqliteBackup that injected it.
    pub backup: Option<String>,
    /// Annotation with the hash of what was injected.
    pub injection: Option<String>,
    /// Whether our native sidecar is in it.
    pub has_sidecar: bool,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether our sidecar's container runs.
    pub sidecar_running: bool,
    /// Notes of our restore container about the databases that the application starts from.
    pub startup_notes: StartupNotes,
    /// How the container of a restore test ended, if it has.
    pub verdict: Option<Ended>,
}

impl PodFacts {
    /// Whether the Pod counts: it has not ended, and nobody has asked it to.
    pub fn is_live(&self) -> bool {
        !self.deleting && self.phase != "Succeeded" && self.phase != "Failed"
    }
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub exit_code: i32,
    /// Its termination message.
    pub message: String,
}

/// What matters of a Job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobFacts {
    /// Where it is.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// Whether and how it ended.
    pub end: Option<JobEnd>,
    /// When it ended.
    pub ended: Option<Timestamp>,
}

/// How a Job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// A Pod succeeded.
    Complete,
    /// It gave up, for this reason of Kubernetes' such as `DeadlineExceeded`.
    Failed(String),
}

/// The last look at a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// When we looked.
    pub at: Timestamp,
    /// What it answered, or why it did not.
    pub answer: Result<Arc<Answer>, String>,
    /// Looks in a row that failed.
    pub failures: u32,
    /// What it answered last, also when it has fallen silent since.
    pub last_answer: Option<Arc<Answer>>,
}
