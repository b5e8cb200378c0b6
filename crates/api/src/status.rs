//! Status of a SqliteBackup, written by the operator.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limit on the members in a status; the worst ones are listed.
pub const MEMBERS_SHOWN: usize = 20;

/// Observed state, written by the operator.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SqliteBackupStatus {
    /// The generation of the spec to which this status applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions `Ready`, `Injected`, `Replicating`, `CredentialsValid`, `RestoreTestPassed` and
    /// `WriterConflict`; also `RestoredCleanly` while a Pod runs on a restored database that fails
    /// SQLite's own check. True is bad for `WriterConflict` only. Unknown means that the operator
    /// could not find out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Counts of the selected Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodsStatus>,
    /// State of replication, for the worst member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<ReplicationStatus>,
    /// The worst members, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub members: Vec<MemberStatus>,
    /// Summary of restore tests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_test: Option<TestSummary>,
}

/// Counts of the selected Pods that have not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PodsStatus {
    /// Number of selected Pods.
    pub desired: u32,
    /// Number of them with the sidecar.
    pub injected: u32,
    /// Number of them whose databases all replicate.
    pub replicating: u32,
    /// Number of them with an outdated sidecar: of an older operator or an older spec.
    pub outdated: u32,
    /// Replicating Pods / selected Pods, such as `3/3`.
    pub summary: String,
}

/// State of replication, for the worst member.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicationStatus {
    /// Age of the oldest commit that is not stored yet, in seconds, rounded up to coarse steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<u64>,
    /// The lag for people. `unknown` when a sidecar does not answer; empty without sidecars.
    // Always written: an object that loses its last field by server-side apply becomes null.
    pub lag_summary: String,
    /// Bytes captured and not stored yet, in all members together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_bytes: Option<u64>,
    /// Time at which a store last acknowledged data of any member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// The newest stored TXID, 16 hex digits. Only present for one member with one database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

/// One member. Its name is the Pod's name for a StatefulSet, else the SqliteBackup's name.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberStatus {
    /// Name of the member.
    pub name: String,
    /// Name of its Pod.
    pub pod: String,
    /// State of its worst database or target, or `SidecarUnreachable`, or `NotInjected`. It agrees
    /// with the reason of the condition `Replicating`.
    pub state: String,
    /// Explanation for people: the cause and the remedy. Present also for an outage within
    /// `maxLag`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Number of databases that the sidecar has found.
    pub databases: u32,
    /// Age of its oldest commit that is not stored yet, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<u64>,
    /// Bytes captured and not stored yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog_bytes: Option<u64>,
    /// Time at which a store last acknowledged data of this member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
}

/// Summary of the restore tests of a SqliteBackup.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TestSummary {
    /// The scheduled time for which a run was last created or skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// Time of the next scheduled run. Absent while suspended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_time: Option<Time>,
    /// Name of the RestoreTest that ended last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<String>,
    /// Its result in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_result: Option<String>,
    /// Time at which it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_finish_time: Option<Time>,
    /// Time at which a run last passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_success_time: Option<Time>,
    /// Number of runs in a row that did not pass.
    pub consecutive_failures: u32,
    /// Recovery point of the last passed run, in seconds: the span of commits that a restore would
    /// have lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// Recovery time of the last passed run, in seconds: the duration of the slowest restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    /// Name of the RestoreTest that runs now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<String>,
}
