//! The calls that give our files on the local disk their names, and make them durable. The content of
//! captured files is written to the file that [`Disk::create`] returns.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The local disk. A simulation makes its calls fail, and undoes changes that are not durable.
pub trait Disk: Debug + Send + Sync {
    /// Creates an empty file, or truncates an existing one.
    ///
    /// # Errors
    ///
    /// Those of the system, here and in the other methods.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Appends to a new file.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    fn write(&self, file: &File, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Overwrites the beginning of a file, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Makes the bytes of a file durable. Its name may still be lost.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    fn sync(&self, file: &File, path: &Path) -> io::Result<()>;

    /// Renames a file, replacing the destination.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    ///
    /// As [`Disk::create`].
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// The disk of the system.
#[derive(Debug, Clone, Copy)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        File::create(path)
    }

    fn write(&self, mut file: &File, _path: &Path, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let options = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        options?.write_all_at(bytes, 0)
    }

    fn sync(&self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        // Some file systems refuse fsync of a directory; there the journal makes names durable.
        match File::open(directory)?.sync_all() {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result,
        }
    }
}

/// True when a local error means that there is no space left.
pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
