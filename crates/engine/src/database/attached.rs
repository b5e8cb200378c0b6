//! One attachment to a live database: when to seal, heal, copy and checkpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use protocol::status::DatabaseState;
use tokio::time::Instant;

use super::session::{Session, needs_base};
use super::{Database, PROBE_PAUSE, RunError};
use crate::capture::{Attached, Found};
use crate::pages::PageSet;
use crate::scan::{Fingerprint, ScanError, live_fingerprint, scan_live};
use crate::seal::Delta;
use crate::sqlite::{Connection, SqliteError};
use crate::tap::{Batch, LogPosition, TapError};

/// Pause between two PASSIVE checkpoints of ours.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);
/// Frames of a log that PASSIVE checkpoints evidently do not keep short: 128 MiB with pages of 4 KiB.
const LAST_RESORT_FRAMES: u32 = 32_768;
/// Frames that may be copied while writers wait: some milliseconds.
const FEW_FRAMES: u32 = 1_000;
/// How long writers wait for readers of the log at most.
const READERS_TIME: Duration = Duration::from_millis(20);
/// Longest PASSIVE checkpoint of the frames before: the disk is quick enough to copy, and to sync, the
/// rest while writers wait.
const QUICK: Duration = Duration::from_millis(20);
/// Shortest and longest pause after a last resort that did not help; it doubles.
pub(super) const RESORT_PAUSES: (Duration, Duration) =
    (Duration::from_secs(10), Duration::from_secs(600));
/// PASSIVE checkpoints in a row: each leaves what was written during the one before.
const PASSES: u32 = 8;
/// How long nothing is written before a database is let go for want of room. File times move in steps
/// of some milliseconds: it must be much longer than that.
const REST_AFTER: Duration = Duration::from_secs(5);
/// The same while others wait for their turn.
const REST_SOON: Duration = Duration::from_secs(1);
/// Attempts to read a database that is to be left, while it loses frames.
const LAST_HEALS: u32 = 5;

/// One attachment to a live database.
pub(super) struct Follow {
    pub(super) attached: Attached,
    pub(super) barrier: u64,
    pub(super) last_checkpoint: Instant,
    /// When the last resort may be tried again, and the pause after it when it does not help.
    pub(super) next_resort: Instant,
    pub(super) resort_pause: Duration,
    pub(super) next_snapshot: Instant,
    pub(super) sealed_since_snapshot: bool,
    /// Where the log stands after all that is sealed, where that is known.
    pub(super) log: Option<LogPosition>,
    /// When something was found last.
    pub(super) quiet_since: Instant,
}

/// How an attachment ended.
pub(super) enum Ended {
    /// We are to stop.
    Stopped,
    /// Nothing is written, and others need the room: to be attached again when these files change.
    Resting((Fingerprint, Fingerprint)),
}

/// What to do next, decided from what the capture thread found.
pub(super) enum Next {
    Wait(Option<Instant>),
    Heal,
    Seal,
    Base,
    Trim,
    Checkpoint,
    Rest,
    Stop,
}

