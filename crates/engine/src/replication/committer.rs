//! The known state of a database at the newest written TXID, and every step that advances it.

use std::sync::Arc;

use ltx::{Txid, page_checksum};

use super::RunError;
use crate::env::threads::Threads;
use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::{PageSet, Spill};
use crate::source::scan::{OnFull, Scan, ScanError, drop_unchanged};
use crate::source::wal::WalPosition;
use crate::spool::cut::Cut;
use crate::spool::ltx_writer::{Delta, WriteError, write_delta};
use crate::spool::progress::{
    Captured, Lost, Need, ReplicationProgress, SharedProgress, TargetProgress,
};
use crate::spool::state_dir::{CaptureRecord, Delivered, Loaded, LocalState};

/// Number of written files between two writes of the page hashes.
const HASHES_EVERY: u64 = 128;

/// The known state of the database at the newest written TXID. Moves into blocking tasks and back.
pub(super) struct Committer {
    pub(super) local: Arc<LocalState>,
    pub(super) spill: Spill,
    pub(super) progress: Arc<SharedProgress>,
    /// None until the first read of the database, or after its state was lost.
    pub(super) hashes: Option<PageHashes>,
    /// TXID of the stored page hashes.
    pub(super) hashes_at: Txid,
    /// Name and location of each target.
    targets: Vec<(String, String)>,
}

impl Committer {
    /// Resumes from local state and reports it in `progress`. No captured file is removed until each
    /// of `targets`, given by name and location, has reported its position.
    pub(super) fn resume(
        local: Arc<LocalState>,
        spill: Spill,
        progress: Arc<SharedProgress>,
        loaded: Loaded,
        targets: Vec<(String, String)>,
        now_ms: i64,
    ) -> Committer {
        progress.update(|progress| {
            progress.txid = loaded.txid;
            progress.checksum = loaded.hashes.as_ref().map(PageHashes::checksum);
            let newest = progress.checksum;
            for file in &loaded.files {
                progress.push(Captured {
                    file: *file,
                    checksum: newest.filter(|_| file.txid == loaded.txid),
                    // The clock may have been set back since.
                    oldest_ms: file.timestamp_ms.min(now_ms),
                });
            }
            let targets = targets.iter();
            let each = targets.map(|(name, location)| resumed(&loaded, name, location, now_ms));
            progress.targets = each.collect();
            progress.timestamp_ms = loaded.files.last().map_or(0, |file| file.timestamp_ms);
            progress.epoch = loaded
                .replicas
                .values()
                .map(|record| record.epoch)
                .max()
                .unwrap_or(0);
        });
        Committer {
            local,
            spill,
            progress,
            hashes: loaded.hashes,
            hashes_at: loaded.hashes_at,
            targets,
        }
    }

    /// Writes a delta as the next TXID. Its time is never before that of the previous file.
    pub(super) fn write(&mut self, delta: &mut Delta, oldest_ms: i64) -> Result<(), RunError> {
        let hashes = self
            .hashes
            .as_mut()
            .expect("a delta needs a known state below it");
        let (txid, epoch, timestamp_ms) = {
            let progress = self.progress.lock();
            let time = progress.time_of_next(delta.timestamp_ms);
            (progress.txid.next(), progress.epoch, time)
        };
        delta.timestamp_ms = timestamp_ms;
        let written = write_delta(&self.local, hashes, delta, txid, epoch);
        let file = match written {
            Err(error) => {
                // The pages are lost with the delta: the next attachment compares hashes.
                return Err(error.into());
            }
            Ok(file) => file,
        };
        let checksum = hashes.checksum();
        self.progress.update(|progress| {
            // The file also holds commits that an earlier attempt lost.
            let taken_ms = progress.unwritten.oldest_taken_ms();
            let oldest_ms = taken_ms.map_or(oldest_ms, |ms| ms.min(oldest_ms));
            progress.txid = txid;
            progress.checksum = Some(checksum);
            progress.timestamp_ms = timestamp_ms;
            progress.push(Captured {
                file,
                checksum: Some(checksum),
                oldest_ms,
            });
            progress.unwritten.written();
        });
        if txid.get() >= self.hashes_at.get() + HASHES_EVERY {
            self.store_hashes(txid)?;
        }
        self.trim(|progress, hashes_at| progress.removable(hashes_at, Need::Compaction))
    }

