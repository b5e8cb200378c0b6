//! Pages of one database: their images, their hashes, sets of their numbers.

pub(crate) mod page_bitmap;
pub mod page_hashes;
pub mod page_set;
