//! Single page frames: never a panic, and always a page of the right length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ltx::decode_frame;
use sqlite_format::PageSize;

fuzz_target!(|bytes: &[u8]| {
    // Seeds are whole files, in which the first frame follows the header.
    for frame in [Some(bytes), bytes.get(100..)].into_iter().flatten() {
        for shift in 9..=16 {
            let page_size = PageSize::new(1 << shift).expect("a power of two");
            let mut page = Vec::new();
            if let Ok(pgno) = decode_frame(frame, page_size, &mut page) {
                assert_ne!(pgno, 0);
                assert_eq!(page.len(), page_size.as_usize());
            }
        }
    }
});
