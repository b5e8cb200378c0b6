//! A process that replicates the database of a place: the real driver, on a simulated machine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::env::budget::{Budgets, Limits};
use engine::replica::retention::RetentionPolicy;
use engine::replication::uploader::TargetSettings;
use engine::replication::{Database, DatabaseHandle, DatabaseSettings, Env};
use ltx::Txid;
use protocol::config::OnDivergence;
use protocol::status::TargetState;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::chance::{Chance, Log};
use super::machine::Machine;
use super::model::Place;
use super::oracle::{Oracle, Promise};
use super::source::ModelSource;
use super::wire::{Server, Wire};

/// Local state of a process, in bytes: some 30 captured files.
const STATE_BYTES: u64 = 240 << 10;
/// Time that a stopping process has to store everything.
const DRAIN: Duration = Duration::from_secs(30);
/// Pause between two looks at a process.
const LOOK_MS: u64 = 100;
/// The reported lag is at most this much below the truth: a second, seen a look later.
const LAG_ERROR_MS: u64 = 1000 + LOOK_MS;

/// The retention of a store. Everything stays longer than a request may be in transit. Otherwise a
/// late request would find the name of a fence free again.
pub(super) const RETENTION: RetentionPolicy = RetentionPolicy {
    enabled: true,
    exact: Duration::from_secs(120),
    window: Duration::from_secs(240),
    daily: 0,
    weekly: 0,
    monthly: 0,
};

/// A process.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) place: Arc<Place>,
    pub(super) state: usize,
    pub(super) handle: DatabaseHandle,
    pub(super) machine: Machine,
    source: ModelSource,
    stop: Option<watch::Sender<bool>>,
    driver: JoinHandle<bool>,
    observer: JoinHandle<()>,
}

impl Process {
    pub(super) fn start(
        serial: u64,
        (place, state): (&Arc<Place>, usize),
        settings: DatabaseSettings,
        oracle: &Arc<Oracle>,
        machine: Machine,
        chance: Chance,
    ) -> Process {
        let (stop, stopped) = watch::channel(false);
        let log = Arc::clone(&machine.clock.log);
        let source = ModelSource::new(serial, place, &machine.clock, chance);
        let limits = Limits {
            state_bytes: STATE_BYTES,
            ..Limits::default()
        };
        let env = Env {
            host: machine.host(),
            source: Arc::new(source.clone()),
            budgets: Budgets::new(limits),
        };
        let name = settings.holder.clone();
        let (database, handle) = Database::new(settings, &env, stopped);
        let observer = Observer {
            actor: actor(serial),
            name: name.clone(),
            place: Arc::clone(place),
            handle: handle.clone(),
            oracle: Arc::clone(oracle),
            told: vec![Txid::ZERO; handle.targets().count()],
            started_ms: log.now_ms(),
            stop: stop.subscribe(),
            is_wrong: false,
            seen: String::new(),
            machine: machine.clone(),
            log,
        };
        Process {
            name,
            place: Arc::clone(place),
            state,
            handle,
            machine,
            source,
            stop: Some(stop),
            driver: tokio::spawn(database.run(DRAIN)),
            observer: tokio::spawn(observer.run()),
        }
    }

    /// Ends it as SIGKILL does.
    pub(super) async fn kill(mut self, log: &Log) {
        self.driver.abort();
        let _ended = ended((&mut self.driver).await);
        self.end(log).await;
    }

    /// Ends it gracefully. True when everything is stored.
    pub(super) async fn stop(mut self, log: &Log) -> bool {
        // As in the sidecar, the sender is gone then.
        if let Some(stop) = self.stop.take() {
            stop.send_replace(true);
        }
        let complete = ended((&mut self.driver).await).unwrap_or(false);
        // Acknowledgements since the last look count, too.
        log.pause(actor(self.source.process), LOOK_MS).await;
        self.end(log).await;
        complete
    }

    /// Ends everything that the driver left. Its tasks end when the runtime comes to them.
    async fn end(self, log: &Log) {
        self.source.kill();
        self.observer.abort();
        ended(self.observer.await);
        drop(self.handle);
        log.pause(actor(self.source.process), 1).await;
    }

    pub(super) fn is_over(&self) -> bool {
        self.driver.is_finished() || self.machine.disk.is_frozen()
    }
}

/// The residue of a process. Those of its targets follow.
pub(super) fn actor(serial: u64) -> u64 {
    1 + serial * 3
}