    /// Removes captured files because the local-state budget is used up.
    pub(super) fn make_room(&mut self) -> Result<(), RunError> {
        let txid = self.progress.lock().txid;
        if txid > self.hashes_at {
            self.store_hashes(txid)?;
        }
        self.trim(|progress, _| progress.removable_under_pressure())?;
        self.record_delivered();
        Ok(())
    }

    /// Records what each target has, for the lag that the next run reports before they answer.
    pub(super) fn record_delivered(&self) {
        let delivered = {
            let progress = self.progress.lock();
            let targets = self.targets.iter().zip(&progress.targets);
            let each = targets.map(|((name, location), target)| {
                let lost = target.lost();
                let delivered = Delivered {
                    location: location.clone(),
                    txid: target.likely_acked().get(),
                    lost: lost.map_or(0, |lost| lost.txid.get()),
                    lost_since_ms: lost.map_or(0, |lost| lost.oldest_ms),
                };
                (name.clone(), delivered)
            });
            each.collect()
        };
        if let Err(error) = self.local.write_delivered(&delivered) {
            tracing::debug!(%error, "what the targets have is not kept");
        }
    }

    /// Removes captured files that no target needs any more.
    pub(super) fn tidy(&mut self) -> Result<(), RunError> {
        let txid = self.progress.lock().txid;
        if txid > self.hashes_at {
            self.store_hashes(txid)?;
        }
        self.trim(|progress, hashes_at| progress.removable(hashes_at, Need::Compaction))
    }

    /// How a scan reacts if changed pages do not fit: it fails while uploads will make room.
    pub(super) fn on_full(&self) -> OnFull {
        match self.progress.lock().keeps_up() {
            true => OnFull::KeepHashes,
            false => OnFull::Fail,
        }
    }

    /// Writes the result of a scan, overlaid with `newest`, the frames published since it began.
    /// Normally this is a delta of the changed pages. If nothing or too little is known, a new
    /// lineage of captured files begins, and every target needs its first position as a snapshot.
    pub(super) fn write_scan(
        &mut self,
        scan: Scan,
        newest: Delta,
        oldest_ms: i64,
    ) -> Result<(), RunError> {
        let same_size = |hashes: &PageHashes| hashes.page_size() == newest.pages.page_size();
        let known = self.hashes.as_ref().filter(|hashes| same_size(hashes));
        if let (Some(hashes), Some(mut changed)) = (known, scan.changed) {
            changed.overlay(newest.pages).map_err(ScanError::Spill)?;
            changed.truncate(newest.commit);
            drop_unchanged(&mut changed, hashes)?;
            if changed.is_empty() && newest.commit == hashes.commit() {
                self.progress.update(|progress| {
                    progress.unwritten.written();
                    progress.is_in_doubt = false;
                });
                return Ok(());
            }
            let mut delta = Delta {
                pages: changed,
                ..newest
            };
            self.write(&mut delta, oldest_ms)?;
            self.progress
                .update(|progress| progress.is_in_doubt = false);
            return Ok(());
        }
        let mut hashes = scan.hashes;
        let mut pages = newest.pages;
        pages.truncate(newest.commit);
        if let Some(pgno) = hashes.first_gap(newest.commit, |pgno| pages.contains(pgno)) {
            let commit = newest.commit;
            return Err(WriteError::Uncovered { pgno, commit }.into());
        }
        let mut image = Vec::new();
        let mut new_hashes = Vec::with_capacity(pages.len());
        for pgno in pages.numbers() {
            pages.read(pgno, &mut image).map_err(ScanError::Spill)?;
            new_hashes.push((pgno, page_checksum(pgno, &image)));
        }
        hashes.apply(new_hashes, newest.commit);
        self.begin(hashes, Delta { pages, ..newest })
    }

    /// Offers a cut at the present position to the targets that wait for one. `newest` holds every
    /// page that the database file may lack. If a target needs a snapshot above the present
    /// position, a new lineage begins above it.
    pub(super) fn offer_cut(&mut self, newest: PageSet) -> Result<(), RunError> {
        let hashes = self.hashes.clone();
        let hashes = hashes.expect("a cut is taken of a known state");
        let (txid, timestamp_ms, above) = {
            let progress = self.progress.lock();
            (
                progress.txid,
                progress.timestamp_ms,
                progress.snapshot_above(),
            )
        };
        if txid == Txid::ZERO || above.is_some_and(|above| above >= txid) {
            let commit = hashes.commit();
            let delta = Delta {
                pages: newest,
                commit,
                position: None,
                timestamp_ms,
            };
            return self.begin(hashes, delta);
        }
        let cut = Cut {
            txid,
            timestamp_ms,
            hashes,
            newest,
        };
        self.progress.update(|progress| {
            progress.cut = Some(Arc::new(cut));
            // The targets may have ended meanwhile.
            progress.release_cut();
        });
        Ok(())
    }

