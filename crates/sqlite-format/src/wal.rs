//! The write-ahead log: header, frames, and the chain of checksums through them.

use std::fmt;

use crate::{FormatError, FrameError, PageSize, WalChecksum, be_u32};

/// Length of the header at the start of a WAL, in bytes.
pub const WAL_HEADER_BYTES: usize = 32;
/// Length of the header before each page image, in bytes.
pub const FRAME_HEADER_BYTES: usize = 24;

/// Magic number of a WAL with little-endian checksums; the lowest bit set means big-endian.
const MAGIC: u32 = 0x377f_0682;
/// The only version of WALs and wal-indexes.
pub(crate) const VERSION: u32 = 3_007_000;

/// The number pair that distinguishes live frames from the frames of an earlier WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Salts {
    /// Grows by one each time the WAL starts over.
    pub salt1: u32,
    /// Random for each WAL.
    pub salt2: u32,
}

impl Salts {
    pub(crate) fn from_be_bytes(bytes: [u8; 8]) -> Salts {
        Salts {
            salt1: be_u32(&bytes, 0),
            salt2: be_u32(&bytes, 4),
        }
    }
}

impl fmt::Display for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.salt1, self.salt2)
    }
}

/// The header of a WAL.
///
/// | offset | size | field |
/// | --- | --- | --- |
/// | 0 | 4 | magic, lowest bit set when checksums read big-endian words |
/// | 4 | 4 | version, 3007000 |
/// | 8 | 4 | page size |
/// | 12 | 4 | checkpoint sequence |
/// | 16 | 8 | salts |
/// | 24 | 8 | checksum of the 24 bytes before |
///
/// All numbers are big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalHeader {
    /// Byte order of the words that checksums add up: that of the machine that created the WAL.
    pub big_endian_checksums: bool,
    /// Size of every page.
    pub page_size: PageSize,
    /// Number of times the WAL has started over.
    pub checkpoint_sequence: u32,
    /// Salts of every live frame.
    pub salts: Salts,
    /// Checksum of this header. The checksum chain of the frames begins with it.
    pub checksum: WalChecksum,
}

impl WalHeader {
    /// Reads and checks a header.
    ///
    /// # Errors
    ///
    /// [`FormatError::WalMagic`], [`FormatError::WalVersion`], [`FormatError::PageSize`], or
    /// [`FormatError::HeaderChecksum`] for a header that was torn while being written.
    pub fn parse(bytes: &[u8; WAL_HEADER_BYTES]) -> Result<WalHeader, FormatError> {
        let magic = be_u32(bytes, 0);
        if magic & !1 != MAGIC {
            return Err(FormatError::WalMagic { found: magic });
        }
        let big_endian_checksums = magic & 1 == 1;
        let version = be_u32(bytes, 4);
        if version != VERSION {
            return Err(FormatError::WalVersion { found: version });
        }
        let stored = checksum_at(bytes, 24);
        let computed = WalChecksum::default().update(big_endian_checksums, &bytes[..24]);
        if stored != computed {
            return Err(FormatError::HeaderChecksum { stored, computed });
        }
        Ok(WalHeader {
            big_endian_checksums,
            page_size: PageSize::new(be_u32(bytes, 8))?,
            checkpoint_sequence: be_u32(bytes, 12),
            salts: salts_at(bytes, 16),
            checksum: stored,
        })
    }

    /// Returns the bytes of this header. The checksum is computed; the `checksum` field is not
    /// read.
    pub fn encode(&self) -> [u8; WAL_HEADER_BYTES] {
        let mut bytes = [0; WAL_HEADER_BYTES];
        let magic = MAGIC | u32::from(self.big_endian_checksums);
        let words = [
            magic,
            VERSION,
            self.page_size.get(),
            self.checkpoint_sequence,
        ];
        for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&word.to_be_bytes());
        }
        bytes[16..20].copy_from_slice(&self.salts.salt1.to_be_bytes());
        bytes[20..24].copy_from_slice(&self.salts.salt2.to_be_bytes());
        let checksum = WalChecksum::default().update(self.big_endian_checksums, &bytes[..24]);
        bytes[24..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }
}

/// The header of a frame: page number, commit size, salts, checksum, as big-endian words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Page that the frame holds.
    pub pgno: u32,
    /// Size of the database in pages when the frame ends a transaction, else 0.
    pub commit: u32,
    /// Salts of the WAL to which the frame belongs.
    pub salts: Salts,
    /// Running checksum of the WAL up to and including this frame.
    pub checksum: WalChecksum,
}

impl FrameHeader {
    /// Splits the bytes into fields. [`Chain::accept`] decides whether the frame is live.
    pub fn parse(bytes: &[u8; FRAME_HEADER_BYTES]) -> FrameHeader {
        FrameHeader {
            pgno: be_u32(bytes, 0),
            commit: be_u32(bytes, 4),
            salts: salts_at(bytes, 8),
            checksum: checksum_at(bytes, 16),
        }
    }

    /// True when the frame ends a transaction.
    pub fn is_commit(&self) -> bool {
        self.commit != 0
    }
}

/// The checksum chain through the frames of one WAL, checked frame by frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    big_endian: bool,
    salts: Salts,
    checksum: WalChecksum,
}

impl Chain {
    /// Begins before the first frame of a WAL.
    pub fn start(header: &WalHeader) -> Chain {
        Chain::resume(header.big_endian_checksums, header.salts, header.checksum)
    }

