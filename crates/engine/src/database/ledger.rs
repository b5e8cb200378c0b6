//! What is known of a database at the newest sealed TXID, and every step that moves it on.

use std::sync::Arc;

use ltx::Txid;

use super::RunError;
use crate::chain::{Captured, Chain, ChainState, Need, SnapshotFile, TargetProgress};
use crate::local::{CaptureRecord, Loaded, LocalState};
use crate::pages::PageSet;
use crate::scan::drop_unchanged;
use crate::seal::{Delta, SealError, seal_delta, seal_snapshot};
use crate::table::PageTable;
use crate::tap::LogPosition;

/// Sealed files between two writes of the page table.
const TABLE_EVERY: u64 = 128;

/// What is known about the database at the newest sealed TXID. Moves into blocking tasks and back.
pub(super) struct Ledger {
    pub(super) local: Arc<LocalState>,
    pub(super) chain: Arc<Chain>,
    /// None until the database was read once, or after its state was lost.
    pub(super) table: Option<PageTable>,
    /// TXID of the stored page table.
    pub(super) table_at: Txid,
}

impl Ledger {
    /// Goes on where the local state ends, and says so in `chain`, of which nothing is removed before
    /// each of `targets` has said what it has.
    pub(super) fn resume(
        local: Arc<LocalState>,
        chain: Arc<Chain>,
        loaded: Loaded,
        targets: usize,
    ) -> Ledger {
        chain.update(|chain| {
            chain.txid = loaded.txid;
            chain.checksum = loaded.table.as_ref().map(PageTable::checksum);
            let newest = chain.checksum;
            chain.files = loaded
                .files
                .iter()
                .map(|file| Captured {
                    file: *file,
                    checksum: newest.filter(|_| file.txid == loaded.txid),
                    oldest_ms: file.timestamp_ms,
                })
                .collect();
            chain.targets = vec![TargetProgress::default(); targets];
            chain.timestamp_ms = loaded.files.last().map_or(0, |file| file.timestamp_ms);
            chain.epoch = loaded
                .replicas
                .values()
                .map(|record| record.epoch)
                .max()
                .unwrap_or(0);
        });
        Ledger {
            local,
            chain,
            table: loaded.table,
            table_at: loaded.table_at,
        }
    }

    /// Seals a delta as the next TXID, with a time that does not go back.
    pub(super) fn seal(&mut self, delta: &mut Delta, oldest_ms: i64) -> Result<(), RunError> {
        let table = self
            .table
            .as_mut()
            .expect("a delta needs a known state below it");
        let (txid, epoch, timestamp_ms) = {
            let chain = self.chain.lock();
            let time = chain.time_of_next(delta.timestamp_ms);
            (chain.txid.next(), chain.epoch, time)
        };
        delta.timestamp_ms = timestamp_ms;
        let sealed = seal_delta(&self.local, table, delta, txid, epoch);
        let file = match sealed {
            Err(error) => {
                // The pages are gone with the delta: the next attachment compares hashes.
                return Err(error.into());
            }
            Ok(file) => file,
        };
        let checksum = table.checksum();
        self.chain.update(|chain| {
            chain.txid = txid;
            chain.checksum = Some(checksum);
            chain.timestamp_ms = timestamp_ms;
            chain.files.push_back(Captured {
                file,
                checksum: Some(checksum),
                oldest_ms,
            });
            chain.unsealed_since_ms = None;
            chain.unsealed_bytes = 0;
        });
        if txid.get() >= self.table_at.get() + TABLE_EVERY {
            self.store_table(txid)?;
        }
        self.trim(|chain, table_at| chain.removable(table_at, Need::Merging))
    }

    /// Removes captured files when there are more than `limit` bytes of them.
    pub(super) fn make_room(&mut self, limit: u64) -> Result<(), RunError> {
        let txid = self.chain.lock().txid;
        if txid > self.table_at {
            self.store_table(txid)?;
        }
        self.trim(|chain, _| chain.removable_under_pressure(limit))
    }

