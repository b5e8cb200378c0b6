//! The admission webhook: the API server sends a review for each Pod that a SqliteBackup selects.
//!
//! [`review`] turns the bytes of a review into the bytes of an answer, without I/O. The
//! SqliteBackups come from memory, so no answer waits for another request. [`server`] serves TLS
//! with a certificate that can change at any time ([`tls`]), and limits connections, body and time.
//! [`metrics`] counts outcomes.

use std::sync::Arc;

use api::SqliteBackup;

pub mod metrics;
pub mod review;
pub mod server;
pub mod tls;

#[cfg(test)]
mod server_tests;

/// Returns the SqliteBackups of a namespace from memory. Called for each Pod; must not block.
pub type Backups = Arc<dyn Fn(&str) -> Vec<Arc<SqliteBackup>> + Send + Sync>;

/// Path under which Pods are reviewed; it is in every webhook entry.
pub const MUTATE_PATH: &str = "/mutate";
