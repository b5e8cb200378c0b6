//! Finds out what is at the path of a database, without harming the applications that use it.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use protocol::status::DatabaseState;
use sqlite_format::{
    Chain, DatabaseHeader, FRAME_HEADER_BYTES, FormatError, PageSize, WAL_HEADER_BYTES, WalHeader,
};

use crate::env::files::{Fingerprint, cold_fingerprint, with_suffix};
use crate::source::open_files::{PlainFile, has_open_lock};

/// File in which the kernel lists the mounts that this process sees.
const MOUNTS: &str = "/proc/self/mountinfo";
/// Most bytes of a WAL that are read to find its first commit.
const COMMIT_WITHIN_BYTES: u64 = 64 << 20;

/// Result of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// A database in WAL mode that is open.
    Live,
    /// A database in WAL mode that is not open.
    Cold(Fingerprint),
    /// Unknown: another part of this process has the file open. Probe again.
    InUse,
    /// No database that we can or may capture, with a message for a person.
    Unfit(DatabaseState, String),
}

/// Probes a path. It opens the file for a moment. While this process has a SQLite connection to the
/// file, closing the descriptor would drop that connection's locks, so the file is not opened then.
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
    // Files that we create beside a database have our owner; another owner could no longer write.
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
        return Ok(Probe::InUse);
    };
    let mut start = [0u8; 100];
    let read = plain.file().read_exact_at(&mut start, 0);
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
    if let Some(names) = other_name(path, &meta)
        && !is_open_by_this_name(path)
    {
        let message = format!(
            "{} {names}, and no application has it open by this name: SQLite keeps the log of commits \
             beside the name that it was opened by, so commits through another name would be \
             missed; give the path that the application opens, in a directory that is mounted as a \
             whole, or remove the other name",
            path.display()
        );
        return Ok(Probe::Unfit(DatabaseState::SecondName, message));
    }
    drop(plain);
    // A header that has not been checkpointed since the change of mode is older than the WAL.
    if !header.is_wal() && !has_commit(path, header.page_size)? {
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

/// Another name by which the database can be reached, as the end of a sentence.
fn other_name(path: &Path, meta: &Metadata) -> Option<String> {
    if meta.nlink() > 1 {
        return Some(format!("has {} names (hard links)", meta.nlink()));
    }
    let here = fs::canonicalize(path).ok()?;
    let mounts = fs::read(MOUNTS).ok()?;
    let is_same = |other: &Path| {
        fs::metadata(other)
            .is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino()))
    };
    other_mount(&mounts, &here, &is_same)
}

/// The same, as far as the kernel's list of mounts shows it. `is_same` tells whether the file at a
/// path is the database, and is called only for mounts of files with its name.
fn other_mount(mounts: &[u8], here: &Path, is_same: &dyn Fn(&Path) -> bool) -> Option<String> {
    let name = here.file_name()?;
    for line in mounts.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ').skip(3).map(unescaped);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        let root = Path::new(OsStr::from_bytes(&root));
        let point = Path::new(OsStr::from_bytes(&point));
        if point == here {
            return Some("is mounted by itself, without the directory that it lies in".to_owned());
        }
        if root.file_name() == Some(name) && is_same(point) {
            return Some(format!("is also mounted at {}", point.display()));
        }
    }
    None
}

/// A field of the list of mounts, in which space, tab, newline and backslash are octal.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = code.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = &after[if code.is_some() { 3 } else { 0 }..];
    }
    plain
}

/// Whether another process has the database open by this very name: it then holds a lock on the
/// wal-index beside it. This process has neither file open, so closing it drops no lock.
fn is_open_by_this_name(path: &Path) -> bool {
    let index = File::open(with_suffix(path, "-shm"));
    index
        .and_then(|index| has_open_lock(&index))
        .unwrap_or(false)
}

