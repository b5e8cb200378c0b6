//! The configuration file of `sqlite-backup`.
//!
//! A superset of the keys of `litestream.yml` that we honour, so that an existing file works
//! unchanged; every other key is an error. `${NAME}` in values is expanded by the reader after
//! parsing, so that a value cannot inject YAML.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Span;

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Address and port for `/status`, `/metrics` and `/healthz`; none: not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
    /// Who writes: shown in the status and in leases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// A command that `replicate` runs meanwhile, and after which it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
    /// Directory for the local state of every database; a database's `meta-path` wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// What happens before the application starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Startup>,
    /// Full copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Merged levels, from level 1; default one level of 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<Vec<LevelConfig>>,
    /// How long what is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How long a shutdown may spend on the last upload; default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_sync_timeout: Option<Span>,
    /// Log settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// The databases.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dbs: Vec<Database>,
}

/// Who writes, for people who read a lease or a status.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Identity {
    /// The SqliteBackup, as `namespace/name`.
    pub backup: String,
    /// The member, usually `${SQLITE_BACKUP_MEMBER}`.
    pub member: String,
}

/// What happens before the application starts; see `spec.startup` of a SqliteBackup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Startup {
    /// The local database is missing.
    pub on_missing: OnMissing,
    /// The local database does not descend from the newest backup.
    pub on_divergence: OnDivergence,
    /// The store cannot be asked.
    pub when_unreachable: WhenUnreachable,
}

/// What to do when the local database is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDivergence {
    /// Replicate nothing and report, until a person decides.
    #[default]
    Block,
    /// Back the local database up as the new truth; earlier points stay restorable.
    NewLineage,
}

/// What to do when the store cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnreachable {
    /// Start when every database is there; wait for the store otherwise.
    #[default]
    StartIfLocalExists,
    /// Wait for the store, even when every database is there.
    Wait,
}

/// Full copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Snapshot {
    /// Time between full copies of a database that changes; default 24 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Litestream's name for `retention.window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
}

/// One merged level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LevelConfig {
    /// Time that one merged file covers.
    pub interval: Span,
}

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Retention {
    /// False: we delete nothing in the store; default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Every captured position inside this span can be restored; default 24 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<Span>,
    /// Level 1 steps inside this span can be restored; default 168 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// Daily full copies kept beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// Weekly full copies kept beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// Monthly full copies kept beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
}

/// Log settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Logging {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// `text` or `json`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Kept for `litestream.yml`: our logs always go to standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<bool>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Database {
    /// The database file, or a pattern: `*` and `?` do not match a slash, `**` matches directories.
    pub path: PathBuf,
    /// Instead of a path: every database in this directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Names in `dir`; default `*.db`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Directories in `dir`, too; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recursive: Option<bool>,
    /// Kept for `litestream.yml`: databases are always found while running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<bool>,
    /// Patterns of names, or of whole paths, that are no databases.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Directory of our local state; default `.<file>-sqlite-backup/` beside the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_path: Option<PathBuf>,
    /// Restore the database before replicating when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_if_db_not_exists: Option<bool>,
    /// The only target, or
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<Replica>,
    /// 1 to 4 targets; restores try them in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<Replica>,
}

/// One target of a database: an URL, or a type with its parts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Replica {
    /// Name in logs, metrics and the status; default the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `file` or `s3`; default from the URL.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Where, in one line; instead of the parts below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Prefix in the bucket, or directory for type `file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Region; default from the environment, else `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Endpoint of an S3-compatible server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Bucket in the path instead of the host name; default true with an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
    /// Static key; prefer the environment or `credentials-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Static secret; prefer the environment or `credentials-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
    /// Directory with the files of a mounted Secret, read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
    /// PEM file with the authority that signed the endpoint's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Under load, one object each interval; default 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_interval: Option<Span>,
}
