//! `SqliteRestore`: one restore on demand.

#![expect(
    clippy::duplicated_attributes,
    reason = "columns of one type are no duplicates; the lint does not know this attribute"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::restore_test::{BackupRef, TestPoint};
use crate::schema::rule;

/// One restore of databases to a chosen point. Not supported yet: objects are accepted, and their
/// condition `Served` is False.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sqlite-backup.dev",
    version = "v1alpha1",
    kind = "SqliteRestore",
    plural = "sqliterestores",
    namespaced,
    status = "SqliteRestoreStatus",
    derive = "PartialEq",
    doc = "One restore of databases to a chosen point. Not supported yet: the condition Served is False.",
    printcolumn(name = "Backup", type_ = "string", json_path = ".spec.backupRef.name"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(
        name = "Served",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Served\")].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self == oldSelf",
        "a SqliteRestore is one restore and cannot change; create another",
    ),
    rule(
        "self.mode != 'InPlace' || has(self.confirm) && self.confirm == self.backupRef.name",
        "mode InPlace replaces live data: confirm must repeat backupRef.name",
    ),
    rule(
        "(self.mode == 'NewClaim') == has(self.newClaim)",
        "newClaim is for mode NewClaim, which needs it",
    ),
]))]
pub struct SqliteRestoreSpec {
    /// The SqliteBackup to restore from.
    pub backup_ref: BackupRef,
    /// The member to restore. Default: the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub member: Option<String>,
    /// Paths of the databases to restore, at most 64. Default: every database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 512)))]
    pub databases: Vec<String>,
    /// The point to restore. Default: the newest one.
    #[serde(default)]
    pub point: TestPoint,
    /// Destination of the restore. `InPlace` replaces the live databases and keeps them beside the
    /// result. `NewClaim` creates a new PersistentVolumeClaim.
    pub mode: RestoreMode,
    /// The name of the SqliteBackup again. Required for `InPlace`, which replaces live data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub confirm: Option<String>,
    /// The claim to create. Required for `NewClaim`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_claim: Option<NewClaim>,
}

/// Destination of a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreMode {
    /// Replace the live databases.
    InPlace,
    /// Create a new PersistentVolumeClaim.
    NewClaim,
}

/// A PersistentVolumeClaim to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewClaim {
    /// Name of the claim.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Size of the claim, such as `5Gi`.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[0-9.]+[EPTGMKmkin]*$"))]
    pub storage: String,
}

/// Result of the restore.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SqliteRestoreStatus {
    /// The generation of the spec to which this status applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. `Served` is True when this version carries out such restores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}