impl Follow {
    pub(super) async fn run(
        &mut self,
        session: &mut Session,
        database: &mut Database,
    ) -> Result<Ended, RunError> {
        let mut changes = database.handle.chain.subscribe();
        // Everything that is there now is found before anything is said about it.
        self.until(|found| found.page_size).await?;
        self.barrier().await?;
        loop {
            let inbox = Arc::clone(&self.attached.inbox);
            let changed = inbox.changed.notified();
            match self.next(session, database)? {
                Next::Heal => self.heal(session, database).await?,
                Next::Seal => self.seal(session, database).await?,
                Next::Base => self.copy(session, database).await?,
                Next::Trim => {
                    let limit = database.settings.backlog_bytes;
                    session
                        .blocking(move |ledger| ledger.make_room(limit))
                        .await?;
                }
                Next::Checkpoint => self.checkpoint(database).await,
                Next::Rest => match self.rest(database).await? {
                    Some(files) => return Ok(Ended::Resting(files)),
                    None => self.quiet_since = Instant::now(),
                },
                Next::Stop => {
                    self.finish(session, database).await?;
                    return Ok(Ended::Stopped);
                }
                Next::Wait(until) => {
                    if self.attached.inbox.lock().batch.is_none() {
                        database.report(DatabaseState::Replicating, String::new());
                    }
                    let until = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
                    tokio::select! {
                        () = changed => {}
                        _ = changes.changed() => {}
                        _ = database.stop.changed() => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    pub(super) fn next(
        &mut self,
        session: &Session,
        database: &Database,
    ) -> Result<Next, RunError> {
        let now = Instant::now();
        let (pending, broken, checkpoint) = {
            let mut found = self.attached.inbox.lock();
            check(&mut found)?;
            let pending = found
                .batch
                .as_ref()
                .map(|batch| (batch.first_ms, batch.pages.bytes()));
            (
                pending,
                found.broken.is_some(),
                std::mem::take(&mut found.wants_checkpoint),
            )
        };
        let chain = &database.handle.chain;
        {
            // Nobody waits for this, so nobody is woken.
            let mut chain = chain.lock();
            chain.unsealed_since_ms = pending.map(|(since, _)| since);
            chain.unsealed_bytes = pending.map_or(0, |(_, bytes)| bytes);
        }
        if database.handle.verdict().is_some() {
            return Err(RunError::Over);
        }
        if *database.stop.borrow() {
            return Ok(Next::Stop);
        }
        if self.attached.inbox.lock().page_size.is_none() {
            return Ok(Next::Wait(None));
        }
        if broken || !session.has_table() {
            return Ok(Next::Heal);
        }
        if needs_base(chain).is_some() {
            return Ok(Next::Base);
        }
        if checkpoint && now >= self.last_checkpoint + CHECKPOINT_PAUSE {
            return Ok(Next::Checkpoint);
        }
        if self.sealed_since_snapshot && now >= self.next_snapshot {
            return Ok(Next::Base);
        }
        if pending.is_none() {
            let copy = self.sealed_since_snapshot.then_some(self.next_snapshot);
            let rest = self.log.filter(|log| log.frames > 0);
            let after = if database.capture.others_wait() {
                REST_SOON
            } else {
                REST_AFTER
            };
            let rest = rest.map(|_| self.quiet_since + after);
            if rest.is_some_and(|rest| now >= rest) {
                if database.capture.is_crowded() {
                    return Ok(Next::Rest);
                }
                return Ok(Next::Wait(copy));
            }
            return Ok(Next::Wait(copy.into_iter().chain(rest).min()));
        }
        {
            let limit = database.settings.backlog_bytes;
            let chain = chain.lock();
            if chain.local_bytes() >= limit && chain.removable_under_pressure(limit) > 0 {
                return Ok(Next::Trim);
            }
            if chain.is_full(limit) {
                return Ok(Next::Wait(Some(now + PROBE_PAUSE)));
            }
        }
        let keeps_up = chain.lock().keeps_up();
        match session.pace.due(keeps_up) {
            Some(at) if at > now => Ok(Next::Wait(Some(at))),
            _ => Ok(Next::Seal),
        }
    }

    /// Takes a last look. Returns the files as they are when everything in them is captured.
    async fn rest(
        &mut self,
        database: &Database,
    ) -> Result<Option<(Fingerprint, Fingerprint)>, RunError> {
        let look = || live_fingerprint(&database.settings.path).ok().flatten();
        // What is written from here on changes them, what was written before is in the log.
        let files = look();
        self.barrier().await?;
        let found = self.attached.inbox.lock();
        Ok(files.filter(|_| found.is_all_taken() && files == look()))
    }

    /// Waits until everything that is published by now is found.
    pub(super) async fn barrier(&mut self) -> Result<(), RunError> {
        self.barrier += 1;
        let token = self.barrier;
        self.attached.barrier(token);
        self.until(|found| (found.barrier >= token).then_some(()))
            .await
    }

    /// Waits for something to be found.
    pub(super) async fn until<T>(
        &self,
        mut ready: impl FnMut(&mut Found) -> Option<T>,
    ) -> Result<T, RunError> {
        let inbox = &self.attached.inbox;
        loop {
            let changed = inbox.changed.notified();
            {
                let mut found = inbox.lock();
                check(&mut found)?;
                if let Some(ready) = ready(&mut found) {
                    return Ok(ready);
                }
            }
            changed.await;
        }
    }

    /// Detaches, and waits until that is done.
    pub(super) async fn release(&self) {
        self.attached.detach();
        let inbox = &self.attached.inbox;
        loop {
            let changed = inbox.changed.notified();
            if inbox.lock().gone {
                return;
            }
            changed.await;
        }
    }

    /// Reads the whole database and seals what differs from what we know, or a first full copy.
    pub(super) async fn heal(
        &mut self,
        session: &mut Session,
        database: &Database,
    ) -> Result<(), RunError> {
        let (page_size, base) = {
            let mut found = self.attached.inbox.lock();
            // Found from here on: the whole present log, then everything after it.
            let reason = found.broken.take();
            tracing::debug!(database = %database.handle.path, ?reason, "reading the whole database");
            (found.page_size, needs_base(&database.handle.chain))
        };
        let page_size = page_size.expect("the caller has seen that it is attached");
        let path = database.settings.path.clone();
        let raw = session
            .blocking(move |ledger| {
                let known = ledger
                    .table
                    .as_ref()
                    .filter(|table| base.is_none() && table.page_size() == page_size);
                let spill = ledger.local.directory().to_owned();
                Ok(scan_live(&path, page_size, known, &spill)?)
            })
            .await?;
        self.barrier().await?;
        let batch = {
            let mut found = self.attached.inbox.lock();
            if found.broken.is_some() {
                // Frames were missed while we read: begin again.
                return Ok(());
            }
            found.batch.take()
        };
        let Some(batch) = batch else {
            // A first attachment always brings the present log; later ones may find no change.
            self.attached.inbox.lock().broken = Some(crate::tap::BreakReason::Fresh);
            return Err(RunError::Tap(TapError::Restless));
        };
        let handle = database.handle.clone();
        let log = batch.log;
        session
            .blocking(move |ledger| {
                let first_ms = batch.first_ms;
                let commit = batch.commit;
                ledger.seal_scan(lay_over(raw, batch)?, first_ms, base)?;
                handle.set_size(page_size, commit);
                ledger.record(log);
                Ok(())
            })
            .await?;
        self.log = Some(log);
        self.after_seal(session, database);
        self.sealed_since_snapshot = base.is_none() && self.sealed_since_snapshot;
        Ok(())
    }

    /// Seals what was captured as the next TXID.
    pub(super) async fn seal(
        &mut self,
        session: &mut Session,
        database: &Database,
    ) -> Result<(), RunError> {
        let batch = {
            let mut found = self.attached.inbox.lock();
            if found.broken.is_some() {
                return Ok(());
            }
            found.batch.take()
        };
        let Some(batch) = batch else { return Ok(()) };
        let handle = database.handle.clone();
        let log = batch.log;
        session
            .blocking(move |ledger| {
                let (commit, first_ms) = (batch.commit, batch.first_ms);
                let page_size = batch.pages.page_size();
                let mut delta = Delta {
                    log: Some((log, batch.log_offset)),
                    timestamp_ms: batch.last_ms,
                    pages: batch.pages,
                    commit,
                };
                ledger.seal(&mut delta, first_ms)?;
                handle.set_size(page_size, commit);
                ledger.record(log);
                Ok(())
            })
            .await?;
        self.log = Some(log);
        self.after_seal(session, database);
        Ok(())
    }

    fn after_seal(&mut self, session: &mut Session, database: &Database) {
        session.pace.made(Instant::now());
        self.quiet_since = Instant::now();
        self.sealed_since_snapshot = true;
        database.report(DatabaseState::Replicating, String::new());
    }

    /// Makes a full copy: for a target that needs one, or because it is time.
    pub(super) async fn copy(
        &mut self,
        session: &mut Session,
        database: &Database,
    ) -> Result<(), RunError> {
        let Some(mut overlay) = self.whole_log().await? else {
            return Ok(());
        };
        let page_size = overlay.pages.page_size();
        let path = database.settings.path.clone();
        let raw = session
            .blocking(move |ledger| {
                let spill = ledger.local.directory().to_owned();
                Ok(scan_live(&path, page_size, None, &spill)?)
            })
            .await?;
        self.barrier().await?;
        let batch = {
            let mut found = self.attached.inbox.lock();
            if found.broken.is_some() {
                return Ok(());
            }
            found.batch.take()
        };
        let base = needs_base(&database.handle.chain);
        if let Some(batch) = &batch {
            (self.log, self.quiet_since) = (Some(batch.log), Instant::now());
        }
        session
            .blocking(move |ledger| {
                if let Some(mut batch) = batch {
                    let mut delta = Delta {
                        log: Some((batch.log, batch.log_offset)),
                        timestamp_ms: batch.last_ms,
                        pages: batch.pages,
                        commit: batch.commit,
                    };
                    ledger.seal(&mut delta, batch.first_ms)?;
                    ledger.record(batch.log);
                    batch.pages = delta.pages;
                    overlay.append(batch).map_err(ScanError::Spill)?;
                }
                ledger.seal_copy(lay_over(raw, overlay)?, base)
            })
            .await?;
        self.next_snapshot = Instant::now() + database.settings.snapshot_interval;
        self.sealed_since_snapshot = false;
        Ok(())
    }

    /// The whole present log, so that a raw copy misses nothing that is not backfilled.
    pub(super) async fn whole_log(&mut self) -> Result<Option<Batch>, RunError> {
        // An answer to an earlier question may be older than what was sealed since.
        self.attached.inbox.lock().log = None;
        self.attached.reread();
        self.until(|found| match found.broken {
            Some(_) => Some(None),
            None => found.log.take().map(Some),
        })
        .await
    }

    /// Copies the log into the database in the application's place, from a connection of its own.
    pub(super) async fn checkpoint(&mut self, database: &Database) {
        self.last_checkpoint = Instant::now();
        let path = database.settings.path.clone();
        let may_resort = self.last_checkpoint >= self.next_resort;
        let checkpoint = move || shorten(&Connection::open(&path)?, may_resort);
        let name = &database.handle.path;
        // It fails when somebody else checkpoints, and then it is not needed.
        match tokio::task::spawn_blocking(checkpoint).await {
            Ok(Ok(None)) => tracing::debug!(database = %name, "checkpoint"),
            Ok(Ok(Some(helped))) => {
                if helped {
                    self.resort_pause = RESORT_PAUSES.0;
                } else {
                    self.next_resort = Instant::now() + self.resort_pause;
                    self.resort_pause = (self.resort_pause * 2).min(RESORT_PAUSES.1);
                }
                let counted = &database.handle.blocking_checkpoints;
                if counted.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        database = %name,
                        helped,
                        "the application never lets its log begin anew: we try to, and its writers \
                         wait a moment each time (set PRAGMA wal_autocheckpoint in the application)"
                    );
                }
            }
            Ok(Err(error)) => tracing::debug!(database = %name, "{error}"),
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// Takes a last look, seals it, and gives the marks back.
    pub(super) async fn finish(
        &mut self,
        session: &mut Session,
        database: &Database,
    ) -> Result<(), RunError> {
        self.until(|found| found.page_size).await?;
        self.barrier().await?;
        for _ in 0..LAST_HEALS {
            let broken = self.attached.inbox.lock().broken.is_some();
            if !broken && session.has_table() {
                break;
            }
            self.heal(session, database).await?;
        }
        if self.attached.inbox.lock().broken.is_some() {
            return Err(RunError::Tap(TapError::Restless));
        }
        self.seal(session, database).await?;
        database.until_targets_were_tried().await;
        if needs_base(&database.handle.chain).is_some() {
            self.copy(session, database).await?;
        }
        Ok(())
    }
}

/// Copies the log into the database, waiting for nobody. Where writers never pause, the log goes on
/// growing all the same: then, as a last resort, makes them begin it anew. None when that was not
/// tried, else whether it helped.
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

/// The end of an attachment, when it has come.
pub(super) fn check(found: &mut Found) -> Result<(), RunError> {
    if let Some(error) = found.failed.take() {
        return Err(error.into());
    }
    if found.moved {
        return Err(RunError::Moved);
    }
    Ok(())
}

/// A raw copy under what was published since: the database at the end of `batch`.
pub(super) fn lay_over(mut raw: PageSet, batch: Batch) -> Result<Delta, RunError> {
    raw.overlay(batch.pages).map_err(ScanError::Spill)?;
    raw.truncate(batch.commit);
    let log = Some((batch.log, batch.log_offset));
    Ok(Delta {
        pages: raw,
        commit: batch.commit,
        log,
        timestamp_ms: batch.last_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log that nobody shortens: one commit more than [`LAST_RESORT_FRAMES`] frames, then as many as
    /// `behind` that a reader does not let be copied. Returns writer and reader.
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
            // Where the disk was slow just then it is not tried either.
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
