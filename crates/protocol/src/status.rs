//! `GET /status`: what a replicating process knows about each of its databases.

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
    /// Hex SHA-256 of the configuration file in force, so that a reader knows what it reached.
    pub config_hash: String,
    /// When the process started.
    pub started: Timestamp,
    /// When this answer was made, by the process's clock.
    pub now: Timestamp,
    /// Each database, ordered by path.
    pub databases: Vec<DatabaseStatus>,
}

/// Most targets of one database that are read. Beyond it an answer is not one of ours.
pub const TARGETS_MAX: usize = 16;

/// One database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    /// Path as configured.
    pub path: String,
    /// What we do with it.
    pub state: DatabaseState,
    /// For people: why the state is not `Replicating`, and what to do. Empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The newest captured position, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Size of the database in bytes at that position.
    #[serde(default)]
    pub size_bytes: u64,
    /// Each target, in the configured order; a reader takes at most [`TARGETS_MAX`].
    #[serde(deserialize_with = "few_targets")]
    pub targets: Vec<TargetStatus>,
}

/// Reads a list of targets that cannot become large: an entry takes more memory than its JSON.
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

/// What a process does with a database. Names are the reasons that conditions show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DatabaseState {
    /// Not looked at yet.
    Starting,
    /// The file does not exist; replication starts when it does.
    Missing,
    /// Commits are captured.
    Replicating,
    /// Nobody has the database open; its newest state is captured.
    Idle,
    /// The database is not in WAL mode.
    NotWal,
    /// The file is not a SQLite database, or is encrypted.
    NotSqlite,
    /// The application uses exclusive locking mode.
    ExclusiveLocking,
    /// Our user is not the owner of the database.
    UnknownUser,
    /// The database can be opened by another name, beside which its WAL would lie.
    SecondName,
    /// The name of the database is not one that every store can keep.
    UnusableName,
    /// The local database does not descend from the newest backup.
    Diverged,
    /// Another writer has taken the replica over.
    Superseded,
    /// The database or its directory cannot be read or written by us.
    NoPermission,
    /// No space left for our local state.
    DiskFull,
    /// Another error; the message says which.
    Failed,
}

impl DatabaseState {
    /// True when commits reach local state as they should.
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
    /// How it goes.
    pub state: TargetState,
    /// For people: what failed last. Empty when nothing did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The newest position that the store has acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Age in milliseconds of the oldest commit that is not stored; 0 when all are.
    pub lag_ms: u64,
    /// Bytes captured and not stored yet.
    pub backlog_bytes: u64,
    /// When the store last acknowledged anything of this database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<Timestamp>,
    /// When the newest full copy was stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_snapshot: Option<Timestamp>,
    /// Our epoch there: it grows with each writer.
    #[serde(default)]
    pub epoch: u64,
    /// Fingerprint of the credentials in use; never a key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsReport>,
}

/// How replication to one target goes. Names are the reasons that conditions show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TargetState {
    /// Not contacted yet.
    Starting,
    /// The last request succeeded.
    Ok,
    /// The store refuses our credentials or rights.
    Denied,
    /// There are no credentials.
    CredentialsMissing,
    /// The store cannot be reached, throttles us, or answers nonsense.
    DestinationUnavailable,
    /// The bucket does not exist. A directory is made instead.
    NoBucket,
    /// What is stored is not what we stored.
    Corrupt,
    /// Another writer has taken the replica over.
    Superseded,
    /// The local database does not descend from what is stored there.
    Diverged,
}

/// A position with what proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Position {
    /// TXID, 16 lowercase hex digits.
    pub txid: String,
    /// Checksum of the whole database at that TXID, 16 lowercase hex digits.
    pub checksum: String,
    /// When it was captured.
    pub time: Timestamp,
}

/// The credentials in use, without a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsReport {
    /// Hash that changes when the credentials do.
    pub fingerprint: String,
    /// When credentials with this fingerprint came into use.
    pub since: Timestamp,
    /// New credentials are there, but the store refuses them; the old ones are still in use.
    #[serde(default)]
    pub rotation_pending: bool,
}
