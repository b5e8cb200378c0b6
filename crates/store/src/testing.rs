//! For the tests of this crate and of its users: a real S3 server on this machine.

mod proxy;
mod weed;

pub use proxy::{Cut, Proxy};
pub use weed::Weed;
