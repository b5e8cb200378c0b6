//! Written files are read back, whole or page by page, and all other bytes are rejected.

use proptest::prelude::*;

use crate::common::{Pages, decode, encode, header, index_of, page};
use ltx::{Encoder, ErrorKind, IndexTail, LtxError, Misuse, PageIndex, PagesError, decode_frame};
use sqlite_format::PageSize;

/// A snapshot of three pages, one of which does not compress.
fn small_file() -> Vec<u8> {
    let noise = (0..512u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let pages = vec![(1, page(512, 7)), (2, noise), (3, vec![0; 512])];
    encode(header(512, 3, 1, 1), &pages).expect("a valid file")
}

#[test]
fn a_snapshot_comes_back_page_by_page_in_every_page_size() {
    for shift in 9..=16 {
        let bytes = 1usize << shift;
        let pages: Pages = (1..=5).map(|pgno| (pgno, page(bytes, pgno))).collect();
        let header = header(bytes as u32, 5, 1, 9);
        let file = encode(header, &pages).unwrap();
        let (read_header, read_pages, trailer) = decode(&file).unwrap();
        assert_eq!(read_header, header);
        assert_eq!(read_pages, pages);
        assert_eq!(trailer.post_apply, 0);
        assert_eq!(file[file.len() - 8..], trailer.file_checksum.to_be_bytes());
    }
}

#[test]
fn a_delta_may_hold_no_page() {
    let file = encode(header(4096, 8, 2, 2), &vec![]).unwrap();
    assert_eq!(file.len(), 131);
    assert_eq!(decode(&file).unwrap().1, []);
    assert!(index_of(&file).is_empty());
}

#[test]
fn single_pages_are_read_through_the_index() {
    let pages: Pages = (1..=900).map(|pgno| (pgno * 2, page(1024, pgno))).collect();
    let header = header(1024, 2000, 5, 6);
    let file = encode(header, &pages).unwrap();

    let tail = &file[file.len() - 100..];
    let Ok(IndexTail::Needs(bytes)) = PageIndex::parse(file.len() as u64, tail) else {
        panic!("100 bytes can't be enough");
    };
    let tail = &file[file.len() - bytes as usize..];
    let Ok(IndexTail::Complete(index)) = PageIndex::parse(file.len() as u64, tail) else {
        panic!("the bytes that it asked for are enough");
    };

    index.check(&header).unwrap();
    assert_eq!(index.len(), 900);
    assert_eq!(index.trailer(), decode(&file).unwrap().2);
    let mut read = Vec::new();
    for ((pgno, page), entry) in pages.iter().zip(index.entries()) {
        let frame = &file[entry.offset as usize..][..entry.bytes as usize];
        assert_eq!(
            decode_frame(frame, header.page_size, &mut read).unwrap(),
            *pgno
        );
        assert_eq!(&read, page);
    }
}

#[test]
fn an_index_asks_for_more_until_it_has_enough() {
    let file = small_file();
    let file_bytes = file.len() as u64;
    assert!(
        matches!(PageIndex::parse(file_bytes, &[]), Ok(IndexTail::Needs(n)) if n == file_bytes)
    );
    assert!(matches!(
        PageIndex::parse(1 << 20, &[]),
        Ok(IndexTail::Needs(32_768))
    ));
    let error = PageIndex::parse(file_bytes - 1, &file).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse);
    assert_eq!(
        PageIndex::parse(130, &[]).unwrap_err().kind(),
        ErrorKind::Truncated
    );
    for length in 24..file.len() {
        match PageIndex::parse(file_bytes, &file[file.len() - length..]).unwrap() {
            IndexTail::Complete(index) => assert_eq!(index.len(), 3),
            IndexTail::Needs(bytes) => assert!(bytes > length as u64),
        }
    }
}

#[test]
fn an_index_that_leaves_out_a_page_is_found_by_the_header() {
    let pages: Pages = vec![(1, page(512, 1)), (3, page(512, 3))];
    let delta = header(512, 3, 2, 2);
    let index = index_of(&encode(delta, &pages).unwrap());
    assert!(index.check(&delta).is_ok());
    let missing = index.check(&header(512, 3, 1, 2));
    assert!(matches!(
        missing,
        Err(LtxError::Pages(PagesError::Missing { expected: 2 }))
    ));
}

#[test]
fn an_encoder_refuses_what_no_file_may_hold_and_goes_on() {
    let mut encoder = Encoder::new(Vec::new(), header(512, 3, 1, 1)).unwrap();
    let short = encoder.encode_page(1, &[0; 511]).unwrap_err();
    assert!(matches!(
        short,
        LtxError::Misuse(Misuse::PageBytes {
            pgno: 1,
            found: 511,
            ..
        })
    ));
    encoder.encode_page(1, &[0; 512]).unwrap();
    for (pgno, why) in [
        (0, PagesError::Page0),
        (1, PagesError::Order { pgno: 1, after: 1 }),
        (3, PagesError::Missing { expected: 2 }),
        (4, PagesError::PastCommit { pgno: 4, commit: 3 }),
    ] {
        match encoder.encode_page(pgno, &[0; 512]).unwrap_err() {
            LtxError::Misuse(Misuse::Pages(found)) => assert_eq!(found, why),
            other => panic!("{other}"),
        }
    }
    encoder.encode_page(2, &[0; 512]).unwrap();
    assert_eq!(encoder.finish().unwrap_err().kind(), ErrorKind::Misuse);
}

