//! Local state: our files on the local disk, one directory for each database.
//!
//! ```text
//! lock              held by flock while a process uses the directory
//! pages             page hashes at some TXID (page_hashes.rs); written now and then
//! capture.json      the last written TXID and the position in the WAL; a hint, never fsynced
//! replicas.json     our epoch at each target
//! delivered.json    what each target had, as last recorded; a hint, never fsynced
//! ltx/0/MIN-MAX.ltx captured files, one TXID each; the authoritative record of captured commits
//! ```
//!
//! A crash at any point leaves a state that [`LocalState::load`] understands. Files get their names
//! only when they are whole and durable. The captured files bring the page hashes forward. A missing
//! or older hint costs one comparison of page hashes. Files that do not fit together are dropped,
//! and the database is read again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::{Decoder, FileName, Txid, page_checksum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::env::disk::{Disk, is_disk_full};
use crate::env::files::{SourceId, identify};
use crate::env::lock_file::LockFile;
use crate::pages::page_hashes::PageHashes;
use crate::source::wal::WalPosition;

/// The length of `capture.json` is a multiple of this many bytes. A record is shorter.
const CAPTURE_BYTES: usize = 256;

/// The directory of one database, held exclusively.
#[derive(Debug)]
pub struct LocalState {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
    _lock: LockFile,
}

/// The position in the WAL when a TXID was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRecord {
    /// The written TXID.
    pub txid: u64,
    /// The position in the WAL.
    #[serde(rename = "log")]
    pub position: WalPosition,
}

/// Location of a state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Boot ID of the kernel.
    pub boot: String,
    /// Device number of the mounted file system, valid while it is mounted.
    pub device: u64,
    /// The lock file in the directory.
    pub state: SourceId,
}

/// Our records of targets between runs, by target name. They are boxed, because a map with one
/// record has room for eleven, and there may be thousands of databases.
pub type Replicas = BTreeMap<String, Box<ReplicaRecord>>;

/// Our record of one target, kept between runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// Location of the target; another location under the same name is another replica.
    pub location: String,
    /// Our epoch there, once no other process can write.
    pub epoch: u64,
    /// Epochs we tried to acquire from an earlier process that used this state and has ended, so no
    /// fence is needed. Several, where processes ended before the answer arrived.
    #[serde(default)]
    pub resumed: Vec<u64>,
    /// Processes that used this state and may hold the lease: the last one that certainly did, and
    /// those that tried to take it since.
    #[serde(default)]
    pub holders: Vec<String>,
    /// Location of this state at that time. A copy, a clone and a restarted machine have another
    /// one.
    #[serde(default)]
    pub home: Option<Home>,
    /// TXID at which the local database was restored from this target; zero when it was not.
    #[serde(default)]
    pub restored: u64,
    /// Whether the local database was restored from this backup: the replica is then taken over
    /// from any holder.
    #[serde(default)]
    pub adopt: bool,
}

/// The last record of the TXIDs that a target has: a hint. The lag is computed from it until the
/// target answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Location of the target.
    pub location: String,
    /// The newest TXID that it had acknowledged.
    pub txid: u64,
    /// The TXID with which the target will have commits that no captured file brings to it; zero for
    /// none.
    pub lost: u64,
    /// When the oldest such commit was seen, in Unix milliseconds.
    pub lost_since_ms: i64,
}

/// A captured file on the local disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalFile {
    /// Its one TXID.
    pub txid: Txid,
    /// Its size.
    pub bytes: u64,
    /// Its timestamp, in Unix milliseconds.
    pub timestamp_ms: i64,
}

/// Content of a state directory.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The newest written TXID, zero when nothing was written.
    pub txid: Txid,
    /// The page hashes at that TXID; none when the database must be read.
    pub hashes: Option<PageHashes>,
    /// TXID of the page hashes on the disk.
    pub hashes_at: Txid,
    /// The position in the WAL at that TXID, where known.
    pub position: Option<WalPosition>,
    /// Captured files, ascending, without holes up to `txid`.
    pub files: Vec<LocalFile>,
    /// Our records of targets, by name.
    pub replicas: Replicas,
    /// The last record of each target, by name.
    pub delivered: BTreeMap<String, Delivered>,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Another process holds the directory.
    #[error("{} is in use by another process", directory.display())]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// The disk failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl LocalError {
    /// True when the disk is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, LocalError::Io { source, .. } if is_disk_full(source))
    }
}

