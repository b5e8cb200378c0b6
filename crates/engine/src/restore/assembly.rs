//! A database under construction: the files of a plan applied in order, the result proven, then
//! named.
//!
//! Page hashes come from reading the whole file back, not from the fetched bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ltx::{Decoder, LtxError, Txid};
use sqlite_format::PageSize;
use store::{Layout, SharedStore, Store};

use super::fetch::{Objects, pipe};
use super::place::{adopt_access, directory_of, exists, is_open, put_back, set_aside};
use super::{IntegrityCheck, RestoreError, Restored, failed};
use crate::env::disk::Disk;
use crate::pages::page_bitmap::PageNumbers;
use crate::pages::page_hashes::PageHashes;
use crate::replica::manifest::{self, RemoteError, RemoteFile};
use crate::replica::restore_plan::{Plan, PlanError, plan_from};
use crate::restore::litestream03::GenerationId;
use crate::source::sqlite::{Checked, Inspection, Stop};

/// Bytes read at once from an object, and from the result.
const READ_BYTES: usize = 256 << 10;
/// Bytes of consecutive pages that are written at once.
const WRITE_BYTES: usize = 256 << 10;

/// A database under construction, in a temporary file that is removed unless it is published.
#[derive(Debug)]
pub struct Assembly {
    temporary: PathBuf,
    state: Option<State>,
    generation: Option<GenerationId>,
    bytes: u64,
    files: usize,
}

/// A database that was written by other means than the files of a plan.
pub(crate) struct Whole {
    pub(crate) page_size: PageSize,
    /// Size in pages, all of which are present.
    pub(crate) commit: u32,
    pub(crate) generation: GenerationId,
    pub(crate) timestamp_ms: i64,
    pub(crate) bytes: u64,
    pub(crate) files: usize,
}

#[derive(Debug)]
struct State {
    file: File,
    page_size: Option<PageSize>,
    commit: u32,
    txid: Txid,
    timestamp_ms: i64,
    /// The pages written so far.
    written: PageNumbers,
}

impl Assembly {
    /// Creates the temporary file beside the destination of the database.
    ///
    /// # Errors
    ///
    /// The directory cannot be created or written.
    pub fn create(output: &Path) -> Result<Assembly, RestoreError> {
        let directory = directory_of(output);
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{name}.restore.tmp"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed(&temporary))?;
        match file.try_lock() {
            Ok(()) => file.set_len(0).map_err(failed(&temporary))?,
            Err(fs::TryLockError::WouldBlock) => {
                return Err(RestoreError::InUse {
                    path: output.to_owned(),
                });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(&temporary)(source)),
        }
        let state = State {
            file,
            page_size: None,
            commit: 0,
            txid: Txid::ZERO,
            timestamp_ms: 0,
            written: PageNumbers::default(),
        };
        Ok(Assembly {
            temporary,
            state: Some(state),
            generation: None,
            bytes: 0,
            files: 0,
        })
    }

    /// The position reached so far.
    pub fn txid(&self) -> Txid {
        self.state().txid
    }

