//! What one database has captured and what each target still needs of it: the state that the
//! database driver and its target drivers share.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ltx::Txid;
use tokio::sync::watch;

use crate::local::LocalFile;

/// A full copy on the local disk, removed when nobody needs it any more.
#[derive(Debug)]
pub struct SnapshotFile {
    /// The position that it is a copy of.
    pub txid: Txid,
    /// Checksum of the whole database there.
    pub checksum: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its timestamp, in Unix milliseconds.
    pub timestamp_ms: i64,
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        // What stays behind is removed at the next start.
        let _removed = std::fs::remove_file(&self.path);
    }
}

/// A captured file and what belongs to its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Captured {
    /// The file.
    pub file: LocalFile,
    /// Checksum of the whole database at its TXID; none for files of an earlier run.
    pub checksum: Option<u64>,
    /// When its oldest commit was seen, in Unix milliseconds.
    pub oldest_ms: i64,
}

/// What captured files are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// For uploads to every target, and for merging without reading them back.
    Merging,
    /// For uploads to every target.
    Uploading,
    /// For uploads to the target that is furthest.
    Furthest,
}

/// How far one target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TargetProgress {
    /// The newest acknowledged TXID; captured files after it are needed.
    pub acked: Txid,
    /// The newest merged TXID; captured files after it are needed for merging.
    pub merged: Txid,
    /// The target can't go on from captured files: it needs a full copy above this TXID.
    pub needs_snapshot: Option<Txid>,
    /// The newest full copy that the target has.
    pub copied: Txid,
    /// The target has been asked, and `acked` is what it said.
    pub connected: bool,
}

/// The state behind the lock.
#[derive(Debug, Default)]
pub struct ChainState {
    /// The newest captured TXID.
    pub txid: Txid,
    /// Checksum of the whole database there; none until the page hashes are known.
    pub checksum: Option<u64>,
    /// When it was captured, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The newest time in any target's files, in Unix milliseconds: another machine's clock may
    /// have been ahead of ours.
    pub stored_ms: i64,
    /// Captured files on the local disk, consecutive, the newest is `txid`'s if there is any.
    pub files: VecDeque<Captured>,
    /// The newest full copy, while targets want it.
    pub snapshot: Option<Arc<SnapshotFile>>,
    /// Our epoch: the highest that any target gave us.
    pub epoch: u64,
    /// When the oldest commit that is captured but not sealed was seen, in Unix milliseconds.
    pub unsealed_since_ms: Option<i64>,
    /// Bytes of such commits.
    pub unsealed_bytes: u64,
    /// Each target, by its number; also those that were not asked yet.
    pub targets: Vec<TargetProgress>,
}

impl ChainState {
    /// The time of what is captured now, by our clock: times never go back with TXIDs, whatever
    /// the clock does, because restores by time rely on it.
    pub fn time_of_next(&self, now_ms: i64) -> i64 {
        now_ms.max(self.timestamp_ms).max(self.stored_ms)
    }

    /// Bytes that a target still needs.
    pub fn backlog_bytes(&self, target: usize) -> u64 {
        let acked = self.acked(target);
        let sealed: u64 = self
            .waiting(acked)
            .map(|captured| captured.file.bytes)
            .sum();
        sealed + self.unsealed_bytes
    }

    /// When the oldest commit that a target lacks was seen.
    pub fn oldest_waiting_ms(&self, target: usize) -> Option<i64> {
        let acked = self.acked(target);
        let sealed = self.waiting(acked).map(|captured| captured.oldest_ms).min();
        sealed.into_iter().chain(self.unsealed_since_ms).min()
    }

    fn acked(&self, target: usize) -> Txid {
        let progress = self.targets.get(target);
        progress.map_or(Txid::ZERO, |progress| progress.acked)
    }

    fn waiting(&self, acked: Txid) -> impl Iterator<Item = &Captured> {
        self.files
            .iter()
            .filter(move |captured| captured.file.txid > acked)
    }

    /// The captured file of a TXID, if it is still here.
    pub fn captured(&self, txid: Txid) -> Option<Captured> {
        let first = self.files.front()?.file.txid;
        let index = usize::try_from(txid.get().checked_sub(first.get())?).ok()?;
        let captured = self.files.get(index).copied();
        debug_assert!(captured.is_none_or(|captured| captured.file.txid == txid));
        captured
    }

    /// True when a target that has everything up to `txid` can go on from captured files.
    pub fn continues(&self, txid: Txid) -> bool {
        txid == self.txid || self.captured(txid.next()).is_some()
    }

