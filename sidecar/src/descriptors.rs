//! File descriptors: raises the limit to the system's maximum.
//!
//! Each database that is being written takes five, and shells start programs with at most 1,024.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises our limit to the highest allowed value. Start a child process before that: some programs
/// cannot handle more than 1,024 descriptors.
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
