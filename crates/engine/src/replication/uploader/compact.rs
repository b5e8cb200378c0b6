//! Compaction: neighbouring files become one file of the next level. They are streamed from our
//! disk or from the store.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use ltx::{Decoder, Header, LtxError, MergeOptions, Txid};
use store::{PutMeta, PutMode, SharedStore, Store, StoreError, StoreErrorKind};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::env::budget::{Budgets, Work};
use crate::env::threads::Threads;
use crate::replica::compaction::{Run, next_run_of_captured};
use crate::replica::manifest::{self, RemoteError, RemoteFile};
use crate::replica::restore_plan::plan_restore;
use crate::replication::snapshot::stored_by_us;
use crate::spool::queue::{Writer, queue};
use crate::spool::state_dir::LocalState;

use super::lane::{Ending, Lane};
use super::{LeasedReplica, TargetError, Upkeep, Uploader};

/// Bytes of an input that are in memory at a time, for few and for many inputs.
const PART_BYTES: (u64, u64) = (1 << 20, 64 << 10);
/// Bytes of all inputs that are in memory at a time, unless there are very many.
const INPUT_BYTES: u64 = 16 << 20;
/// Most inputs of a snapshot. More are compacted into fewer first.
const MAX_SNAPSHOT_INPUTS: usize = 256;
/// Pause before another attempt to compact a snapshot that has too many inputs.
const SNAPSHOT_PAUSE: Duration = Duration::from_secs(60);
/// Memory of one compaction besides its inputs: queued pieces, parts of the upload.
const OUTPUT_BYTES: u64 = 18 << 20;

/// Result of a compaction.
pub(super) struct Compacted {
    /// The new file; none when nothing was worth compacting.
    file: Option<RemoteFile>,
    /// The newest captured TXID that needs no more compaction, after a compaction of captured
    /// files.
    captured_up_to: Option<Txid>,
}

impl Uploader {
    /// Starts to compact the files acknowledged since the last compaction into one file of level
    /// 1.
    pub(super) async fn begin_compaction(
        &self,
        replica: &mut LeasedReplica,
    ) -> Result<(), TargetError> {
        let (compacted, acked) = {
            let target = self.target_progress();
            (target.compacted, target.acked)
        };
        let (run, last) = next_run_of_captured(&replica.files, compacted, acked);
        self.begin_run(replica, run, Some(last)).await
    }

    /// Starts to compact files of a level, if some are due.
    pub(super) async fn begin_level_compaction(
        &self,
        replica: &mut LeasedReplica,
    ) -> Result<(), TargetError> {
        match replica.due_compaction() {
            Some(run) => self.begin_run(replica, Some(run), None).await,
            None => Ok(()),
        }
    }

    /// Starts to compact stored files into a snapshot. Used when the application overwrites pages
    /// faster than a snapshot of the database can be read.
    pub(super) async fn begin_snapshot_compaction(
        &self,
        replica: &mut LeasedReplica,
    ) -> Result<(), TargetError> {
        let acked = self.target_progress().acked;
        let plan = plan_restore(&replica.files, Some(acked));
        let files = plan.map(|plan| plan.files).unwrap_or_default();
        if files.is_empty() || files.len() > MAX_SNAPSHOT_INPUTS {
            replica.next_snapshot = Instant::now() + SNAPSHOT_PAUSE;
            return Ok(());
        }
        let level = ltx::Level::SNAPSHOT.get();
        self.begin_run(replica, Some(Run { level, files }), None)
            .await
    }

    async fn begin_run(
        &self,
        replica: &mut LeasedReplica,
        run: Option<Run>,
        captured_up_to: Option<Txid>,
    ) -> Result<(), TargetError> {
        let Some(run) = run else {
            let file = None;
            self.compacted(
                replica,
                Compacted {
                    file,
                    captured_up_to,
                },
            );
            return Ok(());
        };
        // A later writer does not use this name, so put-if-absent cannot fence it. Check the
        // lease.
        self.confirm_lease(replica).await?;
        let (store, env) = (Arc::clone(&self.settings.store), self.env.clone());
        let (local, clock) = (Arc::clone(&self.local), replica.clock);
        let (epoch, target) = (replica.epoch, self.index);
        replica.upkeep = Some(Lane::begin(|ending| async move {
            let level = run.level;
            let compaction = Compaction {
                target,
                threads: Arc::clone(&env.host.threads),
                store,
                local,
                epoch,
                run,
                ending,
            };
            let (name, bytes) = compaction.store(&env.budgets).await?;
            let file = Some(RemoteFile::new(level, name, bytes, clock.now_ms()));
            Ok(Upkeep::Compacted(Compacted {
                file,
                captured_up_to,
            }))
        }));
        Ok(())
    }

