//! The request and the report of a restore test.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Span;
use crate::status::Position;

/// The databases to restore, and the expectations to check them against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyRequest {
    /// Depth of the verification.
    pub level: VerifyLevel,
    /// The point to restore.
    #[serde(default)]
    pub point: Point,
    /// The members to restore, each with the positions that its live sidecar had acknowledged when
    /// the test was created. A member has no positions when no sidecar was alive; then freshness is
    /// not judged.
    pub members: Vec<MemberExpectation>,
    /// Longest allowed age of the newest stored commit while newer ones wait. Absent: not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lag: Option<Span>,
    /// The user's checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
}

/// Depth of a restore test. Each level includes the levels before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub enum VerifyLevel {
    /// `PRAGMA quick_check`.
    Quick,
    /// `integrity_check` and the user's checks; dangling foreign keys are only noted.
    #[default]
    Full,
    /// The whole-database checksum equals the acknowledged one.
    Checksum,
}

/// The point to restore.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Point {
    /// The newest stored position, determined by the run itself.
    #[default]
    Latest,
    /// The newest position at or before this time.
    Timestamp(Timestamp),
    /// Exactly this position, 16 hex digits.
    Txid(String),
}

/// The expected stored positions of one member.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberExpectation {
    /// Name of the member. It replaces `${SQLITE_BACKUP_MEMBER}` in the configuration.
    pub member: String,
    /// The positions that its sidecar had acknowledged.
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

/// One query of the user on the restored database. Exactly one expectation is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Check {
    /// Name in reports.
    pub name: String,
    /// Path or file name of the database to query. `*` or absent: every database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// One read-only statement.
    pub query: String,
    /// Smallest allowed first value of the first row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<i64>,
    /// Largest allowed first value of the first row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<i64>,
    /// Exact number of rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Exact first value of the first row, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<String>,
    /// Greatest allowed age of the time in the first value of the first row, at the restored point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
}

/// The report of a restore test. As JSON it fits a termination message of 4096 bytes. Lists are cut
/// to fit, the verdict never is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// The verdict, in agreement with the exit code.
    pub result: VerifyResult,
    /// Explanation for people: the fault and its database. After a pass, the first note or the
    /// first part that could not be checked; usually empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Start of the run.
    pub started: Timestamp,
    /// End of the run.
    pub finished: Timestamp,
    /// Number of databases restored and proven, counted once for each of their targets.
    pub passed: u32,
    /// Number of databases that failed, counted in the same way.
    pub failed: u32,
    /// Bytes read from the store.
    pub bytes: u64,
    /// Time from the start of a restore to a usable database, for the slowest one, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_ms: Option<u64>,
    /// Age of the newest restored commit at the start of the run, for the oldest database, in
    /// milliseconds. Zero when all acknowledged commits are restored. Absent when freshness could
    /// not be judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_ms: Option<u64>,
    /// Whether every newest stored position was compared with the position of a live sidecar.
    pub freshness_evaluated: bool,
    /// Version of SQLite.
    pub sqlite_version: String,
    /// Reports of single databases, failed ones first.
    pub databases: Vec<DatabaseReport>,
    /// Number of reports that did not fit into `databases`.
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
    /// Explanation for people; at most 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The position reached, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<Position>,
    /// Parts that SQLite could not check, each with the reason and at most 256 characters. The run
    /// does not fail for them, because checksums and the coverage of pages prove the bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<String>,
    /// Findings that do not fail the run, such as rows with a dangling foreign key. Each has at
    /// most 256 characters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Results of the user's checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckReport>,
}

/// Result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// Name as configured.
    pub name: String,
    /// Whether the result was as expected.
    pub ok: bool,
    /// The actual result beside the expected one; at most 256 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The termination message of `restore --wait`, as JSON, when the application starts from a
/// database that fails SQLite's own check, or that SQLite could not check.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartupNotes {
    /// Failed checks of SQLite, each with its database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub complaints: Vec<String>,
    /// Parts that SQLite could not check, each with its database and the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_checked: Vec<String>,
}

/// Verdict of a restore test. The names are the reasons that conditions show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VerifyResult {
    /// Every check passed.
    Passed,
    /// Bytes in the store are damaged.
    Corrupt,
    /// A file that the restore needs is missing.
    Hole,
    /// The store lacks commits that a live sidecar had acknowledged, or lags too far behind.
    Stale,
    /// SQLite's own checks fail.
    IntegrityFailed,
    /// The restored database differs from the acknowledged one.
    ChecksumMismatch,
    /// A check of the user failed.
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
