//! The Kubernetes resources of `sqlite-backup.dev`: types, names, defaults, rules.
//!
//! Rules that concern one object are in its schema, so that `kubectl apply` rejects violations at
//! once. [`validate`] holds the rules that a schema cannot express. `kubectl explain` shows the
//! field docs. There is no I/O, no client and no clock.

pub mod backup;
pub mod crd;
pub mod names;
pub mod proof;
pub mod restore;
pub mod restore_test;
pub mod schema;
pub mod selector;
pub mod status;
pub mod target;
pub mod validate;

pub use backup::{DatabaseSpec, DeletionPolicy, SqliteBackup, SqliteBackupSpec, UpdatePolicy};
pub use crd::crds;
pub use proof::RestoreTestPolicy;
pub use restore::{SqliteRestore, SqliteRestoreSpec};
pub use restore_test::{RestoreTest, RestoreTestPhase, RestoreTestSpec, RestoreTestStatus};
pub use selector::PodSelector;
pub use status::SqliteBackupStatus;
pub use target::{Place, Target};

/// The API group of every kind here.
pub const GROUP: &str = "sqlite-backup.dev";

/// The only version served.
pub const VERSION: &str = "v1alpha1";
