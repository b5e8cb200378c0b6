//! Observed state as plain values: the only input of [`crate::plan`].

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{RestoreTest, SqliteBackup, SqliteRestore};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use protocol::verify::StartupNotes;

use crate::answer::Answer;
use crate::cache::Key;

/// Consistent state of the cluster at one time.
#[derive(Debug, Clone)]
pub struct ClusterState {
    /// Time of the observation.
    pub now: Timestamp,
    /// Every SqliteBackup that could be read.
    pub backups: Vec<Arc<SqliteBackup>>,
    /// SqliteBackups that cannot be read, and whose status does not report it yet.
    pub unreadable: Vec<Unreadable>,
    /// Every RestoreTest.
    pub tests: Vec<Arc<RestoreTest>>,
    /// Every SqliteRestore.
    pub restores: Vec<Arc<SqliteRestore>>,
    /// Pods by namespace. A missing namespace was not listed yet: nothing is known about its Pods.
    pub pods: BTreeMap<String, Vec<Arc<PodFacts>>>,
    /// Jobs of restore tests.
    pub jobs: BTreeMap<Key, Arc<JobFacts>>,
    /// ConfigMaps that were applied in the last 10 minutes. The operator has no right to read them.
    pub config_maps: BTreeMap<Key, Arc<ConfigMap>>,
    /// Reports of sidecars, by Pod UID.
    pub reports: BTreeMap<String, Arc<Report>>,
}

/// A SqliteBackup that breaks the types of this version: another version stored it, or rules were
/// disabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// Error of the deserialization.
    pub error: String,
}

/// The relevant facts about a Pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodFacts {
    /// Namespace and name.
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
    /// Annotation with the name of its SqliteBackup.
    pub backup: Option<String>,
    /// Annotation with the hash of the injected containers.
    pub injection: Option<String>,
    /// Whether it has the native sidecar.
    pub has_sidecar: bool,
    /// Its IP address; `None` before it has one.
    pub ip: Option<String>,
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether the container of the sidecar runs.
    pub sidecar_running: bool,
    /// Notes of the restore container about the databases that the application starts from.
    pub startup_notes: StartupNotes,
    /// End of the container of a restore test.
    pub verdict: Option<Ended>,
}

impl PodFacts {
    /// Whether the Pod is live: neither ended nor being deleted.
    pub fn is_live(&self) -> bool {
        !self.deleting && self.phase != "Succeeded" && self.phase != "Failed"
    }
}

/// End of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub exit_code: i32,
    /// Its termination message.
    pub message: String,
}

/// The relevant facts about a Job.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobFacts {
    /// Namespace and name.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// Its end, if it has ended.
    pub end: Option<JobEnd>,
    /// Time of its end.
    pub ended: Option<Timestamp>,
}

/// End of a Job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEnd {
    /// A Pod succeeded.
    Complete,
    /// The Job failed, with a reason of Kubernetes such as `DeadlineExceeded`.
    Failed(String),
}

/// Result of the last poll of a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Time of the poll.
    pub at: Timestamp,
    /// The answer, or the failure of the poll.
    pub answer: Result<Arc<Answer>, String>,
    /// Number of failed polls in a row.
    pub failures: u32,
    /// The last answer, also after failed polls.
    pub last_answer: Option<Arc<Answer>>,
}
