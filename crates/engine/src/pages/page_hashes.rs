//! The hash of every page of a database at one position.
//!
//! The table gives the whole-database checksum at each TXID, and proves that a delta covers every
//! page of a grown database before it is published. After missed frames, it yields a delta of the
//! pages that really changed. A hash is the LTX page checksum, so the rolling checksum is the one
//! that LTX calls post-apply.

use std::sync::Arc;

use ltx::{DatabaseChecksum, Txid, page_checksum};
use sqlite_format::PageSize;

/// Hashes of a chunk. Two clones of a table share a chunk until one of them changes it.
const CHUNK: usize = 512;

/// Page hashes of a database: 8 bytes a page in memory and on disk.
///
/// A clone costs 16 bytes for each 512 pages. Its hashes take memory only where one of the two
/// tables changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageHashes {
    page_size: PageSize,
    /// All chunks have [`CHUNK`] hashes, except the last one, which has at least one.
    chunks: Vec<Arc<Vec<u64>>>,
    checksum: DatabaseChecksum,
}

/// Why stored bytes are not a page table. The caller reads the database again.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageHashesError {
    /// The bytes end early, or their checksum differs: a torn or foreign file.
    #[error("the page table is damaged")]
    Damaged,
}

const MAGIC: &[u8; 8] = b"sqbpage1";
const HEADER_BYTES: usize = 32;

impl PageHashes {
    /// The table of an empty database.
    pub fn new(page_size: PageSize) -> PageHashes {
        PageHashes {
            page_size,
            chunks: Vec::new(),
            checksum: DatabaseChecksum::default(),
        }
    }

    /// The page size of the database.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Size of the database in pages.
    pub fn commit(&self) -> u32 {
        let rest = self.chunks.last().map_or(0, |chunk| chunk.len());
        let pages = self.chunks.len().saturating_sub(1) * CHUNK + rest;
        u32::try_from(pages).expect("a database has at most 2^32 - 2 pages")
    }

    /// The hash of a page; none beyond the end, and zero for the lock page.
    pub(crate) fn hash(&self, pgno: u32) -> Option<u64> {
        let index = pgno.checked_sub(1)? as usize;
        self.chunks.get(index / CHUNK)?.get(index % CHUNK).copied()
    }

    /// Checksum of the whole database, as LTX's post-apply checksum defines it.
    pub fn checksum(&self) -> u64 {
        self.checksum.get()
    }

    /// True when the table has this hash for this page.
    pub fn matches(&self, pgno: u32, hash: u64) -> bool {
        self.hash(pgno) == Some(hash)
    }

    /// The first page up to `commit` that the database gains and that `covered` lacks. A delta with
    /// such a gap must not be published: a restore from it would miss a page.
    pub fn first_gap(&self, commit: u32, covered: impl Fn(u32) -> bool) -> Option<u32> {
        let lock = self.page_size.lock_pgno();
        (self.commit() + 1..=commit).find(|pgno| *pgno != lock && !covered(*pgno))
    }

    /// Sets the hashes of changed pages and the new size of the database.
    pub fn apply(&mut self, changed: impl IntoIterator<Item = (u32, u64)>, commit: u32) {
        self.resize(commit);
        for (pgno, hash) in changed {
            if pgno > commit {
                continue;
            }
            let index = pgno as usize - 1;
            let chunk = Arc::make_mut(&mut self.chunks[index / CHUNK]);
            let old = std::mem::replace(&mut chunk[index % CHUNK], hash);
            self.toggle(old);
            self.toggle(hash);
        }
    }

    /// Sets the hash of one page from its image, growing the database if needed.
    pub fn set(&mut self, pgno: u32, image: &[u8]) {
        let commit = self.commit().max(pgno);
        self.apply([(pgno, page_checksum(pgno, image))], commit);
    }

    fn resize(&mut self, commit: u32) {
        let commit = commit as usize;
        let chunks = commit.div_ceil(CHUNK);
        for gone in self.chunks.split_off(chunks.min(self.chunks.len())) {
            gone.iter().for_each(|hash| self.toggle(*hash));
        }
        self.chunks.resize_with(chunks, Arc::default);
        // Only new chunks and the last chunk before or after the change have another length.
        for index in (0..chunks).rev() {
            let wanted = (commit - index * CHUNK).min(CHUNK);
            let chunk = &mut self.chunks[index];
            if chunk.len() == wanted {
                break;
            }
            let chunk = Arc::make_mut(chunk);
            let gone = chunk.split_off(wanted.min(chunk.len()));
            chunk.reserve_exact(wanted - chunk.len());
            chunk.resize(wanted, 0);
            gone.iter().for_each(|hash| self.toggle(*hash));
        }
    }

