//! Shared by the project's own commands and the end-to-end tests: the required tools, the container
//! images, and the execution of other programs.
//!
//! All files are created in one cache folder, `target/xtask`, or the folder in the environment
//! variable `XTASK_CACHE`. It can be deleted at any time while no cluster is up.

pub mod apiserver;
pub mod images;
pub mod process;
pub mod tools;
pub mod workspace;
