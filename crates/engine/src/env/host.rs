//! The machine that the engine runs on.

use std::sync::Arc;

use super::clock::{Clock, SystemClock};
use super::disk::{Disk, SystemDisk};
use super::threads::{RuntimeThreads, Threads};

/// Access to the machine that the engine runs on. The default is the system; a simulation has
/// machines of its own.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Its local disk.
    pub disk: Arc<dyn Disk>,
    /// Threads for slow work.
    pub threads: Arc<dyn Threads>,
}

impl Default for Host {
    fn default() -> Host {
        Host {
            clock: Arc::new(SystemClock),
            disk: Arc::new(SystemDisk),
            threads: Arc::new(RuntimeThreads),
        }
    }
}
