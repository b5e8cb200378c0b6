//! The driver of one attached database: carries out the actions that the machine decides on.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use futures::future::BoxFuture;
use protocol::status::DatabaseState;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::committer::Committer;
use super::machine::{Action, Captured, Checkpointed, Machine, Outcome, Surroundings};
use super::pacer::Pace;
use super::status::DatabaseHandle;
use super::{Database, PROBE_PAUSE, RunError};
use crate::env::files::{Fingerprint, fingerprint, live_fingerprint};
use crate::pages::page_set::PageSet;
use crate::source::capture::{Attached, PendingCapture};
use crate::source::scan::{ScanError, scan_live};
use crate::source::sqlite::{Connection, SqliteError};
use crate::source::wal::{Batch, GapReason, LogPosition, WalError};
use crate::spool::ltx_writer::Delta;

/// Frames of a WAL that PASSIVE checkpoints evidently do not shorten: 128 MiB with 4 KiB pages.
const LAST_RESORT_FRAMES: u32 = 32_768;
/// Frames that may be copied while writers wait. This takes some milliseconds.
const FEW_FRAMES: u32 = 1_000;
/// Longest time that writers wait for readers of the WAL.
const READERS_TIME: Duration = Duration::from_millis(20);
/// Longest duration of the preceding PASSIVE checkpoint. Up to this, the disk is fast enough to
/// copy and sync the remaining frames while writers wait.
const QUICK: Duration = Duration::from_millis(20);
/// PASSIVE checkpoints in a row. Each copies the frames written during the one before.
const PASSES: u32 = 8;
/// Pause before file times are read again that are too recent to show a change.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
/// Most resyncs of a database during a shutdown, while frames are missed.
const LAST_RESYNCS: u32 = 5;

/// How an attachment ended.
pub(super) enum Ended {
    /// The driver was asked to stop.
    Stopped,
    /// The database is quiet and others need its place. Attach it again when these files change.
    Resting((Fingerprint, Fingerprint)),
    /// No other process has the database open, and this file holds every captured commit.
    Closed(Fingerprint),
}

/// A running action of the commit lane. It returns its worker.
type CommitLane = BoxFuture<'static, (Worker, Result<Done, RunError>)>;

/// Result of an action of the commit lane.
enum Done {
    Written,
    Unchanged,
    CutFailed,
    Quiet((Fingerprint, Fingerprint)),
    Closable(Fingerprint),
    NotQuiet,
    Finished { is_closable: bool },
}

/// Drives one attachment to a live database.
pub(super) struct AttachedDriver {
    worker: Option<Worker>,
    attached: Arc<Attached>,
    pub(super) machine: Machine,
    commit: Option<CommitLane>,
    checkpoint: Option<JoinHandle<Result<Option<bool>, SqliteError>>>,
    /// The database file holds every commit, and no other process has it open.
    is_closable: bool,
}

/// State that outlives an attachment.
pub(super) struct Left {
    pub(super) committer: Committer,
    pub(super) pace: Pace,
    /// WAL position after the newest written file, if known.
    pub(super) log: Option<LogPosition>,
    pub(super) result: Result<Ended, RunError>,
}

impl AttachedDriver {
    /// Creates the driver of a database that capture was asked to attach. It continues at `log`.
    pub(super) fn new(
        committer: Committer,
        (pace, scan_time): (Pace, Duration),
        attached: Attached,
        log: Option<LogPosition>,
        database: &Database,
    ) -> AttachedDriver {
        let attached = Arc::new(attached);
        let worker = Worker {
            committer: Some(committer),
            attached: Arc::clone(&attached),
            handle: database.handle.clone(),
            path: database.settings.path.clone(),
            log,
            barrier: 0,
        };
        AttachedDriver {
            worker: Some(worker),
            attached,
            machine: Machine::new(pace, scan_time, Instant::now()),
            is_closable: false,
            commit: None,
            checkpoint: None,
        }
    }

