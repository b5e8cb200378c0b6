//! The application and its database: page images that change, without SQLite.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use engine::env::files::Fingerprint;
use engine::pages::page_hashes::PageHashes;
use engine::pages::page_set::{PageSet, Spill};
use engine::source::wal::{Batch, WalPosition};
use sqlite_format::PageSize;

use super::chance::{Chance, Log};

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

/// The pages of a file, or of the output of a restore.
pub(super) fn image_of(bytes: &[u8]) -> Image {
    let pages = bytes.chunks(page_size().as_usize());
    (1..).zip(pages.map(Arc::from)).collect()
}

fn page(chance: &mut Chance) -> Arc<[u8]> {
    let bytes: Vec<u8> = (0..64).flat_map(|_| chance.draw().to_le_bytes()).collect();
    bytes.into()
}

/// One commit.
struct Commit {
    image: Arc<Image>,
    checksum: u64,
    changed: BTreeSet<u32>,
    /// Differs from that of every other commit, as a frame's checksum does.
    salt: u32,
    /// Virtual time.
    at_ms: u64,
}

/// An application with its database in WAL mode.
pub(super) struct App {
    path: PathBuf,
    inode: u64,
    log: Arc<Log>,
    chance: Chance,
    commits: Vec<Commit>,
    /// The commit up to which the database file is checkpointed. Later ones are in the WAL.
    checkpointed: usize,
    /// The WAL holds the commits after this one, until it begins anew.
    wal_after: usize,
    has_wal: bool,
    is_open: bool,
    /// The database was removed.
    is_gone: bool,
    /// Without it, the application does nothing.
    pub(super) is_busy: bool,
    /// Connections of the engine, by process.
    connections: BTreeMap<u64, u32>,
    /// Times of the database file and of the WAL.
    changed: [(i64, i64); 2],
    changes: i64,
    /// Every state that the database at this place ever had, by checksum.
    seen: BTreeMap<u64, Arc<Image>>,
}

impl App {
    fn new(
        path: PathBuf,
        inode: u64,
        image: Option<Image>,
        log: &Arc<Log>,
        mut chance: Chance,
    ) -> App {
        let first = image.unwrap_or_else(|| {
            let pages = 1 + chance.below(12) as u32;
            (1..=pages).map(|pgno| (pgno, page(&mut chance))).collect()
        });
        let mut app = App {
            path,
            inode,
            log: Arc::clone(log),
            chance,
            commits: Vec::new(),
            checkpointed: 0,
            wal_after: 0,
            has_wal: false,
            is_open: false,
            is_gone: false,
            is_busy: true,
            connections: BTreeMap::new(),
            changed: [(0, 0); 2],
            changes: 0,
            seen: BTreeMap::new(),
        };
        let changed = first.keys().copied().collect();
        app.push(first, changed);
        app
    }

    /// An application without a database.
    pub(super) fn without_database(
        path: PathBuf,
        inode: u64,
        log: &Arc<Log>,
        chance: Chance,
    ) -> App {
        App {
            is_gone: true,
            ..App::new(path, inode, Some(Image::new()), log, chance)
        }
    }

    /// A database appears in place of this one: this image, or a new database.
    pub(super) fn replace(&mut self, image: Option<Image>, chance: Chance) {
        let mut next = App::new(self.path.clone(), self.inode, image, &self.log, chance);
        next.write_file();
        next.changes = self.changes;
        next.remember(self);
        *self = next;
    }

    fn push(&mut self, image: Image, changed: BTreeSet<u32>) {
        let (image, checksum) = (Arc::new(image.clone()), checksum(&image));
        self.seen.insert(checksum, Arc::clone(&image));
        self.commits.push(Commit {
            image,
            checksum,
            changed,
            salt: self.chance.draw() as u32 | 1,
            at_ms: self.log.now_ms(),
        });
    }

    /// Remembers the states of an earlier database, whose files may still be stored.
    pub(super) fn remember(&mut self, earlier: &App) {
        let states = earlier.seen.iter();
        self.seen
            .extend(states.map(|(checksum, image)| (*checksum, Arc::clone(image))));
    }

