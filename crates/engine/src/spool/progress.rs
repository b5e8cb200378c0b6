//! Captured files of one database and the needs of each target: the state that the database driver
//! and its target drivers share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ltx::Txid;
use protocol::status::DatabaseState;
use tokio::sync::watch;

use crate::env::budget::Account;
use crate::source::capture::UnwrittenCommits;
use crate::spool::cut::Cut;
use crate::spool::state_dir::LocalFile;

/// A captured file and the data of its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// The file.
    pub file: LocalFile,
    /// Checksum of the whole database at its TXID; none for files of an earlier run.
    pub checksum: Option<u64>,
    /// When its oldest commit was seen, in Unix milliseconds.
    pub oldest_ms: i64,
}

/// The purpose that captured files are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Uploads to every target, and compaction without reading the files back.
    Compaction,
    /// Uploads to every target.
    Uploading,
    /// Uploads to the most advanced target.
    Furthest,
}

/// The phase of one target, for decisions about the database. Users see a report instead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TargetPhase {
    /// The target was not asked yet, or has not answered.
    #[default]
    Starting,
    /// The last attempt to connect failed. The files of the target are not known.
    Failing,
    /// The target was asked, and `acked` is its answer. Later failures do not change that.
    Connected,
    /// The target takes no backups of this database any more, until a person or a new process
    /// decides.
    Ended {
        /// The resulting state of the database.
        state: DatabaseState,
        /// The reason, for people.
        message: String,
    },
}

/// The progress of one target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetProgress {
    /// Its phase.
    pub phase: TargetPhase,
    /// The newest acknowledged TXID. Captured files after it are needed.
    pub acked: Txid,
    /// The newest TXID that an earlier run knew to be stored. The reported lag and backlog count
    /// from there until the target answers; nothing else may rely on it.
    pub hinted: Txid,
    /// The newest compacted TXID. Captured files after it are needed for compaction.
    pub compacted: Txid,
    /// The target cannot continue from captured files: it needs a snapshot above this TXID.
    pub needs_snapshot: Option<Txid>,
    /// The position of the newest snapshot that the target has.
    pub newest_snapshot: Txid,
    /// The target is about to store a snapshot and waits for a cut.
    pub wants_cut: bool,
    /// The position of the cut whose snapshot the target is storing. If the target cannot continue
    /// without that snapshot, it needs the files from there on.
    pub taken_cut: Option<Txid>,
    /// Commits that no captured file will bring to the target.
    pub lost: Option<Lost>,
}

/// Commits that no captured file will bring to a target, because files were removed before it had
/// them, or because it begins with a snapshot. The snapshot will hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The target has them once it has acknowledged this TXID.
    pub txid: Txid,
    /// When the oldest of them was seen, in Unix milliseconds.
    pub oldest_ms: i64,
}

impl TargetProgress {
    /// The newest TXID that the target probably has.
    pub fn likely_acked(&self) -> Txid {
        self.acked.max(self.hinted)
    }

    /// True when the target was asked for its files and has answered.
    pub fn is_connected(&self) -> bool {
        self.phase == TargetPhase::Connected
    }

    fn has_ended(&self) -> bool {
        matches!(self.phase, TargetPhase::Ended { .. })
    }

    /// The removed files that the target still lacks.
    pub fn lost(&self) -> Option<Lost> {
        self.lost.filter(|lost| lost.txid > self.acked)
    }

    /// Records that no captured file leads the target to a TXID, which has commits from `oldest_ms`
    /// on.
    pub fn lose(&mut self, txid: Txid, oldest_ms: i64) {
        if txid > self.likely_acked() && !self.has_ended() {
            let new = Lost { txid, oldest_ms };
            let both = |earlier: Lost| Lost {
                txid: txid.max(earlier.txid),
                oldest_ms: oldest_ms.min(earlier.oldest_ms),
            };
            self.lost = Some(self.lost().map_or(new, both));
        }
    }
}

