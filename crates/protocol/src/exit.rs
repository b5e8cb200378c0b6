//! The exit codes of `sqlite-backup`: what a script and a Job's failure policy can tell apart.

/// How a run of `sqlite-backup` ended.
///
/// 10 to 19 say that the data is bad: trying again gives the same answer. 20 to 29 say that the
/// surroundings failed: trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Done = 0,
    /// An error of the program itself, one that no other code names.
    Internal = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Bytes in the store or on disk fail a checksum or are not what their name says.
    Corrupt = 10,
    /// A file that the restore needs is missing between others.
    Hole = 11,
    /// The newest stored position is older than the live one or than the allowed lag.
    Stale = 12,
    /// The restored database fails SQLite's own checks.
    IntegrityFailed = 13,
    /// The restored database is not the one that was acknowledged at that position.
    ChecksumMismatch = 14,
    /// A check of the user's failed.
    CheckFailed = 15,
    /// Another writer owns the replica, or the local database does not descend from it.
    Superseded = 16,
    /// The source is not a database that can be backed up.
    BadSource = 17,
    /// The store refused our credentials, or there are none.
    Credentials = 20,
    /// The store could not be reached or did not answer sensibly.
    Unreachable = 21,
    /// No space left on a local disk.
    DiskFull = 22,
    /// A deadline passed.
    Timeout = 23,
    /// Local files could not be read or written, for another reason than space.
    LocalIo = 24,
    /// The store says, asked with valid credentials, that there is nothing to restore, or not the point
    /// that was asked for.
    NothingToRestore = 30,
}

impl ExitCode {
    /// True when the same run may succeed later without anybody changing the data.
    pub fn is_environment(self) -> bool {
        (20..30).contains(&(self as u8))
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}
