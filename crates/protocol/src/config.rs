//! The configuration file of `sqlite-backup`.
//!
//! It accepts the keys of `litestream.yml` that we honour and some of our own, so that an existing
//! file works unchanged. Every other key is an error. The reader expands `${NAME}` in values after
//! parsing, so that a value cannot inject YAML.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Size, Span};

/// A whole configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Address and port for `/status`, `/metrics` and `/healthz`; absent: not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
    /// Identity of the writer, shown in the status and in leases.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Command that `replicate` runs. Replication ends after the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<String>,
    /// Directory for the local state of every database. A database's `meta-path` overrides it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<PathBuf>,
    /// Resource limits of the process. Read only at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Actions before the application starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Startup>,
    /// Snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Compaction levels from level 1 on, each with a longer interval; default 30 s, 5 min and 1 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<Vec<LevelConfig>>,
    /// Retention: how long each kind of file is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// Litestream's name for `retention.exact`; zero means as long as the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub l0_retention: Option<Span>,
    /// Time limit of the last upload during a shutdown; default 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown_sync_timeout: Option<Span>,
    /// URL that receives a request each interval while everything is stored; absent: no requests.
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
    /// Defaults for every replica that does not set the key itself: see [`Replica`].
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

/// Resource limits of the process, shared by all of its databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Bytes of local state, at least 16 MiB; default 4 GiB, and at most 10 % of its volume and half of
    /// what is free there at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Size>,
    /// Bytes of memory, at least 64 MiB; default: the limit of the container, at most 256 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
}

/// Identity of the writer, for people who read a lease or a status.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Identity {
    /// The SqliteBackup, as `namespace/name`.
    pub backup: String,
    /// The member, usually `${SQLITE_BACKUP_MEMBER}`.
    pub member: String,
}

/// Actions before the application starts; see `spec.startup` of a SqliteBackup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Startup {
    /// Action when the local database is missing.
    pub on_missing: OnMissing,
    /// Action when the local database does not descend from the newest backup.
    pub on_divergence: OnDivergence,
    /// Action when the store cannot be reached.
    pub when_unreachable: WhenUnreachable,
    /// Action when a restored database fails SQLite's own check. The default is not written,
    /// because an older reader does not know the key.
    #[serde(skip_serializing_if = "OnCheckFailed::is_default")]
    pub on_check_failed: OnCheckFailed,
}

/// Action when the local database is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMissing {
    /// Restore. Start empty only when the store confirms that no backup exists.
    #[default]
    Restore,
    /// Restore. Wait while no backup exists.
    RequireBackup,
    /// Start empty, even when a backup exists.
    StartEmpty,
}

/// Action when the local database does not descend from the newest backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDivergence {
    /// Replicate nothing and report, until a person decides.
    #[default]
    Block,
    /// Back the local database up. Earlier points stay restorable.
    NewLineage,
}

/// Action when the store cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenUnreachable {
    /// Start when every database exists locally; otherwise wait for the store.
    #[default]
    StartIfLocalExists,
    /// Wait for the store, even when every database exists locally.
    Wait,
}

/// Action when a restored database fails SQLite's own check, although its bytes are proven to be
/// the stored ones. The source has the same fault; the backup does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCheckFailed {
    /// Start the application and report the failed check.
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

/// Snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Snapshot {
    /// Time between two snapshots of a database that changes; default 24 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Span>,
    /// Litestream's name for `retention.window`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
}

/// One compaction level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LevelConfig {
    /// Time span that one file of this level covers.
    pub interval: Span,
}

/// Retention: how long each kind of file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Retention {
    /// False: nothing is deleted in the store; default true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Age up to which every captured position can be restored; default 24 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<Span>,
    /// Age up to which the positions of level 1 can be restored; default 168 h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// Number of daily snapshots kept beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// Number of weekly snapshots kept beyond the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// Number of monthly snapshots kept beyond the window.
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
    /// Accepted for compatibility with `litestream.yml`. Logs always go to standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<bool>,
    /// Whether each log line names the source line that wrote it; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<bool>,
}

