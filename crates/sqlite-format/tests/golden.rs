//! Files written by SQLite itself; see `golden/README.md`.

#![cfg(target_endian = "little")]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use sqlite_format::{
    Chain, DatabaseHeader, FRAME_HEADER_BYTES, FormatError, FrameError, FrameHeader,
    WAL_HEADER_BYTES, WalHeader, WalIndexHeader,
};

/// The files of a database, and SQLite's own description of them.
struct Golden {
    head: Vec<u8>,
    log: Vec<u8>,
    wal_index: Vec<u8>,
    facts: HashMap<String, u32>,
}

impl Golden {
    fn read(name: &str) -> Golden {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let bytes = |end: &str| fs::read(directory.join(format!("{name}.{end}"))).expect("a file");
        let expected = fs::read_to_string(directory.join("expected.txt")).expect("the facts");
        let line = expected
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")))
            .expect("a line for the database");
        let facts = line
            .split(' ')
            .filter_map(|fact| fact.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.parse().expect("a number")))
            .collect();
        Golden {
            head: bytes("db-head"),
            log: bytes("wal"),
            wal_index: bytes("shm"),
            facts,
        }
    }

    fn log_header(&self) -> WalHeader {
        let bytes = self
            .log
            .first_chunk::<WAL_HEADER_BYTES>()
            .expect("a header");
        WalHeader::parse(bytes).expect("a valid header")
    }

    fn wal_index_header(&self) -> WalIndexHeader {
        let (first, rest) = self.wal_index.split_first_chunk::<48>().expect("a header");
        assert_eq!(first[..], rest[..48], "both copies are the same");
        WalIndexHeader::parse(first).expect("a valid header")
    }

    /// Frames in the file, live or not.
    fn frames(&self) -> impl Iterator<Item = (&[u8; FRAME_HEADER_BYTES], &[u8])> {
        let frame_bytes = FRAME_HEADER_BYTES + self.log_header().page_size.as_usize();
        self.log[WAL_HEADER_BYTES..]
            .chunks_exact(frame_bytes)
            .map(|frame| {
                frame
                    .split_first_chunk()
                    .expect("a frame begins with its header")
            })
    }

    /// Frames that the chain accepts, the chain after each, and the error that ended it.
    fn live(&self) -> (Vec<FrameHeader>, Vec<Chain>, Option<FrameError>) {
        let mut chain = Chain::start(&self.log_header());
        let (mut frames, mut chains) = (Vec::new(), Vec::new());
        for (header, page) in self.frames() {
            match chain.accept(header, page) {
                Ok(frame) => frames.push(frame),
                Err(error) => return (frames, chains, Some(error)),
            }
            chains.push(chain);
        }
        (frames, chains, None)
    }
}

#[test]
fn header_log_and_wal_index_agree_with_what_sqlite_says() {
    for name in ["512", "4096", "65536", "tail"] {
        let golden = Golden::read(name);
        let fact = |key: &str| golden.facts[key];

        let database = DatabaseHeader::parse(&golden.head).unwrap();
        assert!(database.is_wal());
        assert_eq!(database.page_size.get(), fact("page_size"));
        assert_eq!(database.schema_cookie, fact("schema_cookie"));
        assert_eq!(database.user_version, fact("user_version"));
        assert!(database.page_count_is_current());
        assert_eq!(database.sqlite_version, 3_040_001);

        let log = golden.log_header();
        assert_eq!(log.page_size, database.page_size);
        assert!(!log.big_endian_checksums);
        assert_eq!(log.encode()[..], golden.log[..WAL_HEADER_BYTES]);

        let index = golden.wal_index_header();
        assert!(index.initialized);
        assert_eq!(index.page_size, Some(log.page_size));
        assert_eq!(index.salts, log.salts);
        assert!(!index.big_endian_checksums);
        assert_eq!(index.max_frame, fact("frames"));
        assert_eq!(index.page_count, fact("page_count"));

        let (frames, chains, _) = golden.live();
        let published = index.max_frame as usize - 1;
        assert_eq!(chains[published].checksum(), index.frame_checksum);
        assert_eq!(chains[published].salts(), index.salts);
        assert_eq!(frames[published].commit, index.page_count);
    }
}

#[test]
fn a_log_ends_where_the_frames_of_an_earlier_log_begin() {
    let golden = Golden::read("tail");
    let (frames, _, end) = golden.live();
    let published = golden.facts["frames"] as usize;
    assert_eq!(golden.log_header().checkpoint_sequence, 1);
    assert!(frames[published - 1].is_commit());
    assert!(
        frames.len() > published,
        "an open transaction spilled into the log"
    );
    assert!(frames[published..].iter().all(|frame| !frame.is_commit()));
    assert!(matches!(end, Some(FrameError::Salts { .. })), "{end:?}");
}

#[test]
fn every_changed_byte_of_a_live_frame_is_noticed() {
    let golden = Golden::read("512");
    let (header, page) = golden.frames().next().unwrap();
    let start = Chain::start(&golden.log_header());
    for offset in 0..FRAME_HEADER_BYTES {
        let mut bad = *header;
        bad[offset] ^= 0x10;
        assert!(
            { start }.accept(&bad, page).is_err(),
            "byte {offset} of the header"
        );
    }
    for offset in 0..page.len() {
        let mut bad = page.to_vec();
        bad[offset] ^= 0x10;
        assert!(
            { start }.accept(header, &bad).is_err(),
            "byte {offset} of the page"
        );
    }
}

#[test]
fn every_changed_byte_of_a_wal_index_header_is_noticed() {
    let good = *Golden::read("4096").wal_index.first_chunk::<48>().unwrap();
    for offset in 0..good.len() {
        let mut bad = good;
        bad[offset] ^= 0x10;
        let error = WalIndexHeader::parse(&bad).unwrap_err();
        assert!(
            matches!(error, FormatError::HeaderChecksum { .. }),
            "byte {offset}: {error}"
        );
    }
}
