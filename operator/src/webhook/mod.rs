//! The admission webhook: the API server asks about each Pod that a SqliteBackup selects.
//!
//! [`review`] turns the bytes of a question into the bytes of an answer and touches nothing else; the
//! SqliteBackups come from memory, so no answer waits for another request. [`server`] speaks TLS
//! with a certificate that can change at any time ([`tls`]), and bounds everything: connections,
//! body, time. [`metrics`] counts outcomes.

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
