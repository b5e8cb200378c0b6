//! Replicas of Litestream 0.3: golden ones, damaged ones, and ones beside our files.

#![expect(
    clippy::unwrap_used,
    reason = "all of it is tests; clippy knows only functions that are"
)]

mod damage;
mod goes_on;
mod golden;
mod mixed;
mod replica;
