//! The commit lane of an attached database: writing commits, resyncs, cuts, and the last actions of an
//! attachment.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::committer::{Committer, on_another_thread};
use super::machine::Action;
use super::status::DatabaseHandle;
use super::{Env, PROBE_PAUSE, RunError};
use crate::env::files::Fingerprint;
use crate::pages::page_set::PageSet;
use crate::source::capture::{Attached, PendingCapture};
use crate::source::scan::ScanError;
use crate::source::wal::{Batch, GapReason, WalError, WalPosition};
use crate::spool::ltx_writer::Delta;

/// Pause before file times are read again that are too recent to show a change.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);
/// Time without a change after which each later one shows in the times of a file: they advance in
/// steps of up to 10 ms, whatever the clock says.
const SETTLED_AFTER: Duration = Duration::from_millis(100);
/// Most resyncs of a database during a shutdown, while frames are missed.
const LAST_RESYNCS: u32 = 5;

/// Result of an action of the commit lane.
pub(super) enum Done {
    /// A file was written.
    Written,
    /// No file was written.
    Unchanged,
    /// The cut is not there. Nothing is lost.
    CutFailed,
    /// Nothing was written since these times of the files.
    Quiet((Fingerprint, Fingerprint)),
    /// The database file holds everything and has this fingerprint.
    Closable(Fingerprint),
    /// Something was written meanwhile.
    NotQuiet,
    /// Everything is captured, and it is time to stop.
    Finished,
}

/// Carries out the actions of the commit lane, one at a time.
pub(super) struct Worker {
    /// None only while a blocking task owns it.
    pub(super) committer: Option<Committer>,
    pub(super) attached: Arc<Attached>,
    pub(super) handle: DatabaseHandle,
    pub(super) env: Env,
    pub(super) path: PathBuf,
    pub(super) position: Option<WalPosition>,
    pub(super) barrier: u64,
}