    /// Begins a new lineage above the position of every target. Earlier captured files cannot be
    /// continued, so every target takes a snapshot of its first position. A first file without
    /// pages follows at once.
    fn begin(&mut self, hashes: PageHashes, newest: Delta) -> Result<(), RunError> {
        let (txid, timestamp_ms, oldest_ms) = {
            let progress = self.progress.lock();
            let above = progress.snapshot_above().unwrap_or(Txid::ZERO);
            let time = progress.time_of_next(newest.timestamp_ms);
            // Dropped captured files count as not stored until the snapshot is stored.
            let oldest_ms = progress.oldest_unstored_ms().unwrap_or(time);
            (progress.txid.max(above).next(), time, oldest_ms)
        };
        // Write to disk first. If that fails, nothing was written, and the state must not count as
        // known.
        self.local.write_hashes(txid, &hashes)?;
        let checksum = hashes.checksum();
        let (page_size, commit, position) = (hashes.page_size(), newest.commit, newest.position);
        let cut = Cut {
            txid,
            timestamp_ms,
            hashes: hashes.clone(),
            newest: newest.pages,
        };
        (self.hashes, self.hashes_at) = (Some(hashes), txid);
        let stale = self.progress.update(|progress| {
            progress.cut = Some(Arc::new(cut));
            progress.txid = txid;
            progress.checksum = Some(checksum);
            progress.timestamp_ms = timestamp_ms;
            progress.is_in_doubt = false;
            // Other targets report their needs when they connect.
            let connected = progress.targets.iter_mut().filter(|it| it.is_connected());
            for target in connected {
                target.needs_snapshot.get_or_insert(target.acked);
                (target.wants_cut, target.taken_cut) = (true, None);
            }
            progress.release_cut();
            let stale = progress.remove_oldest(progress.files.len());
            for target in &mut progress.targets {
                target.lose(txid, oldest_ms);
            }
            stale
        });
        self.local.remove_captured(&stale)?;
        // The newest file of level 0 must exist and cover a single TXID.
        let mut nothing = Delta {
            pages: PageSet::new(page_size, &self.spill),
            commit,
            position,
            timestamp_ms,
        };
        self.write(&mut nothing, oldest_ms)
    }

    pub(super) fn record(&self, position: WalPosition) {
        let record = CaptureRecord {
            txid: self.progress.lock().txid.get(),
            position,
        };
        // This is only a hint: without it the next start compares page hashes.
        if let Err(error) = self.local.write_capture(&record) {
            tracing::debug!(%error, "the position in the WAL is not kept");
        }
    }

    pub(super) fn store_hashes(&mut self, txid: Txid) -> Result<(), RunError> {
        if let Some(hashes) = &self.hashes {
            self.local.write_hashes(txid, hashes)?;
            self.hashes_at = txid;
            self.record_delivered();
        }
        Ok(())
    }

    /// Removes the oldest captured files, as many as `count` returns.
    pub(super) fn trim(
        &self,
        count: impl FnOnce(&ReplicationProgress, Txid) -> usize,
    ) -> Result<(), RunError> {
        let gone = {
            let mut progress = self.progress.lock();
            let count = count(&progress, self.hashes_at);
            progress.remove_oldest(count)
        };
        Ok(self.local.remove_captured(&gone)?)
    }

    /// Stores the page hashes, so that the next start is quick.
    pub(super) fn save(&mut self) {
        let txid = self.progress.lock().txid;
        if txid > self.hashes_at
            && let Err(error) = self.store_hashes(txid)
        {
            tracing::warn!(%error, "the page hashes are not kept: the next start reads the database");
        }
    }
}