/// The settings of a process.
pub(super) fn settings(
    serial: u64,
    seed: u64,
    name: String,
    (place, state): (&Place, usize),
    servers: &[Arc<Server>],
    machine: &Machine,
) -> DatabaseSettings {
    let target = |server: &Arc<Server>| {
        let actor = actor(serial) + 1 + server.index as u64;
        let chance = |purpose| Mutex::new(Chance::new(seed, purpose + actor));
        TargetSettings {
            name: format!("target{}", server.index),
            store: Arc::new(Wire {
                server: Arc::clone(server),
                actor,
                name: name.clone(),
                place: place.number,
                disk: Arc::clone(&machine.disk),
                chance: chance(1000),
                threads: chance(2000),
                restores: name.starts_with("restore"),
            }),
            compaction_interval: Duration::from_secs(5),
            higher_levels: vec![Duration::from_secs(20), Duration::from_secs(60)],
            retention: RETENTION,
        }
    };
    DatabaseSettings {
        path: place.database(),
        state: place.state(state),
        targets: servers.iter().map(target).collect(),
        sync_interval: Duration::from_secs(1),
        snapshot_interval: Duration::from_secs(40),
        holder: name,
        on_divergence: OnDivergence::Block,
    }
}

/// The result of a task, unless it was aborted. A panic in it becomes ours.
fn ended<T>(task: Result<T, JoinError>) -> Option<T> {
    match task.map_err(JoinError::try_into_panic) {
        Ok(value) => Some(value),
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_aborted)) => None,
    }
}

/// Looks at the status that a process reports, and tells the oracle.
struct Observer {
    actor: u64,
    name: String,
    place: Arc<Place>,
    handle: DatabaseHandle,
    oracle: Arc<Oracle>,
    log: Arc<Log>,
    machine: Machine,
    /// The newest position that each target acknowledged.
    told: Vec<Txid>,
    started_ms: u64,
    stop: watch::Receiver<bool>,
    /// It has reported a wrong lag.
    is_wrong: bool,
    /// The last noted state.
    seen: String,
}

impl Observer {
    async fn run(mut self) {
        loop {
            self.log.pause(self.actor, LOOK_MS).await;
            if self.machine.disk.is_frozen() {
                return;
            }
            self.look();
        }
    }

    fn look(&mut self) {
        let status = self.handle.status();
        let states: Vec<_> = status.targets.iter().map(|target| target.state).collect();
        let at = status.position.map(|position| position.txid);
        let directory = self.place.directory.display().to_string();
        let message = status.message.replace(&directory, "");
        let seen = format!("{:?} {states:?} at {at:?} {message}", status.state);
        if seen != self.seen {
            self.log.note(self.actor, format!("{}: {seen}", self.name));
            self.seen = seen;
        }
        for (index, target) in status.targets.iter().enumerate() {
            if let Some(position) = &target.position {
                let txid: Txid = position.txid.parse().expect("a position has a TXID");
                let checksum = u64::from_str_radix(&position.checksum, 16).expect("hex digits");
                self.is_told(index, txid, checksum);
            }
            if !matches!(
                target.state,
                TargetState::Superseded | TargetState::Diverged
            ) {
                self.check_lag(index, target.lag_ms);
            }
        }
    }

    fn is_told(&mut self, store: usize, txid: Txid, checksum: u64) {
        if txid < self.told[store] {
            let (name, told) = (&self.name, self.told[store]);
            let broken = format!("store {store}: {name} was told of {told}, then of {txid}");
            self.oracle.broken(Promise::P2, broken);
        }
        self.told[store] = txid;
        self.oracle.acked(store, &self.name, txid, checksum);
    }

    /// The reported lag is the truth, or at most a second less. A process that was asked to stop
    /// counts no later commits.
    fn check_lag(&mut self, store: usize, lag_ms: u64) {
        let app = self.place.app.lock().unwrap();
        if app.is_gone() {
            return;
        }
        let oldest = self
            .oracle
            .stored(store, |stored| app.oldest_unstored_ms(stored));
        let Some(oldest_ms) = oldest.filter(|_| !*self.stop.borrow()) else {
            return;
        };
        // A process knows of older commits only that they are there.
        let truth_ms = self.log.now_ms() - oldest_ms.max(self.started_ms);
        if lag_ms + LAG_ERROR_MS < truth_ms && !self.is_wrong {
            self.is_wrong = true;
            self.log
                .note(self.actor, format!("{}: a wrong lag", self.name));
            let name = &self.name;
            let broken =
                format!("store {store}: {name} reports a lag of {lag_ms} ms, it is {truth_ms}");
            self.oracle.broken(Promise::Lag, broken);
        }
    }
}
