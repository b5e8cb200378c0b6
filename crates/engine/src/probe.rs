//! What is at the path of a database, found out without harming whoever uses it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use protocol::status::DatabaseState;
use sqlite_format::{DatabaseHeader, FormatError};

use crate::hold::PlainFile;
use crate::scan::{Fingerprint, cold_fingerprint, with_suffix};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A database in WAL mode that somebody has open.
    Live,
    /// A database in WAL mode that nobody has open.
    Cold(Fingerprint),
    /// Nothing that we can or may capture, with what a person should know.
    Unfit(DatabaseState, String),
}

/// Looks at a path. Opens the file for a moment; while this process has a SQLite connection to
/// it, closing the descriptor would drop that connection's locks, so it is not looked at then.
pub fn probe(path: &Path) -> Probe {
    match examine(path) {
        Ok(probe) => probe,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Probe::Unfit(
            DatabaseState::Missing,
            "the database does not exist yet".into(),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let message = format!("no permission to read {}: {error}", path.display());
            Probe::Unfit(DatabaseState::NoPermission, message)
        }
        Err(error) => Probe::Unfit(
            DatabaseState::Failed,
            format!("read {}: {error}", path.display()),
        ),
    }
}

fn examine(path: &Path) -> io::Result<Probe> {
    if fs::symlink_metadata(path)?.is_symlink() {
        let message = format!(
            "{} is a symbolic link: SQLite keeps its log beside the file that it leads to; give \
             that path",
            path.display()
        );
        return Ok(Probe::Unfit(DatabaseState::NotSqlite, message));
    }
    let meta = fs::metadata(path)?;
    if !meta.is_file() {
        let message = format!("{} is not a file", path.display());
        return Ok(Probe::Unfit(DatabaseState::NotSqlite, message));
    }
    if meta.len() == 0 {
        let message = "the database is empty: the application has not written yet".into();
        return Ok(Probe::Unfit(DatabaseState::Missing, message));
    }
    let user = rustix::process::geteuid();
    // Files that we make beside a database have our owner; another owner could not write any more.
    if !user.is_root() && user.as_raw() != meta.uid() {
        let message = format!(
            "{} belongs to user {}, we run as {}; run as the owner (in a Pod: set runAsUser)",
            path.display(),
            meta.uid(),
            user.as_raw()
        );
        return Ok(Probe::Unfit(DatabaseState::UnknownUser, message));
    }
    let Some(plain) = PlainFile::open(path)? else {
        let message = "another part of this process has the database open".into();
        return Ok(Probe::Unfit(DatabaseState::Starting, message));
    };
    let mut start = [0u8; 100];
    let read = plain.file().read_exact_at(&mut start, 0);
    drop(plain);
    let header = match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(FormatError::NotSqlite),
        read => {
            read?;
            DatabaseHeader::parse(&start)
        }
    };
    let header = match header {
        Ok(header) => header,
        Err(error) => {
            let message = format!(
                "{} is not a SQLite database, or an encrypted one: {error}",
                path.display()
            );
            return Ok(Probe::Unfit(DatabaseState::NotSqlite, message));
        }
    };
    if !header.is_wal() {
        let message = "the database is not in WAL mode; run PRAGMA journal_mode=WAL once".into();
        return Ok(Probe::Unfit(DatabaseState::NotWal, message));
    }
    let (log, index) = (with_suffix(path, "-wal"), with_suffix(path, "-shm"));
    match (log.try_exists()?, index.try_exists()?) {
        (true, true) => Ok(Probe::Live),
        (true, false) => {
            let message = "there is a -wal file without -shm: the application uses exclusive \
                           locking mode, or it crashed and has not opened the database since"
                .into();
            Ok(Probe::Unfit(DatabaseState::ExclusiveLocking, message))
        }
        (false, _) => Ok(cold_fingerprint(path)?.map_or_else(
            || {
                Probe::Unfit(
                    DatabaseState::Starting,
                    "the application is opening it".into(),
                )
            },
            Probe::Cold,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(path: &Path) -> DatabaseState {
        match probe(path) {
            Probe::Unfit(state, message) => {
                assert!(!message.is_empty());
                state
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_thing_that_is_not_a_wal_database_has_its_own_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        assert_eq!(state(&path), DatabaseState::Missing);
        assert_eq!(state(directory.path()), DatabaseState::NotSqlite);
        fs::write(&path, "").unwrap();
        assert_eq!(state(&path), DatabaseState::Missing);
        fs::write(&path, "short").unwrap();
        assert_eq!(state(&path), DatabaseState::NotSqlite);
        fs::write(&path, [7u8; 4096]).unwrap();
        assert_eq!(state(&path), DatabaseState::NotSqlite);
        fs::remove_file(&path).unwrap();
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("CREATE TABLE t(x)").unwrap();
        assert_eq!(state(&path), DatabaseState::NotWal);
        connection
            .execute_batch("PRAGMA journal_mode=WAL; INSERT INTO t VALUES(1)")
            .unwrap();
        assert_eq!(probe(&path), Probe::Live);
        drop(connection);
        assert!(matches!(probe(&path), Probe::Cold(_)));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(state(&link), DatabaseState::NotSqlite);
        fs::write(with_suffix(&path, "-wal"), "x").unwrap();
        assert_eq!(state(&path), DatabaseState::ExclusiveLocking);
    }
}