    /// Records the result of a compaction.
    pub(super) fn compacted(&self, replica: &mut LeasedReplica, compacted: Compacted) {
        if let Some(file) = compacted.file {
            self.stored(replica, file);
            if file.is_snapshot() {
                self.snapshot_stored(replica);
                self.update_target(|target| target.newest_snapshot = file.max);
            }
        }
        if let Some(last) = compacted.captured_up_to {
            self.update_target(|target| target.compacted = target.compacted.max(last));
            let now = Instant::now();
            let is_done = self.target_progress().acked <= last;
            replica.has_step &= !is_done;
            replica.next_compaction = match is_done {
                true => now + self.settings.compaction_interval,
                false => now,
            };
        }
    }
}

/// Files to be compacted into one.
struct Compaction {
    /// The number of the target.
    target: usize,
    threads: Arc<dyn Threads>,
    store: SharedStore,
    local: Arc<LocalState>,
    epoch: u64,
    run: Run,
    ending: Ending,
}

impl Compaction {
    /// Streams the compacted file to the store. Returns its name and size.
    async fn store(self, budgets: &Budgets) -> Result<(ltx::FileName, u64), TargetError> {
        let Compaction {
            target,
            threads,
            store,
            local,
            epoch,
            run,
            ending,
        } = self;
        let part_bytes = (INPUT_BYTES / run.files.len() as u64).clamp(PART_BYTES.1, PART_BYTES.0);
        let of_inputs: u64 = run.files.iter().map(|file| file.size.min(part_bytes)).sum();
        let total: u64 = run.files.iter().map(|file| file.size).sum();
        let memory = of_inputs + OUTPUT_BYTES.min(total * 3);
        let _memory = budgets.memory(Work::Compaction, target, memory).await;
        let key_of = |file: &RemoteFile| manifest::key(store.layout(), file.level, file.name());
        let keys: Vec<String> = run.files.iter().map(key_of).collect();
        let inputs: Vec<Input> = run
            .files
            .iter()
            .zip(&keys)
            .map(|(file, key)| Input {
                part_bytes,
                local: (file.level == 0).then(|| local.captured_path(file.max)),
                stored: Stored {
                    threads: Arc::clone(&threads),
                    store: Arc::clone(&store),
                    key: key.clone(),
                    size: file.size,
                    ending: ending.clone(),
                },
            })
            .collect();
        let (writer, stream) = queue(local.directory(), 0).map_err(|source| {
            let path = local.directory().to_owned();
            TargetError::Captured {
                action: "write below",
                path,
                source,
            }
        })?;
        let (tell_header, header) = oneshot::channel();
        let merge = move || merge(inputs, epoch, tell_header, writer);
        let compacting = threads.run(merge);
        let Ok(header) = header.await else {
            return Err(explain(compacting.await, &keys));
        };
        let name = header.file_name();
        let key = manifest::key(store.layout(), run.level, name);
        let meta = PutMeta {
            timestamp_ms: Some(header.timestamp_ms),
        };
        let stored = store
            .put_stream(&key, stream, total, PutMode::Create, &meta)
            .await;
        match stored {
            Ok(bytes) => Ok((name, bytes)),
            Err(error) if error.kind() == StoreErrorKind::Exists => {
                match stored_by_us(&store, &key, &header).await? {
                    Some(bytes) => Ok((name, bytes)),
                    None => Err(error.into()),
                }
            }
            Err(error) => match compacting.await {
                Err(LtxError::Io(ours)) if ours.kind() == io::ErrorKind::BrokenPipe => {
                    Err(error.into())
                }
                Ok(()) => Err(error.into()),
                failed => Err(explain(failed, &keys)),
            },
        }
    }
}