/// Minimum room for one more captured file, in bytes.
const FILE_BYTES: u64 = 64 << 10;
/// Captured files that no target needs are removed with the next one, or at once when they reach
/// this many bytes.
const LEFTOVER_BYTES: u64 = 1 << 20;
/// File systems allocate files in blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// Bytes that a captured file takes on the disk.
fn disk_bytes(file: &LocalFile) -> u64 {
    file.bytes.next_multiple_of(BLOCK_BYTES)
}

/// The shared state.
#[derive(Debug, Default)]
pub struct ReplicationProgress {
    /// The newest captured TXID.
    pub txid: Txid,
    /// Checksum of the whole database at that TXID; none until the page hashes are known.
    pub checksum: Option<u64>,
    /// Time of that capture, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The newest time in any target's files, in Unix milliseconds. Another machine's clock may
    /// have been ahead of ours.
    pub stored_ms: i64,
    /// Captured files on the local disk, consecutive. The newest is that of `txid`, if there is
    /// one.
    pub files: VecDeque<Captured>,
    /// The newest cut, while targets wait for one.
    pub cut: Option<Arc<Cut>>,
    /// Our epoch: the highest that any target gave us.
    pub epoch: u64,
    /// A snapshot found pages that differ from the captured state: the database must be read
    /// again.
    pub is_in_doubt: bool,
    /// Commits that are captured but not in a file yet.
    pub unwritten: Arc<UnwrittenCommits>,
    /// The use of the local-state budget by `files`.
    pub account: Option<Arc<Account>>,
    /// Each target by its index, including those that were not asked yet.
    pub targets: Vec<TargetProgress>,
}

impl ReplicationProgress {
    /// The time of a capture made now. Times never decrease as TXIDs grow, even if the clock goes
    /// back, because restores by time rely on it.
    pub fn time_of_next(&self, now_ms: i64) -> i64 {
        now_ms.max(self.timestamp_ms).max(self.stored_ms)
    }

    /// Bytes that a target still needs.
    pub fn backlog_bytes(&self, target: usize) -> u64 {
        let acked = self.likely_acked(target);
        let written: u64 = self
            .waiting(acked)
            .map(|captured| captured.file.bytes)
            .sum();
        written + self.unwritten.bytes()
    }

