//! A set of page images. The newest image of a page wins. Images are in memory while the process
//! has some to spare, and in an unnamed file beyond that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlite_format::PageSize;

use crate::env::budget::{Account, Budgets, PageMemory};

/// Bytes that each set may keep in memory, however much other sets use.
const SET_MEMORY_BYTES: usize = 16 << 10;

/// The storage for images of page sets: memory that the process shares, and a directory.
#[derive(Debug, Clone)]
pub struct Spill {
    directory: Arc<Path>,
    memory: Arc<PageMemory>,
    /// The budget of the directory.
    disk: Arc<Account>,
}

impl Spill {
    /// Images that exceed the process's memory for them go to `directory`, whose bytes `disk`
    /// counts.
    pub fn new(directory: &Path, budgets: &Budgets, disk: Arc<Account>) -> Spill {
        Spill {
            directory: directory.into(),
            memory: budgets.page_memory(),
            disk,
        }
    }

    /// With separate budgets and this many bytes of memory.
    #[cfg(test)]
    pub(crate) fn with_memory(directory: &Path, bytes: usize) -> Spill {
        let budgets = Budgets::new(crate::env::budget::Limits::default());
        Spill {
            memory: Arc::new(PageMemory::new(bytes)),
            ..Spill::new(directory, &budgets, budgets.account())
        }
    }
}

/// Page images by number. Images that do not fit into memory are in an unnamed file.
#[derive(Debug)]
pub struct PageSet {
    page_size: PageSize,
    spill: Spill,
    images: BTreeMap<u32, Image>,
    memory_bytes: usize,
    file: Option<File>,
    file_slots: u32,
}

#[derive(Debug)]
enum Image {
    Memory(Box<[u8]>),
    /// Its slot in the file.
    Disk(u32),
}

impl PageSet {
    /// Creates an empty set.
    pub fn new(page_size: PageSize, spill: &Spill) -> PageSet {
        PageSet {
            page_size,
            spill: spill.clone(),
            images: BTreeMap::new(),
            memory_bytes: 0,
            file: None,
            file_slots: 0,
        }
    }

    /// The page size of every image.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Number of different pages.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// True when the set has no page.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Bytes of page images.
    pub fn bytes(&self) -> u64 {
        self.images.len() as u64 * u64::from(self.page_size.get())
    }

    /// True when the set holds this page.
    pub fn contains(&self, pgno: u32) -> bool {
        self.images.contains_key(&pgno)
    }