    /// Seals what a whole reading found: a delta against the known state, or, when a target wants
    /// one or nothing is known, a full copy as the next TXID.
    pub(super) fn seal_scan(
        &mut self,
        mut delta: Delta,
        oldest_ms: i64,
        base: Option<Txid>,
    ) -> Result<(), RunError> {
        let same_size = |table: &PageTable| table.page_size() == delta.pages.page_size();
        match &self.table {
            Some(table) if base.is_none() && same_size(table) => {
                drop_unchanged(&mut delta.pages, table)?;
                if delta.pages.is_empty() && delta.commit == table.commit() {
                    return Ok(());
                }
                self.seal(&mut delta, oldest_ms)
            }
            _ => {
                let txid = {
                    let chain = self.chain.lock();
                    chain.txid.max(base.unwrap_or(Txid::ZERO)).next()
                };
                self.offer_snapshot(delta, txid, None)
            }
        }
    }

    /// Seals a full copy at the present position, or above what a target has.
    pub(super) fn seal_copy(&mut self, copy: Delta, base: Option<Txid>) -> Result<(), RunError> {
        let (txid, checksum, offered) = {
            let chain = self.chain.lock();
            let offered = chain.snapshot.as_ref().map(|offered| offered.txid);
            (chain.txid, chain.checksum, offered)
        };
        match base {
            Some(above) if above >= txid => self.offer_snapshot(copy, above.next(), checksum),
            // It waits for a target. A second one would have its name, and be removed with it.
            _ if offered == Some(txid) => Ok(()),
            _ if txid == Txid::ZERO => self.offer_snapshot(copy, Txid::FIRST, None),
            _ => self.offer_snapshot(copy, txid, checksum),
        }
    }

    /// Writes a full copy and offers it to the targets.
    ///
    /// A copy above the newest captured TXID begins a new chain: captured files before it can't
    /// be continued, so every target takes the copy. A first file behind it follows at once.
    pub(super) fn offer_snapshot(
        &mut self,
        copy: Delta,
        txid: Txid,
        expected: Option<u64>,
    ) -> Result<(), RunError> {
        let (epoch, newest, timestamp_ms) = {
            let chain = self.chain.lock();
            let time = chain.time_of_next(copy.timestamp_ms);
            (chain.epoch, chain.txid, time)
        };
        let (log, commit, page_size) = (copy.log, copy.commit, copy.pages.page_size());
        let copy = Delta {
            timestamp_ms,
            ..copy
        };
        let (bytes, table) = match seal_snapshot(&self.local, &copy, txid, epoch, expected) {
            // The captured changes do not lead to what is there: believe what is there.
            Err(error @ SealError::ChecksumMismatch { .. }) => {
                tracing::error!("{error}: reading the database again");
                self.table = None;
                return Err(error.into());
            }
            sealed => sealed?,
        };
        let path = self.local.snapshot_path(txid);
        let checksum = table.checksum();
        let snapshot = SnapshotFile {
            txid,
            checksum,
            path,
            bytes,
            timestamp_ms,
        };
        let begins = txid > newest;
        if begins {
            // On the disk first: if that fails, nothing of it is sealed, and it must not seem known.
            self.local.write_table(txid, &table)?;
            (self.table, self.table_at) = (Some(table), txid);
        }
        let stale = self.chain.update(|chain| {
            chain.snapshot = Some(Arc::new(snapshot));
            if !begins {
                return Vec::new();
            }
            chain.txid = txid;
            chain.checksum = Some(checksum);
            chain.timestamp_ms = timestamp_ms;
            for target in &mut chain.targets {
                target.needs_snapshot.get_or_insert(target.acked);
            }
            chain
                .files
                .drain(..)
                .map(|captured| captured.file)
                .collect()
        });
        self.local.remove_captured(&stale)?;
        if begins {
            // The newest file of level 0 has to exist and to be a single TXID.
            let empty = PageSet::new(page_size, self.local.directory());
            let mut nothing = Delta {
                pages: empty,
                commit,
                log,
                timestamp_ms,
            };
            self.seal(&mut nothing, timestamp_ms)?;
        }
        Ok(())
    }

