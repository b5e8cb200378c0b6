//! Services of the process that every part may use: the machine, budgets, files and locks.

pub mod budget;
pub(crate) mod causes;
pub mod clock;
pub mod disk;
pub mod files;
pub mod host;
pub mod lock_file;
pub mod threads;
