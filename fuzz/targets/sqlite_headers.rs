//! Headers of databases, logs and wal-indexes: never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sqlite_format::{DatabaseHeader, WalChecksum, WalHeader, WalIndexHeader};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = DatabaseHeader::parse(bytes) {
        assert!(header.page_size.lock_pgno() > 16_384);
    }
    if let Some(log) = bytes.first_chunk() {
        let _ = WalHeader::parse(log);
    }
    if let Some(index) = bytes.first_chunk::<48>() {
        let _ = WalIndexHeader::parse(index);
        // A checksum that the fuzzer can't guess must not hide what it covers.
        let mut sealed = *index;
        let sum = WalChecksum::default().update(cfg!(target_endian = "big"), &sealed[..40]);
        sealed[40..44].copy_from_slice(&sum.s1.to_ne_bytes());
        sealed[44..].copy_from_slice(&sum.s2.to_ne_bytes());
        if let Ok(header) = WalIndexHeader::parse(&sealed) {
            assert_eq!(header.initialized, sealed[12] != 0);
        }
    }
});
