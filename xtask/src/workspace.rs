//! Where things are in a checkout.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the checkout: the folder of the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// The folder for everything that is slow to make and can be made again: `target/xtask`, or what
/// `XTASK_CACHE` names.
pub fn cache() -> PathBuf {
    env::var_os("XTASK_CACHE").map_or_else(|| root().join("target/xtask"), PathBuf::from)
}

/// Cargo's target folder: `target`, or what `CARGO_TARGET_DIR` names.
pub fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
