//! Limits of the process, from the configuration, the container, and the volumes.

use std::collections::BTreeSet;
use std::path::Path;

use engine::env::budget::Limits;
use protocol::Size;
use protocol::config::Config;

use super::{ConfigError, ConfiguredDatabase};
use crate::args::{is_state_beside, state_limit};
use crate::memory::container_memory;

/// Smallest allowed limits. With less, hardly one database could be replicated.
const LEAST_LIMITS: Limits = Limits {
    state_bytes: 16 << 20,
    memory_bytes: 64 << 20,
};

/// Returns the limits of the process: those given, else those of its surroundings.
pub(super) fn limits(
    config: &Config,
    databases: &[ConfiguredDatabase],
) -> Result<Limits, ConfigError> {
    let given = config.limits.unwrap_or_default();
    let default = Limits::default();
    let limit = |key: &str, given: Option<Size>, default: u64, least: u64| match given {
        None => Ok(default),
        Some(size) if size.0 < least => Err(ConfigError::Value {
            key: format!("limits.{key}"),
            message: format!(
                "{} bytes are too few; give at least {}Mi",
                size.0,
                least >> 20
            ),
        }),
        Some(size) => Ok(size.0),
    };
    let memory = container_memory().map_or(default.memory_bytes, |bytes| {
        bytes.clamp(LEAST_LIMITS.memory_bytes, default.memory_bytes)
    });
    // A volume of its own is sized for the state. Any other one belongs to the application.
    let volume_limit = state_limit();
    let state_bytes = match volume_limit.filter(|_| !is_state_beside()) {
        Some(bytes) => bytes,
        None => state_on_shared_volumes(databases)
            .unwrap_or(u64::MAX)
            .min(volume_limit.unwrap_or(default.state_bytes))
            .max(LEAST_LIMITS.state_bytes),
    };
    Ok(Limits {
        state_bytes: limit("state", given.state, state_bytes, LEAST_LIMITS.state_bytes)?,
        memory_bytes: limit("memory", given.memory, memory, LEAST_LIMITS.memory_bytes)?,
    })
}

/// Returns the bytes that local state may use of volumes that are not its own: 10 % of the smallest,
/// and at most half of what is free there now. `None` when no volume can be asked.
fn state_on_shared_volumes(databases: &[ConfiguredDatabase]) -> Option<u64> {
    let states = databases.iter().map(|database| &database.settings.state);
    let parents: BTreeSet<&Path> = states.filter_map(|state| state.parent()).collect();
    let limits = parents.into_iter().filter_map(|parent| {
        // A directory that is not there yet is made on the file system of the nearest one that is.
        let existing = parent.ancestors().find(|path| path.exists())?;
        let volume = rustix::fs::statvfs(existing).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(volume.f_frsize);
        Some((bytes(volume.f_blocks) / 10).min(bytes(volume.f_bavail) / 2))
    });
    limits.min()
}
