//! Paths in a checkout.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the checkout: the folder of the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Returns the folder for files that are slow to create and can be created again: `target/xtask`,
/// or the folder in `XTASK_CACHE`.
pub fn cache() -> PathBuf {
    env::var_os("XTASK_CACHE").map_or_else(|| root().join("target/xtask"), PathBuf::from)
}

/// Returns Cargo's target folder: `target`, or the folder in `CARGO_TARGET_DIR`.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