fn merge(
    inputs: Vec<Input>,
    epoch: u64,
    tell_header: oneshot::Sender<Header>,
    writer: Writer,
) -> Result<(), LtxError> {
    let decoders = inputs.into_iter().enumerate().map(|(input, source)| {
        source.open().and_then(Decoder::new).map_err(|error| {
            let source = Box::new(error);
            LtxError::Input { input, source }
        })
    });
    let decoders = decoders.collect::<Result<Vec<_>, _>>()?;
    let options = MergeOptions { node_id: epoch };
    let header = ltx::merged_header(&decoders, options)?;
    // Without a receiver, the bytes have no reader, either.
    let _told = tell_header.send(header);
    let (writer, _merged) = ltx::merge(decoders, options, writer)?;
    Ok(writer.finish()?)
}

/// Tells whether the store, a stored file, or our disk failed.
fn explain(result: Result<(), LtxError>, keys: &[String]) -> TargetError {
    let error = match result {
        Err(error) => error,
        Ok(()) => return TargetError::Encode(LtxError::Io(io::ErrorKind::UnexpectedEof.into())),
    };
    let LtxError::Input { input, source } = error else {
        return TargetError::Encode(error);
    };
    match *source {
        LtxError::Io(error) => match error.downcast::<StoreError>() {
            Ok(error) => TargetError::Store(error),
            Err(source) => TargetError::Captured {
                action: "read",
                path: PathBuf::from(&keys[input]),
                source,
            },
        },
        source => TargetError::Remote(RemoteError::Corrupt {
            key: keys[input].clone(),
            source,
        }),
    }
}

/// One file to be compacted.
struct Input {
    part_bytes: u64,
    /// Its path on our disk, where it may still exist.
    local: Option<PathBuf>,
    stored: Stored,
}

impl Input {
    /// Opens the captured file if it is intact on our disk, else the stored one.
    fn open(self) -> Result<Source, LtxError> {
        let mut source = Source {
            part_bytes: self.part_bytes,
            local: None,
            stored: self.stored,
            next: 0,
            part: Bytes::new(),
        };
        let Some(path) = self.local else {
            return Ok(source);
        };
        match File::open(&path) {
            Ok(file) if check(BufReader::new(&file)).is_ok() => source.local = Some(path),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "a captured file on our disk is damaged");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        Ok(source)
    }
}

/// An input that is read part by part. No descriptor stays open between two parts.
struct Source {
    part_bytes: u64,
    /// The same file on our disk, until it is removed there.
    local: Option<PathBuf>,
    stored: Stored,
    next: u64,
    part: Bytes,
}

impl Source {
    fn read_part(&mut self, range: std::ops::Range<u64>) -> io::Result<Bytes> {
        let Some(path) = &self.local else {
            return self.stored.read(range);
        };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, range.start));
        match read {
            // It was removed to make room.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.local = None;
                self.stored.read(range)
            }
            read => read.map(|()| bytes.into()),
        }
    }
}

impl Read for Source {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let size = self.stored.size;
        if self.part.is_empty() && self.next < size {
            let range = self.next..size.min(self.next + self.part_bytes);
            self.part = self.read_part(range.clone())?;
            self.next = range.end;
        }
        let count = out.len().min(self.part.len());
        self.part.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}

/// A stored file, read from a thread that may block.
struct Stored {
    threads: Arc<dyn Threads>,
    store: SharedStore,
    key: String,
    size: u64,
    ending: Ending,
}

impl Stored {
    fn read(&self, range: std::ops::Range<u64>) -> io::Result<Bytes> {
        if self.ending.is_set() {
            return Err(io::Error::other("the compaction was given up"));
        }
        let read = self.store.get(&self.key, Some(range));
        self.threads.wait_for(read).map_err(io::Error::other)
    }
}

/// Reads a whole file one page at a time, and verifies its checksums.
pub(super) fn check(file: impl Read) -> Result<(), LtxError> {
    let mut decoder = Decoder::new(file)?;
    let mut image = Vec::new();
    while decoder.next_page(&mut image)?.is_some() {}
    decoder.finish().map(|_| ())
}
