//! The driver of one attached database: carries out the actions that the machine decides on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use protocol::status::DatabaseState;
use tokio::time::Instant;

use super::commit_lane::{Done, Worker, check};
use super::committer::Committer;
use super::machine::{Action, Captured, Checkpointed, Machine, Outcome, Surroundings};
use super::pacer::Pace;
use super::{Database, RunError, changed};
use crate::env::files::Fingerprint;
use crate::source::capture::Attached;
use crate::source::sqlite::SqliteError;
use crate::source::wal::WalPosition;

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

/// Drives one attachment to a live database.
pub(super) struct AttachedDriver {
    worker: Option<Worker>,
    attached: Arc<Attached>,
    pub(super) machine: Machine,
    commit: Option<CommitLane>,
    checkpoint: Option<BoxFuture<'static, Result<Option<bool>, SqliteError>>>,
}

/// State that outlives an attachment.
pub(super) struct Left {
    pub(super) committer: Committer,
    pub(super) pace: Pace,
    /// WAL position after the newest written file, if known.
    pub(super) position: Option<WalPosition>,
    pub(super) result: Result<Ended, RunError>,
}

impl AttachedDriver {
    /// Creates the driver of a database that capture was asked to attach. It continues at `log`.
    pub(super) fn new(
        committer: Committer,
        (pace, scan_time): (Pace, Duration),
        attached: Attached,
        position: Option<WalPosition>,
        database: &Database,
    ) -> AttachedDriver {
        let attached = Arc::new(attached);
        let worker = Worker {
            committer: Some(committer),
            attached: Arc::clone(&attached),
            handle: database.handle.clone(),
            env: database.env.clone(),
            path: database.settings.path.clone(),
            position,
            barrier: 0,
        };
        AttachedDriver {
            worker: Some(worker),
            attached,
            machine: Machine::new(pace, scan_time, Instant::now()),
            commit: None,
            checkpoint: None,
        }
    }

    /// Replicates until the database is gone, idle or closed, or until we stop. Leaves none of our
    /// locks.
    pub(super) async fn run(mut self, database: &mut Database) -> Left {
        let mut result = self.drive(database).await;
        // A running action owns the page hashes.
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
        worker.release(matches!(result, Ok(Ended::Closed(_)))).await;
        if let Ok(Ended::Stopped) = result {
            // Commits after the last poll are left to the next process that captures.
            database.handle.progress.lock().unwritten.clear();
        }
        Left {
            pace: self.machine.pace(),
            position: worker.position,
            committer: worker.committer.expect("no blocking task is left"),
            result,
        }
    }

    async fn drive(&mut self, database: &mut Database) -> Result<Ended, RunError> {
        let mut pending = self.attached.mailbox.subscribe();
        let mut changes = database.handle.progress.subscribe();
        {
            // Capture everything that exists now before any state is reported.
            let worker = self.worker.as_mut().expect("nothing is under way yet");
            worker.until(|pending| pending.page_size).await?;
            worker.barrier().await?;
            if worker.has_hashes() {
                worker.attached.mailbox.resumed();
            }
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
                // In this order, so that a simulation repeats itself.
                biased;
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
                () = changed(&mut database.stop) => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Reports the current state to the machine.
    fn observe(&mut self, database: &Database) -> Result<(), RunError> {
        let has_hashes = match &self.worker {
            Some(worker) => worker.has_hashes(),
            // The running action has the hashes or reads them.
            None => true,
        };
        let captured = {
            let mut pending = self.attached.mailbox.lock();
            check(&mut pending)?;
            Captured {
                is_attached: pending.page_size.is_some(),
                has_commits: pending.batch.is_some(),
                has_gap: pending.gap.is_some() || !has_hashes,
                wants_checkpoint: pending.wants_checkpoint,
                can_resume: self.position().is_some_and(|position| position.frames > 0),
                is_alone: pending.is_alone,
            }
        };
        let surroundings = {
            let progress = database.handle.progress.lock();
            if progress.verdict().is_some() && self.commit.is_none() {
                return Err(RunError::Over);
            }
            let is_full = progress.is_full();
            Surroundings {
                lacks_cut: progress.lacks_cut(),
                is_in_doubt: progress.is_in_doubt,
                keeps_up: progress.keeps_up(),
                is_full,
                can_make_room: is_full && progress.removable_under_pressure() > 0,
                has_leftovers: progress.has_leftovers(),
                is_crowded: database.env.source.is_crowded(),
                others_wait: database.env.source.others_wait(),
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

    fn position(&self) -> Option<WalPosition> {
        self.worker.as_ref().and_then(|worker| worker.position)
    }

    fn begin(&mut self, action: Action, database: &Database) {
        if let Action::Checkpoint { may_resort } = action {
            self.attached.mailbox.lock().wants_checkpoint = false;
            let (env, path) = (&database.env, database.settings.path.clone());
            let source = Arc::clone(&env.source);
            let work = move || source.checkpoint(&path, may_resort);
            self.checkpoint = Some(env.host.threads.run(work));
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
            Done::Closable(file) => return Some(Ended::Closed(file)),
            Done::Finished => return Some(Ended::Stopped),
        }
        None
    }

    fn checkpoint_done(&mut self, done: Result<Option<bool>, SqliteError>, database: &Database) {
        let helped = match done {
            Ok(helped) => helped,
            // It fails while the application runs a checkpoint, and then ours is not needed.
            Err(error) => {
                tracing::debug!(%error, "checkpoint");
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
