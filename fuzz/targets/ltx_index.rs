//! Ends of LTX files: never a panic, and what is accepted lies inside the file, in order.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::{IndexTail, PageIndex};

fn check(file_bytes: u64, tail: &[u8]) {
    match PageIndex::parse(file_bytes, tail) {
        Ok(IndexTail::Complete(index)) => {
            let (mut pgno, mut end) = (0, 100);
            for entry in index.entries() {
                assert!(entry.pgno > pgno);
                assert_eq!(entry.offset, end);
                pgno = entry.pgno;
                end += u64::from(entry.bytes);
            }
            assert!(end < file_bytes);
            assert_eq!(index.entries().count(), index.len() as usize);
        }
        Ok(IndexTail::Needs(bytes)) => assert!((tail.len() as u64) < bytes && bytes <= file_bytes),
        Err(_) => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes.len() as u64, bytes);
    for cut in [24, 25, 64, 200] {
        check(
            bytes.len() as u64,
            &bytes[bytes.len().saturating_sub(cut)..],
        );
    }
    if let Some((file_bytes, tail)) = bytes.split_first_chunk() {
        check(u64::from_be_bytes(*file_bytes), tail);
    }
});