impl LocalState {
    /// Opens the directory on a disk, creating it if needed, and locks it.
    ///
    /// # Errors
    ///
    /// Another process holds the directory, or the disk failed.
    pub fn open(directory: &Path, disk: &Arc<dyn Disk>) -> Result<LocalState, LocalError> {
        let captured = directory.join("ltx/0");
        fs::create_dir_all(&captured).map_err(failed("create", &captured))?;
        let path = directory.join("lock");
        match LockFile::take(&path) {
            Ok(lock) => Ok(LocalState {
                directory: directory.to_owned(),
                disk: Arc::clone(disk),
                _lock: lock,
            }),
            Err(fs::TryLockError::WouldBlock) => Err(LocalError::InUse {
                directory: directory.to_owned(),
            }),
            Err(fs::TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
        }
    }

    /// Location of this directory. Two processes with the same home share one lock file, so only
    /// one of them runs.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn home(&self) -> io::Result<Home> {
        let lock = self.directory.join("lock");
        Ok(Home {
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
            device: fs::metadata(&lock)?.dev(),
            state: identify(&lock)?,
        })
    }

    /// The directory, for temporary files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The disk that the directory lies on.
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Path of the captured file of `txid`.
    pub fn captured_path(&self, txid: Txid) -> PathBuf {
        self.directory.join("ltx/0").join(
            FileName {
                min: txid,
                max: txid,
            }
            .to_string(),
        )
    }

    /// Reads everything and brings the page hashes forward to the newest captured file.
    ///
    /// # Errors
    ///
    /// The directory cannot be read. Damaged files are no error: their content counts as unknown.
    pub fn load(&self) -> Result<Loaded, LocalError> {
        self.remove_leftovers()?;
        let files = self.captured_files()?;
        let replicas = self.read_json("replicas.json").unwrap_or_default();
        let delivered = self.read_json("delivered.json").unwrap_or_default();
        let stored = fs::read(self.directory.join("pages"))
            .ok()
            .and_then(|bytes| PageHashes::decode(&bytes).ok());
        let newest = files.last().map_or(Txid::ZERO, |file| file.txid);
        let files = match &stored {
            // A later lineage began with a snapshot, so these files lead to no position any more.
            Some((at, _)) if *at > newest => {
                self.remove_all_captured()?;
                Vec::new()
            }
            _ => files,
        };
        let Some((at, mut hashes)) = stored else {
            return Ok(Loaded {
                txid: newest,
                hashes: None,
                hashes_at: Txid::ZERO,
                position: None,
                files,
                replicas,
                delivered,
            });
        };
        let txid = newest.max(at);
        let complete = (at.get() + 1..=newest.get())
            .all(|next| replay(&self.captured_path(Txid::new(next)), &mut hashes).is_some());
        let position = self
            .read_json::<CaptureRecord>("capture.json")
            .filter(|record| complete && record.txid == txid.get())
            .map(|record| record.position);
        Ok(Loaded {
            txid,
            hashes: complete.then_some(hashes),
            hashes_at: at,
            position,
            files,
            replicas,
            delivered,
        })
    }

    /// Removes temporary files that a crash left behind, and snapshots, which earlier versions
    /// kept.
    fn remove_leftovers(&self) -> Result<(), LocalError> {
        for below in ["ltx/0", "ltx/9", "."] {
            let directory = self.directory.join(below);
            let entries = match fs::read_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed("list", &directory))?,
            };
            for entry in entries {
                let path = entry.map_err(failed("list", &directory))?.path();
                let temporary = path.extension().is_some_and(|extension| extension == "tmp");
                if temporary || (below == "ltx/9" && path.is_file()) {
                    self.disk.remove(&path).map_err(failed("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Returns the captured files without a hole, up to the newest one. Removes files before a hole
    /// and unreadable files, so that no later file meets them.
    fn captured_files(&self) -> Result<Vec<LocalFile>, LocalError> {
        let directory = self.directory.join("ltx/0");
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let entry = entry.map_err(failed("list", &directory))?;
            let Some(name) = entry.file_name().to_str().and_then(FileName::parse) else {
                continue;
            };
            match inspect(&entry.path(), name) {
                Some(file) => files.push(file),
                None => self.remove(&entry.path())?,
            }
        }
        files.sort_by_key(|file| file.txid);
        let hole = files
            .windows(2)
            .rposition(|pair| pair[1].txid != pair[0].txid.next());
        let stale: Vec<LocalFile> = files.drain(..hole.map_or(0, |index| index + 1)).collect();
        self.remove_captured(&stale)?;
        Ok(files)
    }

    fn remove_all_captured(&self) -> Result<(), LocalError> {
        self.remove_captured(&self.captured_files()?)
    }

    /// Stores the position in the WAL. Not durable on purpose: losing it costs one comparison. It is
    /// written with each captured file, so it overwrites the record before it in place, which is
    /// cheaper than a new file. A torn record is unreadable, or names a position that the WAL
    /// disproves.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn write_capture(&self, record: &CaptureRecord) -> Result<(), LocalError> {
        let path = self.directory.join("capture.json");
        let mut bytes = json(record);
        // Records have the same length, so no end of an earlier one stays.
        bytes.resize(bytes.len().next_multiple_of(CAPTURE_BYTES), b' ');
        self.disk
            .overwrite(&path, &bytes)
            .map_err(failed("write", &path))
    }

    /// Stores what each target has. Not durable on purpose: losing it only makes the reported lag
    /// longer until the target answers.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn write_delivered(&self, targets: &BTreeMap<String, Delivered>) -> Result<(), LocalError> {
        self.write("delivered.json", &json(targets), false)
    }

    /// Stores the page hashes at `txid`, durably.
    ///
    /// # Errors
    ///
    /// The disk failed; the earlier hashes are intact.
    pub fn write_hashes(&self, txid: Txid, hashes: &PageHashes) -> Result<(), LocalError> {
        self.write("pages", &hashes.encode(txid), true)
    }

    /// Stores our records of targets, durably.
    ///
    /// # Errors
    ///
    /// The disk failed; the earlier records are intact.
    pub fn write_replicas(&self, replicas: &Replicas) -> Result<(), LocalError> {
        self.write("replicas.json", &json(replicas), true)
    }

    /// Removes these captured files.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn remove_captured(&self, files: &[LocalFile]) -> Result<(), LocalError> {
        for file in files {
            self.remove(&self.captured_path(file.txid))?;
        }
        Ok(())
    }