/// The progress of a target that has not answered yet.
fn resumed(loaded: &Loaded, name: &str, location: &str, now_ms: i64) -> TargetProgress {
    let delivered = loaded.delivered.get(name);
    let delivered = delivered.filter(|delivered| delivered.location == location);
    let restored = loaded.replicas.get(name);
    let restored = restored.filter(|record| record.location == location);
    let hinted = delivered.map_or(0, |delivered| delivered.txid);
    let hinted = Txid::new(restored.map_or(hinted, |record| hinted.max(record.restored)));
    let lost = delivered.filter(|delivered| delivered.lost > 0);
    let lost = lost.map(|delivered| Lost {
        txid: Txid::new(delivered.lost),
        oldest_ms: delivered.lost_since_ms.min(now_ms),
    });
    // A database without captured files, for example a restored one, whose age is not known.
    let is_unknown = hinted < loaded.txid && loaded.files.is_empty();
    TargetProgress {
        hinted,
        lost: lost.or(is_unknown.then_some(Lost {
            txid: loaded.txid,
            oldest_ms: now_ms,
        })),
        ..TargetProgress::default()
    }
}

/// Runs slow work with a committer on another thread, and returns the committer.
pub(super) async fn on_another_thread<T: Send + 'static>(
    threads: &dyn Threads,
    mut committer: Committer,
    work: impl FnOnce(&mut Committer) -> Result<T, RunError> + Send + 'static,
) -> (Committer, Result<T, RunError>) {
    let span = tracing::Span::current();
    let task = threads.run(move || {
        let result = span.in_scope(|| work(&mut committer));
        (committer, result)
    });
    task.await
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sqlite_format::PageSize;

    use super::*;
    use crate::env::host::Host;
    use crate::spool::progress::TargetPhase;
    use crate::spool::state_dir::{LocalFile, ReplicaRecord};

    fn committer(directory: &Path) -> Committer {
        let state = directory.join("state");
        let local = Arc::new(LocalState::open(&state, &Host::default().disk).unwrap());
        let loaded = local.load().unwrap();
        let spill = Spill::with_memory(&state, 1 << 20);
        let committer = Committer::resume(
            local,
            spill,
            Arc::default(),
            loaded,
            vec![("a target".to_owned(), "there".to_owned())],
            0,
        );
        let connected = TargetPhase::Connected;
        let progress = Arc::clone(&committer.progress);
        progress.update(|progress| progress.targets[0].phase = connected);
        committer
    }

    /// A scan of a database of two pages filled with one byte, and no newer frames.
    fn scan(committer: &Committer, byte: u8) -> (Scan, Delta) {
        let mut hashes = PageHashes::new(PageSize::MIN);
        let mut changed = PageSet::new(PageSize::MIN, &committer.spill);
        for pgno in 1..=2 {
            hashes.set(pgno, &[byte; 512]);
            changed.insert(pgno, &[byte; 512]).unwrap();
        }
        let changed = committer.hashes.is_some().then_some(changed);
        let newest = Delta {
            pages: PageSet::new(PageSize::MIN, &committer.spill),
            commit: 2,
            position: None,
            timestamp_ms: 1,
        };
        (Scan { hashes, changed }, newest)
    }

    fn write_scan(committer: &mut Committer, byte: u8) -> Result<(), RunError> {
        let (scan, newest) = scan(committer, byte);
        committer.write_scan(scan, newest, 1)
    }

    /// The lag, at `now_ms`, of a target that has not answered since the start, given the last word
    /// and the captured files, which are of TXID 6 on and of time 500.
    fn lag_ms(delivered: Option<Delivered>, restored: u64, files: u64, now_ms: i64) -> Option<i64> {
        let file = |txid| LocalFile {
            txid: Txid::new(txid),
            bytes: 1,
            timestamp_ms: 500,
        };
        let record = ReplicaRecord {
            location: "there".to_owned(),
            restored,
            ..ReplicaRecord::default()
        };
        let name = || "a target".to_owned();
        let loaded = Loaded {
            txid: Txid::new(5 + files),
            files: (6..6 + files).map(file).collect(),
            replicas: [(name(), Box::new(record))].into(),
            delivered: delivered.map(|it| (name(), it)).into_iter().collect(),
            ..Loaded::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let local = LocalState::open(directory.path(), &Host::default().disk).unwrap();
        let progress = Arc::new(SharedProgress::default());
        let spill = Spill::with_memory(directory.path(), 0);
        let targets = vec![(name(), "there".to_owned())];
        let _committer = Committer::resume(
            Arc::new(local),
            spill,
            Arc::clone(&progress),
            loaded,
            targets,
            now_ms,
        );
        let oldest_ms = progress.lock().oldest_waiting_ms(0);
        oldest_ms.map(|ms| now_ms - ms)
    }

    #[test]
    fn until_a_target_answers_the_lag_counts_from_the_last_word_of_it() {
        let had = |txid, lost, lost_since_ms| {
            Some(Delivered {
                location: "there".to_owned(),
                txid,
                lost,
                lost_since_ms,
            })
        };
        assert_eq!(lag_ms(had(7, 0, 0), 0, 2, 900), None, "it had everything");
        assert_eq!(
            lag_ms(had(6, 0, 0), 0, 2, 900),
            Some(400),
            "it lacks a file"
        );
        assert_eq!(lag_ms(None, 0, 2, 900), Some(400), "nothing is known");
        assert_eq!(
            lag_ms(had(4, 5, 100), 0, 2, 900),
            Some(800),
            "files were removed"
        );
        assert_eq!(lag_ms(None, 5, 0, 900), None, "it was restored from there");
        let elsewhere = had(7, 0, 0).map(|it| Delivered {
            location: "elsewhere".to_owned(),
            ..it
        });
        assert_eq!(lag_ms(elsewhere, 0, 2, 900), Some(400), "another replica");
        // From the start of this process on, whose age is not known.
        assert_eq!(lag_ms(None, 0, 0, 900), Some(0));
        // The clock was set back since: the age is not negative.
        assert_eq!(lag_ms(had(6, 0, 0), 0, 2, 300), Some(0));
    }

    fn newest(committer: &Committer) -> u64 {
        committer.progress.lock().txid.get()
    }

    #[test]
    fn a_first_scan_begins_with_a_cut_and_later_ones_give_what_changed() {
        let directory = tempfile::tempdir().unwrap();
        let mut committer = committer(directory.path());
        write_scan(&mut committer, 1).unwrap();
        let cut = committer.progress.lock().take_cut(0).unwrap();
        assert_eq!((cut.txid.get(), newest(&committer)), (1, 2));
        write_scan(&mut committer, 1).unwrap();
        assert_eq!(newest(&committer), 2, "nothing changed");
        write_scan(&mut committer, 2).unwrap();
        assert_eq!(newest(&committer), 3);
        let progress = committer.progress.lock();
        assert!(progress.cut.is_none() && progress.continues(cut.txid));
    }

    #[test]
    fn a_scan_that_kept_no_pages_begins_a_new_lineage() {
        let directory = tempfile::tempdir().unwrap();
        let mut committer = committer(directory.path());
        write_scan(&mut committer, 1).unwrap();
        let (found, delta) = scan(&committer, 2);
        let found = Scan {
            changed: None,
            ..found
        };
        committer.write_scan(found, delta, 1).unwrap();
        let mut progress = committer.progress.lock();
        let cut = progress.take_cut(0).unwrap();
        assert_eq!((cut.txid.get(), progress.txid.get()), (3, 4));
        assert!(!progress.continues(Txid::new(2)), "nothing leads over it");
    }

    #[test]
    fn a_cut_is_of_the_present_position_or_begins_above_what_a_target_has() {
        let directory = tempfile::tempdir().unwrap();
        let mut committer = committer(directory.path());
        write_scan(&mut committer, 1).unwrap();
        for (above, cut_at) in [(None, 2), (Some(1), 2), (Some(2), 3), (Some(9), 10)] {
            committer.progress.update(|progress| {
                progress.targets[0].needs_snapshot = above.map(Txid::new);
                progress.targets[0].wants_cut = true;
                progress.cut = None;
                progress.txid
            });
            let newest = PageSet::new(PageSize::MIN, &committer.spill);
            committer.offer_cut(newest).unwrap();
            let cut = committer.progress.lock().take_cut(0).unwrap();
            assert_eq!(cut.txid.get(), cut_at, "{above:?}");
            assert_eq!(
                cut.hashes.checksum(),
                committer.progress.lock().checksum.unwrap()
            );
        }
    }

    #[test]
    fn what_began_with_a_table_that_was_not_kept_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let mut committer = committer(directory.path());
        let obstacle = committer.local.directory().join("pages.tmp");
        std::fs::create_dir(&obstacle).unwrap();
        assert!(write_scan(&mut committer, 1).is_err());
        std::fs::remove_dir(&obstacle).unwrap();
        write_scan(&mut committer, 1).unwrap();
        let cut = committer.progress.lock().take_cut(0).unwrap();
        assert_eq!((cut.txid.get(), newest(&committer)), (1, 2));
    }
}