    pub(super) fn record(&self, log: LogPosition) {
        let record = CaptureRecord {
            txid: self.chain.lock().txid.get(),
            log,
        };
        // A hint: without it the next start compares page hashes.
        if let Err(error) = self.local.write_capture(&record) {
            tracing::debug!("{error}");
        }
    }

    pub(super) fn store_table(&mut self, txid: Txid) -> Result<(), RunError> {
        if let Some(table) = &self.table {
            self.local.write_table(txid, table)?;
            self.table_at = txid;
        }
        Ok(())
    }

    /// Removes captured files that nobody needs.
    pub(super) fn trim(
        &self,
        count: impl FnOnce(&ChainState, Txid) -> usize,
    ) -> Result<(), RunError> {
        let gone: Vec<_> = {
            let mut chain = self.chain.lock();
            let count = count(&chain, self.table_at);
            chain
                .files
                .drain(..count)
                .map(|captured| captured.file)
                .collect()
        };
        Ok(self.local.remove_captured(&gone)?)
    }

    /// Stores what makes the next start quick.
    pub(super) fn save(&mut self) {
        let txid = self.chain.lock().txid;
        if txid > self.table_at
            && let Err(error) = self.store_table(txid)
        {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sqlite_format::PageSize;

    use super::*;

    fn ledger(directory: &Path) -> Ledger {
        let local = Arc::new(LocalState::open(&directory.join("state")).unwrap());
        let loaded = local.load().unwrap();
        Ledger::resume(local, Arc::default(), loaded, 1)
    }

    /// Pages 1 and 2 of a database, all of one byte.
    fn pages(ledger: &Ledger, byte: u8) -> Delta {
        let mut pages = PageSet::new(PageSize::MIN, ledger.local.directory());
        for pgno in 1..=2 {
            pages.insert(pgno, &[byte; 512]).unwrap();
        }
        Delta {
            pages,
            commit: 2,
            log: None,
            timestamp_ms: 1,
        }
    }

    #[test]
    fn a_full_copy_that_waits_for_a_target_is_not_made_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = ledger(directory.path());
        let first = pages(&ledger, 1);
        ledger.seal_scan(first, 1, None).unwrap();
        // The first copy, and a file after it.
        assert_eq!(ledger_offer(&ledger).0, Txid::new(1));
        let copy = pages(&ledger, 1);
        ledger.seal_copy(copy, None).unwrap();
        let (txid, path) = ledger_offer(&ledger);
        assert_eq!(txid, Txid::new(2));
        let copy = pages(&ledger, 1);
        ledger.seal_copy(copy, None).unwrap();
        assert!(path.exists(), "the one that is offered is there");
    }

    fn ledger_offer(ledger: &Ledger) -> (Txid, std::path::PathBuf) {
        let chain = ledger.chain.lock();
        let offered = chain.snapshot.as_ref().expect("a copy is offered");
        (offered.txid, offered.path.clone())
    }

    #[test]
    fn what_began_with_a_copy_that_was_not_kept_is_not_known() {
        let directory = tempfile::tempdir().unwrap();
        let mut ledger = ledger(directory.path());
        let obstacle = ledger.local.directory().join("pages.tmp");
        std::fs::create_dir(&obstacle).unwrap();
        let scan = pages(&ledger, 1);
        assert!(ledger.seal_scan(scan, 1, None).is_err());
        std::fs::remove_dir(&obstacle).unwrap();
        let scan = pages(&ledger, 1);
        ledger.seal_scan(scan, 1, None).unwrap();
        assert_eq!(ledger_offer(&ledger).0, Txid::new(1));
        assert_eq!(ledger.chain.lock().txid, Txid::new(2));
    }
}
