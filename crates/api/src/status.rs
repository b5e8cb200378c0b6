//! What the operator reports in a SqliteBackup.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most members that a status lists, the worst first.
pub const MEMBERS_SHOWN: usize = 20;

/// What was observed, written by the operator.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SqliteBackupStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Injected, Replicating, CredentialsValid, RestoreTestPassed and WriterConflict; while a
    /// Pod runs on a restored database that SQLite complains about, RestoredCleanly, too. Only for
    /// WriterConflict is True bad. Unknown means that nobody could look.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Counts of the selected Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodsStatus>,
    /// How replication goes, for the worst member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationStatus>,
    /// Members, the worst first. At most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub members: Vec<MemberStatus>,
    /// Restore tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_test: Option<TestSummary>,
}

/// Counts of the selected Pods that have not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodsStatus {
    /// Selected Pods.
    pub desired: u32,
    /// Those with our sidecar.
    pub injected: u32,
    /// Those whose databases are all replicating.
    pub replicating: u32,
    /// Those whose sidecar is older than the operator's or than the spec.
    pub outdated: u32,
    /// Replicating of desired, such as `3/3`.
    pub summary: String,
}

/// How replication goes, for the worst member.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationStatus {
    /// Age of the oldest commit that is not stored, in seconds, rounded up to coarse steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<u64>,
    /// The same for people; `unknown` when a sidecar does not answer, empty without sidecars.
    // Always written: an object that loses its last field by server-side apply becomes null.
    pub lag_summary: String,
    /// Bytes captured and not stored yet, all members together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_bytes: Option<u64>,
    /// When the store last acknowledged data of any member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// The newest stored position, when there is one member with one database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// One member: a Pod's name for a StatefulSet, the SqliteBackup's name otherwise.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberStatus {
    /// The member.
    pub name: String,
    /// The Pod that serves it.
    pub pod: String,
    /// State of its worst database, or SidecarUnreachable, or NotInjected.
    pub state: String,
    /// For people: what is wrong and what to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Databases that the sidecar knows.
    pub databases: u32,
    /// Age of its oldest commit that is not stored, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<u64>,
    /// Bytes captured and not stored yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_bytes: Option<u64>,
    /// When the store last acknowledged data of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
}

/// Restore tests of a SqliteBackup.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TestSummary {
    /// The scheduled time that was handled last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// When the next test is due; absent when suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_time: Option<Time>,
    /// The RestoreTest that finished last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<String>,
    /// Its verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    /// When it finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_finish_time: Option<Time>,
    /// When a test last passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success_time: Option<Time>,
    /// Tests in a row that did not pass.
    pub consecutive_failures: u32,
    /// Seconds of commits that a restore would have lost, as the last passed test measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// Seconds that the restore took, as the last passed test measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    /// The RestoreTest that runs now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
}