    /// Page numbers, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.images.keys().copied()
    }

    /// Adds a page or replaces its image.
    ///
    /// # Errors
    ///
    /// The file cannot be created or written, for example because the disk is full. With
    /// [`io::ErrorKind::QuotaExceeded`], the local-state budget is used up.
    pub fn insert(&mut self, pgno: u32, image: &[u8]) -> io::Result<()> {
        debug_assert_eq!(image.len(), self.page_size.as_usize());
        match self.images.get_mut(&pgno) {
            Some(Image::Memory(bytes)) => {
                bytes.copy_from_slice(image);
                Ok(())
            }
            Some(Image::Disk(slot)) => {
                let slot = *slot;
                self.write_slot(slot, image)
            }
            None => {
                let image = if self.take_memory() {
                    Image::Memory(image.into())
                } else {
                    self.append(image)?
                };
                self.images.insert(pgno, image);
                Ok(())
            }
        }
    }

    /// As [`PageSet::insert`], but drops a page that would have to go to the disk.
    pub fn insert_into_memory(&mut self, pgno: u32, image: &[u8]) {
        match self.images.get_mut(&pgno) {
            Some(Image::Memory(bytes)) => bytes.copy_from_slice(image),
            // An older image would be wrong.
            Some(Image::Disk(_)) => _ = self.images.remove(&pgno),
            None => {
                if self.take_memory() {
                    self.images.insert(pgno, Image::Memory(image.into()));
                }
            }
        }
    }

    /// Reads one image into `out`; false when the set does not hold the page.
    ///
    /// # Errors
    ///
    /// The file behind a large set cannot be read.
    pub fn read(&self, pgno: u32, out: &mut Vec<u8>) -> io::Result<bool> {
        match self.images.get(&pgno) {
            None => return Ok(false),
            Some(Image::Memory(bytes)) => {
                out.clear();
                out.extend_from_slice(bytes);
            }
            Some(Image::Disk(slot)) => {
                out.resize(self.page_size.as_usize(), 0);
                self.file().read_exact_at(out, self.offset(*slot))?;
            }
        }
        Ok(true)
    }

    /// Moves every page of `newer` into this set, replacing older images.
    ///
    /// # Errors
    ///
    /// As [`PageSet::insert`] and [`PageSet::read`].
    pub fn overlay(&mut self, mut newer: PageSet) -> io::Result<()> {
        let mut buffer = Vec::new();
        for (pgno, image) in std::mem::take(&mut newer.images) {
            match (image, self.images.get_mut(&pgno)) {
                // A moved image brings its memory along. The memory of the replaced image becomes
                // free.
                (Image::Memory(bytes), Some(Image::Memory(old))) => *old = bytes,
                (Image::Memory(bytes), None) => {
                    newer.memory_bytes -= bytes.len();
                    self.memory_bytes += bytes.len();
                    self.images.insert(pgno, Image::Memory(bytes));
                }
                (Image::Memory(bytes), Some(Image::Disk(_))) => self.insert(pgno, &bytes)?,
                (Image::Disk(slot), _) => {
                    buffer.resize(self.page_size.as_usize(), 0);
                    newer
                        .file()
                        .read_exact_at(&mut buffer, newer.offset(slot))?;
                    self.insert(pgno, &buffer)?;
                }
            }
        }
        Ok(())
    }

    /// Drops pages after `commit`, the size of the database in pages.
    pub fn truncate(&mut self, commit: u32) {
        self.retain(|pgno| pgno <= commit);
    }

    /// Drops every page for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        let before = self.memory_bytes;
        self.images.retain(|pgno, image| {
            let kept = keep(*pgno);
            if let (false, Image::Memory(bytes)) = (kept, image) {
                self.memory_bytes -= bytes.len();
            }
            kept
        });
        self.spill.memory.give_back(before - self.memory_bytes);
    }

    /// Takes memory for one more image.
    fn take_memory(&mut self) -> bool {
        let bytes = self.page_size.as_usize();
        let always = self.memory_bytes + bytes <= SET_MEMORY_BYTES;
        let taken = self.spill.memory.take(bytes, always);
        if taken {
            self.memory_bytes += bytes;
        }
        taken
    }

    fn append(&mut self, image: &[u8]) -> io::Result<Image> {
        if self.file.is_none() {
            self.file = Some(unnamed_file(&self.spill.directory)?);
        }
        if !self.spill.disk.try_take(image.len() as u64) {
            let reason = "the limit for local state is reached";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
        }
        let slot = self.file_slots;
        // Count the slot before writing it: a write that fails may use space, too.
        self.file_slots += 1;
        self.write_slot(slot, image)?;
        Ok(Image::Disk(slot))
    }

    fn write_slot(&self, slot: u32, image: &[u8]) -> io::Result<()> {
        self.file().write_all_at(image, self.offset(slot))
    }

    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * u64::from(self.page_size.get())
    }

    fn file(&self) -> &File {
        let file = self.file.as_ref();
        file.expect("there is a file before there is an image in it")
    }
}

impl Drop for PageSet {
    fn drop(&mut self) {
        self.spill.memory.give_back(self.memory_bytes);
        let file_bytes = self.offset(self.file_slots);
        self.spill.disk.give_back(file_bytes);
    }
}

