//! Services of the process that every part may use: budgets, files and locks.

pub mod budget;
pub(crate) mod disk;
pub mod lock_file;
