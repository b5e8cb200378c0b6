//! Invalid files with a valid file checksum, as a faulty writer could produce them.

use ltx::{CHECKSUM_FLAG, DatabaseChecksum, ErrorKind, LtxError, PagesError, page_checksum};

use crate::common::{Pages, decode, encode, header, index_of, page};

const HEADER: usize = 100;
const TRAILER: usize = 16;
const PAGE_PREFIX: usize = 10;

/// A snapshot of three pages, and its pages.
fn snapshot() -> (Vec<u8>, Pages) {
    let pages: Pages = (1..=3).map(|pgno| (pgno, page(512, pgno))).collect();
    (
        encode(header(512, 3, 1, 1), &pages).expect("a valid file"),
        pages,
    )
}

/// Corrects the file checksum, given the pages of the unchanged `file`.
///
/// `offsets` are the offsets of the page frames. `page_checksum` hashes four bytes and then the
/// rest, so it can compute any checksum.
fn seal(file: &mut [u8], pages: &Pages, offsets: &[u64]) {
    let mut hashed = file[..HEADER].to_vec();
    for ((_, page), offset) in pages.iter().zip(offsets) {
        hashed.extend(&file[*offset as usize..][..PAGE_PREFIX]);
        hashed.extend(page);
    }
    let end = file.len() - 8;
    hashed.extend(&file[end - 16 - index_bytes(file) - 6..end]);
    let (first, rest) = hashed.split_first_chunk().expect("a header");
    let checksum = page_checksum(u32::from_be_bytes(*first), rest);
    file[end..].copy_from_slice(&checksum.to_be_bytes());
}

/// Returns the result of reading a file that was changed by `change` and then sealed.
fn changed(change: impl FnOnce(&mut [u8])) -> Result<(), LtxError> {
    let (mut file, pages) = snapshot();
    let offsets: Vec<u64> = index_of(&file)
        .entries()
        .map(|entry| entry.offset)
        .collect();
    change(&mut file);
    seal(&mut file, &pages, &offsets);
    decode(&file).map(|_| ())
}

fn put(file: &mut [u8], offset: usize, bytes: &[u8]) {
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn put_post_apply(file: &mut [u8], value: u64) {
    put(file, file.len() - TRAILER, &value.to_be_bytes());
}

#[test]
fn sealing_a_file_again_changes_nothing() {
    changed(|_| ()).unwrap();
    changed(|file| file[99] = 1).unwrap();
}

#[test]
fn an_index_of_other_pages_is_refused() {
    let result = changed(|file| {
        let first_entry = file.len() - TRAILER - 8 - index_bytes(file);
        assert_eq!(file[first_entry], 1);
        file[first_entry] = 4;
    });
    assert!(matches!(result, Err(LtxError::Index)), "{result:?}");
}

fn index_bytes(file: &[u8]) -> usize {
    let footer = file[file.len() - 24..].first_chunk().expect("a footer");
    u64::from_be_bytes(*footer) as usize
}

#[test]
fn pages_that_the_header_does_not_announce_are_refused() {
    let result = changed(|file| put(file, 12, &2u32.to_be_bytes()));
    let Err(LtxError::Pages(why)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(why, PagesError::PastCommit { pgno: 3, commit: 2 });

    let result = changed(|file| put(file, 12, &4u32.to_be_bytes()));
    let Err(LtxError::Pages(why)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(why, PagesError::Missing { expected: 4 });

    let result = changed(|file| put(file, HEADER, &2u32.to_be_bytes()));
    let Err(LtxError::Pages(why)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(why, PagesError::Missing { expected: 1 });
}

#[test]
fn page_flags_of_a_newer_format_are_refused() {
    let result = changed(|file| file[HEADER + 5] = 3);
    assert!(
        matches!(result, Err(LtxError::PageFlags { pgno: 1, flags: 3 })),
        "{result:?}"
    );
}

#[test]
fn a_length_that_no_page_has_is_refused_before_it_is_allocated() {
    let result = changed(|file| put(file, HEADER + 6, &u32::MAX.to_be_bytes()));
    assert!(
        matches!(result, Err(LtxError::Compressed { pgno: 1, .. })),
        "{result:?}"
    );
}

#[test]
fn a_database_checksum_must_be_there_exactly_when_it_is_announced() {
    let result = changed(|file| put_post_apply(file, CHECKSUM_FLAG | 1));
    assert!(
        matches!(result, Err(LtxError::PostApply { .. })),
        "{result:?}"
    );
    for without_flag in [0, 1] {
        let result = changed(|file| {
            file[7] = 0;
            put_post_apply(file, without_flag);
        });
        assert!(
            matches!(result, Err(LtxError::PostApply { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn a_tracked_snapshot_must_add_up_to_its_database_checksum() {
    let mut right = DatabaseChecksum::EMPTY;
    for (pgno, page) in snapshot().1 {
        right.toggle(page_checksum(pgno, &page));
    }
    let tracked_with = |checksum| {
        changed(|file| {
            file[7] = 0;
            put_post_apply(file, checksum);
        })
    };
    tracked_with(right.get()).unwrap();
    let error = tracked_with(right.get() ^ 1).unwrap_err();
    assert!(
        matches!(error, LtxError::DatabaseChecksum { .. }),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}
