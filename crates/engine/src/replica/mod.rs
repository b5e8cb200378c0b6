//! The files of one database in a store: who may write them, which ones there are, what they lead to.

pub mod compaction;
pub mod holes;
pub mod lease;
pub mod manifest;
pub mod reachability;
pub mod restore_plan;
pub mod retention;
