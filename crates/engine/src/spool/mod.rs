//! Our own files of one database on the local disk, and how far each target is with them.

pub mod cut;
pub mod ltx_writer;
pub mod progress;
pub(crate) mod queue;
pub mod state_dir;
