//! `SqliteBackup`: the databases to protect, the targets of their backups, and the restore tests.

#![expect(
    clippy::duplicated_attributes,
    reason = "columns of one type are no duplicates; the lint does not know this attribute"
)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use protocol::Span;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::proof::RestoreTestPolicy;
use crate::schema::{between, rule};
use crate::selector::PodSelector;
use crate::status::SqliteBackupStatus;
use crate::target::{SecretKeyRef, Target};

/// Continuous backup of SQLite databases, with restores that are tested on a schedule.
///
/// Each selected Pod gets an init container, which restores missing databases before the
/// application starts, and a sidecar, which replicates them while it runs.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "sqlite-backup.dev",
    version = "v1alpha1",
    kind = "SqliteBackup",
    plural = "sqlitebackups",
    shortname = "sqb",
    namespaced,
    status = "SqliteBackupStatus",
    derive = "PartialEq",
    doc = "Continuous backup of the SQLite databases of selected Pods, with restores tested on a schedule.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the spec is accepted and in force."
    ),
    printcolumn(
        name = "Pods",
        type_ = "string",
        json_path = ".status.pods.summary",
        description = "Replicating Pods / selected Pods."
    ),
    printcolumn(
        name = "Lag",
        type_ = "string",
        json_path = ".status.replication.lagSummary",
        description = "Age of the oldest commit that is not stored yet, for the worst member."
    ),
    printcolumn(
        name = "Last-Sync",
        type_ = "date",
        json_path = ".status.replication.lastSyncTime",
        description = "Time since the store last acknowledged data."
    ),
    printcolumn(
        name = "Test",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"RestoreTestPassed\")].reason",
        description = "Result of the last restore test."
    ),
    printcolumn(
        name = "Tested",
        type_ = "date",
        json_path = ".status.restoreTest.lastSuccessTime",
        description = "Time since a restore test last passed."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.databases.size() <= 1 && !self.databases.exists(d, d.path.contains('*')) || self.targets.all(t, (!has(t.s3) || t.s3.prefix.contains('{database}')) && (!has(t.file) || t.file.prefix.contains('{database}')) && (!has(t.gcs) || t.gcs.prefix.contains('{database}')) && (!has(t.azure) || t.azure.prefix.contains('{database}')) && (!has(t.sftp) || t.sftp.prefix.contains('{database}')))",
        "with several databases the prefix of every target must contain {database}, or they would overwrite each other",
    ),
    rule(
        "!has(self.restoreTest.checks) || self.databases.exists(d, d.path.contains('*')) || self.restoreTest.checks.all(c, !has(c.database) || c.database == '*' || self.databases.exists(d, d.path == c.database || d.path.endsWith('/' + c.database)))",
        "restoreTest.checks names a database that is not in databases; use its path, its file name or *",
    ),
]))]
pub struct SqliteBackupSpec {
    /// Labels of the Pods to protect, in this namespace. Running Pods get the containers when they
    /// are created again. A Pod with the label `sqlite-backup.dev/inject: "false"` is left out.
    pub selector: PodSelector,

    /// Container whose volume mounts and user the sidecar uses. Required only when several
    /// containers mount the databases. Default: the only container that mounts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub container: Option<String>,

    /// Databases to back up, 1 to 64 entries.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"])
    )]
    pub databases: Vec<DatabaseSpec>,

    /// Stores that receive the backups, 1 to 4. Each target gets every file; restores try the
    /// targets in this order.
    #[schemars(
        length(min = 1, max = 4),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub targets: Vec<Target>,

    /// Upload interval, and the longest acceptable lag.
    #[serde(default)]
    pub replication: Replication,

    /// Snapshots: complete images of a database, from which restores begin.
    #[serde(default)]
    pub snapshots: Snapshots,

    /// Retention: how long each kind of file is kept.
    #[serde(default)]
    pub retention: Retention,

    /// Encryption of stored files. Not supported yet: an object that sets it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,

    /// Restore before the application starts.
    #[serde(default)]
    pub startup: Startup,

    /// Last upload when the Pod stops.
    #[serde(default)]
    pub shutdown: Shutdown,

    /// Containers that the operator injects.
    #[serde(default)]
    pub sidecar: Sidecar,

    /// Restore tests: scheduled restores that prove the backup. Default: once a week.
    #[serde(default)]
    pub restore_test: RestoreTestPolicy,

    /// Fate of the stored backups when this object is deleted. Default: `Retain`, which keeps them.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// `true` stops the injection into new Pods and the schedule of restore tests. Running sidecars
    /// continue to replicate. Default: `false`.
    #[serde(default)]
    pub suspend: bool,
}

