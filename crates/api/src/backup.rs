//! `SqliteBackup`: what to protect, where backups go, and how they are proven.

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

/// Continuous backup of SQLite databases, with restores that are proven on a schedule.
///
/// Pods that the selector chooses get a container that restores missing databases before the
/// application starts, and one that replicates them while it runs.
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
    doc = "Continuous backup of the SQLite databases of some Pods, with restores proven on a schedule.",
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
        description = "Selected Pods that replicate, of all selected."
    ),
    printcolumn(
        name = "Lag",
        type_ = "string",
        json_path = ".status.replication.lagSummary",
        description = "Age of the oldest commit that is not stored, of the worst member."
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
        description = "Verdict of the last restore test."
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
    /// The Pods of this namespace to protect, by label. Pods that run already get their
    /// containers when they are next created. Label a Pod `sqlite-backup.dev/inject: "false"` to
    /// leave it out.
    pub selector: PodSelector,

    /// The container whose mounts and user the sidecar takes over. Needed only when several
    /// containers mount the databases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub container: Option<String>,

    /// The databases, 1 to 64.
    #[schemars(
        length(min = 1, max = 64),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"])
    )]
    pub databases: Vec<DatabaseSpec>,

    /// Where backups go, 1 to 4 places. Each gets everything; restores try them in this order.
    #[schemars(
        length(min = 1, max = 4),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    pub targets: Vec<Target>,

    /// How often data is sent, and how far behind it may be.
    #[serde(default)]
    pub replication: Replication,

    /// Full copies.
    #[serde(default)]
    pub snapshots: Snapshots,

    /// How long what is kept.
    #[serde(default)]
    pub retention: Retention,

    /// Encryption of what is stored. Not served yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,

    /// What happens before the application starts.
    #[serde(default)]
    pub startup: Startup,

    /// What happens when the Pod stops.
    #[serde(default)]
    pub shutdown: Shutdown,

    /// The containers that we add.
    #[serde(default)]
    pub sidecar: Sidecar,

    /// Restores that prove the backup. On by default, once a week.
    #[serde(default)]
    pub restore_test: RestoreTestPolicy,

    /// What happens to stored backups when this object is deleted. Retain keeps them.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// True: add no containers to new Pods and run no restore tests. Pods that replicate go on.
    #[serde(default)]
    pub suspend: bool,
}

/// One database, or every database that a pattern finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "!has(self.exclude) || size(self.exclude) == 0 || self.path.contains('*')",
        "exclude needs a path with *",
    ),
]))]
pub struct DatabaseSpec {
    /// Absolute path of the database file in the container. `*` stands for any part of a name and
    /// `**` for any directories: every database there, now and later. Their volume must be mounted
    /// at or above the directory before the first `*`.
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
    /// With a pattern: files to leave out, such as `*.tmp.db`. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 256)))]
    pub exclude: Vec<String>,
}

impl DatabaseSpec {
    /// Whether it stands for any number of databases.
    pub fn is_pattern(&self) -> bool {
        self.path.contains('*')
    }

    /// The path of the one database, or the directory before the first `*`: what `{database}` in a
    /// target's prefix stands for. The paths of a pattern's databases below it follow the prefix.
    pub fn place(&self) -> &str {
        match self.path.find('*') {
            Some(star) => self.path[..star]
                .rsplit_once('/')
                .map_or("", |(base, _)| base),
            None => &self.path,
        }
    }
}

