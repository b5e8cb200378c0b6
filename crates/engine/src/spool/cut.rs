//! A cut: the pages of a database at one position, for a snapshot of it.

use ltx::Txid;

use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::PageSet;

/// The database at one position: what a snapshot of it has to hold.
#[derive(Debug)]
pub struct Cut {
    /// The position.
    pub txid: Txid,
    /// When it was captured, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The hash of each page there.
    pub table: PageHashes,
    /// Images of pages that the database file may not hold yet: those that were in the WAL.
    pub newest: PageSet,
}

impl Cut {
    /// Size of the database in bytes.
    pub fn database_bytes(&self) -> u64 {
        u64::from(self.table.commit()) * u64::from(self.table.page_size().get())
    }
}
