//! Capture, upload, compaction, retention, restore and verification of SQLite databases.
//!
//! A commit passes the folders in this order: [`source`] reads it from the WAL, [`spool`] stores
//! it as an LTX file, [`replication`] schedules the work and uploads the file. [`replica`] tracks
//! the stored files, and [`restore`] builds a database from them. [`env`] and [`pages`] serve all
//! of them.
//!
//! Decisions are pure and drivers are thin. One module opens SQLite and one thread captures.
//! Everything else is asynchronous: it may fail, wait and be retried without losing a commit.

pub mod env;
pub mod pages;
pub mod replica;
pub mod replication;
pub mod restore;
pub mod source;
pub mod spool;
pub mod startup;
pub mod verify;