    /// Zero stands for a page without content: the lock page, or one not set yet.
    fn toggle(&mut self, hash: u64) {
        if hash != 0 {
            self.checksum.toggle(hash);
        }
    }

    /// The table as bytes, with the position it belongs to.
    ///
    /// Layout, little-endian: 0 magic (8), 8 page size (4), 12 pages (4), 16 TXID (8),
    /// 24 checksum (8), 32 hashes (8 each), then a CRC-64 of all before it (8).
    pub fn encode(&self, txid: Txid) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.commit() as usize * 8 + 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.page_size.get().to_le_bytes());
        bytes.extend_from_slice(&self.commit().to_le_bytes());
        bytes.extend_from_slice(&txid.get().to_le_bytes());
        bytes.extend_from_slice(&self.checksum.get().to_le_bytes());
        for hash in self.chunks.iter().flat_map(|chunk| chunk.iter()) {
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        bytes.extend_from_slice(&page_checksum(0, &bytes).to_le_bytes());
        bytes
    }

    /// Decodes the output of [`PageHashes::encode`].
    ///
    /// # Errors
    ///
    /// Damaged bytes, including a table whose hashes do not add up to its checksum.
    pub fn decode(bytes: &[u8]) -> Result<(Txid, PageHashes), PageHashesError> {
        let (body, crc) = bytes
            .split_last_chunk::<8>()
            .ok_or(PageHashesError::Damaged)?;
        if body.len() < HEADER_BYTES
            || !body.starts_with(MAGIC)
            || u64::from_le_bytes(*crc) != page_checksum(0, body)
        {
            return Err(PageHashesError::Damaged);
        }
        let (header, hashes) = body.split_at(HEADER_BYTES);
        let word = |at: usize| u64_at(header, at);
        let page_size = PageSize::new(word(8) as u32).map_err(|_| PageHashesError::Damaged)?;
        let commit = (word(8) >> 32) as u32;
        if hashes.len() != commit as usize * 8 {
            return Err(PageHashesError::Damaged);
        }
        let mut table = PageHashes::new(page_size);
        let hashes = (0..commit).map(|index| (index + 1, u64_at(hashes, index as usize * 8)));
        table.apply(hashes, commit);
        if table.checksum() != word(24) {
            return Err(PageHashesError::Damaged);
        }
        Ok((Txid::new(word(16)), table))
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a slice of 8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(pages: u32) -> PageHashes {
        let mut table = PageHashes::new(PageSize::new(512).unwrap());
        for pgno in 1..=pages {
            table.set(pgno, &[pgno as u8; 512]);
        }
        table
    }

    #[test]
    fn the_checksum_depends_on_content_alone_and_not_on_the_way_there() {
        let direct = table(5);
        let mut detour = table(9);
        detour.set(3, &[77; 512]);
        detour.set(3, &[3; 512]);
        detour.apply([], 5);
        assert_eq!(detour, direct);
        assert_ne!(table(6).checksum(), direct.checksum());
    }

    #[test]
    fn a_clone_stays_as_it_was_whatever_size_the_table_takes() {
        for (before, after) in [
            (5, 700),
            (700, 5),
            (512, 513),
            (1024, 512),
            (1025, 0),
            (600, 600),
        ] {
            let mut changed = table(before);
            let frozen = changed.clone();
            changed.set(1, &[99; 512]);
            changed.apply([], after);
            assert_eq!(frozen, table(before));
            assert_eq!(changed.commit(), after);
            let mut anew = table(after.min(before));
            if after > 0 {
                anew.set(1, &[99; 512]);
            }
            anew.apply([], after);
            assert_eq!(changed, anew, "{before} {after}");
        }
    }

    #[test]
    fn a_table_reads_back_and_any_damage_is_noticed() {
        let bytes = table(5).encode(Txid::new(9));
        assert_eq!(PageHashes::decode(&bytes), Ok((Txid::new(9), table(5))));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(
                PageHashes::decode(&damaged),
                Err(PageHashesError::Damaged),
                "byte {at}"
            );
            assert_eq!(
                PageHashes::decode(&bytes[..at]),
                Err(PageHashesError::Damaged),
                "cut at {at}"
            );
        }
    }

    #[test]
    fn a_grown_database_shows_its_uncovered_pages() {
        assert_eq!(table(5).first_gap(7, |_| false), Some(6));
        assert_eq!(table(5).first_gap(7, |pgno| pgno == 6), Some(7));
        assert_eq!(table(5).first_gap(7, |pgno| pgno > 5), None);
        assert_eq!(table(5).first_gap(3, |_| false), None);
    }
}
