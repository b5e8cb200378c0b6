//! File descriptors: as many as the system lets us have.
//!
//! Each database that is written takes five, and shells start programs with 1,024 at most.

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// Raises our limit to the highest that we may have. Returns the one before.
pub fn raise() -> Rlimit {
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
    before
}

/// Gives a child of ours the limit that we were started with: what is not told of more than 1,024
/// descriptors may not be made for them.
pub fn give_back(child: Pid, before: Rlimit) {
    // It fails only when the child has just ended.
    let _set = prlimit(Some(child), Resource::Nofile, before);
}