/// How often data is sent, and how far behind it may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.maxLag >= self.syncInterval",
        "maxLag must be at least syncInterval",
    ),
]))]
pub struct Replication {
    /// Under load, send once each interval on average. The first commit after a quiet time goes at once,
    /// a burst after it more than twice each interval, out of what the quiet time saved; no commit waits
    /// longer than the interval.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("100ms", "1h")]))]
    pub sync_interval: Span,
    /// The oldest commit that is not stored may be this old. Beyond it `Replicating` is False, and
    /// restore tests fail with Stale.
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

/// Full copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Snapshots {
    /// Time between full copies of a database that changes.
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

/// How long what is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.exact <= self.window",
        "exact must be at most window",
    ),
]))]
pub struct Retention {
    /// Every captured moment inside this span can be restored.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("0s", "8784h")]))]
    pub exact: Span,
    /// Moments 30 s apart inside this span can be restored.
    #[schemars(schema_with = "crate::schema::span")]
    #[schemars(extend("x-kubernetes-validations" = [between("1m", "8784h")]))]
    pub window: Span,
    /// Daily full copies to keep beyond the window.
    #[schemars(range(min = 0, max = 366))]
    pub daily: u32,
    /// Weekly full copies to keep beyond the window.
    #[schemars(range(min = 0, max = 520))]
    pub weekly: u32,
    /// Monthly full copies to keep beyond the window.
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

/// Encryption of what is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    /// The age format.
    pub age: Age,
}

/// The age format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Age {
    /// Where the age identity is. Without it nothing can be restored: keep a copy elsewhere.
    pub identity_secret_ref: SecretKeyRef,
}

/// What happens before the application starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Startup {
    /// The local database is missing. Restore: restore it, and start empty only when the store says
    /// that there is no backup. RequireBackup: wait when there is none. StartEmpty: start empty.
    pub on_missing: OnMissing,
    /// The local database does not descend from the newest backup. Block: replicate nothing and
    /// report. NewLineage: back it up as the new truth; earlier points stay restorable.
    pub on_divergence: OnDivergence,
    /// The store cannot be asked. StartIfLocalExists: start when every database is there, else
    /// wait. Wait: always wait.
    pub when_unreachable: WhenUnreachable,
    /// SQLite's own check complains about a restored database, though checksums prove that its bytes
    /// are the stored ones: the source was so, too. Start: start, and report. Block: wait for a person.
    pub on_check_failed: OnCheckFailed,
}

/// What to do when the local database is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnMissing {
    /// Restore; start empty only when the store says that there is no backup.
    #[default]
    Restore,
    /// Restore; wait when there is no backup.
    RequireBackup,
    /// Start empty, whatever is stored.
    StartEmpty,
}

/// What to do when the local database does not descend from the newest backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnDivergence {
    /// Replicate nothing and report.
    #[default]
    Block,
    /// Back the local database up as the new truth.
    NewLineage,
}

/// What to do when the store cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum WhenUnreachable {
    /// Start when every database is there.
    #[default]
    StartIfLocalExists,
    /// Wait for the store.
    Wait,
}

/// The reaction when SQLite complains about a restored database that is proven to be the stored one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum OnCheckFailed {
    /// Start with it, and report.
    #[default]
    Start,
    /// Keep the application from starting.
    Block,
}

/// What happens when the Pod stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Shutdown {
    /// How long the last upload may take after the application has ended. The Pod's grace period
    /// grows by as much.
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

/// The containers that we add.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    /// Requests and limits; left out: small requests and a memory limit.
    pub resources: Resources,
    /// How much to log.
    pub log_level: LogLevel,
    /// When running Pods get a newer sidecar. OnNextPodStart: when they are next created. Rollout
    /// and InPlace are not served yet.
    pub update_policy: UpdatePolicy,
    /// Numeric user to run as; only when the container's own user is given by its image alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub run_as_user: Option<i64>,
    /// Numeric group to run as, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 2147483647))]
    pub run_as_group: Option<i64>,
}

/// Requests and limits, as those of a container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// What is reserved, such as `memory: 32Mi`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What may be used at most, such as `memory: 128Mi`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// How much to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What a person must look at.
    Error,
    /// Also what is odd.
    Warn,
    /// Also what changes.
    #[default]
    Info,
    /// Also what happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// The name in configuration files.
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

/// When running Pods get a newer sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum UpdatePolicy {
    /// When they are next created.
    #[default]
    OnNextPodStart,
    /// By a rollout of their workload. Not served yet.
    Rollout,
    /// In place, by restarting the sidecar alone. Not served yet.
    InPlace,
}

/// What happens to stored backups when the object is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay.
    #[default]
    Retain,
    /// They are deleted. Not served yet.
    Delete,
}
