//! The files of one database in a store: the right to write them, their list, and their positions.

pub mod compaction;
pub mod holes;
pub mod lease;
pub mod manifest;
pub mod reachability;
pub mod restore_plan;
pub mod retention;
