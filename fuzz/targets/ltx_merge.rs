//! Merges of histories that the input describes, against a model; and of files that it is.

#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use ltx::{Decoder, Encoder, Header, MergeOptions, Txid, merge};
use sqlite_format::PageSize;

const PAGE_BYTES: usize = 512;

/// Pages by number, and the size of the database.
type Database = (u32, BTreeMap<u32, u8>);

/// Applies a delta of at most 16 pages to `database` and returns its file.
fn delta(txid: u64, description: [u8; 4], database: &mut Database) -> Vec<u8> {
    let [size, fill, low, high] = description;
    let commit = u32::from(size % 16) + 1;
    let changed = u16::from_be_bytes([low, high]);
    let header = Header::new(PageSize::MIN, commit, Txid::new(txid), Txid::new(txid));
    let mut encoder = Encoder::new(Vec::new(), header).expect("a valid header");
    for pgno in 1..=commit {
        let is_new = pgno > database.0;
        if is_new || changed & (1 << (pgno - 1)) != 0 {
            database.1.insert(pgno, fill ^ pgno as u8);
            encoder
                .encode_page(pgno, &[fill ^ pgno as u8; PAGE_BYTES])
                .expect("pages ascend");
        }
    }
    database.0 = commit;
    database.1.split_off(&(commit + 1));
    encoder.finish().expect("a delta or a first snapshot").0
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(base) = Decoder::new(bytes)
        && let Ok(again) = Decoder::new(bytes)
    {
        let _ = merge(vec![base], MergeOptions::default(), Vec::new());
        let _ = merge(vec![again], MergeOptions::default(), Vec::new());
    }
    let mut database = Database::default();
    let files: Vec<Vec<u8>> = (1..)
        .zip(bytes.as_chunks().0.iter().take(64))
        .map(|(txid, description)| delta(txid, *description, &mut database))
        .collect();
    let open = |file| Decoder::new(file).expect("our own file");
    let inputs: Vec<_> = files.iter().map(|file| open(&file[..])).collect();
    if inputs.is_empty() {
        return;
    }
    let (out, merged) = merge(inputs, MergeOptions::default(), Vec::new()).expect("neighbours");
    assert_eq!(merged.header.commit, database.0);
    let mut decoder = open(&out[..]);
    let mut found = BTreeMap::new();
    let mut page = Vec::new();
    while let Some(pgno) = decoder.next_page(&mut page).expect("our own page") {
        assert!(page.iter().all(|byte| *byte == page[0]));
        found.insert(pgno, page[0]);
    }
    decoder.finish().expect("our own file");
    assert_eq!(found, database.1);
});
