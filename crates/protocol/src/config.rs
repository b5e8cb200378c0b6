//! The configuration file of `sqlite-backup`.
//!
//! A superset of the keys of `litestream.yml` that we honour, so that an existing file works
//! unchanged; every other key is an error. `${NAME}` in values is expanded by the reader after
//! parsing, so that a value cannot inject YAML.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Size, Span};

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
    /// What the process may use; read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What happens before the application starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Startup>,
    /// Full copies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Merged levels, from level 1, each with a longer interval; default 30 s, 5 min and 1 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<Vec<LevelConfig>>,
    /// How long what is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Litestream's name for `retention.exact`; zero: as long as the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l0_retention: Option<Span>,
    /// How long a shutdown may spend on the last upload; default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_sync_timeout: Option<Span>,
    /// Gets a request each interval while everything is stored; none: nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_url: Option<String>,
    /// Time between two such requests, at least 1 min; default 5 min.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<Span>,
    /// Log settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// The databases.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dbs: Vec<Database>,
    /// What every replica says that does not say otherwise: see [`Replica`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_interval: Option<Span>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sync_ltx_files: Option<u64>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_recover: Option<bool>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_payload: Option<bool>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_content_md5: Option<bool>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_verify: Option<bool>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_size: Option<Size>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_algorithm: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_key: Option<String>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_key_path: Option<PathBuf>,
    /// As `sync_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_kms_key_id: Option<String>,
}

/// What the process may use: all of its databases together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Bytes of local state, at least 16 MiB; default 4 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Size>,
    /// Bytes of memory, at least 64 MiB; default: the limit of the container, at most 256 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
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
    /// SQLite complains about a restored database. Not written when it is the default: an older reader
    /// does not know the key.
    #[serde(skip_serializing_if = "OnCheckFailed::is_default")]
    pub on_check_failed: OnCheckFailed,
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

/// The reaction when SQLite complains about a restored database whose bytes are proven to be the stored
/// ones: the database itself is so, not the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCheckFailed {
    /// Start with it, and report.
    #[default]
    Start,
    /// Keep the application from starting.
    Block,
}

impl OnCheckFailed {
    fn is_default(&self) -> bool {
        *self == OnCheckFailed::default()
    }
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
    /// Say in which line of the program a line of the log was made; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<bool>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Database {
    /// The database file, or a pattern: `*` and `?` do not match a slash, `**` matches directories.
    pub path: PathBuf,
    /// The path is that of a file, whatever it looks like. The command line says so, no file does.
    #[serde(skip)]
    pub is_literal: bool,
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
    /// Full copies of this database, where they are to differ from the others'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Directory of our local state; default `.<file>-sqlite-backup/` beside the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_path: Option<PathBuf>,
    /// For a `dir` or a pattern: the directory below which each database has its local state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_dir: Option<PathBuf>,
    /// Restore the database before replicating when it is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_if_db_not_exists: Option<bool>,
    /// Kept for `litestream.yml`, from 1 s on: commits are noticed sooner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor_interval: Option<Span>,
    /// Kept for `litestream.yml`, as the next three: the application's own checkpoints go on, and
    /// ours wait for nobody, but for the last resort of `docs/decisions/0002-capture.md`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval: Option<Span>,
    /// See `checkpoint_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_checkpoint_page_count: Option<u64>,
    /// See `checkpoint_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_page_n: Option<u64>,
    /// Kept for `litestream.yml`: no lock of the application is ever waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_timeout: Option<Span>,
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
    /// Under load, one object each interval on average, and no commit waits longer; default 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_interval: Option<Span>,
    /// Litestream 0.3's name for the `retention.window` of this target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// Kept for files of Litestream 0.3, from 10 min on: expired files are searched for that often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_check_interval: Option<Span>,
    /// Litestream 0.3's name for `snapshot.interval`; the shortest one of a database's targets counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_interval: Option<Span>,
    /// Kept for `litestream.yml`: files are stored one after the other, not in batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sync_ltx_files: Option<u64>,
    /// Kept for `litestream.yml`, as true: local state always heals from what is stored and what the
    /// database holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_recover: Option<bool>,
    /// Kept for `litestream.yml`, as true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_payload: Option<bool>,
    /// Kept for `litestream.yml`: nothing is sent that needs one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_content_md5: Option<bool>,
    /// Kept for `litestream.yml`, as false: see `ca_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_verify: Option<bool>,
    /// Storage class of every object; default the bucket's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Larger objects are stored in parts of this size; default 5 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_size: Option<Size>,
    /// Parts in memory and on their way at once; default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// `AES256`, which is the only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_algorithm: Option<String>,
    /// Base64 of a key that the store encrypts with and forgets (SSE-C).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_key: Option<String>,
    /// File with that key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_key_path: Option<PathBuf>,
    /// Key of the store's key service that it encrypts with (SSE-KMS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_kms_key_id: Option<String>,
}

