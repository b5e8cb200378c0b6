//! A large database that takes almost no disk space.

use std::os::unix::fs::FileExt;
use std::path::Path;

/// A database of 64 KiB pages that reaches beyond the lock page at 1 GiB: nearly all of it is one
/// freelist, so the file is sparse.
pub fn make_large(path: &Path) {
    const PAGE: u64 = 65536;
    const PAGES: u32 = 16_400;
    const LOCK: u32 = (1 << 30) / PAGE as u32 + 1;
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch("PRAGMA page_size=65536; CREATE TABLE large(x); PRAGMA journal_mode=WAL")
        .unwrap();
    connection.close().unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    file.set_len(u64::from(PAGES) * PAGE).unwrap();
    // Pages 3 and 4 are trunks of the freelist, all after them are leaves.
    let leaves: Vec<u32> = (5..=PAGES).filter(|pgno| *pgno != LOCK).collect();
    let (first, second) = leaves.split_at(leaves.len() / 2);
    for (trunk, next, leaves) in [(3u64, 4u32, first), (4, 0, second)] {
        let words = [next, leaves.len() as u32]
            .into_iter()
            .chain(leaves.iter().copied());
        let bytes: Vec<u8> = words.flat_map(u32::to_be_bytes).collect();
        file.write_all_at(&bytes, (trunk - 1) * PAGE).unwrap();
    }
    file.write_all_at(&PAGES.to_be_bytes(), 28).unwrap();
    file.write_all_at(&3u32.to_be_bytes(), 32).unwrap();
    file.write_all_at(&(leaves.len() as u32 + 2).to_be_bytes(), 36)
        .unwrap();
}