    /// Whether this state is that of the commit `number`, or of a later one.
    pub(super) fn is_at_least(&self, image: &Image, number: usize) -> bool {
        let checksum = checksum(image);
        let commits = self.commits.iter().skip(number);
        commits.rev().any(|commit| commit.checksum == checksum)
    }

    pub(super) fn has_had(&self, image: &Image) -> bool {
        self.seen
            .get(&checksum(image))
            .is_some_and(|seen| **seen == *image)
    }

    /// Does something, if it is busy.
    pub(super) fn act(&mut self) {
        if !self.is_busy || self.is_gone {
            return;
        }
        if !self.is_open {
            if self.chance.one_in(3) {
                self.open();
                // Some applications open their database for a single commit.
                if self.chance.one_in(3) {
                    self.commit();
                    self.close();
                }
            }
            return;
        }
        for _ in 0..self.chance.below(4) {
            self.commit();
        }
        match self.chance.below(60) {
            0..20 => self.checkpoint(),
            20..24 => self.close(),
            // A crash leaves the WAL.
            24 => self.is_open = false,
            _ => {}
        }
    }

    fn open(&mut self) {
        self.is_open = true;
        if !self.has_wal {
            self.create_wal();
        }
    }

    fn create_wal(&mut self) {
        (self.has_wal, self.wal_after) = (true, self.newest());
        self.touch(1);
    }

    fn close(&mut self) {
        self.is_open = false;
        self.remove_unused_wal();
    }

    /// The last close of a database copies the WAL into the file and removes it.
    fn remove_unused_wal(&mut self) {
        if !self.is_open && self.connections.is_empty() {
            self.checkpoint();
            self.has_wal = false;
        }
    }

    /// Changes random pages, and sometimes the size.
    fn commit(&mut self) {
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
        // Marks of the engine keep the WAL from beginning anew.
        if self.checkpointed == self.newest() && self.connections.is_empty() {
            self.wal_after = self.newest();
        }
        self.push(image, changed);
        self.touch(1);
    }

    /// Copies the WAL into the database file.
    pub(super) fn checkpoint(&mut self) {
        if self.checkpointed < self.newest() {
            self.write_file();
        }
    }

    /// Writes the newest commit into the database file, in place.
    fn write_file(&mut self) {
        let image = self.image();
        let mut bytes = Vec::new();
        for page in image.values() {
            bytes.extend_from_slice(page);
        }
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path);
        let file = file.expect("the directory of the database is there");
        file.write_all_at(&bytes, 0).expect("it has room");
        file.set_len(bytes.len() as u64).expect("it has room");
        self.checkpointed = self.newest();
        self.touch(0);
    }

    /// Changes the times of the database file or of the WAL.
    fn touch(&mut self, file: usize) {
        let now_ms = self.log.unix_ms();
        self.changes += 1;
        self.changed[file] = (
            now_ms / 1000,
            now_ms % 1000 * 1_000_000 + self.changes % 1_000_000,
        );
    }

    /// The database is removed, with everything beside it.
    pub(super) fn remove(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
        (self.is_gone, self.is_open, self.has_wal) = (true, false, false);
    }

    /// Rolls back to an earlier commit, as the rollback of a volume does.
    pub(super) fn roll_back(&mut self, to: usize) {
        self.commits.truncate(to + 1);
        (self.is_open, self.has_wal, self.wal_after) = (false, false, to);
        self.write_file();
    }

    /// Number of the newest commit.
    pub(super) fn newest(&self) -> usize {
        self.commits.len() - 1
    }

    pub(super) fn image(&self) -> Arc<Image> {
        Arc::clone(&self.commits[self.newest()].image)
    }

    /// When the oldest commit was made of which, and after which, nothing is stored, in virtual
    /// time.
    pub(super) fn oldest_unstored_ms(&self, stored: &BTreeSet<u64>) -> Option<u64> {
        let commits = self.commits.iter().rev();
        let unstored = commits.take_while(|commit| !stored.contains(&commit.checksum));
        unstored.last().map(|commit| commit.at_ms)
    }
}

