//! Merging files of one level into one of the next, as they stream from the store.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use ltx::{Decoder, FileName, Header, LtxError, MergeOptions};
use store::{Body, SharedStore, Store, StoreError};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::compaction::next_merge;
use crate::remote::{self, RemoteError, RemoteFile};

use super::maintain::is_lost;
use super::{Connection, Target, TargetError, local_error};

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

impl Target {
    /// When a level has something to merge next; none: never, as things are.
    pub(super) fn next_level_merge(connection: &Connection) -> Option<Instant> {
        let clocks = connection.levels.iter();
        let busy = clocks.filter(|clock| next_merge(&connection.files, clock.level).is_some());
        busy.map(|clock| clock.next).min()
    }

    /// Merges one file of a level whose time has come. False when there is nothing to do.
    pub(super) async fn merge_levels(
        &mut self,
        connection: &mut Connection,
    ) -> Result<bool, TargetError> {
        let now = Instant::now();
        for index in 0..connection.levels.len() {
            let clock = connection.levels[index];
            if clock.next > now {
                continue;
            }
            if let Some(run) = next_merge(&connection.files, clock.level) {
                self.merge_run(connection, clock.level, &run).await?;
                return Ok(true);
            }
            connection.levels[index].next = now + clock.interval;
        }
        Ok(false)
    }

    async fn merge_run(
        &mut self,
        connection: &mut Connection,
        level: u8,
        run: &[RemoteFile],
    ) -> Result<(), TargetError> {
        // The names of merged files are no claims that a later writer meets.
        self.confirm_lease(connection).await?;
        let (header, path, bytes) = match self.merge_stored(connection.epoch, run).await {
            Ok(Some(merged)) => merged,
            // It is time to end, and nothing needs this.
            Ok(None) => return Ok(()),
            Err(error) if is_lost(&error) => {
                // Nobody can go over it any more: begin again after it.
                let name = &self.settings.name;
                tracing::error!(target_name = %name, "{error}: a new full copy is stored");
                let acked = self.progress().acked;
                return self.ask_for_snapshot(connection, acked).await;
            }
            Err(error) => return Err(error),
        };
        let name = FileName {
            min: header.min_txid,
            max: header.max_txid,
        };
        let body = Body::File {
            path: path.0.clone(),
            len: bytes,
        };
        self.put(connection, level, name, body, header.timestamp_ms)
            .await
    }

    /// Merges stored files into a local one; none when we were told to end meanwhile.
    async fn merge_stored(
        &mut self,
        epoch: u64,
        run: &[RemoteFile],
    ) -> Result<Option<(Header, Temporary, u64)>, TargetError> {
        let path = self
            .local
            .directory()
            .join(format!("merge-{}.tmp", self.index));
        let ending = Arc::new(AtomicBool::new(false));
        let store = &self.settings.store;
        let inputs = run.iter().map(|file| Stored {
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
        let mut merging = tokio::task::spawn_blocking(move || merge_files(inputs, epoch, &path));
        let drain = &mut self.drain;
        let merged = tokio::select! {
            merged = &mut merging => merged,
            () = async { drop(drain.wait_for(|drain| *drain).await) } => {
                ending.store(true, Ordering::Relaxed);
                merging.await
            }
        };
        match merged.expect("merging does not panic") {
            Ok(merged) => Ok(Some(merged)),
            Err(_) if ending.load(Ordering::Relaxed) => Ok(None),
            Err(error) => Err(explain(error, &keys)),
        }
    }
}

/// A file that is removed in the end.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays behind is removed at the next start.
        let _removed = std::fs::remove_file(&self.0);
    }
}

fn merge_files(
    inputs: Vec<Stored>,
    epoch: u64,
    path: &Path,
) -> Result<(Header, Temporary, u64), LtxError> {
    let temporary = Temporary(path.to_owned());
    let decoders = inputs.into_iter().enumerate().map(|(input, stored)| {
        Decoder::new(stored).map_err(|error| LtxError::Input {
            input,
            source: Box::new(error),
        })
    });
    let decoders = decoders.collect::<Result<Vec<_>, _>>()?;
    let out = BufWriter::with_capacity(256 << 10, File::create(path)?);
    let (_, merged) = ltx::merge(decoders, MergeOptions { node_id: epoch }, out)?;
    Ok((merged.header, temporary, merged.summary.bytes))
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

impl Read for Stored {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && self.next < self.size {
            if self.ending.load(Ordering::Relaxed) {
                return Err(io::Error::other("it is time to end"));
            }
            let range = self.next..self.size.min(self.next + PART_BYTES);
            let read = self.store.get(&self.key, Some(range.clone()));
            self.part = self.runtime.block_on(read).map_err(io::Error::other)?;
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
