//! What the project's own commands and the end-to-end tests share: the tools a machine needs, the
//! container images, and how other programs are run.
//!
//! Everything made here goes to one cache folder, `target/xtask`, or the folder that the
//! environment variable `XTASK_CACHE` names. Nothing in it is precious: delete it at any time that
//! no cluster is up.

pub mod apiserver;
pub mod images;
pub mod process;
pub mod tools;
pub mod workspace;