    /// When the oldest commit that a target lacks was seen.
    pub fn oldest_waiting_ms(&self, target: usize) -> Option<i64> {
        let acked = self.likely_acked(target);
        let written = self.waiting(acked).map(|captured| captured.oldest_ms).min();
        let lost = self.targets.get(target).and_then(TargetProgress::lost);
        let lost = lost.map(|lost| lost.oldest_ms);
        [written, lost, self.unwritten.oldest_ms()]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the oldest commit that some target lacks was seen.
    pub fn oldest_unstored_ms(&self) -> Option<i64> {
        let targets = 0..self.targets.len();
        let each = targets.filter(|index| !self.targets[*index].has_ended());
        each.filter_map(|target| self.oldest_waiting_ms(target))
            .min()
    }

    fn likely_acked(&self, target: usize) -> Txid {
        let target = self.targets.get(target);
        target.map_or(Txid::ZERO, TargetProgress::likely_acked)
    }

    fn waiting(&self, acked: Txid) -> impl Iterator<Item = &Captured> {
        self.files
            .iter()
            .filter(move |captured| captured.file.txid > acked)
    }

    /// The captured file of a TXID, if it still exists.
    pub fn captured(&self, txid: Txid) -> Option<Captured> {
        let first = self.files.front()?.file.txid;
        let index = usize::try_from(txid.get().checked_sub(first.get())?).ok()?;
        let captured = self.files.get(index).copied();
        debug_assert!(captured.is_none_or(|captured| captured.file.txid == txid));
        captured
    }

    /// True when a target that has everything up to `txid` can continue from captured files.
    pub fn continues(&self, txid: Txid) -> bool {
        txid == self.txid || self.captured(txid.next()).is_some()
    }

    /// Number of captured files, from the oldest, that no target needs any more, given the TXID of
    /// the stored page hashes.
    ///
    /// The newest file stays, because it tells a later run its position. So does the newest file
    /// that a target has: it proves to a later run that the stored backup is ours. A target that
    /// waits for a snapshot needs the files after that snapshot.
    pub fn removable(&self, hashes_at: Txid, need: Need) -> usize {
        let targets = self.targets.iter().filter(|target| !target.has_ended());
        let needed = targets.map(|target| self.needed(target, need));
        let needed = match need {
            // The slowest targets start again with a snapshot. The others must not wait for them.
            Need::Furthest => needed.max(),
            Need::Compaction | Need::Uploading => needed.min(),
        };
        let needed = needed.unwrap_or(Txid::ZERO).min(hashes_at);
        let old = self
            .files
            .iter()
            .take_while(|captured| captured.file.txid < needed)
            .count();
        old.min(self.files.len().saturating_sub(1))
    }

    /// The oldest captured file that a target needs.
    fn needed(&self, target: &TargetProgress, need: Need) -> Txid {
        if target.needs_snapshot.is_some() {
            let offered = self.cut.as_ref().map(|cut| cut.txid);
            return target.taken_cut.or(offered).unwrap_or(self.txid);
        }
        match need {
            _ if !target.is_connected() => Txid::ZERO,
            Need::Compaction => target.compacted.min(target.acked),
            Need::Uploading | Need::Furthest => target.acked,
        }
    }

    /// As [`ReplicationProgress::removable`], when the local-state budget is used up. First, files
    /// kept for compaction only; then, while one target nearly keeps up, files that only slower
    /// ones need.
    pub fn removable_under_pressure(&self) -> usize {
        match self.removable(self.txid, Need::Uploading) {
            0 if self.least_waiting_bytes() < self.local_bytes() / 2 => {
                self.removable(self.txid, Need::Furthest)
            }
            stored => stored,
        }
    }

    /// True when captured files that no target needs any more occupy much space.
    pub fn has_leftovers(&self) -> bool {
        let count = self.removable(self.txid, Need::Compaction);
        let bytes: u64 = self.files.iter().take(count).map(|it| it.file.bytes).sum();
        bytes >= LEFTOVER_BYTES
    }

    /// True when the local-state budget has no room for more files of this database.
    pub fn is_full(&self) -> bool {
        let account = self.account.as_ref();
        let bytes = self.unwritten.bytes().max(FILE_BYTES);
        account.is_some_and(|account| !account.has_room(bytes))
    }

    /// True when a target has every captured file.
    pub fn keeps_up(&self) -> bool {
        self.least_waiting_bytes() == 0
    }

    /// Bytes that the most advanced target still needs.
    fn least_waiting_bytes(&self) -> u64 {
        let targets = self.targets.iter();
        let able =
            targets.filter(|target| target.is_connected() && target.needs_snapshot.is_none());
        let waiting = able.map(|target| -> u64 {
            self.waiting(target.acked)
                .map(|captured| captured.file.bytes)
                .sum()
        });
        waiting.min().unwrap_or(u64::MAX)
    }

    /// True when a target waits for a cut, and no cut that it can use is offered.
    pub fn lacks_cut(&self) -> bool {
        let waits = |target: &&TargetProgress| target.wants_cut && !target.has_ended();
        let mut waiting = self.targets.iter().filter(waits);
        waiting.any(|target| self.usable_cut(target).is_none())
    }

    /// The TXID above which a target wants its snapshot; none if no target needs one to continue.
    pub fn snapshot_above(&self) -> Option<Txid> {
        let targets = self.targets.iter().filter(|target| !target.has_ended());
        targets.filter_map(|target| target.needs_snapshot).max()
    }

    fn usable_cut(&self, target: &TargetProgress) -> Option<&Arc<Cut>> {
        let above = target.needs_snapshot.unwrap_or(Txid::ZERO);
        let cut = self.cut.as_ref();
        cut.filter(|cut| cut.txid > above && self.continues(cut.txid))
    }

    /// True when a target waits for a cut, and one that it can use is offered.
    pub fn is_cut_offered(&self, target: usize) -> bool {
        let target = &self.targets[target];
        target.wants_cut && self.usable_cut(target).is_some()
    }

    /// Takes the cut that a target waits for, if it is offered. Drops it once no target waits for
    /// it.
    pub fn take_cut(&mut self, target: usize) -> Option<Arc<Cut>> {
        let cut = Arc::clone(self.usable_cut(&self.targets[target])?);
        let target = &mut self.targets[target];
        (target.wants_cut, target.taken_cut) = (false, Some(cut.txid));
        self.release_cut();
        Some(cut)
    }

    /// Drops the cut when no target waits for one.
    pub fn release_cut(&mut self) {
        let waits = |target: &TargetProgress| target.wants_cut && !target.has_ended();
        if !self.targets.iter().any(waits) {
            self.cut = None;
        }
    }

    /// The state and the reason, if no target takes backups of this database any more.
    pub fn verdict(&self) -> Option<(DatabaseState, String)> {
        let mut verdict = None;
        for target in &self.targets {
            match &target.phase {
                TargetPhase::Ended { state, message } => {
                    verdict = Some((*state, message.clone()));
                }
                _ => return None,
            }
        }
        verdict
    }

    /// True when every target was asked once, whether it answered or not.
    pub fn every_target_was_tried(&self) -> bool {
        let mut phases = self.targets.iter().map(|target| &target.phase);
        phases.all(|phase| *phase != TargetPhase::Starting)
    }

    /// True when a target has reported its files.
    pub fn a_target_answered(&self) -> bool {
        self.targets.iter().any(TargetProgress::is_connected)
    }

    /// True when no target will ask for a cut of the database any more: each has ended or
    /// continues from captured files.
    pub fn needs_no_cut(&self) -> bool {
        self.targets.iter().all(|target| {
            let continues = target.needs_snapshot.is_none() && self.continues(target.acked);
            target.has_ended() || (target.is_connected() && continues)
        })
    }

    /// True when every target has every captured file.
    pub fn is_stored(&self) -> bool {
        let stored = |target: &TargetProgress| {
            let goes_on = target.is_connected() && target.needs_snapshot.is_none();
            goes_on && target.acked == self.txid
        };
        self.targets.iter().all(stored)
    }

    /// Bytes of captured files on the local disk.
    pub fn local_bytes(&self) -> u64 {
        self.files.iter().map(|captured| captured.file.bytes).sum()
    }

    /// Adds a captured file.
    pub fn push(&mut self, captured: Captured) {
        if let Some(account) = &self.account {
            account.take(disk_bytes(&captured.file));
        }
        self.files.push_back(captured);
    }

    /// Removes the oldest captured files from this list. The caller removes them from the disk.
    pub fn remove_oldest(&mut self, count: usize) -> Vec<LocalFile> {
        let gone: Vec<Captured> = self.files.drain(..count).collect();
        for target in &mut self.targets {
            for captured in &gone {
                target.lose(captured.file.txid, captured.oldest_ms);
            }
        }
        let gone: Vec<LocalFile> = gone.into_iter().map(|captured| captured.file).collect();
        if let Some(account) = &self.account {
            account.give_back(gone.iter().map(disk_bytes).sum());
        }
        gone
    }
}

/// The shared state, with notifications of its changes.
#[derive(Debug)]
pub struct SharedProgress {
    state: Mutex<ReplicationProgress>,
    version: watch::Sender<u64>,
}

impl Default for SharedProgress {
    fn default() -> SharedProgress {
        SharedProgress {
            state: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl SharedProgress {
    /// Locks the state, to read it.
    pub fn lock(&self) -> MutexGuard<'_, ReplicationProgress> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and notifies all receivers.
    pub fn update<T>(&self, change: impl FnOnce(&mut ReplicationProgress) -> T) -> T {
        let result = change(&mut self.lock());
        self.version.send_modify(|version| *version += 1);
        result
    }

    /// Changes the state, and notifies all receivers only if `change` returns true.
    pub fn update_if(&self, change: impl FnOnce(&mut ReplicationProgress) -> bool) {
        if change(&mut self.lock()) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// A receiver that sees every change after this call.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests;
