//! The lifecycle of one database: missing, cold, attached, idle.

use std::sync::Arc;
use std::time::Duration;

use protocol::status::DatabaseState;
use tokio::time::Instant;

use super::attached::{AttachedDriver, Ended};
use super::committer::{Committer, on_another_thread};
use super::pacer::Pace;
use super::{Database, Env, PROBE_PAUSE, RunError};
use crate::env::files::{Fingerprint, with_suffix};
use crate::pages::page_set::PageSet;
use crate::source::capture::IdleWatch;
use crate::source::probe::Probe;
use crate::source::scan::ScanError;
use crate::source::wal::{Start, WalPosition};
use crate::spool::ltx_writer::Delta;

/// Longest pause between failed attempts.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// After an attempt that ran for this long, the first pause is short again.
const STABLE: Duration = Duration::from_secs(60);

/// Approximate time from an application's open of a database to its first commit.
const OPENING_PAUSE: Duration = Duration::from_millis(20);

/// Longest wait for the first answer of a target. A target that answers later may have higher
/// TXIDs. Then it starts with a snapshot above them.
const FIRST_ANSWER_TIME: Duration = Duration::from_secs(5);

/// Pause before a file is probed again that another part of this process reads.
const IN_USE_PAUSE: Duration = Duration::from_millis(20);
/// Probes in a row after which another driver of this process evidently uses the file.
const MAX_IN_USE_PROBES: u32 = 50;

/// Time for which a database that was opened but not changed is polled every second.
const OPENED_TIME: Duration = Duration::from_secs(600);

/// Whether to attach to a database that no process has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cold {
    /// No: it would get a WAL of ours.
    Leave,
    /// Yes: the WAL goes when the database is closed again.
    Attach,
}

/// The lifecycle of one database, with the state that is kept across attachments.
pub(super) struct Lifecycle {
    pub(super) env: Env,
    /// None only while a blocking task owns it.
    pub(super) committer: Option<Committer>,
    /// WAL position at the newest written TXID, if nothing has happened since.
    pub(super) position: Option<WalPosition>,
    /// Fingerprint of the database when it was captured while no process had it open.
    pub(super) cold: Option<Fingerprint>,
    /// Fingerprints of a database and its WAL when it was detached with everything captured.
    pub(super) resting: Option<(Fingerprint, Fingerprint)>,
    /// The pace of captured files.
    pub(super) pace: Pace,
    /// True once the database has been attached.
    pub(super) had_turn: bool,
    /// Duration of the read of the whole database after a close; zero if it was not necessary.
    pub(super) scan_time: Duration,
    /// The database was closed with its WAL removed, so that a change may cost a read.
    pub(super) was_closed: bool,
    /// Probes in a row that found the file in use by this process.
    pub(super) in_use_probes: u32,
    /// The watch on an idle database.
    pub(super) watch: Option<IdleWatch>,
    /// Earliest time of the next watch. After an event without a change, the database is polled
    /// every second for a while. An open connection can commit without a further event, and
    /// another process may read the file all the time.
    pub(super) next_watch: Instant,
}