#[test]
fn the_lock_page_is_neither_written_nor_missed() {
    let lock = PageSize::MAX.lock_pgno();
    let mut encoder = Encoder::new(Vec::new(), header(65_536, lock + 1, 2, 2)).unwrap();
    let zeros = vec![0; 65_536];
    encoder.encode_page(lock - 1, &zeros).unwrap();
    let refused = encoder.encode_page(lock, &zeros).unwrap_err();
    let LtxError::Misuse(Misuse::Pages(why)) = refused else {
        panic!("{refused}")
    };
    assert_eq!(why, PagesError::LockPage { pgno: lock });
    encoder.encode_page(lock + 1, &zeros).unwrap();
    let (file, _) = encoder.finish().unwrap();
    let pgnos: Vec<u32> = decode(&file)
        .unwrap()
        .1
        .iter()
        .map(|(pgno, _)| *pgno)
        .collect();
    assert_eq!(pgnos, [lock - 1, lock + 1]);
}

#[test]
fn files_with_database_checksums_are_not_written() {
    let tracked = ltx::Header {
        flags: 0,
        ..header(512, 3, 1, 1)
    };
    let refused = Encoder::new(Vec::new(), tracked).unwrap_err();
    assert!(matches!(refused, LtxError::Misuse(Misuse::Tracked)));
}

#[test]
fn a_decoder_can_not_be_finished_early() {
    let file = small_file();
    let mut decoder = ltx::Decoder::new(&file[..]).unwrap();
    decoder.next_page(&mut Vec::new()).unwrap();
    assert!(matches!(
        decoder.finish(),
        Err(LtxError::Misuse(Misuse::Unfinished))
    ));
}

#[test]
fn a_file_cut_short_anywhere_is_truncated() {
    let file = small_file();
    for length in 0..file.len() {
        let error = decode(&file[..length]).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Truncated,
            "{length} bytes: {error}"
        );
    }
}

#[test]
fn bytes_after_the_trailer_are_refused() {
    let mut file = small_file();
    file.push(0);
    assert!(matches!(decode(&file), Err(LtxError::TrailingBytes { .. })));
}

#[test]
fn every_changed_byte_is_noticed_or_changes_no_page() {
    let file = small_file();
    let (header, pages, trailer) = decode(&file).unwrap();
    let mut harmless = 0;
    for offset in 0..file.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bad = file.clone();
            bad[offset] ^= change;
            match decode(&bad) {
                Err(error) => assert_ne!(error.kind(), ErrorKind::Misuse, "byte {offset}"),
                // Two LZ4 blocks can encode the same page. The checksum covers the page.
                Ok(read) => {
                    assert_eq!(read, (header, pages.clone(), trailer), "byte {offset}");
                    harmless += 1;
                }
            }
        }
    }
    assert!(
        harmless < file.len() / 10,
        "{harmless} changes went unnoticed"
    );
}

proptest! {
    #[test]
    fn any_delta_round_trips(
        seeds in prop::collection::btree_map(1u32..5000, any::<u32>(), 0..40),
        shift in 9u32..13,
        growth in 0u32..9,
    ) {
        let bytes = 1usize << shift;
        let pages: Pages = seeds.iter().map(|(pgno, seed)| (*pgno, page(bytes, *seed))).collect();
        let commit = seeds.keys().max().unwrap_or(&1) + growth;
        let header = header(bytes as u32, commit, 2, 7);
        let file = encode(header, &pages).unwrap();
        let (read_header, read_pages, _) = decode(&file).unwrap();
        prop_assert_eq!(read_header, header);
        prop_assert_eq!(&read_pages, &pages);
        let index = index_of(&file);
        prop_assert!(index.check(&header).is_ok());
        prop_assert!(index.entries().map(|entry| entry.pgno).eq(seeds.keys().copied()));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        tail in prop::collection::vec(any::<u8>(), 0..600),
        pages in 0usize..3,
        file_bytes: u64,
    ) {
        let start = [0, 100, 110][pages];
        let bytes = [&small_file()[..start], &tail].concat();
        let _ = decode(&bytes);
        let _ = PageIndex::parse(file_bytes, &bytes);
        let _ = PageIndex::parse(bytes.len() as u64, &bytes);
        let _ = decode_frame(&bytes, PageSize::MIN, &mut Vec::new());
    }

    #[test]
    fn damage_anywhere_never_panics(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = small_file();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = decode(&bytes);
        let _ = PageIndex::parse(bytes.len() as u64, &bytes);
    }
}
