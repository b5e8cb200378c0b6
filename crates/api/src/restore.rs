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

/// One restore of databases to a chosen point. Not served yet: such objects are accepted, and
/// their condition Served says so.
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
    doc = "One restore of databases to a chosen point. Not served yet: the condition Served says so.",
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
    /// The member to restore; left out: the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub member: Option<String>,
    /// Paths of the databases to restore; left out: all. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 2, max = 512)))]
    pub databases: Vec<String>,
    /// The point to restore; left out: the newest.
    #[serde(default)]
    pub point: TestPoint,
    /// Where the result goes. InPlace: over the live databases, which are kept beside it.
    /// NewClaim: into a new PersistentVolumeClaim.
    pub mode: RestoreMode,
    /// For InPlace: the name of the SqliteBackup once more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub confirm: Option<String>,
    /// For NewClaim: the claim to make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_claim: Option<NewClaim>,
}

/// Where the result of a restore goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreMode {
    /// Over the live databases.
    InPlace,
    /// Into a new PersistentVolumeClaim.
    NewClaim,
}

/// A PersistentVolumeClaim to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewClaim {
    /// Its name.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Its size, such as `5Gi`.
    #[schemars(length(min = 1, max = 32), regex(pattern = "^[0-9.]+[EPTGMKmkin]*$"))]
    pub storage: String,
}

/// What came of the restore.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SqliteRestoreStatus {
    /// The generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Served says whether this version carries such a restore out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
}