    /// Replicates until the database is gone, idle or closed, or until we stop. Leaves none of our
    /// locks.
    pub(super) async fn run(mut self, database: &mut Database) -> Left {
        let mut result = self.drive(database).await;
        // A running action owns the page table.
        let worker = match (self.worker.take(), self.commit.take()) {
            (Some(worker), _) => worker,
            (None, Some(lane)) => {
                let (worker, done) = lane.await;
                // The mailbox hands out the reason once. If the lane received it, return the
                // lane's error.
                if let (Err(RunError::Detached), Err(error)) = (&result, done) {
                    result = Err(error);
                }
                worker
            }
            (None, None) => unreachable!("the worker is here or in its lane"),
        };
        if let Some(checkpoint) = self.checkpoint.take() {
            let _done = checkpoint.await;
        }
        worker.release(self.is_closable).await;
        if let Ok(Ended::Stopped) = result {
            // Commits after the last poll are left to the next process that captures.
            database.handle.chain.lock().unwritten.clear();
        }
        Left {
            pace: self.machine.pace(),
            log: worker.log,
            committer: worker.committer.expect("no blocking task is left"),
            result,
        }
    }

    async fn drive(&mut self, database: &mut Database) -> Result<Ended, RunError> {
        let mut pending = self.attached.mailbox.subscribe();
        let mut changes = database.handle.chain.subscribe();
        {
            // Capture everything that exists now before any state is reported.
            let worker = self.worker.as_mut().expect("nothing is under way yet");
            worker.until(|pending| pending.page_size).await?;
            worker.barrier().await?;
        }
        loop {
            pending.borrow_and_update();
            changes.borrow_and_update();
            self.observe(database)?;
            let now = Instant::now();
            while let Some(action) = self.machine.poll_action(now) {
                self.begin(action, database);
            }
            let until = self.machine.poll_timeout(now);
            let AttachedDriver {
                commit, checkpoint, ..
            } = self;
            tokio::select! {
                (worker, done) = lane(commit) => {
                    self.commit = None;
                    self.worker = Some(worker);
                    if let Some(ended) = self.commit_done(done?, database) {
                        return Ok(ended);
                    }
                }
                done = lane(checkpoint) => {
                    self.checkpoint = None;
                    self.checkpoint_done(done, database);
                }
                _ = pending.changed() => {}
                _ = changes.changed() => {}
                _ = database.stop.changed() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Reports the current state to the machine.
    fn observe(&mut self, database: &Database) -> Result<(), RunError> {
        let has_table = match &self.worker {
            Some(worker) => worker.has_table(),
            // The running action has the table or reads it.
            None => true,
        };
        let captured = {
            let mut pending = self.attached.mailbox.lock();
            check(&mut pending)?;
            Captured {
                is_attached: pending.page_size.is_some(),
                has_commits: pending.batch.is_some(),
                has_gap: pending.gap.is_some() || !has_table,
                wants_checkpoint: pending.wants_checkpoint,
                can_resume: self.log().is_some_and(|log| log.frames > 0),
                is_alone: pending.is_alone,
            }
        };
        let surroundings = {
            let chain = database.handle.chain.lock();
            if chain.verdict().is_some() && self.commit.is_none() {
                return Err(RunError::Over);
            }
            let is_full = chain.is_full();
            Surroundings {
                lacks_cut: chain.lacks_cut(),
                is_in_doubt: chain.is_in_doubt,
                keeps_up: chain.keeps_up(),
                is_full,
                can_make_room: is_full && chain.removable_under_pressure() > 0,
                has_leftovers: chain.has_leftovers(),
                is_crowded: database.env.capture.is_crowded(),
                others_wait: database.env.capture.others_wait(),
            }
        };
        if !captured.has_gap && captured.is_attached && !captured.has_commits {
            if self.worker.is_some() {
                self.attached.mailbox.settle();
            }
            database.report(DatabaseState::Replicating, String::new());
        }
        self.machine.handle_captured(captured);
        self.machine.handle_surroundings(surroundings);
        if *database.stop.borrow() {
            self.machine.handle_stop();
        }
        Ok(())
    }

    fn log(&self) -> Option<LogPosition> {
        self.worker.as_ref().and_then(|worker| worker.log)
    }

    fn begin(&mut self, action: Action, database: &Database) {
        if let Action::Checkpoint { may_resort } = action {
            self.attached.mailbox.lock().wants_checkpoint = false;
            let path = database.settings.path.clone();
            let work = move || shorten(&Connection::open(&path)?, may_resort);
            self.checkpoint = Some(tokio::task::spawn_blocking(work));
            return;
        }
        let mut worker = self.worker.take().expect("the lane is free");
        let work = async move {
            let done = worker.carry_out(action).await;
            (worker, done)
        };
        self.commit = Some(work.boxed());
    }

    fn commit_done(&mut self, done: Done, database: &Database) -> Option<Ended> {
        let now = Instant::now();
        match done {
            Done::Written => {
                database.report(DatabaseState::Replicating, String::new());
                self.machine.handle_commit_done(Outcome::Written, now);
            }
            Done::Unchanged => self.machine.handle_commit_done(Outcome::Unchanged, now),
            Done::CutFailed => self.machine.handle_commit_done(Outcome::CutFailed, now),
            Done::NotQuiet => self.machine.handle_not_quiet(now),
            Done::Quiet(files) => return Some(Ended::Resting(files)),
            Done::Closable(file) => {
                self.is_closable = true;
                return Some(Ended::Closed(file));
            }
            Done::Finished { is_closable } => {
                self.is_closable = is_closable;
                return Some(Ended::Stopped);
            }
        }
        None
    }

    fn checkpoint_done(
        &mut self,
        done: Result<Result<Option<bool>, SqliteError>, tokio::task::JoinError>,
        database: &Database,
    ) {
        let name = &database.handle.path;
        let helped = match done.expect("a checkpoint does not panic") {
            Ok(helped) => helped,
            // It fails while the application runs a checkpoint, and then ours is not needed.
            Err(error) => {
                tracing::debug!(database = %name, %error, "checkpoint");
                None
            }
        };
        let done = helped.map_or(Checkpointed::Passive, |helped| Checkpointed::LastResort {
            helped,
        });
        self.machine.handle_checkpoint_done(done, Instant::now());
        let counted = &database.handle.blocking_checkpoints;
        if helped.is_some() && counted.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                database = %name,
                helped,
                "the application never lets its WAL begin anew: we try to, and its writers wait a \
                 moment each time (set PRAGMA wal_autocheckpoint in the application)"
            );
        }
    }
}

/// Waits for the work that runs in a lane. Without work, waits forever.
async fn lane<F: Future + Unpin>(work: &mut Option<F>) -> F::Output {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Carries out the actions of the commit lane, one at a time.
struct Worker {
    /// None only while a blocking task owns it.
    committer: Option<Committer>,
    attached: Arc<Attached>,
    handle: DatabaseHandle,
    path: PathBuf,
    log: Option<LogPosition>,
    barrier: u64,
}

impl Worker {
    async fn carry_out(&mut self, action: Action) -> Result<Done, RunError> {
        match action {
            Action::Commit => self.commit().await,
            Action::Resync => self.resync().await,
            Action::TakeCut => self.take_cut().await,
            Action::MakeRoom => {
                self.blocking(Committer::make_room).await?;
                Ok(Done::Unchanged)
            }
            Action::Tidy => {
                self.blocking(Committer::tidy).await?;
                Ok(Done::Unchanged)
            }
            Action::Detach => self.rest().await,
            Action::Close => self.prepare_to_close().await,
            Action::Finish => self.finish().await,
            Action::Checkpoint { .. } => unreachable!("it has a lane of its own"),
        }
    }

    fn has_table(&self) -> bool {
        let committer = self.committer.as_ref();
        committer.is_some_and(|committer| committer.table.is_some())
    }

    /// Runs slow work with the committer on another thread.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Committer) -> Result<T, RunError> + Send + 'static,
    ) -> Result<T, RunError> {
        let committer = self.committer.take().expect("one blocking task at a time");
        let (committer, result) = on_another_thread(committer, work).await;
        self.committer = Some(committer);
        result
    }

    /// Writes the captured commits as the next TXID.
    async fn commit(&mut self) -> Result<Done, RunError> {
        if self.attached.mailbox.lock().gap.is_some() {
            return Ok(Done::Unchanged);
        }
        let Some(batch) = self.attached.mailbox.take() else {
            return Ok(Done::Unchanged);
        };
        self.write(batch).await?;
        Ok(Done::Written)
    }

    /// Writes a batch and returns its pages.
    async fn write(&mut self, batch: Batch) -> Result<PageSet, RunError> {
        let (handle, log) = (self.handle.clone(), batch.log);
        let write = move |committer: &mut Committer| {
            let (commit, first_ms) = (batch.commit, batch.first_ms);
            let page_size = batch.pages.page_size();
            let mut delta = Delta {
                log: Some((log, batch.log_offset)),
                timestamp_ms: batch.last_ms,
                pages: batch.pages,
                commit,
            };
            committer.write(&mut delta, first_ms)?;
            handle.set_size(page_size, commit);
            committer.record(log);
            Ok(delta.pages)
        };
        let pages = self.blocking(write).await?;
        self.log = Some(log);
        Ok(pages)
    }

    /// Reads the whole database and writes the pages that differ from the page table.
    async fn resync(&mut self) -> Result<Done, RunError> {
        let page_size = {
            // From here on the mailbox receives the whole present WAL, then everything after it.
            let reason = self.attached.mailbox.begin_resync();
            tracing::debug!(database = %self.handle.path, ?reason, "reading the whole database");
            let page_size = self.attached.mailbox.lock().page_size;
            page_size.expect("the machine has seen that it is attached")
        };
        if self.handle.chain.lock().is_in_doubt {
            // Compare pages that only the WAL holds, too.
            let Some(newest) = self.whole_log().await? else {
                return Ok(Done::Unchanged);
            };
            let mut pending = self.attached.mailbox.lock();
            let later = pending.batch.take();
            let mut newest = newest;
            if let Some(later) = later {
                newest.append(later).map_err(ScanError::Spill)?;
            }
            pending.batch = Some(newest);
        }
        let path = self.path.clone();
        let scan = move |committer: &mut Committer| {
            let table = committer.table.as_ref();
            let known = table.filter(|table| table.page_size() == page_size);
            let on_full = committer.on_full();
            Ok(scan_live(
                &path,
                page_size,
                known,
                on_full,
                &committer.spill,
            )?)
        };
        let scan = self.blocking(scan).await?;
        self.barrier().await?;
        if self.attached.mailbox.lock().gap.is_some() {
            // Frames were missed during the scan: start again.
            return Ok(Done::Unchanged);
        }
        let Some(batch) = self.attached.mailbox.take() else {
            // A first attachment always delivers the present WAL. Later ones may find no change.
            self.attached.mailbox.lock().gap = Some(GapReason::Fresh);
            return Err(RunError::WalReader(WalError::Restless));
        };
        let (handle, log) = (self.handle.clone(), batch.log);
        let write = move |committer: &mut Committer| {
            let (first_ms, commit) = (batch.first_ms, batch.commit);
            let newest = Delta {
                pages: batch.pages,
                commit,
                log: Some((log, batch.log_offset)),
                timestamp_ms: batch.last_ms,
            };
            committer.write_scan(scan, newest, first_ms)?;
            handle.set_size(page_size, commit);
            committer.record(log);
            Ok(())
        };
        self.blocking(write).await?;
        self.log = Some(log);
        Ok(Done::Written)
    }

    /// Freezes the present position for a snapshot.
    async fn take_cut(&mut self) -> Result<Done, RunError> {
        let log = match self.whole_log().await {
            Ok(Some(log)) => log,
            Ok(None) => return Ok(Done::Unchanged),
            Err(RunError::Log(error)) => return Ok(self.cut_failed(&error)),
            Err(error) => return Err(error),
        };
        let mut newest = log.pages;
        if self.attached.mailbox.lock().gap.is_some() {
            return Ok(Done::Unchanged);
        }
        let batch = self.attached.mailbox.take();
        let is_written = batch.is_some();
        if let Some(batch) = batch {
            let pages = self.write(batch).await?;
            if let Err(error) = newest.overlay(pages) {
                return Ok(self.cut_failed(&WalError::Spill(error)));
            }
        }
        self.blocking(move |committer| committer.offer_cut(newest))
            .await?;
        Ok(match is_written {
            true => Done::Written,
            false => Done::Unchanged,
        })
    }

    fn cut_failed(&self, error: &WalError) -> Done {
        let database = &self.handle.path;
        tracing::warn!(%database, "{error}: the next snapshot waits, commits are stored meanwhile");
        Done::CutFailed
    }

    /// The pages of the present WAL that the database file may lack.
    ///
    /// # Errors
    ///
    /// [`RunError::Log`] if they cannot be read or kept. Nothing that was captured is lost.
    async fn whole_log(&mut self) -> Result<Option<Batch>, RunError> {
        // Drop an earlier answer: it may be older than recent commits.
        self.attached.mailbox.lock().log = None;
        self.attached.reread();
        let log = self.until(|pending| match pending.gap {
            Some(_) => Some(None),
            None => pending.log.take().map(Some),
        });
        log.await?.transpose().map_err(RunError::Log)
    }

    /// Polls a last time. Returns the state of the files if everything in them is captured.
    async fn rest(&mut self) -> Result<Done, RunError> {
        let path = self.path.clone();
        let look = || live_fingerprint(&path).ok().flatten();
        // Later writes change these files. Earlier writes are in the WAL.
        let before = look();
        let token = self.next_barrier();
        self.until(|pending| (pending.barrier >= token).then_some(()))
            .await?;
        let is_all_taken = self.attached.mailbox.lock().is_all_taken();
        Ok(match before.filter(|_| is_all_taken) {
            Some(files) if Some(files) == look() => Done::Quiet(files),
            _ => Done::NotQuiet,
        })
    }

    /// Copies every commit into the database file and proves that it is captured. Then SQLite's
    /// close has nothing to write, and every later commit is visible as a change of the file.
    async fn prepare_to_close(&mut self) -> Result<Done, RunError> {
        let path = self.path.clone();
        self.attached.checkpoint_alone();
        self.barrier().await?;
        let file = loop {
            let Some(file) = fingerprint(&path).ok().flatten() else {
                return Ok(Done::NotQuiet);
            };
            if file.is_settled(SystemTime::now()) {
                break file;
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        };
        let is_ready = self.is_ready_to_close().await?;
        Ok(
            match is_ready && fingerprint(&path).ok() == Some(Some(file)) {
                true => Done::Closable(file),
                false => Done::NotQuiet,
            },
        )
    }

    /// Whether everything is captured and in the database file, and no other process has it open.
    async fn is_ready_to_close(&mut self) -> Result<bool, RunError> {
        self.barrier().await?;
        let pending = self.attached.mailbox.lock();
        Ok(pending.is_all_taken() && pending.is_backfilled && pending.is_alone)
    }

    /// Captures and writes the remaining commits. Stays attached while a target may need a cut,
    /// because its snapshot is read from the database.
    async fn finish(&mut self) -> Result<Done, RunError> {
        let mut changes = self.handle.chain.subscribe();
        loop {
            changes.borrow_and_update();
            self.capture_all().await?;
            if self.handle.needs_no_cut() {
                self.attached.checkpoint_alone();
                let is_closable = self.is_ready_to_close().await?;
                return Ok(Done::Finished { is_closable });
            }
            self.handle.ask_for_needed_cuts();
            let lacks_cut = self.handle.chain.lock().lacks_cut();
            if lacks_cut && matches!(self.take_cut().await?, Done::CutFailed) {
                tokio::time::sleep(PROBE_PAUSE).await;
                continue;
            }
            let _changed = changes.changed().await;
        }
    }

    /// Polls a last time and writes the commits that it finds.
    async fn capture_all(&mut self) -> Result<(), RunError> {
        self.until(|pending| pending.page_size).await?;
        self.barrier().await?;
        for _ in 0..LAST_RESYNCS {
            let is_whole = self.attached.mailbox.lock().gap.is_none();
            if is_whole && self.has_table() {
                break;
            }
            self.resync().await?;
        }
        if self.attached.mailbox.lock().gap.is_some() {
            return Err(RunError::WalReader(WalError::Restless));
        }
        self.commit().await?;
        Ok(())
    }

    fn next_barrier(&mut self) -> u64 {
        self.barrier += 1;
        self.attached.barrier(self.barrier);
        self.barrier
    }

    /// Waits until everything that has been published by now is captured.
    async fn barrier(&mut self) -> Result<(), RunError> {
        let token = self.next_barrier();
        self.until(|pending| (pending.barrier >= token).then_some(()))
            .await
    }

    /// Waits until `ready` returns a value from the mailbox.
    async fn until<T>(
        &self,
        mut ready: impl FnMut(&mut PendingCapture) -> Option<T>,
    ) -> Result<T, RunError> {
        let mailbox = &self.attached.mailbox;
        let mut changes = mailbox.subscribe();
        loop {
            changes.borrow_and_update();
            {
                let mut pending = mailbox.lock();
                check(&mut pending)?;
                if let Some(ready) = ready(&mut pending) {
                    return Ok(ready);
                }
            }
            let _changed = changes.changed().await;
        }
    }

    /// Detaches, or closes the database as an application would. Waits until that is done.
    async fn release(&self, is_closable: bool) {
        match is_closable {
            true => self.attached.close(),
            false => self.attached.detach(),
        }
        let mailbox = &self.attached.mailbox;
        let mut changes: watch::Receiver<u64> = mailbox.subscribe();
        while !mailbox.lock().gone {
            let _changed = changes.changed().await;
        }
    }
}

/// Runs slow work with a committer on another thread, and returns the committer.
pub(super) async fn on_another_thread<T: Send + 'static>(
    mut committer: Committer,
    work: impl FnOnce(&mut Committer) -> Result<T, RunError> + Send + 'static,
) -> (Committer, Result<T, RunError>) {
    let task = tokio::task::spawn_blocking(move || {
        let result = work(&mut committer);
        (committer, result)
    });
    task.await.expect("blocking work does not panic")
}

/// Copies the WAL into the database with PASSIVE checkpoints, which wait for no connection. If
/// writers never pause, the WAL still grows: as a last resort, makes them restart it. Returns none
/// if that was not tried, else whether it helped.
fn shorten(connection: &Connection, may_resort: bool) -> Result<Option<bool>, SqliteError> {
    for _ in 0..PASSES {
        let began = std::time::Instant::now();
        if !connection.checkpoint_passive()? {
            return Ok(None);
        }
        let took = began.elapsed();
        let Some(view) = connection.wal_view() else {
            return Ok(None);
        };
        let frames = view.header.max_frame;
        let left = frames.saturating_sub(view.backfilled);
        if !may_resort || frames < LAST_RESORT_FRAMES || left == 0 {
            return Ok(None);
        }
        if left <= FEW_FRAMES && took <= QUICK {
            return connection.checkpoint_restart(READERS_TIME).map(Some);
        }
    }
    Ok(None)
}

/// Fails if the attachment has ended.
fn check(pending: &mut PendingCapture) -> Result<(), RunError> {
    if let Some(error) = pending.failed.take() {
        return Err(error.into());
    }
    if pending.moved {
        return Err(RunError::Moved);
    }
    if pending.has_ended {
        return Err(RunError::Detached);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAL that is never shortened: one commit longer than [`LAST_RESORT_FRAMES`] frames, then
    /// `behind` frames that a reader keeps from being copied. Returns writer and reader.
    fn long_log(path: &std::path::Path, behind: u32) -> [rusqlite::Connection; 2] {
        let open = || rusqlite::Connection::open(path).unwrap();
        let [writer, reader] = [open(), open()];
        let sql = "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
                   PRAGMA synchronous=OFF; CREATE TABLE t(x)";
        writer.execute_batch(sql).unwrap();
        let write = |frames: u32| {
            let rows = "INSERT INTO t SELECT zeroblob(450) FROM n";
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {frames}) {rows}"
            );
            writer.execute_batch(&sql).unwrap();
        };
        write(LAST_RESORT_FRAMES);
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM t")
            .unwrap();
        write(behind);
        [writer, reader]
    }

    #[test]
    fn the_last_resort_is_tried_only_where_little_is_left_and_waits_for_no_reader() {
        for (behind, tried) in [(FEW_FRAMES * 2, false), (FEW_FRAMES / 4, true)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("db");
            let [writer, reader] = long_log(&path, behind);
            let ours = Connection::open(&path).unwrap();
            assert_eq!(shorten(&ours, false).unwrap(), None, "not asked for");
            let began = std::time::Instant::now();
            let helped = shorten(&ours, true).unwrap();
            // If the disk was slow at that moment, it is not tried either.
            assert!(
                helped.is_none() || (tried && helped == Some(false)),
                "{helped:?}"
            );
            assert!(
                began.elapsed() < Duration::from_secs(4),
                "it waits for the reader"
            );
            writer.execute_batch("INSERT INTO t VALUES(1)").unwrap();
            drop(reader);
            let helped = shorten(&ours, true).unwrap();
            assert_ne!(helped, Some(false), "nobody reads");
        }
    }
}
