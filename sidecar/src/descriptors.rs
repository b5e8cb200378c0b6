//! File descriptors: as many as the system lets us have.
//!
//! Each database that is written takes five, and shells start programs with 1,024 at most.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises our limit to the highest that we may have. A child of ours has to be started before: what is
/// not told of more than 1,024 descriptors may not be made for them.
pub fn raise() {
    let before = getrlimit(Resource::Nofile);
    let highest = Rlimit {
        current: before.maximum,
        ..before
    };
    if let Err(error) = setrlimit(Resource::Nofile, highest) {
        tracing::debug!(
            "the limit of open files stays at {:?}: {error}",
            before.current
        );
    }
}
