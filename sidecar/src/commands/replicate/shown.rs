//! The state of the databases for the HTTP endpoints.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::replication::DatabaseHandle;
use engine::replication::uploader::{TargetReport, TargetSettings};
use jiff::Timestamp;
use protocol::exit::ExitCode;
use protocol::names::STATUS_VERSION;
use protocol::status::{DatabaseState, DatabaseStatus, SidecarStatus};
use store::{Requests, Store};

use crate::config::{Refused, Settings};

/// The databases of this process. They are replaced together with the configuration.
#[derive(Clone, Default)]
pub struct Shown {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    backup: String,
    member: String,
    config_hash: String,
    databases: Vec<ShownDatabase>,
}

/// One database: the state of its driver, or the reason that keeps the driver from starting.
#[derive(Clone)]
pub struct ShownDatabase {
    source: Source,
    held: Arc<Mutex<Option<(ExitCode, String)>>>,
}

#[derive(Clone)]
enum Source {
    Driver(DatabaseHandle),
    /// No driver exists, for the reason in this status.
    Refused(Arc<DatabaseStatus>),
}

impl ShownDatabase {
    /// Shows the driver's state and the requests to its targets' stores.
    pub fn new(handle: DatabaseHandle) -> ShownDatabase {
        ShownDatabase {
            source: Source::Driver(handle),
            held: Arc::default(),
        }
    }

    /// Shows a database that is not replicated because of its name.
    pub fn refused(refused: &Refused) -> ShownDatabase {
        let status = DatabaseStatus {
            path: refused.path.display().to_string(),
            state: DatabaseState::UnusableName,
            message: refused.message.clone(),
            position: None,
            size_bytes: 0,
            targets: Vec::new(),
        };
        ShownDatabase {
            source: Source::Refused(Arc::new(status)),
            held: Arc::default(),
        }
    }

    /// Returns the number of requests sent to each target, by its name.
    pub fn requests(&self) -> impl Iterator<Item = (&str, Requests)> {
        let sent = |target: &'_ TargetSettings| target.store.requests();
        self.driver()
            .into_iter()
            .flat_map(DatabaseHandle::targets)
            .filter_map(move |target| Some((target.name.as_str(), sent(target)?)))
    }

    /// Returns the driver's counters for each target, by its name.
    pub fn counters(&self) -> Vec<(String, TargetReport)> {
        self.driver()
            .map(DatabaseHandle::counters)
            .unwrap_or_default()
    }

    /// Returns how often writers waited for one of our checkpoints.
    pub fn blocking_checkpoints(&self) -> u64 {
        self.driver()
            .map_or(0, DatabaseHandle::blocking_checkpoints)
    }

    fn driver(&self) -> Option<&DatabaseHandle> {
        match &self.source {
            Source::Driver(handle) => Some(handle),
            Source::Refused(_) => None,
        }
    }

    /// Sets the reason why the driver has not started yet; `None` when it has.
    pub fn hold(&self, reason: Option<(ExitCode, String)>) {
        *lock(&self.held) = reason;
    }

    /// Returns the reason why the driver has not started yet.
    pub fn held(&self) -> Option<(ExitCode, String)> {
        lock(&self.held).clone()
    }

    /// Returns the current status.
    pub fn status(&self) -> DatabaseStatus {
        let mut status = match &self.source {
            Source::Driver(handle) => handle.status(),
            Source::Refused(status) => return status.as_ref().clone(),
        };
        if let Some((_, message)) = self.held() {
            status.state = DatabaseState::Missing;
            status.message = message;
        }
        status
    }
}

impl Shown {
    /// Returns the current databases.
    pub fn databases(&self) -> Vec<ShownDatabase> {
        lock(&self.inner).databases.clone()
    }

    /// Returns the current status of the process.
    pub fn status(&self, started: Timestamp) -> SidecarStatus {
        let inner = lock(&self.inner);
        let mut databases: Vec<_> = inner.databases.iter().map(ShownDatabase::status).collect();
        databases.sort_by(|a, b| a.path.cmp(&b.path));
        SidecarStatus {
            version: STATUS_VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            backup: inner.backup.clone(),
            member: inner.member.clone(),
            config_hash: inner.config_hash.clone(),
            started,
            now: Timestamp::now(),
            databases,
        }
    }

    pub(super) fn replace(
        &self,
        settings: &Settings,
        config_hash: &str,
        databases: Vec<ShownDatabase>,
    ) {
        *lock(&self.inner) = Inner {
            backup: settings.backup.clone(),
            member: settings.member.clone(),
            config_hash: config_hash.to_owned(),
            databases,
        };
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