impl Worker {
    pub(super) async fn carry_out(&mut self, action: Action) -> Result<Done, RunError> {
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

    pub(super) fn has_hashes(&self) -> bool {
        let committer = self.committer.as_ref();
        committer.is_some_and(|committer| committer.hashes.is_some())
    }

    /// Runs slow work with the committer on another thread.
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Committer) -> Result<T, RunError> + Send + 'static,
    ) -> Result<T, RunError> {
        let committer = self.committer.take().expect("one blocking task at a time");
        let (committer, result) = on_another_thread(&*self.env.host.threads, committer, work).await;
        self.committer = Some(committer);
        result
    }

    /// Writes the captured commits as the next TXID.
    async fn commit(&mut self) -> Result<Done, RunError> {
        // A slow writer is polled rarely: what it has committed since goes into this file, too.
        self.poll().await?;
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
        let (handle, position) = (self.handle.clone(), batch.position);
        let write = move |committer: &mut Committer| {
            let (commit, first_ms) = (batch.commit, batch.first_ms);
            let page_size = batch.pages.page_size();
            let mut delta = Delta {
                position: Some((position, batch.wal_offset)),
                timestamp_ms: batch.last_ms,
                pages: batch.pages,
                commit,
            };
            committer.write(&mut delta, first_ms)?;
            handle.set_size(page_size, commit);
            committer.record(position);
            Ok(delta.pages)
        };
        let pages = self.blocking(write).await?;
        self.position = Some(position);
        Ok(pages)
    }

    /// Reads the whole database and writes the pages that differ from the page hashes.
    async fn resync(&mut self) -> Result<Done, RunError> {
        let page_size = {
            // From here on the mailbox receives the whole present WAL, then everything after it.
            let reason = self.attached.mailbox.begin_resync();
            tracing::debug!(?reason, "reading the whole database");
            let page_size = self.attached.mailbox.lock().page_size;
            page_size.expect("the machine has seen that it is attached")
        };
        if self.handle.progress.lock().is_in_doubt {
            // Compare pages that only the WAL holds, too.
            let Some(newest) = self.whole_wal().await? else {
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
        let (source, path) = (Arc::clone(&self.env.source), self.path.clone());
        let scan = move |committer: &mut Committer| {
            let hashes = committer.hashes.as_ref();
            let known = hashes.filter(|hashes| hashes.page_size() == page_size);
            let on_full = committer.on_full();
            Ok(source.scan_live(&path, page_size, known, on_full, &committer.spill)?)
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
            return Err(RunError::Capture(WalError::Restless));
        };
        let (handle, position) = (self.handle.clone(), batch.position);
        let write = move |committer: &mut Committer| {
            let (first_ms, commit) = (batch.first_ms, batch.commit);
            let newest = Delta {
                pages: batch.pages,
                commit,
                position: Some((position, batch.wal_offset)),
                timestamp_ms: batch.last_ms,
            };
            committer.write_scan(scan, newest, first_ms)?;
            handle.set_size(page_size, commit);
            committer.record(position);
            Ok(())
        };
        self.blocking(write).await?;
        self.position = Some(position);
        Ok(Done::Written)
    }

    /// Freezes the present position for a snapshot.
    async fn take_cut(&mut self) -> Result<Done, RunError> {
        let wal = match self.whole_wal().await {
            Ok(Some(wal)) => wal,
            Ok(None) => return Ok(Done::Unchanged),
            Err(RunError::Wal(error)) => return Ok(Self::cut_failed(&error)),
            Err(error) => return Err(error),
        };
        let mut newest = wal.pages;
        if self.attached.mailbox.lock().gap.is_some() {
            return Ok(Done::Unchanged);
        }
        let batch = self.attached.mailbox.take();
        let is_written = batch.is_some();
        if let Some(batch) = batch {
            let pages = self.write(batch).await?;
            if let Err(error) = newest.overlay(pages) {
                return Ok(Self::cut_failed(&WalError::Spill(error)));
            }
        }
        self.blocking(move |committer| committer.offer_cut(newest))
            .await?;
        Ok(match is_written {
            true => Done::Written,
            false => Done::Unchanged,
        })
    }

    fn cut_failed(error: &WalError) -> Done {
        tracing::warn!(%error, "the next snapshot waits; commits are stored meanwhile");
        Done::CutFailed
    }

    /// The pages of the present WAL that the database file may lack.
    ///
    /// # Errors
    ///
    /// [`RunError::Wal`] if they cannot be read or kept. Nothing that was captured is lost.
    async fn whole_wal(&mut self) -> Result<Option<Batch>, RunError> {
        // Drop an earlier answer: it may be older than recent commits.
        self.attached.mailbox.lock().wal = None;
        self.attached.reread();
        let wal = self.until(|pending| match pending.gap {
            Some(_) => Some(None),
            None => pending.wal.take().map(Some),
        });
        wal.await?.transpose().map_err(RunError::Wal)
    }

    /// Polls a last time. Returns the state of the files if everything in them is captured.
    async fn rest(&mut self) -> Result<Done, RunError> {
        let (source, path) = (Arc::clone(&self.env.source), self.path.clone());
        let look = || source.live_fingerprint(&path).ok().flatten();
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
    ///
    /// Gives up when the database is opened or written meanwhile: the next commits must not wait.
    async fn prepare_to_close(&mut self) -> Result<Done, RunError> {
        let (source, path) = (Arc::clone(&self.env.source), self.path.clone());
        let look = || source.fingerprint(&path).ok().flatten();
        self.attached.checkpoint_alone();
        self.barrier().await?;
        let file = look();
        let mut settled = Duration::ZERO;
        while settled < SETTLED_AFTER {
            tokio::time::sleep(SETTLE_PAUSE).await;
            settled += SETTLE_PAUSE;
            let is_unchanged = look() == file;
            let pending = self.attached.mailbox.lock();
            if !is_unchanged || !pending.is_taken() || !pending.is_alone {
                return Ok(Done::NotQuiet);
            }
        }
        self.barrier().await?;
        let is_ready = {
            let pending = self.attached.mailbox.lock();
            pending.is_all_taken() && pending.is_backfilled && pending.is_alone
        };
        let is_unchanged = look() == file;
        Ok(match file.filter(|_| is_ready && is_unchanged) {
            Some(file) => Done::Closable(file),
            None => Done::NotQuiet,
        })
    }

    /// Captures and writes the remaining commits. Stays attached while a target may need a cut,
    /// because its snapshot is read from the database.
    async fn finish(&mut self) -> Result<Done, RunError> {
        let mut changes = self.handle.progress.subscribe();
        loop {
            changes.borrow_and_update();
            self.capture_all().await?;
            // Then a cut can be taken of the closed database, too.
            let is_alone = self.attached.mailbox.lock().is_alone;
            if is_alone && let done @ Done::Closable(_) = self.prepare_to_close().await? {
                return Ok(done);
            }
            if self.handle.needs_no_cut() {
                return Ok(Done::Finished);
            }
            self.handle.ask_for_needed_cuts();
            let lacks_cut = self.handle.progress.lock().lacks_cut();
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
            if !is_whole || !self.has_hashes() {
                self.resync().await?;
                continue;
            }
            self.commit().await?;
            // The poll before it may have missed commits.
            if self.attached.mailbox.lock().gap.is_none() {
                return Ok(());
            }
        }
        Err(RunError::Capture(WalError::Restless))
    }

    fn next_barrier(&mut self) -> u64 {
        self.barrier += 1;
        self.attached.barrier(self.barrier);
        self.barrier
    }

    /// Waits for a poll that begins now.
    async fn poll(&mut self) -> Result<(), RunError> {
        self.barrier += 1;
        let token = self.barrier;
        self.attached.poll(token);
        self.until(|pending| (pending.poll >= token).then_some(()))
            .await
    }

    /// Waits until everything that has been published by now is captured.
    pub(super) async fn barrier(&mut self) -> Result<(), RunError> {
        let token = self.next_barrier();
        self.until(|pending| (pending.barrier >= token).then_some(()))
            .await
    }

    /// Waits until `ready` returns a value from the mailbox.
    pub(super) async fn until<T>(
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
    pub(super) async fn release(&self, is_closable: bool) {
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

/// Fails if the attachment has ended.
pub(super) fn check(pending: &mut PendingCapture) -> Result<(), RunError> {
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