    /// Fetches the files of a plan, several at once, and applies them in order.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`]; the assembly is useless then.
    pub async fn fetch(
        &mut self,
        store: &SharedStore,
        plan: &Plan,
        parallelism: usize,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<(), RestoreError> {
        let (total, mut bytes) = (plan.bytes(), self.bytes);
        let (fetch, objects) = pipe(store);
        let mut state = self
            .state
            .take()
            .expect("an assembly has its state between files");
        let (path, files, layout) = (self.temporary.clone(), plan.files.clone(), store.layout());
        let keys = plan
            .files
            .iter()
            .map(move |file| (manifest::key(layout, file.level, file.name()), file.size));
        let applying = tokio::task::spawn_blocking(move || {
            let applied = state.apply_all(objects, &files, layout, &path);
            (state, applied)
        });
        let fetched = fetch.bring(keys, parallelism, |arrived| {
            bytes += arrived;
            progress(bytes, total);
        });
        let fetched = fetched.await;
        let (state, applied) = applying.await.expect("applying files does not panic");
        self.state = Some(state);
        // A missing part of an object makes the rest unreadable, so the fetch error comes first.
        fetched?;
        applied?;
        self.bytes += total;
        self.files += plan.files.len();
        Ok(())
    }

    /// Lets `write` produce the whole database, on a thread that may block.
    ///
    /// # Errors
    ///
    /// Those of `write`; the assembly is useless then.
    pub(crate) async fn write_whole(
        &mut self,
        write: impl FnOnce(&File) -> Result<Whole, RestoreError> + Send + 'static,
    ) -> Result<(), RestoreError> {
        let mut state = self
            .state
            .take()
            .expect("an assembly has its state between files");
        let task = tokio::task::spawn_blocking(move || {
            let whole = write(&state.file);
            if let Ok(whole) = &whole {
                state.page_size = Some(whole.page_size);
                state.commit = whole.commit;
                state.timestamp_ms = whole.timestamp_ms;
                state.written = PageNumbers::up_to(whole.commit);
            }
            (state, whole)
        });
        let (state, whole) = task.await.expect("writing a database does not panic");
        self.state = Some(state);
        let whole = whole?;
        self.generation = Some(whole.generation);
        self.bytes += whole.bytes;
        self.files += whole.files;
        Ok(())
    }

    /// Advances from the position reached to a later one.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`].
    pub async fn advance(
        &mut self,
        store: &SharedStore,
        files: &BTreeSet<RemoteFile>,
        wanted: Txid,
        parallelism: usize,
    ) -> Result<(), RestoreError> {
        let plan = plan_from(files, self.txid(), wanted)?;
        self.fetch(store, &plan, parallelism, &|_, _| {}).await
    }

    /// Proves the result: every page is present, and the bytes on disk equal the fetched ones.
    /// Returns the restored state with SQLite's findings; a complaint is no error here.
    ///
    /// # Errors
    ///
    /// See [`RestoreError`].
    ///
    /// # Cancel safety
    ///
    /// The work on another thread ends soon; the assembly is useless then.
    pub async fn prove(&mut self, integrity: IntegrityCheck) -> Result<Restored, RestoreError> {
        let state = self
            .state
            .take()
            .expect("an assembly has its state between files");
        let path = self.temporary.clone();
        let stop = Stop::default();
        let _ends_with_us = stop.on_drop();
        let (state, proven) = blocking(move || {
            let proven = state.prove(&path, &stop).and_then(|hashes| {
                let checked = check(&path, integrity, &stop)?;
                Ok((hashes, checked))
            });
            (state, proven)
        })
        .await;
        self.state = Some(state);
        let (hashes, checked) = proven?;
        let state = self.state();
        Ok(Restored {
            txid: state.txid,
            generation: self.generation,
            timestamp_ms: state.timestamp_ms,
            hashes,
            bytes: self.bytes,
            files: self.files,
            damaged: Vec::new(),
            checked,
        })
    }

    /// Path of the temporary file, for checks. It has no WAL beside it.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the database its name. The file that was there is kept until the new one has the name.
    ///
    /// # Errors
    ///
    /// The disk failed, or another file appeared at the destination meanwhile.
    ///
    /// # Cancel safety
    ///
    /// The destination holds either the old file or the new database. In the latter case the old
    /// file may be left beside it under a name with `.before-restore`.
    pub async fn publish(
        mut self,
        output: &Path,
        force: bool,
        disk: &Arc<dyn Disk>,
    ) -> Result<(), RestoreError> {
        refuse_taken(output, force)?;
        let state = self
            .state
            .take()
            .expect("an assembly has its state between files");
        let (temporary, place) = (self.temporary.clone(), output.to_owned());
        // The state holds the lock on the temporary file and keeps it until the end.
        let _state = blocking(move || {
            adopt_access(&state.file, &place)
                .and_then(|()| state.file.sync_all())
                .map_err(failed(&temporary))?;
            Ok::<State, RestoreError>(state)
        })
        .await?;
        refuse_taken(output, force)?;
        // SQLite would replay a WAL that belongs to another file into the new one. So the old WAL
        // is moved away first, and back if the new file does not get its name. No await separates
        // the two steps: a signal must not leave the old database without its WAL.
        let aside = set_aside(output)?;
        let mut named = fs::rename(&self.temporary, output);
        if named.is_ok() {
            let (disk, directory) = (Arc::clone(disk), directory_of(output));
            named = blocking(move || disk.sync_directory(&directory)).await;
        }
        if let Err(source) = named {
            put_back(&aside);
            return Err(failed(output)(source));
        }
        if !force {
            return Ok(());
        }
        let old = aside.into_iter().map(|(_, path)| path);
        let old: Vec<PathBuf> = old.collect();
        blocking(move || {
            let mut old = old.iter();
            old.try_for_each(|path| fs::remove_file(path).map_err(failed(path)))
        })
        .await
    }

    fn state(&self) -> &State {
        self.state
            .as_ref()
            .expect("an assembly has its state between files")
    }
}

/// Refuses a destination that has a database, or one that another process has open.
fn refuse_taken(output: &Path, force: bool) -> Result<(), RestoreError> {
    let path = || output.to_owned();
    if !force && exists(output)? {
        return Err(RestoreError::Exists { path: path() });
    }
    if is_open(output).map_err(failed(output))? {
        return Err(RestoreError::InUse { path: path() });
    }
    Ok(())
}

/// Runs work on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let task = tokio::task::spawn_blocking(work);
    task.await.expect("work on a restored file does not panic")
}

fn check(path: &Path, depth: IntegrityCheck, stop: &Stop) -> Result<Checked, RestoreError> {
    let inspection = || Inspection::open_until(path, stop);
    Ok(match depth {
        IntegrityCheck::None => Checked::default(),
        IntegrityCheck::Quick => inspection()?.quick_check()?,
        IntegrityCheck::Full => inspection()?.integrity_check()?,
    })
}

impl Drop for Assembly {
    fn drop(&mut self) {
        // After a publication no file has this name.
        let _removed = fs::remove_file(&self.temporary);
    }
}

