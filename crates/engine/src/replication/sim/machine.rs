//! The machine of a simulated process: its clock, its disk, and the engine's calls to them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use futures::FutureExt;

use crate::env::disk::{Answer, Call};

use super::chance::{Chance, Log};

/// Wall clocks begin at this time, in Unix milliseconds.
const EPOCH_MS: i64 = 1_700_000_000_000;

tokio::task_local! {
    /// The machine that a task runs on.
    pub(super) static MACHINE: Machine;
}

thread_local! {
    /// True inside work that would run on another thread.
    static THREAD: Cell<bool> = const { Cell::new(false) };
}

/// The wall clock of a simulated machine, in Unix milliseconds; none outside simulations.
pub(crate) fn simulated_ms() -> Option<i64> {
    MACHINE.try_with(|machine| machine.clock.now_ms()).ok()
}

/// The answer of a simulated disk to a call.
pub(crate) fn simulated_call(call: Call<'_>) -> io::Result<Answer> {
    let answer = MACHINE.try_with(|machine| machine.disk.answer(call));
    answer.unwrap_or(Ok(Answer::Go))
}

/// Makes a task that a simulated process starts run on its machine, too.
pub(crate) fn on_this_machine<F: Future>(task: F) -> impl Future<Output = F::Output> + use<F> {
    let machine = MACHINE.try_with(Clone::clone).ok();
    async move {
        match machine {
            Some(machine) => MACHINE.scope(machine, task).await,
            None => task.await,
        }
    }
}

/// In a simulation, runs the work of another thread at once, because virtual time stands still
/// while a thread waits.
pub(crate) fn simulated_thread<T, W: FnOnce() -> T>(work: W) -> Result<T, W> {
    if MACHINE.try_with(|_| ()).is_err() {
        return Err(work);
    }
    THREAD.set(true);
    let done = work();
    THREAD.set(false);
    Ok(done)
}

/// In a simulation, returns the result that a thread waits for, which is already available.
pub(crate) fn simulated_wait<F: Future>(future: F) -> Result<F::Output, F> {
    if !in_a_thread() {
        return Err(future);
    }
    let now = future.now_or_never();
    Ok(now.expect("simulated stores answer threads at once"))
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
}

/// A machine's clock: virtual time plus its error.
#[derive(Clone)]
pub(super) struct Clock {
    pub(super) log: Arc<Log>,
    pub(super) off_ms: Arc<AtomicI64>,
}

impl Clock {
    pub(super) fn now_ms(&self) -> i64 {
        EPOCH_MS + self.log.now_ms() as i64 + self.off_ms.load(Ordering::Relaxed)
    }
}

/// The disk below one state directory. Calls go to a real directory. This records the changes that
/// a power failure may take back.
#[derive(Default)]
pub(super) struct Disk(Mutex<Content>);

#[derive(Default)]
struct Content {
    /// Changes of names that are not durable, for each directory, in order.
    names: BTreeMap<PathBuf, Vec<Change>>,
    /// Files whose bytes are not durable.
    dirty: BTreeSet<PathBuf>,
    trouble: Option<(u64, Trouble)>,
}

/// A change of names in a directory.
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

    fn answer(&self, call: Call<'_>) -> io::Result<Answer> {
        let content = &mut *self.0.lock().unwrap();
        content.fail(call)?;
        Ok(content.note(call))
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
    fn note(&mut self, call: Call<'_>) -> Answer {
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
                return Answer::Done;
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
                return Answer::Done;
            }
        }
        Answer::Go
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
