//! A cut: the pages of a database at one position, for a snapshot of it.

use ltx::Txid;

use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::PageSet;

/// The database at one position: the content of a snapshot.
#[derive(Debug)]
pub struct Cut {
    /// The position.
    pub txid: Txid,
    /// Time of its capture, in Unix milliseconds.
    pub timestamp_ms: i64,
    /// The hash of each page at the position.
    pub hashes: PageHashes,
    /// Images of pages that were in the WAL: the database file may not hold them yet.
    pub newest: PageSet,
}

impl Cut {
    /// Size of the database in bytes.
    pub fn database_bytes(&self) -> u64 {
        u64::from(self.hashes.commit()) * u64::from(self.hashes.page_size().get())
    }
}
