//! Servers for the tests of this crate and of its users: a real S3 server on this machine, and one
//! that keeps each key unchanged.

mod exact;
mod proxy;
mod weed;

pub use exact::{ExactServer, Refusal};
pub use proxy::{Cut, Proxy};
pub use weed::Weed;
