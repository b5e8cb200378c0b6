//! The running databases, and the changes that a new configuration makes to them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use engine::env::host::Host;
use engine::replica::lease::LEASE_KEY;
use engine::replication::uploader::TargetSettings;
use engine::replication::{Database, DatabaseSettings, Env};
use engine::restore::{Point, find};
use engine::startup::{Ready, make_ready};
use futures::future::join_all;
use protocol::config::Startup;
use store::{ObjectInfo, Store, StoreError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::shown::{Shown, ShownDatabase};
use super::source::Loaded;
use crate::commands::restore::findings;
use crate::config::Refused;
use crate::failure::Failure;
use crate::near;

/// Pause after a first failed restore before replication; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const MAX_PAUSE: Duration = Duration::from_secs(15);
/// Limit on the databases that are checked for near misses, at some lists each. All databases of
/// one pattern have the same near misses.
const MAX_NEAR_MISS_CHECKS: usize = 16;
/// Time limit on the search for a backup at a near miss, at a first start.
const NEAR_MISS_TIME: Duration = Duration::from_secs(5);

/// The running databases by path.
pub struct Fleet {
    env: Env,
    running: BTreeMap<PathBuf, Running>,
    /// Databases that were removed from the configuration and still store their last commits.
    leaving: BTreeMap<PathBuf, JoinHandle<bool>>,
    /// Databases that are not replicated because of their names.
    refused: Vec<Refused>,
    /// Number of databases checked for near misses.
    near_miss_checks: usize,
}

struct Running {
    /// Fingerprint of all settings that the database runs with.
    fingerprint: [u8; 32],
    stop: watch::Sender<bool>,
    task: JoinHandle<bool>,
    /// Turns true once a missing database was restored; `None` when no restore was requested.
    is_ready: Option<watch::Receiver<bool>>,
    shown: ShownDatabase,
}

impl Fleet {
    /// Creates a fleet without databases.
    pub fn new(env: Env) -> Fleet {
        Fleet {
            env,
            running: BTreeMap::new(),
            leaving: BTreeMap::new(),
            refused: Vec::new(),
            near_miss_checks: 0,
        }
    }

    /// Applies the configuration. A database with unchanged settings continues undisturbed. One
    /// with changed settings stores its captured commits before it starts again.
    pub fn apply(&mut self, loaded: &Loaded, shown: &Shown) {
        let settings = &loaded.settings;
        let mut before = std::mem::take(&mut self.running);
        self.leaving.retain(|_, task| !task.is_finished());
        for database in &settings.databases {
            let path = database.settings.path.clone();
            let predecessor = match before.remove(&path) {
                Some(running) if running.fingerprint == database.fingerprint => {
                    self.running.insert(path, running);
                    continue;
                }
                Some(running) => {
                    running.stop.send_replace(true);
                    Some(running.task)
                }
                None => self.leaving.remove(&path),
            };
            let restore = database.restore_first.then_some(settings.startup);
            let running = self.start(
                database.settings.clone(),
                database.fingerprint,
                restore,
                settings.drain,
                predecessor,
            );
            self.running.insert(path, running);
        }
        for (path, running) in before {
            running.stop.send_replace(true);
            self.leaving.insert(path, running.task);
        }
        for refused in &settings.refused {
            if !self.refused.contains(refused) {
                let database = refused.path.display();
                tracing::error!(%database, "not replicated: {}", refused.message);
            }
        }
        self.refused.clone_from(&settings.refused);
        let databases = self.running.values().map(|running| running.shown.clone());
        let refused = self.refused.iter().map(ShownDatabase::refused);
        shown.replace(settings, &loaded.hash, databases.chain(refused).collect());
    }

    fn start(
        &mut self,
        settings: DatabaseSettings,
        fingerprint: [u8; 32],
        restore: Option<Startup>,
        drain: Duration,
        predecessor: Option<JoinHandle<bool>>,
    ) -> Running {
        let (stop, mut stopped) = watch::channel(false);
        let (ready, is_ready) = restore.map(|_| watch::channel(false)).unzip();
        let (database, handle) = Database::new(settings.clone(), &self.env, stopped.clone());
        let shown = ShownDatabase::new(handle);
        let held = shown.clone();
        // Without local state, a new backup may begin.
        let is_new = self.near_miss_checks < MAX_NEAR_MISS_CHECKS && !settings.state.exists();
        self.near_miss_checks += usize::from(is_new);
        let task = tokio::task::spawn_local(async move {
            let mut drain = drain;
            if let Some(mut predecessor) = predecessor {
                // Two drivers of one database would write the same local files.
                tokio::select! {
                    _stored = &mut predecessor => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {
                        let asked = Instant::now();
                        let _stored = predecessor.await;
                        drain = drain.saturating_sub(asked.elapsed());
                    }
                }
            }
            if let Some(startup) = restore {
                tokio::select! {
                    // Boxed, so that a running database reserves no memory for it.
                    () = Box::pin(restore_missing(&settings, startup, &held)) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => return true,
                }
            }
            if let Some(ready) = ready {
                ready.send_replace(true);
            }
            if is_new {
                tokio::select! {
                    () = Box::pin(warn_of_near_misses(&settings)) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            }
            database.run(drain).await
        });
        Running {
            fingerprint,
            stop,
            task,
            is_ready,
            shown,
        }
    }

    /// Waits until every database with a requested restore is ready.
    pub fn ready(&self) -> impl Future<Output = ()> + use<> {
        let ready: Vec<_> = self
            .running
            .values()
            .filter_map(|it| it.is_ready.clone())
            .collect();
        async move {
            for mut ready in ready {
                // Do not wait for a database that has ended meanwhile.
                let _ready = ready.wait_for(|ready| *ready).await;
            }
        }
    }

    /// Ends all databases at the same time; each stores its captured commits first. Returns true
    /// when all succeeded.
    pub async fn end(self) -> bool {
        for running in self.running.values() {
            running.stop.send_replace(true);
        }
        let tasks = self.running.into_values().map(|running| running.task);
        let ended = join_all(tasks.chain(self.leaving.into_values())).await;
        self.refused.is_empty() && ended.into_iter().all(|complete| complete.unwrap_or(false))
    }

    /// Aborts the unwanted databases without waiting for them.
    pub fn abandon(&mut self, mut unwanted: impl FnMut(&ShownDatabase) -> bool) {
        self.running.retain(|_, running| {
            let abandoned = unwanted(&running.shown);
            if abandoned {
                running.task.abort();
            }
            !abandoned
        });
    }
}

/// Warns before a new backup begins when a backup exists at a slightly different spelling of its
/// path.
async fn warn_of_near_misses(settings: &DatabaseSettings) {
    let ask = async |target: &TargetSettings| {
        // Only a path that is known to be empty can have near misses.
        let holds_none =
            |found: Result<Vec<ObjectInfo>, StoreError>| found.is_ok_and(|it| it.is_empty());
        if target.store.near_misses().is_empty()
            || !holds_none(target.store.list(LEASE_KEY, None).await)
            || find(&target.store, Point::Latest).await.is_ok()
        {
            return;
        }
        if let Some(place) = near::near_miss(&target.store).await {
            tracing::warn!(
                database = %settings.path.display(), replica = %target.name,
                "a new backup begins at {}, while there is one at {place}: a path is taken byte for \
                 byte, so correct its slashes and dots if that is meant",
                target.store.describe()
            );
        }
    };
    let asked = join_all(settings.targets.iter().map(ask));
    let _too_slow = tokio::time::timeout(NEAR_MISS_TIME, asked).await;
}

/// Restores a missing database. Returns when the database exists, or when every target reports that
/// it has no backup: an outage must not appear as an empty replica.
async fn restore_missing(settings: &DatabaseSettings, startup: Startup, shown: &ShownDatabase) {
    let mut pause = MIN_PAUSE;
    loop {
        let check = findings::unattended(None, startup.on_check_failed);
        let ready = make_ready(
            settings,
            &Host::default(),
            startup.on_missing,
            check,
            &|_, _| {},
        )
        .await;
        let failure = match ready {
            Ok(Ready::Restored { restored, .. }) => {
                findings::warn(&settings.path, &restored.checked);
                break;
            }
            Ok(Ready::Empty) => {
                tracing::info!(
                    "{}: there is no backup: starts empty",
                    settings.path.display()
                );
                break;
            }
            Ok(_) => break,
            Err(error) => Failure::from(error),
        };
        let message = failure.to_string();
        if shown.held().is_none_or(|(_, said)| said != message) {
            tracing::error!("replication waits for its database: {message}");
        }
        shown.hold(Some((failure.code, message)));
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
    shown.hold(None);
}
