//! LTX version 3: the immutable files of page images that make up a replica.
//!
//! An LTX file holds the newest image of each page that changed in an inclusive range of TXIDs, in
//! order of page number, with an index and a checksum. It is byte-compatible with Litestream 0.5 in
//! both directions. All integers are big-endian:
//!
//! ```text
//! header (100) | page frames … | six zero bytes | page index | trailer (16)
//! ```
//!
//! - [`Encoder`] and [`Decoder`] write and read whole files as streams, in memory bounded by a few
//!   pages and, for the encoder, about three bytes for each page;
//! - [`PageIndex`] and [`decode_frame`] read single pages of a file by ranged reads;
//! - [`merge`] combines neighbouring files into one, in which the newest image of a page wins;
//! - [`Txid`], [`FileName`] and [`Level`] name files.
//!
//! Nothing here opens files or reads the clock. The engine plans which files to read.

mod checksum;
mod decoder;
mod encoder;
mod error;
mod frame_list;
mod header;
mod index;
mod input;
mod lz4_frame;
mod merge;
mod name;
mod page;
mod page_order;
mod txid;
mod varint;

pub use checksum::{CHECKSUM_FLAG, DatabaseChecksum, page_checksum};
pub use decoder::Decoder;
pub use encoder::{Encoder, Summary};
pub use error::{ErrorKind, HeaderError, LtxError, Misuse, PagesError, Section};
pub use header::{HEADER_BYTES, Header, TRAILER_BYTES, Trailer};
pub use index::{IndexEntry, IndexTail, PageIndex};
pub use merge::{MergeOptions, Merged, merge, merged_header};
pub use name::{FileName, Level};
pub use page::decode_frame;
pub use txid::{Txid, TxidError};
