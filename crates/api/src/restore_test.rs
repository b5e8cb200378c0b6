//! `RestoreTest`: one run of a restore test.

#![expect(
    clippy::duplicated_attributes,
    reason = "columns of one type are no duplicates; the lint does not know this attribute"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rule;

/// One run of a restore test, created by the schedule of a SqliteBackup or with `kubectl create`.
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
    doc = "One restore of a backup into scratch space, with its verification. Created by the schedule or by hand.",
    selectable = ".spec.backupRef.name",
    printcolumn(name = "Backup", type_ = "string", json_path = ".spec.backupRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(
        name = "Result",
        type_ = "string",
        json_path = ".status.result",
        description = "Result in one word."
    ),
    printcolumn(
        name = "RPO",
        type_ = "string",
        json_path = ".status.rpoSummary",
        description = "Age of the newest restored commit, against the newest one of the application."
    ),
    printcolumn(
        name = "RTO",
        type_ = "string",
        json_path = ".status.rtoSummary",
        description = "Duration of the slowest restore."
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
    /// The SqliteBackup to test.
    pub backup_ref: BackupRef,
    /// The point to restore. Default: the newest one.
    #[serde(default)]
    pub at: TestPoint,
}

/// Reference to a SqliteBackup of the same namespace.
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

/// A point in the history of a backup. Exactly one of `latest`, `timestamp` and `txid` is required.
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
    /// The newest stored position at the start of the restore; only `true` is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<bool>,
    /// The newest position at or before this RFC 3339 time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<Time>,
    /// Exactly this position: a TXID of 16 lowercase hex digits, as in the status.
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

/// Phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum RestoreTestPhase {
    /// The run waits for its turn.
    #[default]
    Pending,
    /// The Job exists.
    Running,
    /// Every database was restored and verified.
    Passed,
    /// The verification failed: the backup is bad.
    Failed,
    /// The run itself failed, for example on credentials. It proves nothing about the backup.
    Error,
}

impl RestoreTestPhase {
    /// Whether the run has ended.
    pub fn is_finished(self) -> bool {
        !matches!(self, RestoreTestPhase::Pending | RestoreTestPhase::Running)
    }
}

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreTestStatus {
    /// Phase of the run.
    pub phase: RestoreTestPhase,
    /// Result in one word, once the run has ended: `Passed`, `Stale`, `ChecksumMismatch`,
    /// `CheckFailed`…
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Explanation for people: the cause of a failure or of the wait, or the notes of a passed run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Name of the Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Number of Jobs started for this run; more than one when a result was lost.
    pub attempts: u32,
    /// Creation time of the Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// End of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// Number of databases restored and verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passed: Option<u32>,
    /// Number of databases that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<u32>,
    /// Bytes read from the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Recovery point, in seconds: the span of commits that a restore would have lost. Absent when
    /// no sidecar was alive to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_seconds: Option<u64>,
    /// Recovery point for people. `NotEvaluated` when no sidecar was alive to compare with.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rpo_summary: String,
    /// Recovery time, in seconds: the duration of the slowest restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
    /// Recovery time for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rto_summary: String,
    /// Version of SQLite in the run.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sqlite_version: String,
    /// Results of single databases, failed ones first. At most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub databases: Vec<TestedDatabase>,
}

/// One restored database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TestedDatabase {
    /// Name of the member.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub member: String,
    /// Path of the database.
    pub path: String,
    /// Name of the target from which it was restored.
    pub target: String,
    /// Result in one word.
    pub result: String,
    /// Explanation for people; after a pass, the tables that SQLite could not check, and notes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The restored position: a TXID of 16 hex digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub txid: Option<String>,
    /// Results of the user's checks. At most 32.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub checks: Vec<TestedCheck>,
}

/// Result of one of the user's checks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TestedCheck {
    /// Name of the check.
    pub name: String,
    /// Whether the result was as expected.
    pub ok: bool,
    /// The actual result beside the expected one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}
