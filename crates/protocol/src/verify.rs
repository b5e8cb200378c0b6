//! What a restore test is asked and what it answers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Span;
use crate::status::Position;

/// What to restore and what to hold against it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyRequest {
    /// How deep to look.
    pub level: VerifyLevel,
    /// The point to restore.
    #[serde(default)]
    pub point: Point,
    /// The members to restore, each with what its live sidecar had acknowledged when the test was
    /// made. The list of databases is empty when no sidecar was alive: freshness is not judged.
    pub members: Vec<MemberExpectation>,
    /// Longest allowed age of the newest stored commit while newer ones wait; none: not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lag: Option<Span>,
    /// The user's checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// How deep a restore test looks; each level includes those before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum VerifyLevel {
    /// `PRAGMA quick_check`.
    Quick,
    /// `integrity_check` and the user's checks; orphans of foreign keys are a note.
    #[default]
    Full,
    /// The whole-database checksum equals the acknowledged one.
    Checksum,
}

/// The point to restore.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Point {
    /// The newest stored position, looked up by the run itself.
    #[default]
    Latest,
    /// The newest position at or before this time.
    Timestamp(Timestamp),
    /// Exactly this position, 16 hex digits.
    Txid(String),
}

/// What one member is expected to have stored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberExpectation {
    /// The member; replaces `${SQLITE_BACKUP_MEMBER}` in the configuration.
    pub member: String,
    /// What its sidecar had acknowledged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabaseExpectation>,
}

/// A position that a live sidecar had acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseExpectation {
    /// Path as configured.
    pub path: String,
    /// The target that had acknowledged it.
    pub target: String,
    /// The acknowledged position.
    pub acknowledged: Position,
    /// The target's lag at that moment, in milliseconds: commits that it had not acknowledged.
    #[serde(default)]
    pub lag_ms: u64,
}

/// A query of the user's on the restored database. Exactly one of the expectations is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Check {
    /// Name in reports.
    pub name: String,
    /// Path or file name of the database to ask; `*` or none: every one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// One read-only statement.
    pub query: String,
    /// The first value of the first row is at least this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// The first value of the first row is at most this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// The number of rows is exactly this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The first value of the first row, as text, is exactly this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
    /// The first value of the first row, a time, is at most this old at the restored point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
}

/// The answer of a restore test. As JSON it fits a termination message of 4096 bytes; what does
/// not fit is cut from the lists, never from the verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// The verdict; the same as the exit code tells.
    pub result: VerifyResult,
    /// For people: what is wrong with which database. After a pass, the first thing that is noted or
    /// that could not be checked; usually empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When the run started.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Databases restored and proven, each from each of its targets.
    pub passed: u32,
    /// Those that failed.
    pub failed: u32,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Time from the start of the restore to a usable database, the slowest one, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_ms: Option<u64>,
    /// Age of the newest restored commit when the run started, the oldest one, in milliseconds;
    /// none when freshness could not be judged. Zero when all acknowledged commits are there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// Whether every newest stored position was held against a live sidecar's.
    pub freshness_evaluated: bool,
    /// SQLite's version.
    pub sqlite_version: String,
    /// Failed databases first.
    pub databases: Vec<DatabaseReport>,
    /// Entries that did not fit into `databases`.
    #[serde(default)]
    pub omitted: u32,
}

/// One restored database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseReport {
    /// The member.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub member: String,
    /// Path as configured.
    pub path: String,
    /// The target it was restored from.
    pub target: String,
    /// The verdict on this one.
    pub result: VerifyResult,
    /// For people; at most 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The position reached, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Position>,
    /// Parts that SQLite could not check, each with the reason: no reason to fail, because checksums and
    /// the coverage of pages prove the bytes. Each has at most 256 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<String>,
    /// Findings that fail nothing, such as rows that refer to nothing. Each has at most 256 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The user's checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckReport>,
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// Name as configured.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// What was found, against what was expected; at most 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The termination message of `restore --wait`, as JSON, when the application starts from a database
/// that SQLite complains about or could not check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartupNotes {
    /// Complaints of SQLite, each with its database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub complaints: Vec<String>,
    /// Parts that it could not check, each with its database and the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<String>,
}

/// Verdict of a restore test. Names are the reasons that conditions show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VerifyResult {
    /// Everything holds.
    Passed,
    /// Bytes in the store are damaged.
    Corrupt,
    /// A file that the restore needs is missing.
    Hole,
    /// The store lacks commits that a live sidecar had acknowledged, or lags too far behind.
    Stale,
    /// SQLite's own checks fail.
    IntegrityFailed,
    /// The restored database is not the acknowledged one.
    ChecksumMismatch,
    /// A check of the user's failed.
    CheckFailed,
    /// There is no backup yet.
    NoBackupYet,
    /// The store refuses our credentials, or there are none.
    CredentialsInvalid,
    /// The store cannot be reached.
    DestinationUnavailable,
    /// The scratch space is too small.
    ScratchTooSmall,
    /// The run itself failed, for another reason.
    RestoreFailed,
}

impl VerifyResult {
    /// The exit code of a run that ends with this verdict.
    pub fn exit_code(self) -> crate::exit::ExitCode {
        use crate::exit::ExitCode;
        match self {
            VerifyResult::Passed => ExitCode::Done,
            VerifyResult::Corrupt => ExitCode::Corrupt,
            VerifyResult::Hole => ExitCode::Hole,
            VerifyResult::Stale => ExitCode::Stale,
            VerifyResult::IntegrityFailed => ExitCode::IntegrityFailed,
            VerifyResult::ChecksumMismatch => ExitCode::ChecksumMismatch,
            VerifyResult::CheckFailed => ExitCode::CheckFailed,
            VerifyResult::NoBackupYet => ExitCode::NothingToRestore,
            VerifyResult::CredentialsInvalid => ExitCode::Credentials,
            VerifyResult::DestinationUnavailable => ExitCode::Unreachable,
            VerifyResult::ScratchTooSmall => ExitCode::DiskFull,
            VerifyResult::RestoreFailed => ExitCode::LocalIo,
        }
    }
}
