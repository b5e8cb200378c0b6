//! Capture, upload, compaction, retention, restore and verification of SQLite databases.
//!
//! Decisions are pure ([`plan`], [`retention`], [`table`]) and drivers are thin. One module opens
//! SQLite and one thread captures. Everything else is asynchronous: it may fail, wait and be
//! retried without losing a commit.

pub mod budget;
pub mod capture;
pub mod chain;
pub mod compaction;
pub mod database;
mod disk;
pub mod generations;
pub mod hold;
pub mod holes;
pub mod lease;
pub mod local;
pub mod lockfile;
mod page_numbers;
pub mod pages;
pub mod plan;
pub mod probe;
mod queue;
pub mod reach;
pub mod remote;
pub mod restore;
pub mod retention;
pub mod scan;
pub mod seal;
pub mod snapshot;
pub mod sqlite;
pub mod startup;
pub mod table;
pub mod tap;
pub mod target;
pub mod verify;
