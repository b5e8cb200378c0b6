//! Small files, and simple ways to read and write them.

use ltx::{Decoder, Encoder, Header, IndexTail, LtxError, PageIndex, Trailer, Txid};
use sqlite_format::PageSize;

/// Pages by number.
pub(crate) type Pages = Vec<(u32, Vec<u8>)>;

/// A header without database checksums.
pub(crate) fn header(page_bytes: u32, commit: u32, min: u64, max: u64) -> Header {
    let page_size = PageSize::new(page_bytes).expect("a page size");
    Header::new(page_size, commit, Txid::new(min), Txid::new(max))
}

/// A page that compresses slightly and differs for each seed.
pub(crate) fn page(page_bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    (0..page_bytes)
        .map(|index| {
            if index % 8 < 5 {
                return seed as u8;
            }
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}

/// Writes a file of `pages`.
pub(crate) fn encode(header: Header, pages: &Pages) -> Result<Vec<u8>, LtxError> {
    let mut encoder = Encoder::new(Vec::new(), header)?;
    for (pgno, page) in pages {
        encoder.encode_page(*pgno, page)?;
    }
    let (bytes, summary) = encoder.finish()?;
    assert_eq!(summary.bytes, bytes.len() as u64);
    assert_eq!(summary.pages as usize, pages.len());
    Ok(bytes)
}

/// Reads a file to its end and proves it.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Header, Pages, Trailer), LtxError> {
    let mut decoder = Decoder::new(bytes)?;
    let header = *decoder.header();
    let mut pages = Vec::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page)? {
        pages.push((pgno, page.clone()));
    }
    Ok((header, pages, decoder.finish()?))
}

/// Reads the index of a whole file.
pub(crate) fn index_of(file: &[u8]) -> PageIndex {
    match PageIndex::parse(file.len() as u64, file) {
        Ok(IndexTail::Complete(index)) => index,
        other => panic!("{other:?}"),
    }
}