impl Replica {
    /// This replica with what the file says of all of them. Keys come from one place, so that no
    /// id is taken with another one's secret, and so does encryption.
    #[must_use]
    pub fn or_defaults(&self, config: &Config) -> Replica {
        let own = self.clone();
        let has_keys = own.access_key_id.is_some()
            || own.secret_access_key.is_some()
            || own.credentials_dir.is_some();
        let key = |value: &Option<String>| value.clone().filter(|_| !has_keys);
        let has_encryption = own.sse_customer_key.is_some()
            || own.sse_customer_key_path.is_some()
            || own.sse_kms_key_id.is_some();
        let sse = |value: &Option<String>| value.clone().filter(|_| !has_encryption);
        let sse_path = config.sse_customer_key_path.clone();
        let or = |own: Option<String>, value: &Option<String>| own.or_else(|| value.clone());
        Replica {
            sync_interval: own.sync_interval.or(config.sync_interval),
            max_sync_ltx_files: own.max_sync_ltx_files.or(config.max_sync_ltx_files),
            auto_recover: own.auto_recover.or(config.auto_recover),
            access_key_id: own.access_key_id.or(key(&config.access_key_id)),
            secret_access_key: own.secret_access_key.or(key(&config.secret_access_key)),
            region: or(own.region, &config.region),
            bucket: or(own.bucket, &config.bucket),
            endpoint: or(own.endpoint, &config.endpoint),
            force_path_style: own.force_path_style.or(config.force_path_style),
            sign_payload: own.sign_payload.or(config.sign_payload),
            require_content_md5: own.require_content_md5.or(config.require_content_md5),
            skip_verify: own.skip_verify.or(config.skip_verify),
            storage_class: or(own.storage_class, &config.storage_class),
            part_size: own.part_size.or(config.part_size),
            concurrency: own.concurrency.or(config.concurrency),
            sse_customer_algorithm: own
                .sse_customer_algorithm
                .or(sse(&config.sse_customer_algorithm)),
            sse_customer_key: own.sse_customer_key.or(sse(&config.sse_customer_key)),
            sse_customer_key_path: own
                .sse_customer_key_path
                .or(sse_path.filter(|_| !has_encryption)),
            sse_kms_key_id: own.sse_kms_key_id.or(sse(&config.sse_kms_key_id)),
            ..own
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_replica_says_goes_before_what_the_file_says_of_all() {
        let text = |text: &str| Some(text.to_owned());
        let config = Config {
            access_key_id: text("all-id"),
            secret_access_key: text("all-secret"),
            region: text("all-region"),
            sse_kms_key_id: text("all-kms"),
            sync_interval: Some(Span::from_secs(9)),
            ..Config::default()
        };
        let all = Replica::default().or_defaults(&config);
        assert_eq!(all.access_key_id, text("all-id"));
        assert_eq!(all.sync_interval, Some(Span::from_secs(9)));
        let own = Replica {
            region: text("own-region"),
            ..Replica::default()
        };
        let found = own.or_defaults(&config);
        assert_eq!(found.region, text("own-region"));
        assert_eq!(found.sse_kms_key_id, text("all-kms"));
        // Half of a key is not made whole with another one.
        for own in [
            Replica {
                access_key_id: text("own-id"),
                ..Replica::default()
            },
            Replica {
                credentials_dir: Some("/keys".into()),
                ..Replica::default()
            },
        ] {
            let found = own.or_defaults(&config);
            assert_eq!(found.access_key_id, own.access_key_id);
            assert_eq!(found.secret_access_key, None);
        }
        let own = Replica {
            sse_customer_key_path: Some("/key".into()),
            ..Replica::default()
        };
        assert_eq!(own.or_defaults(&config).sse_kms_key_id, None);
    }
}
