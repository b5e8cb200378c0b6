//! The events that processes, their volumes and their stores go through.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::config::OnMissing;
use store::Memory;

use engine::replica::lease;
use engine::restore::IntegrityCheck;
use engine::startup::{Ready, make_ready};

use super::chance::{Chance, Log};
use super::machine::{Clock, Disk, Machine, Threads, Trouble};
use super::model::{App, Place, database, files, image_of};
use super::oracle::{Broken, Oracle, Promise};
use super::wire::{LATEST_MS, Server};
use super::writer::{Process, settings};

/// The residue of virtual time of the world itself.
pub(super) const WORLD: u64 = 0;
/// The residue of applications.
const APPLICATIONS: u64 = 99;
/// Most processes in one run. Each has three residues.
const MOST_PROCESSES: u64 = 30;
/// Most processes that live at the same time.
const MOST_ALIVE: usize = 3;
/// Virtual time that the last writer has to store everything.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A copy of a volume at one moment.
struct Backup {
    place: Arc<Place>,
    state: usize,
    commit: usize,
    /// The WAL position at that moment, to notice a history that was cut since.
    mark: engine::source::wal::WalPosition,
    files: BTreeMap<String, Vec<u8>>,
}

pub(super) struct World {
    seed: u64,
    pub(super) chance: Chance,
    directory: tempfile::TempDir,
    pub(super) log: Arc<Log>,
    oracle: Arc<Oracle>,
    pub(super) servers: Vec<Arc<Server>>,
    places: Vec<Arc<Place>>,
    pub(super) alive: Vec<Process>,
    backups: Vec<Backup>,
    /// The disks below the state directories, by place and number.
    disks: BTreeMap<(usize, usize), Arc<Disk>>,
    /// Clocks jump.
    clocks_jump: bool,
    /// The clocks of stores jump, not those of machines. Retention holds while one of both is
    /// right.
    pub(super) stores_jump: bool,
    /// Places and numbers of used state directories, by the name of the last process.
    pub(super) homes: BTreeMap<String, (Arc<Place>, usize)>,
    serial: u64,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut chance = Chance::new(seed, 1);
        let (log, oracle) = (Arc::new(Log::new()), Arc::new(Oracle::default()));
        let servers = (0..1 + chance.below(2) as usize)
            .map(|index| {
                let off_ms = Arc::new(AtomicI64::new(0));
                let clock = Clock {
                    log: Arc::clone(&log),
                    off_ms: Arc::clone(&off_ms),
                };
                Arc::new(Server {
                    index,
                    inner: Arc::new(Memory::with_clock(move || clock.now_ms())),
                    one_in: AtomicU64::new([0, 30, 12, 6][chance.below(4) as usize]),
                    down_until_ms: AtomicU64::new(0),
                    late_until_ms: AtomicU64::new(0),
                    off_ms,
                    dated_by_writers: chance.one_in(2),
                    log: Arc::clone(&log),
                    oracle: Arc::clone(&oracle),
                })
            })
            .collect();
        World {
            clocks_jump: chance.one_in(2),
            stores_jump: chance.one_in(3),
            seed,
            chance,
            directory: tempfile::tempdir().unwrap(),
            log,
            oracle,
            servers,
            places: Vec::new(),
            alive: Vec::new(),
            backups: Vec::new(),
            disks: BTreeMap::new(),
            homes: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Runs the whole scenario. Returns how many restored points were compared, and the log.
    pub(super) async fn run(mut self) -> (Result<u64, Broken>, Vec<String>) {
        self.new_node().await;
        for _ in 0..20 + self.chance.below(25) {
            let wait = 200 + self.chance.below(20_000);
            self.log.pause(WORLD, wait).await;
            self.event().await;
            if self.oracle.verdict().is_err() {
                return (self.oracle.verdict(), self.log.lines());
            }
        }
        self.end().await;
        (self.oracle.verdict(), self.log.lines())
    }

    async fn event(&mut self) {
        let many = self.serial >= MOST_PROCESSES - 2;
        match self.chance.below(21) {
            0 | 1 if !many => self.restart(false).await,
            2 if !many => self.restart(true).await,
            3 if !many => self.new_node().await,
            4 if !many => self.second_state().await,
            5 if !many => self.clone_volume().await,
            6 if !many => self.roll_back().await,
            7 => {
                if let Some(index) = self.some_process() {
                    self.note("kill", index);
                    let process = self.alive.remove(index);
                    self.kill(process).await;
                }
            }
            8 => self.back_up(),
            9 => {
                let until = self.log.now_ms() + self.chance.below(60_000);
                let server = self.chance.pick(&self.servers).expect("there is a store");
                server.down_until_ms.store(until, Ordering::Relaxed);
                let line = format!("store {} is down until {until}", server.index);
                self.log.note(WORLD, line);
            }
            10 => {
                let rate = [0, 30, 12, 6, 3][self.chance.below(5) as usize];
                let server = self.chance.pick(&self.servers).expect("there is a store");
                server.one_in.store(rate, Ordering::Relaxed);
                let line = format!("store {}: one request in {rate}", server.index);
                self.log.note(WORLD, line);
            }
            11 if self.clocks_jump => self.jump(),
            12 => {
                if let Some(index) = self.some_process() {
                    let mut app = self.alive[index].place.app.lock().unwrap();
                    app.is_busy = !app.is_busy;
                    drop(app);
                    self.note("busy or quiet", index);
                }
            }
            13 => self.disk_trouble(),
            14 if !many => self.crash().await,
            15 if !many => self.late_copy().await,
            16 if !many => self.lose_database().await,
            _ => self.check().await,
        }
        let over = |process: &Process| process.is_over();
        if self.chance.one_in(3)
            && let Some(index) = self.alive.iter().position(over)
        {
            self.note("over", index);
            let process = self.alive.remove(index);
            process.kill(&self.log).await;
        }
        while self.alive.len() > MOST_ALIVE {
            let process = self.alive.remove(0);
            self.kill(process).await;
        }
        if self.alive.is_empty() && self.serial < MOST_PROCESSES - 2 {
            self.restart(false).await;
        }
    }

    async fn check(&mut self) {
        for server in self.servers.clone() {
            self.oracle.check(&server, &mut self.chance).await;
        }
    }

    /// Starts a process on a new machine from the stored backup. Others may live on.
    pub(super) async fn new_node(&mut self) {
        let place = self.new_place();
        if self.is_made_ready(&place, 0).await {
            self.start(&place, 0);
        }
    }

    /// Removes a database, but not the state beside it.
    async fn lose_database(&mut self) {
        let Some(index) = self.some_process() else {
            return;
        };
        let (place, state) = (
            Arc::clone(&self.alive[index].place),
            self.alive[index].state,
        );
        let on_it = |process: &Process| Arc::ptr_eq(&process.place, &place);
        while let Some(index) = self.alive.iter().position(on_it) {
            let process = self.alive.remove(index);
            self.kill(process).await;
        }
        self.log
            .note(WORLD, format!("place {} has no database", place.number));
        place.app.lock().unwrap().remove();
        match self.is_made_ready(&place, state).await {
            true => self.start(&place, state),
            false => {
                self.homes.retain(|_, (home, _)| !Arc::ptr_eq(home, &place));
                self.backups
                    .retain(|backup| !Arc::ptr_eq(&backup.place, &place));
            }
        }
    }

    /// Restores a database to a place that has none. False if every attempt fails.
    async fn is_made_ready(&mut self, place: &Arc<Place>, state: usize) -> bool {
        let machine = self.machine(place, state);
        let serial = self.next_serial();
        let name = format!("restore{serial}");
        let (seed, servers) = (self.seed, &self.servers);
        let settings = settings(serial, seed, name, (place, state), servers, &machine);
        for attempt in 0..10 {
            if attempt < 5 && self.chance.one_in(10) {
                let calls = self.chance.below(6);
                machine.disk.trouble(calls, Trouble::Full(2));
            }
            let empty = self.servers.iter().all(|server| {
                let keys = server.inner.keys();
                keys.iter().all(|key| !key.starts_with("ltx/"))
            });
            let check = IntegrityCheck::None;
            let nobody = |_, _| {};
            let host = machine.host();
            let ready = make_ready(&settings, &host, OnMissing::Restore, check, &nobody).await;
            machine.disk.heal();
            let image = match ready {
                Ok(Ready::Restored { restored, .. }) => {
                    let line = format!("restored {} on place {}", restored.txid, place.number);
                    self.log.note(WORLD, line);
                    Some(image_of(&fs::read(place.database()).unwrap()))
                }
                Ok(_) if empty => None,
                Ok(_) => {
                    let broken = "a database begins empty beside a backup".to_owned();
                    self.oracle.broken(Promise::P5, broken);
                    return false;
                }
                Err(error) => {
                    let error = error.to_string();
                    let base = self.directory.path().display().to_string();
                    let line = format!("place {}: {}", place.number, error.replace(&base, ""));
                    self.log.note(WORLD, line);
                    let wait = 1000 + self.chance.below(10_000);
                    self.log.pause(WORLD, wait).await;
                    continue;
                }
            };
            let chance = self.app_chance();
            place.app.lock().unwrap().replace(image, chance);
            return true;
        }
        false
    }

    /// Replaces a process by one with the same state, after a graceful stop or a kill.
    async fn restart(&mut self, graceful: bool) {
        let (place, state) = match self.some_process() {
            Some(index) => {
                let process = self.alive.remove(index);
                let home = (Arc::clone(&process.place), process.state);
                if graceful {
                    self.stop(process).await;
                } else {
                    self.kill(process).await;
                }
                home
            }
            None => {
                let homes: Vec<_> = self.homes.values().cloned().collect();
                let Some(home) = self.chance.pick(&homes).cloned() else {
                    return self.new_node().await;
                };
                home
            }
        };
        self.start(&place, state);
    }

    /// Starts a process without local state, beside another one or after it.
    async fn second_state(&mut self) {
        let Some(index) = self.some_process() else {
            return;
        };
        let place = Arc::clone(&self.alive[index].place);
        let state = self.homes.len() + 1;
        if self.chance.one_in(2) {
            let process = self.alive.remove(index);
            self.kill(process).await;
        }
        self.start(&place, state);
    }

    /// Copies a volume with the state on it.
    async fn clone_volume(&mut self) {
        let Some(index) = self.some_process() else {
            return;
        };
        let (place, state) = (
            Arc::clone(&self.alive[index].place),
            self.alive[index].state,
        );
        if self.chance.one_in(2) {
            let process = self.alive.remove(index);
            self.kill(process).await;
        }
        let copy = self.new_place();
        for (name, bytes) in files(&place.state(state)) {
            let path = copy.state(state).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let image = (*place.app.lock().unwrap().image()).clone();
        let chance = self.app_chance();
        {
            let mut app = copy.app.lock().unwrap();
            app.replace(Some(image), chance);
            app.remember(&place.app.lock().unwrap());
        }
        let line = format!("place {} is a copy of {}", copy.number, place.number);
        self.log.note(WORLD, line);
        self.start(&copy, state);
    }

    /// Saves a copy of a volume.
    fn back_up(&mut self) {
        let Some(index) = self.some_process() else {
            return;
        };
        let process = &self.alive[index];
        let files = files(&process.place.state(process.state));
        let app = process.place.app.lock().unwrap();
        let backup = Backup {
            place: Arc::clone(&process.place),
            state: process.state,
            commit: app.newest(),
            mark: app.position(),
            files,
        };
        drop(app);
        self.note("volume kept", index);
        self.backups.push(backup);
    }

    /// Rolls a volume back to a saved copy, with its files in the same places.
    async fn roll_back(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        let index = self.chance.below(self.backups.len() as u64) as usize;
        let backup = self.backups.swap_remove(index);
        let on_it = |process: &Process| Arc::ptr_eq(&process.place, &backup.place);
        while let Some(index) = self.alive.iter().position(on_it) {
            let process = self.alive.remove(index);
            process.kill(&self.log).await;
        }
        if backup.place.app.lock().unwrap().at(&backup.mark).is_none() {
            return;
        }
        let state = backup.place.state(backup.state);
        for name in files(&state).into_keys().filter(|name| name != "lock") {
            fs::remove_file(state.join(name)).unwrap();
        }
        for (name, bytes) in backup.files.iter().filter(|(name, _)| *name != "lock") {
            fs::write(state.join(name), bytes).unwrap();
        }
        self.disk(backup.place.number, backup.state).forget();
        {
            let mut app = backup.place.app.lock().unwrap();
            app.roll_back(backup.commit);
        }
        let line = format!("place {} is rolled back", backup.place.number);
        self.log.note(WORLD, line);
        self.start(&backup.place, backup.state);
    }

    /// Stops a process gracefully. If it reports everything stored, that must be true.
    async fn stop(&mut self, process: Process) {
        let (name, place) = (process.name.clone(), Arc::clone(&process.place));
        let alone = |other: &Process| !Arc::ptr_eq(&other.place, &place);
        let alone = self.alive.iter().all(alone);
        let newest = place.app.lock().unwrap().newest();
        let complete = process.stop(&self.log).await;
        self.log.note(WORLD, format!("stop {name}: {complete}"));
        if complete && alone {
            for server in &self.servers {
                let oracle = &self.oracle;
                oracle.check_newest(server, &name, (&place, newest)).await;
            }
        }
    }

    /// Kills a process, and sometimes its machine. Then changes that were not durable may be lost.
    pub(super) async fn kill(&mut self, process: Process) {
        let (name, disk) = (process.name.clone(), Arc::clone(&process.machine.disk));
        process.kill(&self.log).await;
        self.log.note(WORLD, format!("killed {name}"));
        if self.chance.one_in(3) {
            disk.lose_power(&mut self.chance);
            self.log.note(WORLD, format!("{name} lost its power"));
        }
    }

    /// Ends all faults, lets the last writer store everything, and checks that it is stored.
    async fn end(&mut self) {
        self.check().await;
        for server in &self.servers {
            server.one_in.store(0, Ordering::Relaxed);
            server.down_until_ms.store(0, Ordering::Relaxed);
            server.late_until_ms.store(0, Ordering::Relaxed);
        }
        for process in std::mem::take(&mut self.alive) {
            self.kill(process).await;
        }
        if self.chance.one_in(2) {
            // Requests in transit then arrive before the last writer starts, otherwise while it
            // writes.
            self.log.pause(WORLD, LATEST_MS).await;
        }
        let mut holders = Vec::new();
        for server in &self.servers {
            let lease = lease::read(&server.direct()).await.unwrap();
            holders.push(lease.map(|lease| lease.lease.holder));
        }
        let same = holders.iter().all(|holder| *holder == holders[0]);
        let home = holders[0].as_ref().and_then(|name| self.homes.get(name));
        match home.cloned() {
            Some((place, state)) if same && self.chance.one_in(2) => self.start(&place, state),
            _ => self.new_node().await,
        }
        let Some(last) = self.alive.pop() else {
            let broken = "the last writer does not start".to_owned();
            self.oracle.broken(Promise::P2, broken);
            return;
        };
        self.log
            .note(WORLD, format!("the last one is {}", last.name));
        self.log.pause(WORLD, 10_000).await;
        last.place.app.lock().unwrap().is_busy = false;
        self.log.pause(WORLD, LATEST_MS).await;
        let (place, handle) = (Arc::clone(&last.place), last.handle.clone());
        let mut left = PATIENCE.as_secs();
        while !handle.is_all_stored() && left > 0 {
            self.log.pause(WORLD, 1000).await;
            left -= 1;
        }
        // A last look at an idle database may still find a suspected change to be none.
        self.log.pause(WORLD, 5000).await;
        for target in handle.status().targets {
            if left > 0 && target.lag_ms > 0 {
                let broken = format!(
                    "{}: a lag of {} ms with all stored",
                    target.name, target.lag_ms
                );
                self.oracle.broken(Promise::Lag, broken);
            }
        }
        let name = last.name.clone();
        if !last.stop(&self.log).await {
            let reports: Vec<_> = handle.counters();
            let broken = format!("the last writer does not store everything: {reports:?}");
            self.oracle.broken(Promise::P2, broken);
            return;
        }
        let newest = place.app.lock().unwrap().newest();
        for server in &self.servers {
            let oracle = &self.oracle;
            oracle.check_newest(server, &name, (&place, newest)).await;
        }
        self.check().await;
    }

    pub(super) fn start(&mut self, place: &Arc<Place>, state: usize) {
        let serial = self.next_serial();
        let name = format!("writer{serial}");
        let machine = self.machine(place, state);
        let (seed, servers) = (self.seed, &self.servers);
        let settings = settings(
            serial,
            seed,
            name.clone(),
            (place, state),
            servers,
            &machine,
        );
        let chance = Chance::new(self.seed, 100 + serial);
        let line = format!("start {name} on place {} state {state}", place.number);
        self.log.note(WORLD, line);
        self.homes.insert(name, (Arc::clone(place), state));
        let oracle = &self.oracle;
        let process = Process::start(serial, (place, state), settings, oracle, machine, chance);
        self.alive.push(process);
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial - 1
    }

    pub(super) fn some_process(&mut self) -> Option<usize> {
        let count = self.alive.len() as u64;
        (count > 0).then(|| self.chance.below(count) as usize)
    }

    /// Creates a volume without a database, and its application.
    fn new_place(&mut self) -> Arc<Place> {
        let number = self.places.len();
        let directory = self.directory.path().join(format!("place{number}"));
        fs::create_dir_all(&directory).unwrap();
        let (path, inode) = (database(&directory), 2 * number as u64);
        let chance = self.app_chance();
        let app = App::without_database(path, inode, &self.log, chance);
        let place = Arc::new(Place {
            number,
            directory,
            app: Mutex::new(app),
        });
        self.oracle.knows(&place);
        self.places.push(Arc::clone(&place));
        let (log, acting, mut chance) =
            (Arc::clone(&self.log), Arc::clone(&place), self.app_chance());
        tokio::spawn(async move {
            loop {
                log.pause(APPLICATIONS, 100 + chance.below(15) * 100).await;
                acting.app.lock().unwrap().act();
            }
        });
        place
    }

    fn app_chance(&mut self) -> Chance {
        Chance::new(self.chance.draw(), 2)
    }

    /// Creates the machine of one process: a clock that is up to a second off at first, and a disk
    /// that others may have used.
    fn machine(&mut self, place: &Arc<Place>, state: usize) -> Machine {
        let off_ms = self.chance.below(2000) as i64 - 1000;
        let clock = Clock {
            log: Arc::clone(&self.log),
            off_ms: Arc::new(off_ms.into()),
        };
        let disk = self.disk(place.number, state);
        disk.heal();
        let (place, chance) = (Arc::clone(place), Mutex::new(self.app_chance()));
        let meanwhile = move || {
            if chance.lock().unwrap().one_in(4) {
                place.app.lock().unwrap().act();
            }
        };
        let meanwhile = Arc::new(meanwhile);
        Machine {
            clock,
            disk,
            threads: Threads { meanwhile },
        }
    }

    fn disk(&mut self, place: usize, state: usize) -> Arc<Disk> {
        Arc::clone(self.disks.entry((place, state)).or_default())
    }

    pub(super) fn note(&self, what: &str, index: usize) {
        let name = &self.alive[index].name;
        self.log.note(WORLD, format!("{name}: {what}"));
    }
}
