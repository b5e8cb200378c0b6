//! A set of page images, newest wins, in memory while small and in an unnamed file beyond that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sqlite_format::PageSize;

/// Page images kept in memory before a set moves to disk, in bytes.
const MEMORY_LIMIT_BYTES: usize = 8 << 20;

/// Page images by number. Beyond 8 MiB they live in an unlinked file in `directory`, so memory
/// stays bounded by about 16 bytes a page.
#[derive(Debug)]
pub struct PageSet {
    page_size: PageSize,
    directory: PathBuf,
    slots: BTreeMap<u32, u32>,
    images: Images,
    used: u32,
}

#[derive(Debug)]
enum Images {
    Memory(Vec<u8>),
    Disk(File),
}

impl PageSet {
    /// An empty set whose images go to `directory` when they are many.
    pub fn new(page_size: PageSize, directory: &Path) -> PageSet {
        PageSet {
            page_size,
            directory: directory.to_owned(),
            slots: BTreeMap::new(),
            images: Images::Memory(Vec::new()),
            used: 0,
        }
    }

    /// The page size of every image.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Number of different pages.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when the set has no page.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of page images.
    pub fn bytes(&self) -> u64 {
        self.slots.len() as u64 * u64::from(self.page_size.get())
    }

    /// True when the set holds this page.
    pub fn contains(&self, pgno: u32) -> bool {
        self.slots.contains_key(&pgno)
    }

    /// Page numbers, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.keys().copied()
    }

    /// Adds a page or replaces its image.
    ///
    /// # Errors
    ///
    /// The file in `directory` cannot be made or written, for example because the disk is full.
    pub fn insert(&mut self, pgno: u32, image: &[u8]) -> io::Result<()> {
        debug_assert_eq!(image.len(), self.page_size.as_usize());
        let slot = match self.slots.get(&pgno) {
            Some(slot) => *slot,
            None => {
                let slot = self.used;
                self.used += 1;
                self.slots.insert(pgno, slot);
                slot
            }
        };
        let offset = slot as usize * self.page_size.as_usize();
        match &mut self.images {
            Images::Memory(bytes) => {
                if offset + image.len() > bytes.len() {
                    bytes.resize(offset + image.len(), 0);
                }
                bytes[offset..offset + image.len()].copy_from_slice(image);
                if bytes.len() > MEMORY_LIMIT_BYTES {
                    self.spill()?;
                }
                Ok(())
            }
            Images::Disk(file) => file.write_all_at(image, offset as u64),
        }
    }

    /// Reads one image into `out`; false when the set does not hold the page.
    ///
    /// # Errors
    ///
    /// The file behind a large set cannot be read.
    pub fn read(&self, pgno: u32, out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(slot) = self.slots.get(&pgno) else {
            return Ok(false);
        };
        let size = self.page_size.as_usize();
        let offset = *slot as usize * size;
        out.resize(size, 0);
        match &self.images {
            Images::Memory(bytes) => out.copy_from_slice(&bytes[offset..offset + size]),
            Images::Disk(file) => file.read_exact_at(out, offset as u64)?,
        }
        Ok(true)
    }

    /// Adds every page of `newer`, which wins.
    ///
    /// # Errors
    ///
    /// As [`PageSet::insert`] and [`PageSet::read`].
    pub fn overlay(&mut self, newer: &PageSet) -> io::Result<()> {
        let mut image = Vec::new();
        for pgno in newer.numbers() {
            newer.read(pgno, &mut image)?;
            self.insert(pgno, &image)?;
        }
        Ok(())
    }

    /// Drops pages behind `commit`, the size of the database in pages.
    pub fn truncate(&mut self, commit: u32) {
        self.slots.retain(|pgno, _| *pgno <= commit);
    }

    /// Drops every page for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(u32) -> bool) {
        self.slots.retain(|pgno, _| keep(*pgno));
    }

    fn spill(&mut self) -> io::Result<()> {
        let Images::Memory(bytes) = &self.images else {
            return Ok(());
        };
        let file = unnamed_file(&self.directory)?;
        file.write_all_at(bytes, 0)?;
        self.images = Images::Disk(file);
        Ok(())
    }
}

/// A file without a name: it vanishes with its last descriptor, however the process ends.
///
/// # Errors
///
/// The directory cannot be made or written.
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
            let path = directory.join(format!("spill-{}.tmp", std::process::id()));
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

    fn image(size: usize, seed: u32) -> Vec<u8> {
        (0..size)
            .map(|i| (i as u32).wrapping_mul(31).wrapping_add(seed) as u8)
            .collect()
    }

    #[test]
    fn a_set_gives_back_the_newest_images_in_memory_and_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        for count in [10u32, 5000] {
            let mut set = PageSet::new(PageSize::new(4096).unwrap(), directory.path());
            for pgno in 1..=count {
                set.insert(pgno, &image(4096, pgno)).unwrap();
            }
            for pgno in (1..=count).step_by(3) {
                set.insert(pgno, &image(4096, pgno + 7)).unwrap();
            }
            assert_eq!(set.len(), count as usize);
            let mut out = Vec::new();
            for pgno in 1..=count {
                assert!(set.read(pgno, &mut out).unwrap());
                let seed = if (pgno - 1) % 3 == 0 { pgno + 7 } else { pgno };
                assert_eq!(out, image(4096, seed), "page {pgno}");
            }
            set.truncate(4);
            assert_eq!(set.numbers().collect::<Vec<_>>(), [1, 2, 3, 4]);
            assert!(!set.read(5, &mut out).unwrap());
        }
        assert_eq!(
            std::fs::read_dir(directory.path()).unwrap().count(),
            0,
            "nothing is left"
        );
    }
}