    /// How many captured files, from the oldest, nobody needs any more, given the TXID of the
    /// stored page table.
    ///
    /// The newest stays: it is what tells a later run where it is. So does the newest that a
    /// target has: it proves to a later run that what is stored is ours. A target that waits for
    /// a full copy needs what follows the copy.
    pub fn removable(&self, table_at: Txid, need: Need) -> usize {
        let needed = self.targets.iter().map(|target| self.needed(target, need));
        let needed = match need {
            // Those that lag most begin again with a full copy; the others must not wait for them.
            Need::Furthest => needed.max(),
            Need::Merging | Need::Uploading => needed.min(),
        };
        let needed = needed.unwrap_or(Txid::ZERO).min(table_at);
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
            return self.snapshot.as_ref().map_or(self.txid, |copy| copy.txid);
        }
        match need {
            _ if !target.connected => Txid::ZERO,
            Need::Merging => target.merged.min(target.acked),
            Need::Uploading | Need::Furthest => target.acked,
        }
    }

    /// As [`ChainState::removable`], when more than `limit_bytes` of files are here: first those
    /// that are kept for merging only; then, while one target keeps up, what only slower ones need.
    pub fn removable_under_pressure(&self, limit_bytes: u64) -> usize {
        match self.removable(self.txid, Need::Uploading) {
            0 if self.least_waiting_bytes() < limit_bytes / 2 => {
                self.removable(self.txid, Need::Furthest)
            }
            stored => stored,
        }
    }

    /// True when the local disk holds all that it may, and no target has everything: commits wait
    /// until one has, and what changed meanwhile becomes one delta.
    pub fn is_full(&self, limit_bytes: u64) -> bool {
        self.local_bytes() >= limit_bytes && !self.keeps_up()
    }

    /// True when a target has every captured file.
    pub fn keeps_up(&self) -> bool {
        self.least_waiting_bytes() == 0
    }

    /// Bytes that the target that is furthest still needs.
    fn least_waiting_bytes(&self) -> u64 {
        let targets = self.targets.iter();
        let able = targets.filter(|target| target.connected && target.needs_snapshot.is_none());
        let waiting = able.map(|target| -> u64 {
            self.waiting(target.acked)
                .map(|captured| captured.file.bytes)
                .sum()
        });
        waiting.min().unwrap_or(u64::MAX)
    }

    /// Lets go of the full copy once every target has it.
    pub fn release_snapshot(&mut self) {
        let Some(txid) = self.snapshot.as_ref().map(|snapshot| snapshot.txid) else {
            return;
        };
        let has_it =
            |target: &TargetProgress| target.needs_snapshot.is_none() && target.copied >= txid;
        if self.targets.iter().all(has_it) {
            self.snapshot = None;
        }
    }

    /// Bytes of captured files on the local disk.
    pub fn local_bytes(&self) -> u64 {
        self.files.iter().map(|captured| captured.file.bytes).sum()
    }
}

/// The shared state and the way to learn that it changed.
#[derive(Debug)]
pub struct Chain {
    state: Mutex<ChainState>,
    version: watch::Sender<u64>,
}

impl Default for Chain {
    fn default() -> Chain {
        Chain {
            state: Mutex::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Chain {
    /// The state, to be read.
    pub fn lock(&self) -> MutexGuard<'_, ChainState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells everybody.
    pub fn update<T>(&self, change: impl FnOnce(&mut ChainState) -> T) -> T {
        let result = change(&mut self.lock());
        self.version.send_modify(|version| *version += 1);
        result
    }

    /// A receiver that is told of every change after this call.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(first: u64, last: u64) -> ChainState {
        let file = |txid| LocalFile {
            txid: Txid::new(txid),
            bytes: 10,
            timestamp_ms: txid as i64,
        };
        ChainState {
            txid: Txid::new(last),
            files: (first..=last)
                .map(|txid| Captured {
                    file: file(txid),
                    checksum: None,
                    oldest_ms: txid as i64 * 100,
                })
                .collect(),
            ..ChainState::default()
        }
    }

    fn target(acked: u64, merged: u64) -> TargetProgress {
        TargetProgress {
            acked: Txid::new(acked),
            merged: Txid::new(merged),
            needs_snapshot: None,
            copied: Txid::ZERO,
            connected: true,
        }
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_commit_that_is_not_stored() {
        let mut chain = chain(3, 6);
        chain.targets = vec![target(4, 3), target(6, 3)];
        assert_eq!(
            (chain.oldest_waiting_ms(0), chain.backlog_bytes(0)),
            (Some(500), 20)
        );
        assert_eq!(
            (chain.oldest_waiting_ms(1), chain.backlog_bytes(1)),
            (None, 0)
        );
        chain.unsealed_since_ms = Some(450);
        assert_eq!(chain.oldest_waiting_ms(1), Some(450));
        assert_eq!(chain.oldest_waiting_ms(0), Some(450));
    }

    #[test]
    fn files_stay_while_a_target_the_merge_or_the_table_needs_them() {
        let mut chain = chain(3, 9);
        chain.targets = vec![target(9, 8)];
        let removable =
            |chain: &ChainState, table| chain.removable(Txid::new(table), Need::Merging);
        assert_eq!(removable(&chain, 9), 5);
        assert_eq!(removable(&chain, 5), 2, "the table is behind");
        chain.targets.push(TargetProgress {
            connected: false,
            ..target(9, 9)
        });
        assert_eq!(removable(&chain, 9), 0, "a target was not asked yet");
        chain.targets = vec![target(9, 9); 2];
        assert_eq!(removable(&chain, 9), 6, "the newest file stays");
    }

    #[test]
    fn when_space_is_short_first_merging_and_then_the_slowest_target_gives_way() {
        let mut chain = chain(3, 9);
        chain.targets = vec![target(8, 4), target(5, 5)];
        let removable = |need| chain.removable(Txid::new(9), need);
        assert_eq!(removable(Need::Merging), 1);
        assert_eq!(removable(Need::Uploading), 2);
        assert_eq!(removable(Need::Furthest), 5);
    }
}
