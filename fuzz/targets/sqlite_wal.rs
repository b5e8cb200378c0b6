//! Logs: never a panic, and a frame is accepted only when its checksum is right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sqlite_format::{Chain, FRAME_HEADER_BYTES, WAL_HEADER_BYTES, WalChecksum, WalHeader};

/// Puts the checksum right that ends `header`, so that what follows is reached.
fn seal(header: &mut [u8], sum: WalChecksum) {
    let at = header.len() - 8;
    header[at..at + 4].copy_from_slice(&sum.s1.to_be_bytes());
    header[at + 4..].copy_from_slice(&sum.s2.to_be_bytes());
}

fuzz_target!(|bytes: &[u8]| {
    let Some((header, frames)) = bytes.split_first_chunk::<WAL_HEADER_BYTES>() else {
        return;
    };
    let mut header = *header;
    let _ = WalHeader::parse(&header);
    let big_endian = header[3] & 1 == 1;
    let sum = WalChecksum::default().update(big_endian, &header[..24]);
    seal(&mut header, sum);
    let Ok(header) = WalHeader::parse(&header) else {
        return;
    };
    assert_eq!(WalHeader::parse(&header.encode()), Ok(header));

    let mut chain = Chain::start(&header);
    for frame in frames.chunks_exact(FRAME_HEADER_BYTES + header.page_size.as_usize()) {
        let (frame_header, page) = frame
            .split_first_chunk::<FRAME_HEADER_BYTES>()
            .expect("a frame");
        let before = chain;
        if chain.accept(frame_header, page).is_err() {
            assert_eq!(chain, before);
        }
        chain = before;

        let sum = before
            .checksum()
            .update(big_endian, &frame_header[..8])
            .update(big_endian, page);
        let mut sealed = *frame_header;
        seal(&mut sealed, sum);
        match chain.accept(&sealed, page) {
            Ok(accepted) => {
                assert_eq!(accepted.salts, header.salts);
                assert_eq!(chain.checksum(), sum);
                let mut resumed = Chain::resume(big_endian, before.salts(), before.checksum());
                assert_eq!(resumed.accept(&sealed, page), Ok(accepted));
            }
            Err(_) => {
                assert_eq!(chain, before);
                return;
            }
        }
    }
});
