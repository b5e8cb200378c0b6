//! `RestoreTest`: one run of a restore that proves a backup.

#![expect(
    clippy::duplicated_attributes,
    reason = "columns of one type are no duplicates; the lint does not know this attribute"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rule;

/// One restore test, made by the schedule of a SqliteBackup or by hand with `kubectl create`.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sqlite-backup.dev",
    version = "v1alpha1",
    kind = "RestoreTest",
    plural = "restoretests",
    namespaced,
    status = "RestoreTestStatus",
    derive = "PartialEq",
    doc = "One restore of a backup into scratch space, verified. Made by the schedule or by hand.",
    selectable = ".spec.backupRef.name",
    printcolumn(name = "Backup", type_ = "string", json_path = ".spec.backupRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Result",
        type_ = "string",
        json_path = ".status.result",
        description = "The verdict."
    ),
    printcolumn(
        name = "RPO",
        type_ = "string",
        json_path = ".status.rpoSummary",
        description = "Span of commits that a restore would have lost."
    ),
    printcolumn(
        name = "RTO",
        type_ = "string",
        json_path = ".status.rtoSummary",
        description = "Time that the restore took."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = 1
    )
)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self == oldSelf",
        "a RestoreTest is one run and cannot change; create another",
    ),
]))]
pub struct RestoreTestSpec {
    /// The SqliteBackup to prove.
    pub backup_ref: BackupRef,
    /// The point to restore; left out: the newest.
    #[serde(default)]
    pub at: TestPoint,
}

/// A SqliteBackup of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupRef {
    /// Name of the SqliteBackup.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// A point in the history of a backup. Exactly one of latest, timestamp and txid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.latest), has(self.timestamp), has(self.txid)].exists_one(x, x)",
        "exactly one of latest, timestamp and txid must be given",
    ),
    rule(
        "!has(self.latest) || self.latest",
        "latest can only be true",
    ),
]))]
pub struct TestPoint {
    /// The newest stored position, looked up when the restore runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<bool>,
    /// The newest position at or before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Time>,
    /// Exactly this position: 16 lowercase hex digits, as status shows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 16, max = 16), regex(pattern = "^[0-9a-f]{16}$"))]
    pub txid: Option<String>,
}

impl Default for TestPoint {
    fn default() -> Self {
        TestPoint {
            latest: Some(true),
            timestamp: None,
            txid: None,
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RestoreTestPhase {
    /// Waits for its turn.
    #[default]
    Pending,
    /// Its Job exists.
    Running,
    /// Everything holds.
    Passed,
    /// The backup is bad.
    Failed,
    /// The surroundings failed: nothing is said about the backup.
    Error,
}

impl RestoreTestPhase {
    /// True when nothing more will happen.
    pub fn is_finished(self) -> bool {
        !matches!(self, RestoreTestPhase::Pending | RestoreTestPhase::Running)
    }
}

/// What came of the run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreTestStatus {
    /// How far the run is.
    pub phase: RestoreTestPhase,
    /// The verdict in one word, once there is one: Passed, Stale, ChecksumMismatch, CheckFailed…
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// For people: what is wrong, what the run waits for, or what a passed one noted.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The Job that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Jobs started for it; more than one when a result was lost.
    pub attempts: u32,
    /// When its Job was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When the verdict was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// Databases restored and proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<u32>,
    /// Databases that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<u32>,
    /// Bytes read from the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds of commits that a restore would have lost; absent when nobody could tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// The same for people; `NotEvaluated` when no sidecar was alive to compare with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rpo_summary: String,
    /// Seconds that the restore took, for the slowest database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rto_summary: String,
    /// SQLite's version in the run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sqlite_version: String,
    /// Databases, failed ones first. At most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub databases: Vec<TestedDatabase>,
}

/// One restored database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TestedDatabase {
    /// The member.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub member: String,
    /// Its path.
    pub path: String,
    /// The target it was restored from.
    pub target: String,
    /// The verdict on it.
    pub result: String,
    /// For people: what is wrong; after a pass, what SQLite could not check, and notes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The position reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// The user's checks. At most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub checks: Vec<TestedCheck>,
}

/// One check of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TestedCheck {
    /// Name of the check.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// What was found, against what was expected.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
