//! Hooks that replace the clock and the disk in simulated machines.

use std::io;
use std::sync::OnceLock;

use super::disk::{Answer, Call};

/// The functions of a simulation. Outside its machines they answer as if there were no simulation.
pub(crate) struct Hooks {
    pub(crate) now_ms: fn() -> Option<i64>,
    pub(crate) disk_call: fn(Call<'_>) -> io::Result<Answer>,
}

static HOOKS: OnceLock<Hooks> = OnceLock::new();

/// Installs the hooks of a simulation.
pub(crate) fn install(hooks: Hooks) {
    // Later calls bring the same hooks.
    let _installed = HOOKS.set(hooks);
}

pub(super) fn now_ms() -> Option<i64> {
    HOOKS.get().and_then(|hooks| (hooks.now_ms)())
}

pub(super) fn disk_call(call: Call<'_>) -> io::Result<Answer> {
    HOOKS
        .get()
        .map_or(Ok(Answer::Go), |hooks| (hooks.disk_call)(call))
}
