//! The database of the application: SQLite, its files, and the capture of its commits.

pub mod capture;
pub(crate) mod checkpoint;
pub mod open_files;
pub mod probe;
pub mod scan;
pub mod sqlite;
pub mod wal;