    /// Continues after a frame whose running checksum is known.
    pub fn resume(big_endian: bool, salts: Salts, checksum: WalChecksum) -> Chain {
        Chain {
            big_endian,
            salts,
            checksum,
        }
    }

    /// Checks that a frame follows the frames accepted so far, and advances past it.
    ///
    /// # Errors
    ///
    /// [`FrameError`] when it does not; the chain is then unchanged.
    ///
    /// # Panics
    ///
    /// When the length of `page` is not a multiple of 8.
    pub fn accept(
        &mut self,
        header: &[u8; FRAME_HEADER_BYTES],
        page: &[u8],
    ) -> Result<FrameHeader, FrameError> {
        let frame = FrameHeader::parse(header);
        if frame.salts != self.salts {
            return Err(FrameError::Salts {
                expected: self.salts,
                found: frame.salts,
            });
        }
        if frame.pgno == 0 {
            return Err(FrameError::Page0);
        }
        let computed = self
            .checksum
            .update(self.big_endian, &header[..8])
            .update(self.big_endian, page);
        if frame.checksum != computed {
            return Err(FrameError::Checksum {
                stored: frame.checksum,
                computed,
            });
        }
        self.checksum = computed;
        Ok(frame)
    }

    /// Byte order of the words that checksums add up.
    pub fn big_endian(&self) -> bool {
        self.big_endian
    }

    /// Salts of the WAL.
    pub fn salts(&self) -> Salts {
        self.salts
    }

    /// Running checksum up to and including the last accepted frame.
    pub fn checksum(&self) -> WalChecksum {
        self.checksum
    }
}

fn salts_at(bytes: &[u8], offset: usize) -> Salts {
    Salts {
        salt1: be_u32(bytes, offset),
        salt2: be_u32(bytes, offset + 4),
    }
}

fn checksum_at(bytes: &[u8], offset: usize) -> WalChecksum {
    WalChecksum {
        s1: be_u32(bytes, offset),
        s2: be_u32(bytes, offset + 4),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(big_endian_checksums: bool) -> WalHeader {
        let header = WalHeader {
            big_endian_checksums,
            page_size: PageSize::MIN,
            checkpoint_sequence: 3,
            salts: Salts {
                salt1: 0x0102_0304,
                salt2: 0x0506_0708,
            },
            checksum: WalChecksum::default(),
        };
        WalHeader::parse(&header.encode()).unwrap()
    }

    /// Makes the frame that SQLite would write after `chain`.
    fn frame(chain: &Chain, pgno: u32, commit: u32, page: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..4].copy_from_slice(&pgno.to_be_bytes());
        bytes[4..8].copy_from_slice(&commit.to_be_bytes());
        bytes[8..12].copy_from_slice(&chain.salts.salt1.to_be_bytes());
        bytes[12..16].copy_from_slice(&chain.salts.salt2.to_be_bytes());
        let sum = chain
            .checksum
            .update(chain.big_endian, &bytes[..8])
            .update(chain.big_endian, page);
        bytes[16..].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn a_header_survives_the_round_trip_in_both_byte_orders() {
        for big_endian in [false, true] {
            let header = header(big_endian);
            assert_eq!(header.encode()[3], 0x82 + u8::from(big_endian));
            assert_eq!(WalHeader::parse(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn every_changed_byte_of_a_header_is_noticed() {
        let good = header(false).encode();
        for offset in 0..WAL_HEADER_BYTES {
            for bit in 0..8 {
                let mut bad = good;
                bad[offset] ^= 1 << bit;
                assert!(WalHeader::parse(&bad).is_err(), "byte {offset} bit {bit}");
            }
        }
    }

    #[test]
    fn a_chain_accepts_its_own_frames_and_resumes_anywhere() {
        for big_endian in [false, true] {
            let mut chain = Chain::start(&header(big_endian));
            for number in 1..=4 {
                let page = [number as u8; 512];
                let bytes = frame(&chain, number, number / 4, &page);
                let mut resumed = Chain::resume(big_endian, chain.salts(), chain.checksum());
                let accepted = chain.accept(&bytes, &page).unwrap();
                assert_eq!(accepted.pgno, number);
                assert_eq!(accepted.is_commit(), number == 4);
                assert_eq!(resumed.accept(&bytes, &page), Ok(accepted));
                assert_eq!(resumed, chain);
            }
        }
    }

    #[test]
    fn a_refused_frame_leaves_the_chain_where_it_was() {
        let start = Chain::start(&header(false));
        let page = [7; 512];
        let good = frame(&start, 1, 1, &page);

        let mut other_log = good;
        other_log[8] ^= 1;
        let page_0 = frame(&start, 0, 1, &page);
        let mut torn = page;
        torn[511] ^= 1;

        let mut chain = start;
        assert!(matches!(
            chain.accept(&other_log, &page),
            Err(FrameError::Salts { .. })
        ));
        assert_eq!(chain.accept(&page_0, &page), Err(FrameError::Page0));
        assert!(matches!(
            chain.accept(&good, &torn),
            Err(FrameError::Checksum { .. })
        ));
        assert_eq!(chain, start);
        assert!(chain.accept(&good, &page).is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(header: [u8; 32], frame: [u8; 24], fix_magic: bool) {
            let mut header = header;
            if fix_magic {
                header[..4].copy_from_slice(&MAGIC.to_be_bytes());
                header[4..8].copy_from_slice(&VERSION.to_be_bytes());
            }
            let _ = WalHeader::parse(&header);
            let mut chain = Chain::resume(false, Salts::default(), WalChecksum::default());
            let _ = chain.accept(&frame, &[0; 512]);
        }
    }
}