/// The database as the engine sees it.
impl App {
    pub(super) fn has_wal(&self) -> bool {
        self.has_wal
    }

    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }

    pub(super) fn is_backfilled(&self) -> bool {
        self.checkpointed == self.newest()
    }

    /// Whether the WAL is far longer than it should be.
    pub(super) fn wants_checkpoint(&self) -> bool {
        self.newest() - self.checkpointed > 30
    }

    /// The commit that the database file holds.
    pub(super) fn checkpointed(&self) -> usize {
        self.checkpointed
    }

    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        let size = std::fs::metadata(&self.path).ok()?.len();
        Some(Fingerprint::new(self.inode, size, self.changed[0]))
    }

    pub(super) fn wal_fingerprint(&self) -> Option<Fingerprint> {
        let size = 32 + (self.newest() - self.wal_after) as u64;
        self.has_wal
            .then(|| Fingerprint::new(self.inode + 1, size, self.changed[1]))
    }

    pub(super) fn connect(&mut self, process: u64) {
        if !self.has_wal {
            self.create_wal();
        }
        *self.connections.entry(process).or_default() += 1;
    }

    /// Ends a connection: as an application would, or without a trace.
    pub(super) fn disconnect(&mut self, process: u64, close: bool) {
        if let Some(count) = self.connections.get_mut(&process) {
            *count -= 1;
            if *count == 0 {
                self.connections.remove(&process);
            }
        }
        if close {
            self.remove_unused_wal();
        }
    }

    /// Ends all connections of a process, as the kernel does.
    pub(super) fn kill(&mut self, process: u64) {
        self.connections.remove(&process);
    }

    /// Whether this process alone has the database open.
    pub(super) fn is_alone(&self, process: u64) -> bool {
        !self.is_open && self.connections.keys().all(|other| *other == process)
    }

    /// The position after the newest commit.
    pub(super) fn position(&self) -> WalPosition {
        WalPosition {
            salts: (self.commits[self.newest()].salt, 1),
            big_endian: false,
            frames: 1,
            checksum: (0, 0),
            change: self.newest() as u32,
        }
    }

    /// The commit at a position, if it is in this history.
    pub(super) fn at(&self, position: &WalPosition) -> Option<usize> {
        let number = position.change as usize;
        let commit = self.commits.get(number)?;
        (commit.salt == position.salts.0).then_some(number)
    }

    /// The same, if the present WAL proves it.
    pub(super) fn resume(&self, position: &WalPosition) -> Option<usize> {
        self.at(position).filter(|number| *number > self.wal_after)
    }

    /// The commits after this one.
    pub(super) fn after(&self, number: usize, spill: &Spill, wall_ms: i64) -> Batch {
        let image = self.image();
        let commit = image.len() as u32;
        let mut pages = PageSet::new(page_size(), spill);
        for commit in &self.commits[number + 1..] {
            for pgno in commit
                .changed
                .iter()
                .filter(|pgno| image.contains_key(pgno))
            {
                let inserted = pages.insert(*pgno, &image[pgno]);
                inserted.expect("a small set fits into memory");
            }
        }
        Batch {
            pages,
            commit,
            position: self.position(),
            wal_offset: 32,
            first_ms: self.log.unix_ms(),
            last_ms: wall_ms,
        }
    }

    /// Every page that the database file lacks.
    pub(super) fn whole_wal(&self, spill: &Spill, wall_ms: i64) -> Batch {
        self.after(self.checkpointed, spill, wall_ms)
    }
}

/// A volume with a database on it.
pub(super) struct Place {
    pub(super) number: usize,
    pub(super) directory: PathBuf,
    pub(super) app: Mutex<App>,
}

impl Place {
    pub(super) fn database(&self) -> PathBuf {
        database(&self.directory)
    }

    pub(super) fn state(&self, number: usize) -> PathBuf {
        self.directory.join(format!("state{number}"))
    }
}

pub(super) fn database(directory: &Path) -> PathBuf {
    directory.join("db")
}

/// The files below a directory, by their relative paths.
pub(super) fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for level in ["", "ltx/0", "ltx/9"] {
        let Ok(entries) = std::fs::read_dir(directory.join(level)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.strip_prefix(directory).unwrap();
                found.insert(name.display().to_string(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