impl Lifecycle {
    /// Replicates the database until a stop, with a new attempt after each failure. Then captures
    /// everything. The caller limits the time.
    pub(super) async fn run_to_the_end(&mut self, database: &mut Database) {
        let mut pause = PROBE_PAUSE;
        loop {
            let began = Instant::now();
            let Err(error) = self.run(database).await else {
                return;
            };
            self.position = None;
            self.count_changes(database);
            database.report_error(&error);
            if began.elapsed() > STABLE {
                pause = PROBE_PAUSE;
            }
            // Each attempt may read the whole database.
            if error.is_over_budget() {
                database.pause(PROBE_PAUSE).await;
                // Pages that the database file holds need no local state to attach.
                if matches!(database.probe(), Probe::Live) {
                    checkpoint(database).await;
                }
                self.wait_for_room(database).await;
            } else if !matches!(error, RunError::Moved) {
                if error.is_disk_full() {
                    // If this fails, too, the error that is reported already explains it.
                    let _made = self.blocking(Committer::make_room).await;
                }
                database.pause(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
    }

    /// Waits until the local-state budget has room for this database again. It is detached
    /// meanwhile, and then read again, and the changes become one delta.
    async fn wait_for_room(&mut self, database: &mut Database) {
        let mut changes = database.handle.progress.subscribe();
        loop {
            let (is_full, keeps_up, can_make_room) = {
                let progress = database.handle.progress.lock();
                let can_make_room = progress.removable_under_pressure() > 0;
                (progress.is_full(), progress.keeps_up(), can_make_room)
            };
            // Once a target has every file, waiting makes no more room.
            if !is_full || keeps_up || *database.stop.borrow() {
                return;
            }
            if can_make_room && self.blocking(Committer::make_room).await.is_ok() {
                continue;
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                _ = database.pause(PROBE_PAUSE) => {}
            }
        }
    }

    /// Follows the database from state to state until a stop.
    pub(super) async fn run(&mut self, database: &mut Database) -> Result<(), RunError> {
        loop {
            // Read the flag before the probe, so that everything written before the stop is
            // captured.
            let stopping = *database.stop.borrow();
            let verdict = database.handle.progress.lock().verdict();
            if let Some((state, message)) = verdict {
                database.report(state, message);
                if !stopping {
                    // Only a new process or a person changes this.
                    database.stop.changed().await.unwrap_or_default();
                }
                return Ok(());
            }
            if stopping && self.is_as_it_was(database) {
                self.until_a_cut_or_none_is_needed(database).await;
            }
            let wanted = {
                let progress = database.handle.progress.lock();
                progress.lacks_cut() || progress.is_in_doubt
            };
            if !wanted && self.is_as_it_was(database) {
                // A suspected change was none.
                database.handle.progress.lock().unwritten.clear();
                if stopping && database.handle.needs_no_cut() {
                    return Ok(());
                }
                if database.handle.progress.lock().has_leftovers() {
                    self.blocking(Committer::tidy).await?;
                }
                self.idle(database).await;
                continue;
            }
            self.watch = None;
            self.count_changes(database);
            match database.probe() {
                Probe::Live => {
                    self.in_use_probes = 0;
                    // Boxed, so that thousands of idle databases do not reserve memory for it.
                    let to_the_end = Box::pin(self.follow(database, Cold::Leave)).await?;
                    if to_the_end && *database.stop.borrow() {
                        return Ok(());
                    }
                    continue;
                }
                Probe::Cold(fingerprint) if self.cold == Some(fingerprint) && !wanted => {
                    database.report(DatabaseState::Idle, String::new());
                }
                Probe::Cold(fingerprint) => {
                    let began = Instant::now();
                    match Box::pin(self.capture_cold(database, fingerprint)).await {
                        // An application was here meanwhile. One that opens, writes and closes
                        // faster than the database is read is met only by staying attached.
                        Err(RunError::Scan(ScanError::Disturbed)) => {
                            self.scan_time = self.scan_time.max(began.elapsed());
                            let to_the_end = Box::pin(self.follow(database, Cold::Attach)).await?;
                            if to_the_end && *database.stop.borrow() {
                                return Ok(());
                            }
                            continue;
                        }
                        captured => captured?,
                    }
                    if stopping {
                        self.until_a_cut_or_none_is_needed(database).await;
                    }
                }
                // A snapshot is being read. It closes the file between two reads.
                Probe::InUse if self.in_use_probes < MAX_IN_USE_PROBES => {
                    self.in_use_probes += 1;
                    tokio::time::sleep(IN_USE_PAUSE).await;
                    continue;
                }
                Probe::InUse => {
                    let message = "another part of this process has the database open".to_owned();
                    database.report(DatabaseState::Starting, message);
                    if stopping {
                        return Ok(());
                    }
                }
                Probe::Unfit(state, message) => {
                    database.report(state, message);
                    if stopping {
                        return Ok(());
                    }
                }
            }
            if stopping && database.handle.needs_no_cut() {
                return Ok(());
            }
            self.in_use_probes = 0;
            database.pause(PROBE_PAUSE).await;
        }
    }

    /// While stopping: waits until a target wants a cut, or no target will want one.
    async fn until_a_cut_or_none_is_needed(&self, database: &Database) {
        let handle = &database.handle;
        let mut changes = handle.progress.subscribe();
        loop {
            changes.borrow_and_update();
            handle.ask_for_needed_cuts();
            if handle.needs_no_cut() || handle.progress.lock().lacks_cut() {
                return;
            }
            // The sender lives as long as the handle.
            let _changed = changes.changed().await;
        }
    }

    /// Counts changes made while the database was not attached as not stored, and all of a database
    /// of which nothing is known.
    fn count_changes(&self, database: &Database) {
        if self.cold.is_none() && self.resting.is_none() {
            // At the start and after a failure, whatever there is may not be captured.
            return database.count_all();
        }
        let Some(file) = database.data().filter(|_| !self.is_as_it_was(database)) else {
            return;
        };
        let wal = with_suffix(&database.settings.path, "-wal");
        let wal = self.env.source.fingerprint(&wal).ok().flatten();
        let files = [Some(file), wal].into_iter().flatten();
        let newest_ms = files.map(|file| file.changed_ms()).max();
        let now_ms = self.env.host.clock.steady_ms();
        let first_ms = newest_ms.map_or(now_ms, |ms| ms.min(now_ms));
        database.handle.progress.lock().unwritten.changed(first_ms);
    }

    /// Whether a detached database is still as it was captured. Takes two system calls.
    fn is_as_it_was(&self, database: &Database) -> bool {
        let (source, path) = (&self.env.source, &database.settings.path);
        match (self.cold, self.resting) {
            (None, None) => false,
            (None, resting) => source
                .live_fingerprint(path)
                .is_ok_and(|now| now == resting),
            (cold, _) => source.cold_fingerprint(path).is_ok_and(|now| now == cold),
        }
    }

    /// Waits until an unchanged database may have changed, or a target wants a snapshot.
    async fn idle(&mut self, database: &mut Database) {
        let path = &database.settings.path;
        let mut changes = database.handle.progress.subscribe();
        if self.watch.is_none() && self.next_watch <= Instant::now() {
            // A process that has it open writes to its WAL. Any other opens the file first.
            let file = match self.cold {
                Some(_) => path.clone(),
                None => with_suffix(path, "-wal"),
            };
            self.watch = self.env.source.watch_idle(&file);
            // Earlier changes give no event.
            if !self.is_as_it_was(database) {
                return;
            }
        }
        if database.handle.progress.lock().lacks_cut() {
            return;
        }
        let Some(watch) = &self.watch else {
            database.pause(PROBE_PAUSE).await;
            return;
        };
        let net = self.env.source.idle_pause();
        let is_over = tokio::select! {
            biased;
            () = watch.changed() => true,
            _ = changes.changed() => false,
            _ = database.pause(net) => false,
        };
        if is_over {
            self.watch = None;
            self.next_watch = Instant::now() + OPENED_TIME;
            database.pause(OPENING_PAUSE).await;
        }
    }

    /// Captures a database that no process has open.
    pub(super) async fn capture_cold(
        &mut self,
        database: &mut Database,
        fingerprint: Fingerprint,
    ) -> Result<(), RunError> {
        if !self.may_number(database).await {
            return Ok(());
        }
        let (path, env) = (database.settings.path.clone(), self.env.clone());
        let (is_in_doubt, lacks_cut) = {
            let progress = database.handle.progress.lock();
            (progress.is_in_doubt, progress.lacks_cut())
        };
        let is_known = self.cold == Some(fingerprint) && self.has_hashes() && !is_in_doubt;
        let handle = database.handle.clone();
        let began = Instant::now();
        self.blocking(move |committer| {
            if !is_known {
                handle.progress.lock().unwritten.begin_resync();
                let (known, on_full) = (committer.hashes.as_ref(), committer.on_full());
                let spill = &committer.spill;
                let scan = env
                    .source
                    .scan_cold(&path, fingerprint, known, on_full, spill)?;
                let page_size = scan.hashes.page_size();
                let (now, commit) = (env.host.clock.unix_ms(), scan.hashes.commit());
                let nothing = Delta {
                    pages: PageSet::new(page_size, &committer.spill),
                    commit,
                    position: None,
                    timestamp_ms: now,
                };
                committer.write_scan(scan, nothing, env.host.clock.steady_ms())?;
                handle.set_size(page_size, commit);
            }
            let hashes = committer
                .hashes
                .as_ref()
                .expect("it was read just now, or before");
            let nothing = PageSet::new(hashes.page_size(), &committer.spill);
            // The scan may have offered one.
            match lacks_cut && handle.progress.lock().lacks_cut() {
                true => committer.offer_cut(nothing),
                false => Ok(()),
            }
        })
        .await?;
        if !is_known && self.was_closed {
            self.scan_time = began.elapsed();
        }
        // File times this recent may hide a change right after them: probe once more.
        self.cold = fingerprint
            .is_settled(self.env.host.clock.unix_ms())
            .then_some(fingerprint);
        self.position = None;
        database.report(DatabaseState::Idle, String::new());
        Ok(())
    }

    /// Waits until we may assign TXIDs. With local state this is at once. Without it, one target
    /// must have reported its TXIDs, and the others must have answered or exceeded their time.
    /// False if no target will report.
    pub(super) async fn may_number(&self, database: &mut Database) -> bool {
        let known = self
            .committer
            .as_ref()
            .is_some_and(|committer| committer.hashes.is_some());
        let mut changes = database.handle.progress.subscribe();
        let began = Instant::now();
        loop {
            let handle = &database.handle;
            let (was_tried, has_answered) = {
                let progress = handle.progress.lock();
                (
                    progress.every_target_was_tried(),
                    progress.a_target_answered(),
                )
            };
            let asked = was_tried || began.elapsed() >= FIRST_ANSWER_TIME;
            if known || (asked && has_answered) {
                return true;
            }
            if handle.progress.lock().verdict().is_some() {
                return false;
            }
            let message = "waiting until a target says which backups there are".to_owned();
            database.report(DatabaseState::Starting, message);
            if *database.stop.borrow() && was_tried {
                return false;
            }
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                () = tokio::time::sleep(PROBE_PAUSE) => {}
            }
        }
    }

    /// Captures a database that the application has open, until it is gone or we stop. False when
    /// there may be more to capture: it was closed before we attached, or it became idle or
    /// closed.
    pub(super) async fn follow(
        &mut self,
        database: &mut Database,
        cold: Cold,
    ) -> Result<bool, RunError> {
        if !self.may_number(database).await {
            return Ok(true);
        }
        // A database that was attached before comes back because it was written: it does not wait.
        if !std::mem::replace(&mut self.had_turn, true) {
            self.env.source.turn().await;
        }
        // Both steps may take long. If the database was closed meanwhile, attaching would create a
        // WAL that stays, perhaps with another owner than the next process to open it.
        match database.probe() {
            Probe::Live => {}
            Probe::Cold(_) if cold == Cold::Attach => {}
            Probe::Cold(_) | Probe::InUse | Probe::Unfit(..) => return Ok(false),
        }
        if let Some((file, _)) = &self.resting
            && !database
                .env
                .source
                .fingerprint(&database.settings.path)
                .ok()
                .flatten()
                .is_some_and(|now| now.is_same_file(file))
        {
            // Another file under the WAL that we know: its pages must be compared.
            self.position = None;
        }
        let closed = self.cold.take();
        (self.resting, self.next_watch) = (None, Instant::now());
        let committer = self.committer.take().expect("no blocking task has it");
        let start = match (closed, self.position) {
            _ if committer.hashes.is_none() => Start::Unknown,
            (Some(file), _) => Start::AfterClose(file),
            (None, Some(position)) => Start::At(position),
            (None, None) => Start::Unknown,
        };
        let position = match start {
            Start::At(position) => Some(position),
            Start::Unknown | Start::AfterClose(_) => None,
        };
        let unwritten = Arc::clone(&database.handle.progress.lock().unwritten);
        let path = database.settings.path.clone();
        let source = &self.env.source;
        let attached = source.attach(&path, &committer.spill, start, &unwritten);
        let times = (self.pace, self.scan_time);
        let driver = AttachedDriver::new(committer, times, attached, position, database);
        let left = driver.run(database).await;
        (self.committer, self.pace) = (Some(left.committer), left.pace);
        (self.position, self.resting) = (None, None);
        match left.result? {
            Ended::Stopped => Ok(true),
            Ended::Resting(files) => {
                (self.position, self.resting) = (left.position, Some(files));
                Ok(false)
            }
            Ended::Closed(file) => {
                self.was_closed = true;
                // If another process opened it first, the WAL still exists.
                match self.env.source.cold_fingerprint(&path).ok().flatten() {
                    None => {
                        self.position = left.position;
                        // Everything until the stop is captured.
                        return Ok(*database.stop.borrow());
                    }
                    now => {
                        self.cold = now.filter(|now| *now == file);
                        database.report(DatabaseState::Idle, String::new());
                    }
                }
                Ok(false)
            }
        }
    }

    pub(super) fn has_hashes(&self) -> bool {
        self.committer
            .as_ref()
            .is_some_and(|committer| committer.hashes.is_some())
    }

    /// Runs slow work with the committer on another thread.
    pub(super) async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Committer) -> Result<T, RunError> + Send + 'static,
    ) -> Result<T, RunError> {
        let committer = self.committer.take().expect("one blocking task at a time");
        let (committer, result) = on_another_thread(&*self.env.host.threads, committer, work).await;
        self.committer = Some(committer);
        result
    }

    /// Stores the page hashes for a quick next start. Writing waits for the disk, so it runs on
    /// another thread: thousands of databases end at the same time.
    pub(super) async fn close(&mut self) {
        if self.committer.is_some() {
            let save = |committer: &mut Committer| {
                committer.save();
                Ok(())
            };
            // A failure is logged, and costs a comparison at the next start.
            let _saved = self.blocking(save).await;
        }
    }

    /// Records what each target has.
    pub(super) async fn record_delivered(&mut self) {
        if self.committer.is_some() {
            let record = |committer: &mut Committer| {
                committer.record_delivered();
                Ok(())
            };
            let _recorded = self.blocking(record).await;
        }
    }
}

/// Copies as much of the WAL into the database file as is possible without waiting for another
/// process. The database must be open in WAL mode.
async fn checkpoint(database: &Database) {
    let (source, path) = (
        Arc::clone(&database.env.source),
        database.settings.path.clone(),
    );
    let work = move || source.checkpoint(&path, false);
    if let Err(error) = database.env.host.threads.run(work).await {
        // It fails while the application runs a checkpoint, and then ours is not needed.
        tracing::debug!(%error, "checkpoint");
    }
}

#[cfg(test)]
mod tests;