/// A file without a name. It vanishes with its last descriptor, however the process ends.
///
/// # Errors
///
/// The directory cannot be created or written.
pub fn unnamed_file(directory: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::create_dir_all(directory)?;
    let mut options = File::options();
    options.read(true).write(true);
    let unnamed = options
        .clone()
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(directory);
    match unnamed {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!("spill-{}-{count}.tmp", std::process::id()));
            let file = options.create(true).truncate(true).open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: usize = 4096;

    fn image(seed: u32) -> Vec<u8> {
        (0..PAGE_BYTES)
            .map(|i| (i as u32).wrapping_mul(31).wrapping_add(seed) as u8)
            .collect()
    }

    fn spill(directory: &Path, pages: usize) -> Spill {
        Spill::with_memory(directory, pages * PAGE_BYTES)
    }

    fn set(spill: &Spill) -> PageSet {
        PageSet::new(PageSize::new(PAGE_BYTES as u32).unwrap(), spill)
    }

    fn assert_holds(set: &PageSet, pgno: u32, seed: u32) {
        let mut out = Vec::new();
        assert!(set.read(pgno, &mut out).unwrap(), "page {pgno}");
        assert!(out == image(seed), "page {pgno}");
    }

    fn used(spill: &Spill) -> usize {
        spill.memory.used() / PAGE_BYTES
    }

    #[test]
    fn a_set_gives_back_the_newest_images_in_memory_and_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        for limit in [0, 20, 1000] {
            let spill = spill(directory.path(), limit);
            let mut set = set(&spill);
            for pgno in 1..=100 {
                set.insert(pgno, &image(pgno)).unwrap();
            }
            for pgno in (1..=100).step_by(3) {
                set.insert(pgno, &image(pgno + 7)).unwrap();
            }
            assert_eq!(set.len(), 100);
            for pgno in 1..=100 {
                let seed = if (pgno - 1) % 3 == 0 { pgno + 7 } else { pgno };
                assert_holds(&set, pgno, seed);
            }
            assert_eq!(set.file.is_some(), limit < 100);
            set.truncate(4);
            assert_eq!(set.numbers().collect::<Vec<_>>(), [1, 2, 3, 4]);
            assert!(!set.read(5, &mut Vec::new()).unwrap());
            assert!(used(&spill) <= 4, "what was dropped is free again");
            let on_disk = u64::from(set.file_slots) * PAGE_BYTES as u64;
            assert_eq!(spill.disk.bytes(), on_disk);
            drop(set);
            assert_eq!((used(&spill), spill.disk.bytes()), (0, 0));
        }
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            0,
            "nothing is left"
        );
    }

    #[test]
    fn a_page_that_is_for_memory_alone_never_goes_to_the_disk_and_is_never_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let spill = spill(directory.path(), 5);
        let mut set = set(&spill);
        (1..=9).for_each(|pgno| set.insert_into_memory(pgno, &image(pgno)));
        assert_eq!((set.len(), set.file_slots), (5, 0));
        set.insert_into_memory(2, &image(22));
        assert_holds(&set, 2, 22);
        set.insert(7, &image(7)).unwrap();
        assert_eq!(set.file_slots, 1);
        set.insert_into_memory(7, &image(77));
        assert!(!set.contains(7));
    }

    #[test]
    fn a_newer_set_wins_wherever_both_have_their_images() {
        let directory = tempfile::tempdir().unwrap();
        for (older_limit, newer_limit) in [(0, 0), (0, 100), (100, 0), (100, 100)] {
            let [of_older, of_newer] =
                [older_limit, newer_limit].map(|pages| spill(directory.path(), pages));
            let mut older = set(&of_older);
            for pgno in 1..=10 {
                older.insert(pgno, &image(pgno)).unwrap();
            }
            let mut newer = set(&of_newer);
            for pgno in 6..=15 {
                newer.insert(pgno, &image(pgno + 50)).unwrap();
            }
            // Sets of one process share one memory.
            of_newer.memory.give_back(newer.memory_bytes);
            newer.spill.memory = Arc::clone(&of_older.memory);
            of_older.memory.take(newer.memory_bytes, true);
            older.overlay(newer).unwrap();
            assert_eq!(older.numbers().collect::<Vec<_>>(), Vec::from_iter(1..=15));
            for pgno in 1..=15 {
                assert_holds(&older, pgno, if pgno < 6 { pgno } else { pgno + 50 });
            }
            assert_eq!(used(&of_older), older.memory_bytes / PAGE_BYTES);
            drop(older);
            assert_eq!(used(&of_older), 0);
        }
    }

    #[test]
    fn sets_share_their_memory_and_each_has_a_little_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let spill = spill(directory.path(), 10);
        let fill = || {
            let mut set = set(&spill);
            for pgno in 1..=10 {
                set.insert(pgno, &image(pgno)).unwrap();
            }
            set
        };
        let first = fill();
        let second = fill();
        let own = SET_MEMORY_BYTES / PAGE_BYTES;
        assert_eq!((first.file_slots, second.file_slots), (0, 10 - own as u32));
        drop(first);
        assert_eq!(
            fill().file_slots,
            4,
            "10 less 4 of the second and its own 4"
        );
    }

    #[test]
    fn a_set_that_would_go_over_the_limit_of_local_state_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let limits = crate::env::budget::Limits {
            state_bytes: 40 * PAGE_BYTES as u64,
            memory_bytes: 0,
        };
        let budgets = Budgets::new(limits);
        let spill = Spill::new(directory.path(), &budgets, budgets.account());
        let filled = fill(&mut set(&spill), 2000);
        assert_eq!(filled, Err(io::ErrorKind::QuotaExceeded));
        assert_eq!(budgets.state_bytes(), 0, "all is given back");
    }

    fn fill(set: &mut PageSet, pages: u32) -> Result<(), io::ErrorKind> {
        (1..=pages)
            .try_for_each(|pgno| set.insert(pgno, &image(pgno)))
            .map_err(|error| error.kind())
    }
}
