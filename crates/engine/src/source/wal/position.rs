//! The position of capture in the WAL, and the commits that one poll captures.

use serde::{Deserialize, Serialize};
use sqlite_format::Salts;

use crate::pages::page_set::PageSet;
use crate::source::sqlite::WalView;

/// Position of capture in a WAL with one pair of salts. Stored, so that a later process can
/// continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalPosition {
    /// The salts that identify the WAL since its last restart.
    pub salts: (u32, u32),
    /// Whether its checksums are big-endian.
    pub big_endian: bool,
    /// Frames captured.
    pub frames: u32,
    /// Running checksum at the last captured frame.
    pub checksum: (u32, u32),
    /// The wal-index change counter at that moment; it grows by one with each commit.
    pub change: u32,
}

impl WalPosition {
    pub(super) fn salts(&self) -> Salts {
        Salts {
            salt1: self.salts.0,
            salt2: self.salts.1,
        }
    }

    /// Frames written since an earlier position, as far as the present WAL shows them.
    pub(super) fn frames_since(&self, earlier: &WalPosition) -> u32 {
        let before = match self.salts == earlier.salts {
            true => earlier.frames,
            false => 0,
        };
        self.frames.saturating_sub(before)
    }

    pub(super) fn is_at(&self, view: &WalView) -> bool {
        view.header.salts == self.salts() && view.header.max_frame == self.frames
    }
}

/// Whole commits in the order of the WAL, combined page by page.
#[derive(Debug)]
pub struct Batch {
    /// The newest image of each page that changed.
    pub pages: PageSet,
    /// Size of the database in pages after the last commit.
    pub commit: u32,
    /// Position in the WAL after the last commit.
    pub position: WalPosition,
    /// Offset of the first frame in the WAL.
    pub wal_offset: u64,
    /// When the oldest commit was seen, in Unix milliseconds.
    pub first_ms: i64,
    /// When the newest commit was seen, in Unix milliseconds.
    pub last_ms: i64,
}

impl Batch {
    /// Appends a later batch of the same database.
    ///
    /// # Errors
    ///
    /// Local disk errors of a large batch; the batch is incomplete then and must be dropped.
    pub fn append(&mut self, later: Batch) -> std::io::Result<()> {
        self.pages.overlay(later.pages)?;
        self.commit = later.commit;
        self.position = later.position;
        self.last_ms = later.last_ms;
        Ok(())
    }
}