/// One database, or every database that matches a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "!has(self.exclude) || size(self.exclude) == 0 || self.path.contains('*')",
        "exclude needs a path with *",
    ),
]))]
pub struct DatabaseSpec {
    /// Absolute path of the database file in the container, 2 to 512 characters. `*` matches any
    /// part of a name, and `**` any directories; databases that appear later are included. The
    /// volume must be mounted at or above the directory before the first `*`.
    #[schemars(length(min = 2, max = 512))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule(
            "self.startsWith('/') && !self.endsWith('/') && !self.contains('//')",
            "path must be absolute and name a file",
        ),
        rule(
            "!self.split('/').exists(s, s == '..' || s == '.')",
            "path must not contain . or .. segments",
        ),
        rule(
            "!self.matches('[^/][*][*]|[*][*][^/]')",
            "** must be a whole path segment",
        ),
        rule(
            "!self.matches('[$?\\\\[\\\\]\\\\x00-\\\\x1f\\\\x7f]')",
            "path must not contain $ ? [ ] or control characters",
        ),
        rule(
            "!self.endsWith('-wal') && !self.endsWith('-shm') && !self.endsWith('-journal')",
            "path must name the database, not its -wal, -shm or -journal file",
        ),
    ]))]
    pub path: String,
    /// Patterns of files to leave out, such as `*.tmp.db`, up to 16. Only valid when `path` has a
    /// `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub exclude: Vec<String>,
}

impl DatabaseSpec {
    /// Whether the path is a pattern, which matches any number of databases.
    pub fn is_pattern(&self) -> bool {
        self.path.contains('*')
    }

    /// The value of `{database}` in the prefix of a target: the path of the database, or the
    /// directory before the first `*`. For a pattern, each database adds its path below that
    /// directory.
    pub fn place(&self) -> &str {
        match self.path.find('*') {
            Some(star) => self.path[..star]
                .rsplit_once('/')
                .map_or("", |(base, _)| base),
            None => &self.path,
        }
    }
}

/// Upload interval, and the longest acceptable lag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.maxLag >= self.syncInterval",
        "maxLag must be at least syncInterval",
    ),
]))]
pub struct Replication {
    /// Average time between two uploads under load, `100ms` to `1h`; default `1s`. No commit waits
    /// longer. The first commit after a quiet period is uploaded at once. A burst after it is
    /// uploaded more often than once in each interval.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("100ms", "1h")]))]
    pub sync_interval: Span,
    /// Longest acceptable age of a commit that is not stored yet, `1s` to `168h`; default `60s`.
    /// Beyond it, the condition `Replicating` is False and restore tests fail with `Stale`.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1s", "168h")]))]
    pub max_lag: Span,
}

impl Default for Replication {
    fn default() -> Self {
        Replication {
            sync_interval: Span::from_secs(1),
            max_lag: Span::from_secs(60),
        }
    }
}

/// Snapshots: complete images of a database, from which restores begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Snapshots {
    /// Time between two snapshots of a database that changes, `1m` to `720h`; default `24h`. A
    /// shorter interval makes restores faster and stores more bytes.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1m", "720h")]))]
    pub interval: Span,
}

impl Default for Snapshots {
    fn default() -> Self {
        Snapshots {
            interval: Span::from_secs(24 * 3600),
        }
    }
}

/// Retention: how long each kind of file is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.exact <= self.window",
        "exact must be at most window",
    ),
]))]
pub struct Retention {
    /// Age up to which every captured point can be restored, `0s` to `8784h`; default `24h`. At
    /// most `window`.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("0s", "8784h")]))]
    pub exact: Span,
    /// Age up to which points about 30 s apart can be restored, `1m` to `8784h`; default `168h`.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1m", "8784h")]))]
    pub window: Span,
    /// Number of daily snapshots to keep beyond `window`, 0 to 366; default 7.
    #[schemars(range(min = 0, max = 366))]
    pub daily: u32,
    /// Number of weekly snapshots to keep beyond `window`, 0 to 520; default 4.
    #[schemars(range(min = 0, max = 520))]
    pub weekly: u32,
    /// Number of monthly snapshots to keep beyond `window`, 0 to 120; default 3.
    #[schemars(range(min = 0, max = 120))]
    pub monthly: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Retention {
            exact: Span::from_secs(24 * 3600),
            window: Span::from_secs(168 * 3600),
            daily: 7,
            weekly: 4,
            monthly: 3,
        }
    }
}

/// Encryption of stored files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// Encryption in the age format.
    pub age: Age,
}

