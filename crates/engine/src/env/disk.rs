//! All calls that change our files on the local disk. The simulation makes them fail, and undoes
//! changes that are not durable.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// One such call, before it is made.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "only simulations read them"))]
pub(crate) enum Call<'a> {
    Create(&'a Path),
    Write(&'a Path),
    Sync(&'a Path),
    Rename { from: &'a Path, to: &'a Path },
    Remove(&'a Path),
    SyncDirectory(&'a Path),
}

/// Creates an empty file, or truncates an existing one.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    ask(Call::Create(path))?;
    File::create(path)
}

/// Appends to a new file.
pub(crate) fn write(mut file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    ask(Call::Write(path))?;
    file.write_all(bytes)
}

/// Makes the bytes of a file durable. Its name may still be lost.
pub(crate) fn sync(file: &File, path: &Path) -> io::Result<()> {
    match ask(Call::Sync(path))? {
        Answer::Done => Ok(()),
        Answer::Go => file.sync_all(),
    }
}

/// Renames a file, replacing the destination.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    ask(Call::Rename { from, to })?;
    fs::rename(from, to)
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    ask(Call::Remove(path))?;
    fs::remove_file(path)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    if let Answer::Done = ask(Call::SyncDirectory(directory))? {
        return Ok(());
    }
    // Some file systems refuse fsync of a directory; there the journal makes names durable.
    match File::open(directory)?.sync_all() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// True when a local error means that there is no space left.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The decision on a call.
pub(crate) enum Answer {
    /// Make the call.
    Go,
    /// Skip the call as done: virtual machines have no disk to wait for.
    #[cfg_attr(not(test), expect(dead_code, reason = "only simulations say it"))]
    Done,
}

#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "simulated disks fail")]
fn ask(_call: Call<'_>) -> io::Result<Answer> {
    Ok(Answer::Go)
}

#[cfg(test)]
use super::simulated::disk_call as ask;
