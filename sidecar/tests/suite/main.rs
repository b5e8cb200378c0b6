//! The `sqlite-backup` program as people, scripts and containers use it: real processes, a real S3
//! server, applications in processes of their own, released Litestream binaries.
//!
//! `cargo xtask test` passes the paths of those programs in `WEED_BIN`, `LITESTREAM_0_5_17_BIN` and
//! so on.

#![expect(
    clippy::unwrap_used,
    reason = "a fixture that cannot be built fails its test"
)]

mod chains;
mod cli;
mod compat;
mod endpoints;
mod examples;
mod exec;
mod from_litestream;
mod generations;
mod heartbeat;
mod in_place;
#[path = "../../../crates/engine/tests/live/large.rs"]
mod large;
mod many;
mod oddities;
mod places;
mod proven;
mod reload;
mod replicate;
mod restore;
mod startup;
mod support;
mod verify;