impl State {
    fn apply_all(
        &mut self,
        mut objects: Objects,
        files: &[RemoteFile],
        layout: Layout,
        path: &Path,
    ) -> Result<(), RestoreError> {
        for file in files {
            let key = manifest::key(layout, file.level, file.name());
            let reader = BufReader::with_capacity(READ_BYTES, &mut objects);
            self.apply(reader, *file, &key, path)?;
            objects.next_object();
        }
        Ok(())
    }

    fn apply(
        &mut self,
        reader: impl Read,
        expected: RemoteFile,
        key: &str,
        path: &Path,
    ) -> Result<(), RestoreError> {
        let corrupt = |source: LtxError| {
            RestoreError::Remote(RemoteError::Corrupt {
                key: key.to_owned(),
                source,
            })
        };
        let mut decoder = Decoder::new(reader).map_err(corrupt)?;
        let header = *decoder.header();
        if (header.min_txid, header.max_txid) != (expected.min, expected.max) {
            let (key, found) = (key.to_owned(), header.file_name());
            return Err(RestoreError::Remote(RemoteError::NameMismatch {
                key,
                found,
            }));
        }
        let page_size = *self.page_size.get_or_insert(header.page_size);
        if page_size != header.page_size {
            return Err(RestoreError::PageSizeChanged {
                name: key.to_owned(),
                found: header.page_size.get(),
                expected: page_size.get(),
            });
        }
        let mut run = Run::new(&self.file, page_size);
        let mut image = Vec::new();
        while let Some(pgno) = decoder.next_page(&mut image).map_err(corrupt)? {
            run.add(pgno, &image).map_err(failed(path))?;
            self.written.insert(pgno);
        }
        run.write().map_err(failed(path))?;
        decoder.finish().map_err(corrupt)?;
        // Pages beyond a shrunken end are missing if the database grows again.
        self.written.truncate(header.commit);
        self.commit = header.commit;
        let size = u64::from(page_size.get());
        self.file
            .set_len(u64::from(header.commit) * size)
            .map_err(failed(path))?;
        self.txid = header.max_txid;
        self.timestamp_ms = header.timestamp_ms;
        Ok(())
    }

    fn prove(&self, path: &Path, stop: &Stop) -> Result<PageHashes, RestoreError> {
        let Some(page_size) = self.page_size else {
            return Err(PlanError::Empty.into());
        };
        let commit = self.commit;
        let missing = |pgno: &u32| !self.written.contains(*pgno) && *pgno != page_size.lock_pgno();
        if let Some(pgno) = (1..=commit).find(missing) {
            return Err(RestoreError::MissingPage { pgno, commit });
        }
        let mut hashes = PageHashes::new(page_size);
        let mut reader = BufReader::with_capacity(1 << 20, &self.file);
        reader.rewind().map_err(failed(path))?;
        let mut image = vec![0; page_size.as_usize()];
        for pgno in 1..=commit {
            if stop.is_set() {
                return Err(failed(path)(io::ErrorKind::Interrupted.into()));
            }
            reader.read_exact(&mut image).map_err(failed(path))?;
            if pgno != page_size.lock_pgno() {
                hashes.set(pgno, &image);
            }
        }
        hashes.apply([], commit);
        Ok(hashes)
    }
}

/// Consecutive pages, to be written at once.
struct Run<'a> {
    file: &'a File,
    page_size: PageSize,
    first: u32,
    bytes: Vec<u8>,
}

impl Run<'_> {
    fn new(file: &File, page_size: PageSize) -> Run<'_> {
        Run {
            file,
            page_size,
            first: 0,
            bytes: Vec::new(),
        }
    }

    fn add(&mut self, pgno: u32, image: &[u8]) -> io::Result<()> {
        let pages = self.bytes.len() / self.page_size.as_usize();
        let follows = u64::from(pgno) == u64::from(self.first) + pages as u64;
        if !follows || self.bytes.len() >= WRITE_BYTES {
            self.write()?;
            self.first = pgno;
        }
        self.bytes.extend_from_slice(image);
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            let offset = u64::from(self.first - 1) * u64::from(self.page_size.get());
            self.file.write_all_at(&self.bytes, offset)?;
            self.bytes.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::host::Host;

    #[tokio::test]
    async fn what_comes_to_the_place_meanwhile_stays() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("app.db");
        let assembly = Assembly::create(&output).unwrap();
        fs::write(&output, "somebody's").unwrap();
        let refused = assembly
            .publish(&output, false, &Host::default().disk)
            .await;
        assert!(matches!(refused, Err(RestoreError::Exists { .. })));
        assert_eq!(fs::read_to_string(&output).unwrap(), "somebody's");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_was_there_is_there_again_when_the_new_file_gets_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("app.db");
        for name in ["app.db", "app.db-wal"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let assembly = Assembly::create(&output).unwrap();
        fs::remove_file(assembly.path()).unwrap();
        assert!(matches!(
            assembly.publish(&output, true, &Host::default().disk).await,
            Err(RestoreError::Io { .. })
        ));
        for name in ["app.db", "app.db-wal"] {
            assert_eq!(
                fs::read_to_string(directory.path().join(name)).unwrap(),
                name
            );
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
