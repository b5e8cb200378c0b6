//! The machine of a simulated process: its clocks, its disk, and its threads.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use engine::env::disk::SystemDisk;
use engine::env::host::Host;
use engine::env::{clock, disk, threads};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::chance::{Chance, Log};

thread_local! {
    /// True inside work that would run on another thread.
    static THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether a request comes from work that would run on another thread.
pub(super) fn in_a_thread() -> bool {
    THREAD.get()
}

/// The machine of one process.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) clock: Clock,
    pub(super) disk: Arc<Disk>,
    pub(super) threads: Threads,
}

impl Machine {
    /// The machine, as the engine sees it.
    pub(super) fn host(&self) -> Host {
        Host {
            clock: Arc::new(self.clock.clone()),
            disk: Arc::clone(&self.disk) as Arc<dyn disk::Disk>,
            threads: Arc::new(self.threads.clone()),
        }
    }
}

/// Threads whose work is done at once, because virtual time stands still while a thread works.
#[derive(Clone)]
pub(super) struct Threads {
    /// The acts of others before and after the work.
    pub(super) meanwhile: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Threads")
    }
}

impl threads::Threads for Threads {
    fn start(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        (self.meanwhile)();
        THREAD.set(true);
        work();
        THREAD.set(false);
        (self.meanwhile)();
        std::future::ready(()).boxed()
    }

    fn wait(&self, future: BoxFuture<'_, ()>) {
        let now = future.now_or_never();
        now.expect("simulated stores answer threads at once");
    }
}

/// A machine's clocks: virtual time, to which the wall clock adds its error.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) log: Arc<Log>,
    pub(super) off_ms: Arc<AtomicI64>,
}

impl Clock {
    pub(super) fn now_ms(&self) -> i64 {
        self.log.unix_ms() + self.off_ms.load(Ordering::Relaxed)
    }
}

impl clock::Clock for Clock {
    fn unix_ms(&self) -> i64 {
        self.now_ms()
    }

    fn steady_ms(&self) -> i64 {
        self.log.unix_ms()
    }
}

/// The disk below one state directory. Calls go to a real directory. This records the changes that
/// a power failure may take back.
#[derive(Debug, Default)]
pub(super) struct Disk(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    /// Changes of names that are not durable, for each directory, in order.
    names: BTreeMap<PathBuf, Vec<Change>>,
    /// Files whose bytes are not durable.
    dirty: BTreeSet<PathBuf>,
    trouble: Option<(u64, Trouble)>,
}

/// A change of names in a directory.
#[derive(Debug)]
enum Change {
    Made(PathBuf),
    Renamed {
        from: PathBuf,
        to: PathBuf,
        /// The earlier file of that name, and whether its bytes were not durable.
        replaced: Option<(Vec<u8>, bool)>,
    },
    Removed(PathBuf, Vec<u8>),
}

