//! `GET /status`: the state of each database of a replicating process.

use std::fmt;

use jiff::Timestamp;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// [`crate::names::STATUS_VERSION`] of the process that answers.
    pub version: u32,
    /// Version of the program.
    pub program: String,
    /// The SqliteBackup served, as `namespace/name`; empty outside Kubernetes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backup: String,
    /// The member served; empty outside Kubernetes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub member: String,
    /// Hex SHA-256 of the configuration file in force, so that a reader can tell which
    /// configuration the process uses.
    pub config_hash: String,
    /// Start time of the process.
    pub started: Timestamp,
    /// Time of this answer, by the process's clock.
    pub now: Timestamp,
    /// The databases, ordered by path.
    pub databases: Vec<DatabaseStatus>,
}

/// Limit on the targets of one database. A reader refuses an answer with more.
pub const TARGETS_MAX: usize = 16;

/// One database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    /// Path as configured.
    pub path: String,
    /// State of replication.
    pub state: DatabaseState,
    /// Explanation for people: why the state is not `Replicating`, and the remedy. Empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The newest captured position, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Size of the database in bytes at that position.
    #[serde(default)]
    pub size_bytes: u64,
    /// The targets, in the configured order. A reader accepts at most [`TARGETS_MAX`].
    #[serde(deserialize_with = "few_targets")]
    pub targets: Vec<TargetStatus>,
}

/// Reads a list of targets and limits its length, because an entry takes more memory than its JSON.
fn few_targets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TargetStatus>, D::Error> {
    struct Targets;
    impl<'de> Visitor<'de> for Targets {
        type Value = Vec<TargetStatus>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {TARGETS_MAX} targets")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut targets = Vec::new();
            while let Some(target) = list.next_element()? {
                if targets.len() == TARGETS_MAX {
                    return Err(A::Error::invalid_length(TARGETS_MAX + 1, &self));
                }
                targets.push(target);
            }
            Ok(targets)
        }
    }
    deserializer.deserialize_seq(Targets)
}

/// State of a database in a process. The names are the reasons that conditions show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DatabaseState {
    /// Not examined yet.
    Starting,
    /// The file does not exist; replication starts when it does.
    Missing,
    /// Commits are captured.
    Replicating,
    /// No process has the database open; its newest state is captured.
    Idle,
    /// The database is not in WAL mode.
    NotWal,
    /// The file is not a SQLite database, or is encrypted.
    NotSqlite,
    /// The application uses exclusive locking mode.
    ExclusiveLocking,
    /// The process does not run as the owner of the database.
    UnknownUser,
    /// The database has a second name, beside which SQLite would create another WAL.
    SecondName,
    /// The database has a name that not every store can keep.
    UnusableName,
    /// The local database does not descend from the newest backup.
    Diverged,
    /// Another writer has taken the replica over.
    Superseded,
    /// The process cannot read or write the database or its directory.
    NoPermission,
    /// No space is left for our local state.
    DiskFull,
    /// Another error, which the message names.
    Failed,
}

impl DatabaseState {
    /// True when commits reach local state normally.
    pub fn is_healthy(self) -> bool {
        matches!(self, DatabaseState::Replicating | DatabaseState::Idle)
    }
}

/// One target of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Name as configured.
    pub name: String,
    /// State of replication to this target.
    pub state: TargetState,
    /// Explanation for people: the last failure. Empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The newest position that the store has acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Age in milliseconds of the oldest commit that is not stored; 0 when all are.
    pub lag_ms: u64,
    /// Bytes captured and not stored yet.
    pub backlog_bytes: u64,
    /// Time at which the store last acknowledged data of this database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Timestamp>,
    /// Time at which the newest snapshot was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_snapshot: Option<Timestamp>,
    /// Our epoch at this target. It grows with each writer.
    #[serde(default)]
    pub epoch: u64,
    /// Fingerprint of the credentials in use; never a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsReport>,
}

/// State of replication to one target. The names are the reasons that conditions show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TargetState {
    /// Not contacted yet.
    Starting,
    /// The last request succeeded.
    Ok,
    /// The store refuses our credentials, or they lack a permission.
    Denied,
    /// There are no credentials.
    CredentialsMissing,
    /// The store cannot be reached, throttles us, or gives unusable answers.
    DestinationUnavailable,
    /// The bucket does not exist. A missing directory is created instead.
    NoBucket,
    /// The stored data differs from the data that we stored.
    Corrupt,
    /// Another writer has taken the replica over.
    Superseded,
    /// The local database does not descend from what is stored there.
    Diverged,
}

/// A position with its proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// TXID, 16 lowercase hex digits.
    pub txid: String,
    /// Checksum of the whole database at that TXID, 16 lowercase hex digits.
    pub checksum: String,
    /// Time of its capture.
    pub time: Timestamp,
}

/// The credentials in use, without a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsReport {
    /// Hash that changes whenever the credentials change.
    pub fingerprint: String,
    /// Time at which credentials with this fingerprint came into use.
    pub since: Timestamp,
    /// New credentials exist, but the store refuses them. The old ones are still in use.
    #[serde(default)]
    pub rotation_pending: bool,
}