    /// Starts again with a restored database. With a position, the next start compares the
    /// database with the hashes. Without them, the next start reads it as an unknown database.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn seed(
        &self,
        base: Option<(Txid, &PageHashes)>,
        replicas: &Replicas,
    ) -> Result<(), LocalError> {
        self.forget_log()?;
        self.remove(&self.directory.join("delivered.json"))?;
        self.remove_all_captured()?;
        match base {
            Some((txid, hashes)) => self.write_hashes(txid, hashes)?,
            None => self.remove(&self.directory.join("pages"))?,
        }
        self.write_replicas(replicas)
    }

    /// Forgets a restored database that was not published.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn unseed(&self) -> Result<(), LocalError> {
        self.remove(&self.directory.join("replicas.json"))?;
        self.remove(&self.directory.join("pages"))
    }

    /// Forgets the position in the WAL.
    fn forget_log(&self) -> Result<(), LocalError> {
        self.remove(&self.directory.join("capture.json"))
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.directory.join(name)).ok()?).ok()
    }

    fn write(&self, name: &str, bytes: &[u8], durable: bool) -> Result<(), LocalError> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!("{name}.tmp"));
        let write = || {
            let disk = &self.disk;
            let file = disk.create(&temporary)?;
            disk.write(&file, &temporary, bytes)?;
            if durable {
                disk.sync(&file, &temporary)?;
            }
            disk.rename(&temporary, &path)?;
            if durable {
                disk.sync_directory(&self.directory)
            } else {
                Ok(())
            }
        };
        write().map_err(failed("write", &path))
    }

    /// Removes a file, if it exists.
    fn remove(&self, path: &Path) -> Result<(), LocalError> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", path)(error))
            }
            _ => Ok(()),
        }
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our records have string keys and plain values")
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> LocalError + 'a {
    move |source| LocalError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn inspect(path: &Path, name: FileName) -> Option<LocalFile> {
    if !name.is_single() {
        return None;
    }
    let bytes = fs::metadata(path).ok()?.len();
    let decoder = Decoder::new(BufReader::new(File::open(path).ok()?)).ok()?;
    let timestamp_ms = decoder.header().timestamp_ms;
    Some(LocalFile {
        txid: name.max,
        bytes,
        timestamp_ms,
    })
}

/// Applies a captured file to the hashes; none when the file is missing or damaged.
fn replay(path: &Path, hashes: &mut PageHashes) -> Option<()> {
    let mut decoder = Decoder::new(BufReader::new(File::open(path).ok()?)).ok()?;
    let commit = decoder.header().commit;
    let (mut changed, mut image) = (Vec::new(), Vec::new());
    while let Some(pgno) = decoder.next_page(&mut image).ok()? {
        changed.push((pgno, page_checksum(pgno, &image)));
    }
    decoder.finish().ok()?;
    let covered: std::collections::BTreeSet<u32> = changed.iter().map(|(pgno, _)| *pgno).collect();
    if hashes
        .first_gap(commit, |pgno| covered.contains(&pgno))
        .is_some()
    {
        return None;
    }
    hashes.apply(changed, commit);
    Some(())
}