/// Whether the WAL beside a database holds a commit that SQLite would find. The mode in the
/// database's header does not matter: SQLite checks for the WAL file first.
fn has_commit(path: &Path, page_size: PageSize) -> io::Result<bool> {
    let file = match File::open(with_suffix(path, "-wal")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    let mut start = [0; WAL_HEADER_BYTES];
    if file.read_exact_at(&mut start, 0).is_err() {
        return Ok(false);
    }
    let header = match WalHeader::parse(&start) {
        Ok(header) if header.page_size == page_size => header,
        _ => return Ok(false),
    };
    let mut chain = Chain::start(&header);
    let mut page = vec![0; page_size.as_usize()];
    let mut frame = [0; FRAME_HEADER_BYTES];
    let mut offset = WAL_HEADER_BYTES as u64;
    while offset < COMMIT_WITHIN_BYTES {
        let body = offset + FRAME_HEADER_BYTES as u64;
        let whole = file.read_exact_at(&mut frame, offset).is_ok()
            && file.read_exact_at(&mut page, body).is_ok();
        match whole.then(|| chain.accept(&frame, &page)) {
            Some(Ok(frame)) if frame.is_commit() => return Ok(true),
            Some(Ok(_)) => offset = body + page.len() as u64,
            _ => return Ok(false),
        }
    }
    // So many frames that belong together are a large commit in progress.
    Ok(true)
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

    /// A database in WAL mode with a row, and a connection that keeps its WAL.
    fn database(path: &Path) -> rusqlite::Connection {
        let connection = rusqlite::Connection::open(path).unwrap();
        let script = "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1)";
        connection.execute_batch(script).unwrap();
        connection
    }

    #[test]
    fn a_database_with_a_second_name_is_told_from_one_without() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        drop(database(&path));
        assert!(matches!(probe(&path), Probe::Cold(_)));
        let link = directory.path().join("link");
        fs::hard_link(&path, &link).unwrap();
        for name in [&path, &link] {
            assert_eq!(state(name), DatabaseState::SecondName);
        }
        fs::remove_file(&link).unwrap();
        assert!(matches!(probe(&path), Probe::Cold(_)));
    }

    #[test]
    fn a_file_that_is_mounted_by_itself_has_a_second_name() {
        let mounts = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 22 8:1 /data/my\\040app.db /srv/app.db rw - ext4 /dev/sda1 rw\n\
            41 22 8:1 /other/app.db /run/x rw - ext4 /dev/sda1 rw\n";
        let told = |here: &str, same: &str| {
            other_mount(mounts, Path::new(here), &|path| path == Path::new(same))
        };
        assert!(told("/srv/app.db", "").unwrap().contains("by itself"));
        let original = told("/data/my app.db", "/srv/app.db").unwrap();
        assert_eq!(original, "is also mounted at /srv/app.db");
        // A file of the same name is not the same file.
        assert_eq!(told("/data/app.db", ""), None);
        assert_eq!(told("/data/other.db", "/srv/app.db"), None);
    }

    #[test]
    fn fields_of_the_list_of_mounts_are_unescaped() {
        assert_eq!(unescaped(br"/a\040b\134c"), br"/a b\c");
        assert_eq!(unescaped(br"/plain\9"), br"/plain\9");
    }

    #[test]
    fn a_header_that_is_older_than_the_wal_does_not_hide_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let connection = database(&path);
        let to_rollback = |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[1, 1], 18).unwrap();
        };
        // Use a copy: closing this file would drop the connection's locks.
        let copy = directory.path().join("copy");
        for suffix in ["", "-wal", "-shm"] {
            fs::copy(with_suffix(&path, suffix), with_suffix(&copy, suffix)).unwrap();
        }
        drop(connection);
        to_rollback(&copy);
        assert_eq!(probe(&copy), Probe::Live);
        // A WAL without a whole commit counts as none.
        let log = with_suffix(&copy, "-wal");
        let whole = fs::read(&log).unwrap();
        fs::write(&log, &whole[..WAL_HEADER_BYTES + 100]).unwrap();
        assert_eq!(state(&copy), DatabaseState::NotWal);
        let mut damaged = whole;
        damaged[WAL_HEADER_BYTES + FRAME_HEADER_BYTES] ^= 1;
        fs::write(&log, damaged).unwrap();
        assert_eq!(state(&copy), DatabaseState::NotWal);
    }
}
