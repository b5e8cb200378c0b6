//! Whole LTX files: never a panic, and what is accepted is written again and reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::{Decoder, Encoder, ErrorKind, Header, LtxError};

type Pages = Vec<(u32, Vec<u8>)>;

fn decode(bytes: &[u8], prove: bool) -> Result<(Header, Pages), LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut pages = Vec::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        assert_eq!(page.len(), header.page_size.as_usize());
        assert!((1..=header.commit).contains(&pgno));
        pages.push((pgno, page.clone()));
    }
    match decoder.finish() {
        Err(error) if prove => Err(error),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Misuse);
            Ok((header, pages))
        }
        Ok(_) => Ok((header, pages)),
    }
}

fuzz_target!(|bytes: &[u8]| {
    // A checksum that the fuzzer can't guess must not hide what stands before it.
    let Ok((header, pages)) = decode(bytes, false) else {
        return;
    };
    if header.is_tracked() {
        return;
    }
    let mut encoder = Encoder::new(Vec::new(), header).expect("the header was accepted");
    for (pgno, page) in &pages {
        encoder
            .encode_page(*pgno, page)
            .expect("the page was accepted");
    }
    let (again, _) = encoder.finish().expect("the pages were complete");
    assert_eq!(decode(&again, true).expect("our own file"), (header, pages));
});