/// Encryption in the age format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Age {
    /// Secret with the age identity. Nothing can be restored without it: keep a copy outside the
    /// cluster.
    pub identity_secret_ref: SecretKeyRef,
}

/// Restore before the application starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Startup {
    /// Action when the local database is missing. `Restore` (default) restores it, and starts empty
    /// only when the store confirms that no backup exists. `RequireBackup` waits until a backup
    /// exists. `StartEmpty` never restores.
    pub on_missing: OnMissing,
    /// Action when the local database does not descend from the newest backup. `Block` (default)
    /// replicates nothing and reports it. `NewLineage` backs the local database up; earlier points
    /// stay restorable.
    pub on_divergence: OnDivergence,
    /// Action when no target can be reached. `StartIfLocalExists` (default) starts the application
    /// when every database exists locally, and waits otherwise. `Wait` always waits.
    pub when_unreachable: WhenUnreachable,
    /// Action when SQLite's own check of a restored database fails, although checksums prove that
    /// its bytes are the stored ones, so the source has the same fault. `Start` (default) starts
    /// the application and reports it. `Block` waits for a person.
    pub on_check_failed: OnCheckFailed,
}

/// Action when the local database is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnMissing {
    /// Restore it. Start empty only when the store confirms that no backup exists.
    #[default]
    Restore,
    /// Restore it. Wait until a backup exists.
    RequireBackup,
    /// Start empty, even when a backup exists.
    StartEmpty,
}

/// Action when the local database does not descend from the newest backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnDivergence {
    /// Replicate nothing and report it.
    #[default]
    Block,
    /// Back the local database up. Earlier points stay restorable.
    NewLineage,
}

/// Action when no target can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnreachable {
    /// Start when every database exists locally, else wait.
    #[default]
    StartIfLocalExists,
    /// Wait for the store.
    Wait,
}

/// Action when SQLite's own check of a restored database fails, although its bytes are proven to be
/// the stored ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnCheckFailed {
    /// Start the application and report the failed check.
    #[default]
    Start,
    /// Keep the application from starting.
    Block,
}

/// Last upload when the Pod stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Shutdown {
    /// Time limit of the last upload, after the application has ended: `1s` to `10m`, default
    /// `30s`. The Pod's termination grace period is extended by this time.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1s", "10m")]))]
    pub drain: Span,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown {
            drain: Span::from_secs(30),
        }
    }
}

/// Containers that the operator injects.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// Resource requests and limits of the containers. Default: small requests and a memory limit.
    pub resources: Resources,
    /// Least severe level that is logged: `error`, `warn`, `info` (default), `debug` or `trace`.
    pub log_level: LogLevel,
    /// Time at which running Pods get a newer sidecar. `OnNextPodStart` (default): when they are
    /// created again. `Rollout` and `InPlace` are not supported yet.
    pub update_policy: UpdatePolicy,
    /// Place of the sidecar's local state: captured files that wait for their upload, and page hashes.
    /// `Auto` (default): beside the databases if all of their volumes outlive the Pod (claims and host
    /// paths), else in a volume of the Pod. State beside the databases saves a snapshot at each
    /// restart. It uses at most 10 % of the volume, and at most half of what is free at the start.
    pub state: StatePlacement,
    /// Numeric user ID of the sidecar, 0 to 2147483647. Required when only the image of the
    /// container names its user. It must be the owner of the databases.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub run_as_user: Option<i64>,
    /// Numeric group ID of the sidecar, 0 to 2147483647. Required in the same case as `runAsUser`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub run_as_group: Option<i64>,
}

/// Place of the sidecar's local state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum StatePlacement {
    /// Beside the databases if all of their volumes outlive the Pod, else in a volume of the Pod.
    #[default]
    Auto,
    /// In a volume that is deleted with the Pod.
    PodVolume,
    /// In a hidden directory beside each database.
    BesideDatabases,
}

/// Resource requests and limits, as in a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Reserved resources, such as `memory: 32Mi`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// Upper limits, such as `memory: 128Mi`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// Least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Errors that need a person.
    Error,
    /// Warnings and errors.
    Warn,
    /// State changes, warnings and errors.
    #[default]
    Info,
    /// Individual operations as well.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The value as configuration files spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }
}

/// Time at which running Pods get a newer sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpdatePolicy {
    /// When the Pods are created again.
    #[default]
    OnNextPodStart,
    /// By a rollout of their workload. Not supported yet.
    Rollout,
    /// In place, by a restart of the sidecar alone. Not supported yet.
    InPlace,
}

/// Fate of the stored backups when the SqliteBackup is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Keep every stored file.
    #[default]
    Retain,
    /// Delete the stored files. Not supported yet.
    Delete,
}
