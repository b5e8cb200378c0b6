//! Merging files of one level into one of the next, as they stream from the store: when, and how.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use ltx::{Decoder, Header, LtxError, MergeOptions};
use store::{SharedStore, Store, StoreError};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::compaction::next_merge;
use crate::remote::{self, RemoteError, RemoteFile};

use super::{Connection, TargetError, local_error};

/// Bytes of an input that are in memory at a time.
const PART_BYTES: u64 = 1 << 20;
/// The first merged level that is made of stored files.
const FIRST_LEVEL: u8 = 2;

/// When the files of a level are merged next.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelClock {
    level: u8,
    interval: Duration,
    next: Instant,
}

impl LevelClock {
    /// The clocks of all levels from level 2 on. Each begins at a part of its interval that follows
    /// from the place: thousands of databases must not merge in the same second.
    pub(super) fn all(intervals: &[Duration], place: &str, now: Instant) -> Vec<LevelClock> {
        let clock = |(level, interval): (u8, &Duration)| LevelClock {
            level,
            interval: *interval,
            next: now + interval.mul_f64(fraction(place, level)),
        };
        (FIRST_LEVEL..).zip(intervals).map(clock).collect()
    }
}

/// A number from 0 to 1 that is always the same for a place and a level.
fn fraction(place: &str, level: u8) -> f64 {
    let mut hasher = DefaultHasher::new();
    (place, level).hash(&mut hasher);
    f64::from(hasher.finish() as u32) / f64::from(u32::MAX)
}

impl Connection {
    /// When a level has something to merge next; none: never, as things are.
    pub(super) fn next_level_merge(&self) -> Option<Instant> {
        let clocks = self.levels.iter();
        let busy = clocks.filter(|clock| next_merge(&self.files, clock.level).is_some());
        busy.map(|clock| clock.next).min()
    }

    /// What to merge now; the clock of a level goes on once nothing is left to merge there.
    pub(super) fn due_merge(&mut self) -> Option<MergeRun> {
        let now = Instant::now();
        for clock in self.levels.iter_mut().filter(|clock| clock.next <= now) {
            if let Some(files) = next_merge(&self.files, clock.level) {
                let level = clock.level;
                return Some(MergeRun { level, files });
            }
            clock.next = now + clock.interval;
        }
        None
    }
}

/// Stored files that become one.
pub(super) struct MergeRun {
    /// The level of the merged file.
    pub(super) level: u8,
    files: Vec<RemoteFile>,
}

/// A merged file on our disk, removed in the end.
pub(super) struct Merged {
    pub(super) header: Header,
    pub(super) bytes: u64,
    file: Temporary,
}

impl Merged {
    pub(super) fn path(&self) -> &Path {
        &self.file.0
    }
}

/// Merges stored files into one at `path`. Its thread gives up once `ending` is set.
pub(super) async fn merge_stored(
    store: &SharedStore,
    epoch: u64,
    run: MergeRun,
    path: PathBuf,
    ending: Arc<AtomicBool>,
) -> Result<Merged, TargetError> {
    let inputs = run.files.iter().map(|file| Stored {
        runtime: Handle::current(),
        store: Arc::clone(store),
        key: remote::key(store.layout(), file.level, file.name()),
        size: file.size,
        next: 0,
        part: Bytes::new(),
        ending: Arc::clone(&ending),
    });
    let inputs: Vec<Stored> = inputs.collect();
    let keys: Vec<String> = inputs.iter().map(|input| input.key.clone()).collect();
    let merge = move || merge_files(inputs, epoch, &path);
    #[cfg(test)]
    let merge = match crate::database::simulated_thread(merge) {
        Ok(merged) => return merged.map_err(|error| explain(error, &keys)),
        Err(merge) => merge,
    };
    let merging = tokio::task::spawn_blocking(merge);
    let merged = merging.await.expect("merging does not panic");
    merged.map_err(|error| explain(error, &keys))
}

/// A file that is removed in the end.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays behind is removed at the next start.
        let _removed = std::fs::remove_file(&self.0);
    }
}

fn merge_files(inputs: Vec<Stored>, epoch: u64, path: &Path) -> Result<Merged, LtxError> {
    let file = Temporary(path.to_owned());
    let decoders = inputs.into_iter().enumerate().map(|(input, stored)| {
        Decoder::new(stored).map_err(|error| LtxError::Input {
            input,
            source: Box::new(error),
        })
    });
    let decoders = decoders.collect::<Result<Vec<_>, _>>()?;
    let out = BufWriter::with_capacity(256 << 10, File::create(path)?);
    let (_, merged) = ltx::merge(decoders, MergeOptions { node_id: epoch }, out)?;
    Ok(Merged {
        header: merged.header,
        bytes: merged.summary.bytes,
        file,
    })
}

/// What failed: the store, a stored file, or our disk.
fn explain(error: LtxError, keys: &[String]) -> TargetError {
    let LtxError::Input { input, source } = error else {
        return local_error(error);
    };
    match *source {
        LtxError::Io(error) => match error.downcast::<StoreError>() {
            Ok(error) => TargetError::Store(error),
            Err(error) => local_error(error),
        },
        source => TargetError::Remote(RemoteError::Corrupt {
            key: keys[input].clone(),
            source,
        }),
    }
}

/// A stored file, read part by part from a thread that may wait.
struct Stored {
    runtime: Handle,
    store: SharedStore,
    key: String,
    size: u64,
    next: u64,
    part: Bytes,
    ending: Arc<AtomicBool>,
}

impl Stored {
    fn wait_for<T>(&self, read: impl Future<Output = T>) -> T {
        #[cfg(test)]
        let read = match crate::database::simulated_wait(read) {
            Ok(read) => return read,
            Err(read) => read,
        };
        self.runtime.block_on(read)
    }
}

impl Read for Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && self.next < self.size {
            if self.ending.load(Ordering::Relaxed) {
                return Err(io::Error::other("it is time to end"));
            }
            let range = self.next..self.size.min(self.next + PART_BYTES);
            let read = self.store.get(&self.key, Some(range.clone()));
            self.part = self.wait_for(read).map_err(io::Error::other)?;
            self.next = range.end;
        }
        let count = out.len().min(self.part.len());
        self.part.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_merge_at_different_times_and_each_at_its_own() {
        let now = Instant::now();
        let intervals = [Duration::from_secs(300), Duration::from_secs(3600)];
        let first = |place: &str| {
            let clocks = LevelClock::all(&intervals, place, now);
            assert_eq!(clocks.len(), 2);
            assert!(
                clocks
                    .iter()
                    .all(|clock| clock.next - now <= clock.interval)
            );
            clocks[0].next - now
        };
        assert_eq!(first("s3://bucket/1"), first("s3://bucket/1"));
        let times: std::collections::BTreeSet<_> = (0..100)
            .map(|n| first(&format!("s3://bucket/{n}")).as_secs())
            .collect();
        assert!(times.len() > 50, "{times:?}");
    }
}