/// One database.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Database {
    /// The database file, or a pattern: `*` and `?` do not match a slash, `**` matches directories.
    pub path: PathBuf,
    /// The path names one file, even if it looks like a pattern. Set by the command line only,
    /// never by a file.
    #[serde(skip)]
    pub is_literal: bool,
    /// Every database in this directory. Replaces `path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Pattern of file names in `dir`; default `*.db`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// Whether directories below `dir` are included; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recursive: Option<bool>,
    /// Accepted for compatibility with `litestream.yml`. New databases are always found at run
    /// time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<bool>,
    /// Patterns of names, or of whole paths, to leave out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Snapshots of this database, where they differ from the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Directory of our local state; default `.<file>-sqlite-backup/` beside the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_path: Option<PathBuf>,
    /// For a `dir` or a pattern: directory below which each database has its local state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_dir: Option<PathBuf>,
    /// Restore a missing database before replication starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore_if_db_not_exists: Option<bool>,
    /// Accepted for compatibility with `litestream.yml`, from 1 s on. Commits are detected sooner
    /// anyway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor_interval: Option<Span>,
    /// Accepted for compatibility with `litestream.yml`, like the next two keys. The application's
    /// own checkpoints continue. Ours never wait for the application, except for the last resort of
    /// `docs/decisions/0002-capture.md`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval: Option<Span>,
    /// See `checkpoint_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_checkpoint_page_count: Option<u64>,
    /// See `checkpoint_interval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate_page_n: Option<u64>,
    /// Accepted for compatibility with `litestream.yml`. Replication never waits for a lock of the
    /// application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_timeout: Option<Span>,
    /// The only target. Alternative to `replicas`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<Replica>,
    /// Targets, 1 to 4. Restores try them in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<Replica>,
}

/// One target of a database: a URL, or a type with its parts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Replica {
    /// Name in logs, metrics and the status; default: the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `file` or `s3`; default: from the URL.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Address in one line. Replaces the parts below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Prefix in the bucket, or directory for type `file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Region; default: from the environment, else `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Address of an S3-compatible server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether the bucket is in the path instead of the host name; default: true with an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
    /// Static access key ID. Prefer the environment or `credentials-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Static secret key. Prefer the environment or `credentials-dir`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key: Option<String>,
    /// Directory with the files of a mounted Secret, read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
    /// PEM file with the authority that signed the endpoint's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Average time between two objects under load; no commit waits longer; default 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_interval: Option<Span>,
    /// Litestream 0.3's name for the `retention.window` of this target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
    /// Accepted for compatibility with Litestream 0.3, from 10 min on. Expired files are searched
    /// for that often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_check_interval: Option<Span>,
    /// Litestream 0.3's name for `snapshot.interval`. The shortest value of a database's targets
    /// applies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_interval: Option<Span>,
    /// Accepted for compatibility with `litestream.yml`. Files are uploaded one by one, not in
    /// batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_sync_ltx_files: Option<u64>,
    /// Only `true` is accepted, for compatibility with `litestream.yml`. Local state always
    /// recovers from the stored files and the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_recover: Option<bool>,
    /// Only `true` is accepted, for compatibility with `litestream.yml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_payload: Option<bool>,
    /// Accepted for compatibility with `litestream.yml`. No request that is sent needs an MD5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_content_md5: Option<bool>,
    /// Only `false` is accepted, for compatibility with `litestream.yml`: see `ca_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_verify: Option<bool>,
    /// Storage class of every object; default: the bucket's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
    /// Larger objects are stored in parts of this size; default 5 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_size: Option<Size>,
    /// Number of parts in memory and in flight at once; default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<usize>,
    /// Encryption algorithm; only `AES256` is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_algorithm: Option<String>,
    /// Base64 of a key with which the store encrypts, and which it does not keep (SSE-C).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_key: Option<String>,
    /// File with that key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_customer_key_path: Option<PathBuf>,
    /// Key of the store's key service with which the store encrypts (SSE-KMS).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sse_kms_key_id: Option<String>,
}

impl Replica {
    /// Returns this replica with the defaults of the file filled in. The keys of one credential
    /// come from one place, so that no ID is combined with the secret of another. The same holds
    /// for encryption.
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
        // Half of a key pair is never completed with half of another.
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
