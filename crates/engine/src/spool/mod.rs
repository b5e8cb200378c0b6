//! The local files of one database, and the progress of each target with them.

pub mod cut;
pub mod ltx_writer;
pub mod progress;
pub(crate) mod queue;
pub mod state_dir;