/// A call that changes files, before it is made.
#[derive(Debug, Clone, Copy)]
enum Call<'a> {
    Create(&'a Path),
    Write(&'a Path),
    Sync(&'a Path),
    Rename { from: &'a Path, to: &'a Path },
    Remove(&'a Path),
    SyncDirectory(&'a Path),
}

/// A fault of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble {
    /// It has no space for this many calls. Files can still be removed.
    Full(u64),
    /// This many calls fail.
    Broken(u64),
    /// The process ends during a call: nothing reaches the disk any more.
    Crash,
}

impl Disk {
    /// Starts a fault after this many more calls.
    pub(super) fn trouble(&self, calls: u64, trouble: Trouble) {
        self.0.lock().unwrap().trouble = Some((calls, trouble));
    }

    /// Ends the fault, for the next process.
    pub(super) fn heal(&self) {
        self.0.lock().unwrap().trouble = None;
    }

    /// True when the process on it has ended during a call.
    pub(super) fn is_frozen(&self) -> bool {
        matches!(self.0.lock().unwrap().trouble, Some((0, Trouble::Crash)))
    }

    /// Forgets all changes: other files were put in place, and they are durable.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap() = Content::default();
    }

    fn begin(&self, call: Call<'_>) -> io::Result<()> {
        let content = &mut *self.0.lock().unwrap();
        content.fail(call)?;
        content.note(call);
        Ok(())
    }

    /// Takes back changes that are not durable: the last changes of names in each directory, and
    /// any part of the bytes.
    pub(super) fn lose_power(&self, chance: &mut Chance) {
        let content = std::mem::take(&mut *self.0.lock().unwrap());
        let (mut dirty, names) = (content.dirty, content.names);
        for (_, mut changes) in names {
            let kept = chance.below(changes.len() as u64 + 1) as usize;
            for change in changes.drain(kept..).rev() {
                change.take_back(&mut dirty);
            }
        }
        for path in dirty {
            let Ok(mut bytes) = fs::read(&path) else {
                continue;
            };
            let whole = chance.below(bytes.len() as u64 + 1) as usize;
            match chance.below(3) {
                0 => bytes.truncate(whole),
                1 => bytes[whole..].fill(0),
                _ => continue,
            }
            fs::write(&path, bytes).unwrap();
        }
    }
}

/// Nothing here waits for a real disk.
impl disk::Disk for Disk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.begin(Call::Create(path))?;
        SystemDisk.create(path)
    }

    fn write(&self, file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.begin(Call::Write(path))?;
        SystemDisk.write(file, path, bytes)
    }

    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.begin(Call::Write(path))?;
        SystemDisk.overwrite(path, bytes)
    }

    fn sync(&self, _file: &File, path: &Path) -> io::Result<()> {
        self.begin(Call::Sync(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(Call::Rename { from, to })?;
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::Remove(path))?;
        SystemDisk.remove(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.begin(Call::SyncDirectory(directory))
    }
}

impl Content {
    fn fail(&mut self, call: Call<'_>) -> io::Result<()> {
        let Some((calls, trouble)) = &mut self.trouble else {
            return Ok(());
        };
        if *calls > 0 {
            *calls -= 1;
            return Ok(());
        }
        let (left, kind) = match trouble {
            Trouble::Crash => return Err(io::Error::other("it has ended")),
            Trouble::Full(_) if matches!(call, Call::Remove(_)) => return Ok(()),
            Trouble::Full(left) => (left, io::ErrorKind::StorageFull),
            Trouble::Broken(left) => (left, io::ErrorKind::Other),
        };
        *left -= 1;
        if *left == 0 {
            self.trouble = None;
        }
        Err(kind.into())
    }

    /// Records the effect of a call before it is made.
    fn note(&mut self, call: Call<'_>) {
        match call {
            Call::Create(path) => {
                self.dirty.insert(path.to_owned());
                self.change(path, Change::Made(path.to_owned()));
            }
            Call::Write(path) => {
                self.dirty.insert(path.to_owned());
            }
            Call::Sync(path) => {
                self.dirty.remove(path);
            }
            Call::Rename { from, to } => {
                let dirty = self.dirty.remove(to);
                let replaced = fs::read(to).ok().map(|bytes| (bytes, dirty));
                if self.dirty.remove(from) {
                    self.dirty.insert(to.to_owned());
                }
                let (from, to) = (from.to_owned(), to.to_owned());
                self.change(&to.clone(), Change::Renamed { from, to, replaced });
            }
            Call::Remove(path) => {
                if let Ok(bytes) = fs::read(path) {
                    self.change(path, Change::Removed(path.to_owned(), bytes));
                }
            }
            Call::SyncDirectory(directory) => {
                self.names.remove(directory);
            }
        }
    }

    fn change(&mut self, path: &Path, change: Change) {
        let directory = path.parent().expect("our files lie in a directory");
        let names = self.names.entry(directory.to_owned()).or_default();
        names.push(change);
    }
}

impl Change {
    fn take_back(self, dirty: &mut BTreeSet<PathBuf>) {
        match self {
            Change::Made(path) => {
                let _gone = fs::remove_file(path);
            }
            Change::Renamed { from, to, replaced } => {
                // The file may have been removed without a recorded call.
                if let Ok(bytes) = fs::read(&to) {
                    fs::write(&from, bytes).unwrap();
                    fs::remove_file(&to).unwrap();
                }
                if dirty.remove(&to) {
                    dirty.insert(from);
                }
                if let Some((bytes, was_dirty)) = replaced {
                    fs::write(&to, bytes).unwrap();
                    if was_dirty {
                        dirty.insert(to);
                    }
                }
            }
            Change::Removed(path, bytes) => fs::write(path, bytes).unwrap(),
        }
    }
}
