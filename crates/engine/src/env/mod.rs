//! Services of the process that every part may use: budgets, clock, files and locks.

pub mod budget;
pub(crate) mod causes;
pub mod clock;
pub(crate) mod disk;
pub mod files;
pub mod lock_file;
#[cfg(test)]
pub(crate) mod simulated;
