//! The application and its database: page images that change, without SQLite.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sqlite_format::PageSize;

use crate::pages::page_hashes::PageHashes;
use crate::pages::page_set::{PageSet, Spill};
use crate::source::scan::Scan;
use crate::source::wal::WalPosition;
use crate::spool::ltx_writer::Delta;

use super::chance::Chance;

/// Page images by number, from 1 without a gap.
pub(super) type Image = BTreeMap<u32, Arc<[u8]>>;

pub(super) fn page_size() -> PageSize {
    PageSize::new(512).expect("a page size of SQLite")
}

pub(super) fn checksum(image: &Image) -> u64 {
    let mut hashes = PageHashes::new(page_size());
    for (pgno, bytes) in image {
        hashes.set(*pgno, bytes);
    }
    hashes.checksum()
}

/// One commit.
struct Commit {
    image: Arc<Image>,
    changed: BTreeSet<u32>,
    /// Differs from that of every other commit, as a frame's checksum does.
    salt: u32,
}

/// An application with its database.
pub(super) struct App {
    commits: Vec<Commit>,
    /// The commit up to which the database file is checkpointed. Later ones are in the WAL.
    checkpointed: usize,
    chance: Chance,
}

impl App {
    /// Creates an application whose database holds `image`, or a new one.
    pub(super) fn new(image: Option<Image>, mut chance: Chance) -> App {
        let first = image.unwrap_or_else(|| {
            let pages = 1 + chance.below(12) as u32;
            (1..=pages).map(|pgno| (pgno, page(&mut chance))).collect()
        });
        let salt = chance.draw() as u32 | 1;
        let changed = first.keys().copied().collect();
        App {
            commits: vec![Commit {
                image: Arc::new(first),
                changed,
                salt,
            }],
            checkpointed: 0,
            chance,
        }
    }

    /// Checkpoints the newest commit into the database file, in place.
    pub(super) fn checkpoint(&mut self, path: &Path) {
        let image = self.image();
        let mut bytes = Vec::new();
        for page in image.values() {
            bytes.extend_from_slice(page);
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let file = file.expect("the directory of the database is there");
        file.write_all_at(&bytes, 0).expect("it has room");
        file.set_len(bytes.len() as u64).expect("it has room");
        self.checkpointed = self.newest();
    }

    /// Checkpoints at random, once in three calls.
    pub(super) fn may_checkpoint(&mut self, path: &Path) {
        if self.chance.one_in(3) {
            self.checkpoint(path);
        }
    }

    /// The result of a scan of the database under its WAL, and the pages that only the WAL has.
    pub(super) fn scan(
        &self,
        known: Option<&PageHashes>,
        spill: &Spill,
        now_ms: i64,
    ) -> (Scan, Delta) {
        let all = self.delta(None, spill, now_ms);
        let mut hashes = PageHashes::new(page_size());
        for (pgno, bytes) in self.image().iter() {
            hashes.set(*pgno, bytes);
        }
        let changed = known.map(|_| all.pages);
        let newest = self.delta(Some(self.checkpointed), spill, now_ms);
        (Scan { hashes, changed }, newest)
    }

    /// The pages that only the WAL has.
    pub(super) fn in_wal(&self, spill: &Spill) -> PageSet {
        self.delta(Some(self.checkpointed), spill, 0).pages
    }

    /// Number of the newest commit.
    pub(super) fn newest(&self) -> usize {
        self.commits.len() - 1
    }

    pub(super) fn image(&self) -> Arc<Image> {
        Arc::clone(&self.commits[self.newest()].image)
    }

    /// Changes random pages, and sometimes the size.
    pub(super) fn commit(&mut self) {
        let mut image = (*self.image()).clone();
        let mut changed = BTreeSet::new();
        let size = image.len() as u64;
        match self.chance.below(8) {
            0 => {
                for pgno in size + 1..=size + 1 + self.chance.below(4) {
                    image.insert(pgno as u32, page(&mut self.chance));
                    changed.insert(pgno as u32);
                }
            }
            1 => {
                let keep = 1 + self.chance.below(size);
                image.retain(|pgno, _| u64::from(*pgno) <= keep);
            }
            _ => {}
        }
        for _ in 0..=self.chance.below(3) {
            let pgno = 1 + self.chance.below(image.len() as u64) as u32;
            image.insert(pgno, page(&mut self.chance));
            changed.insert(pgno);
        }
        let salt = self.chance.draw() as u32 | 1;
        let image = Arc::new(image);
        self.commits.push(Commit {
            image,
            changed,
            salt,
        });
    }

    /// Rolls back to an earlier commit, as the rollback of a volume does.
    pub(super) fn roll_back(&mut self, to: usize) {
        self.commits.truncate(to + 1);
        self.checkpointed = self.checkpointed.min(to);
    }

    /// WAL position after the newest commit.
    pub(super) fn log(&self) -> WalPosition {
        WalPosition {
            salts: (self.commits[self.newest()].salt, 1),
            big_endian: false,
            frames: 1,
            checksum: (0, 0),
            change: self.newest() as u32,
        }
    }

    /// The commit that a WAL position names, if it is in this history.
    pub(super) fn at(&self, log: &WalPosition) -> Option<usize> {
        let number = log.change as usize;
        let commit = self.commits.get(number)?;
        (commit.salt == log.salts.0).then_some(number)
    }

    /// The changes after a commit, or all pages.
    pub(super) fn delta(&self, after: Option<usize>, spill: &Spill, now_ms: i64) -> Delta {
        let image = self.image();
        let commit = image.len() as u32;
        let changed: BTreeSet<u32> = match after {
            None => image.keys().copied().collect(),
            Some(after) => self.commits[after + 1..]
                .iter()
                .flat_map(|commit| commit.changed.iter().copied())
                .collect(),
        };
        let mut pages = PageSet::new(page_size(), spill);
        for pgno in changed.into_iter().filter(|pgno| *pgno <= commit) {
            let inserted = pages.insert(pgno, &image[&pgno]);
            inserted.expect("a small set fits into memory");
        }
        Delta {
            pages,
            commit,
            position: Some((self.log(), 32)),
            timestamp_ms: now_ms,
        }
    }
}

fn page(chance: &mut Chance) -> Arc<[u8]> {
    let bytes: Vec<u8> = (0..64).flat_map(|_| chance.draw().to_le_bytes()).collect();
    bytes.into()
}

/// A volume with a database on it.
pub(super) struct Place {
    pub(super) number: usize,
    pub(super) directory: PathBuf,
    pub(super) app: Mutex<App>,
}

impl Place {
    pub(super) fn database(&self) -> PathBuf {
        self.directory.join("db")
    }

    pub(super) fn state(&self, number: usize) -> PathBuf {
        self.directory.join(format!("state{number}"))
    }
}

/// The pages of a file, or of the output of a restore.
pub(super) fn image_of(bytes: &[u8]) -> Image {
    let pages = bytes.chunks(page_size().as_usize());
    (1..).zip(pages.map(Arc::from)).collect()
}
