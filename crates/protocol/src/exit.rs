//! The exit codes of `sqlite-backup`, for scripts and for the failure policy of a Job.

/// Result of a run of `sqlite-backup`.
///
/// Codes 10 to 19 mean that the data is bad: trying again gives the same result. Codes 20 to 29
/// mean that the environment failed: trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Success.
    Done = 0,
    /// An internal error that no other code names.
    Internal = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Bytes in the store or on disk fail a checksum, or do not match their name.
    Corrupt = 10,
    /// A file that the restore needs is missing between others.
    Hole = 11,
    /// The newest stored position is older than the live one, or than the allowed lag.
    Stale = 12,
    /// The restored database fails SQLite's own checks.
    IntegrityFailed = 13,
    /// The restored database differs from the one that was acknowledged at that position.
    ChecksumMismatch = 14,
    /// A check of the user failed.
    CheckFailed = 15,
    /// Another writer owns the replica, or the local database does not descend from it.
    Superseded = 16,
    /// The source is not a database that can be backed up.
    BadSource = 17,
    /// The store refused our credentials, or there are none.
    Credentials = 20,
    /// The store could not be reached, or gave an unusable answer.
    Unreachable = 21,
    /// No space left on a local disk.
    DiskFull = 22,
    /// A deadline passed.
    Timeout = 23,
    /// Local files could not be read or written, for another reason than lack of space.
    LocalIo = 24,
    /// The store, asked with valid credentials, has no backup, or not the requested point.
    NothingToRestore = 30,
}

impl ExitCode {
    /// True when the same run may succeed later without a change of the data.
    pub fn is_environment(self) -> bool {
        (20..30).contains(&(self as u8))
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}
