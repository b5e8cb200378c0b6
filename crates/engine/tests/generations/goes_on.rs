//! From a generation to a history of ours: the restore before an application starts, and the files
//! stored after it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::env::clock::unix_ms;
use engine::env::host::Host;
use engine::replica::manifest;
use engine::replica::retention::RetentionPolicy;
use engine::replication::uploader::TargetSettings;
use engine::replication::{Database, DatabaseSettings, Env};
use engine::restore::{IntegrityCheck, Point, RestoreOptions};
use engine::source::capture::Capture;
use engine::spool::state_dir::LocalState;
use engine::startup::{Ready, StartupError, make_ready, restore_in_place};
use ltx::Txid;
use protocol::config::{OnDivergence, OnMissing};
use store::{Fault, FaultPlan, Faulty, Memory, SharedStore, Store, StoreErrorKind};
use tokio::sync::watch;

use crate::replica::{Replica, block_on, put, restored};

/// Longest wait of a test before it gives up.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(directory: &Path, stores: &[SharedStore], holder: &str) -> DatabaseSettings {
    let target = |(index, store): (usize, &SharedStore)| TargetSettings {
        name: format!("target{index}"),
        store: Arc::clone(store),
        compaction_interval: Duration::from_secs(3600),
        higher_levels: Vec::new(),
        retention: RetentionPolicy::default(),
    };
    DatabaseSettings {
        path: directory.join("app.db"),
        state: directory.join("state"),
        targets: stores.iter().enumerate().map(target).collect(),
        sync_interval: Duration::from_millis(20),
        snapshot_interval: Duration::from_secs(3600),
        holder: holder.to_owned(),
        on_divergence: OnDivergence::Block,
    }
}

fn ready(settings: &DatabaseSettings) -> Result<Ready, StartupError> {
    let check = IntegrityCheck::Full;
    block_on(make_ready(
        settings,
        &Host::default(),
        OnMissing::Restore,
        check,
        &|_, _| {},
    ))
}

/// Replicates until everything is stored, then ends.
fn replicate(settings: &DatabaseSettings) {
    let (stop, stopped) = watch::channel(false);
    let capture = Capture::start().unwrap();
    let (database, handle) = Database::new(settings.clone(), &Env::new(capture), stopped);
    let thread = std::thread::spawn(move || block_on(database.run(PATIENCE)));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = handle.status();
        let is_stored = |target: &protocol::status::TargetStatus| {
            target.position.is_some() && target.position == status.position
        };
        if status.targets.iter().all(is_stored) {
            break;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        std::thread::sleep(Duration::from_millis(2)); // bounded: a poll, up to a deadline
    }
    stop.send_replace(true);
    assert!(thread.join().unwrap());
}

/// The golden replica in a store with the system's clock, and its objects that must stay as they
/// are.
fn golden() -> (Arc<Memory>, Replica) {
    let replica = Replica::golden(4096);
    let memory = Arc::new(Memory::with_clock(unix_ms));
    for (key, (bytes, ms)) in &replica.objects {
        put(&memory, key, bytes.clone(), *ms);
    }
    (memory, replica)
}

fn assert_untouched(memory: &Memory, replica: &Replica) {
    let theirs = block_on(memory.list("generations/", None)).unwrap();
    let found: BTreeMap<String, (Vec<u8>, i64)> = theirs
        .into_iter()
        .map(|object| {
            let bytes = block_on(memory.get(&object.key, None)).unwrap();
            (object.key, (bytes.to_vec(), object.modified_ms))
        })
        .collect();
    assert!(
        found == replica.objects,
        "objects of Litestream 0.3 changed"
    );
}

fn create(path: &Path) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let schema = "PRAGMA journal_mode=WAL; CREATE TABLE item(id INTEGER PRIMARY KEY, text)";
    connection.execute_batch(schema).unwrap();
}

fn insert(path: &Path) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let insert = "INSERT INTO item(text) VALUES('of the new history')";
    connection.execute(insert, []).unwrap();
}

#[test]
fn a_missing_database_comes_back_and_a_history_of_ours_begins_with_a_full_copy() {
    let (memory, replica) = golden();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let expected = replica.restore(None).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let before = settings(directory.path(), &[Arc::clone(&store)], "the restore");
    // After a kill in between, it does the same again.
    for _ in 0..2 {
        let _removed = std::fs::remove_file(&before.path);
        let Ready::Restored { restored, .. } = ready(&before).unwrap() else {
            panic!("it starts empty");
        };
        assert_eq!(restored.generation, expected.restored.generation);
        assert_eq!(std::fs::read(&before.path).unwrap(), expected.bytes);
    }
    assert!(matches!(ready(&before).unwrap(), Ready::Present));
    assert_eq!(block_on(manifest::list(&store)).unwrap().len(), 0);

    insert(&before.path);
    replicate(&settings(
        directory.path(),
        &[Arc::clone(&store)],
        "the sidecar",
    ));
    let files = block_on(manifest::list(&store)).unwrap();
    assert!(files.iter().any(|file| file.level == 9 && file.has_pages()));
    let newest = restored(&store, Point::Latest).unwrap();
    assert_eq!(newest.restored.generation, None);
    assert_eq!(newest.rows, expected.rows + 1);
    assert_untouched(&memory, &replica);

    // The volume is lost: the next restore takes our files.
    std::fs::remove_dir_all(directory.path().join("state")).unwrap();
    std::fs::remove_file(&before.path).unwrap();
    let Ready::Restored { restored, .. } = ready(&before).unwrap() else {
        panic!("it starts empty");
    };
    assert_eq!(restored.generation, None);
    assert_eq!(std::fs::read(&before.path).unwrap(), newest.bytes);
}

#[test]
fn a_database_restored_by_hand_goes_on_as_well() {
    let (memory, replica) = golden();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let directory = tempfile::tempdir().unwrap();
    let by_hand = settings(directory.path(), &[Arc::clone(&store)], "by hand");
    // The state of the present database must mean nothing for the one that replaces it.
    create(&by_hand.path);
    let elsewhere: SharedStore = Arc::new(Memory::new());
    replicate(&settings(directory.path(), &[elsewhere], "before"));
    let options = RestoreOptions {
        point: crate::replica::at(replica.states[3].time_ms),
        output: by_hand.path.clone(),
        force: true,
        integrity: IntegrityCheck::Full.into(),
        parallelism: 2,
    };
    block_on(restore_in_place(&by_hand, &store, &options, &|_, _| {})).unwrap();
    let known = LocalState::open(&by_hand.state, &Host::default().disk)
        .unwrap()
        .load()
        .unwrap();
    assert_eq!((known.txid, known.hashes), (Txid::ZERO, None));
    replicate(&settings(
        directory.path(),
        &[Arc::clone(&store)],
        "the sidecar",
    ));
    let newest = restored(&store, Point::Latest).unwrap();
    assert_eq!(newest.restored.generation, None);
    assert_eq!(newest.rows, replica.states[3].rows);
    assert_untouched(&memory, &replica);
}

/// An earlier history of ours, then Litestream 0.3 again: two changes of program.
#[test]
fn a_newer_generation_goes_on_above_files_of_ours() {
    let earlier: SharedStore = Arc::new(Memory::new());
    let first = tempfile::tempdir().unwrap();
    let old = settings(first.path(), &[Arc::clone(&earlier)], "the old one");
    create(&old.path);
    replicate(&old);
    let (memory, replica) = golden();
    let files = block_on(manifest::list(&earlier)).unwrap();
    for file in &files {
        let key = manifest::key(earlier.layout(), file.level, file.name());
        let bytes = block_on(earlier.get(&key, None)).unwrap();
        // Stored long ago, so that the generation is newer.
        put(&memory, &key, bytes.to_vec(), 1_000_000);
    }
    let above = manifest::newest(&files);
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let directory = tempfile::tempdir().unwrap();
    let place = settings(directory.path(), &[Arc::clone(&store)], "the restore");
    for _ in 0..2 {
        // The fence of the first attempt does not make our old files newer.
        let _removed = std::fs::remove_file(&place.path);
        assert!(matches!(
            ready(&place).unwrap(),
            Ready::Restored { restored, .. } if restored.generation.is_some()
        ));
    }
    replicate(&settings(
        directory.path(),
        &[Arc::clone(&store)],
        "the sidecar",
    ));
    let newest = restored(&store, Point::Latest).unwrap();
    assert!(newest.restored.txid > above);
    assert_eq!(newest.rows, replica.states.last().unwrap().rows);
    assert_untouched(&memory, &replica);
}

#[test]
fn a_generation_that_cannot_be_restored_or_asked_for_never_starts_empty() {
    let (memory, replica) = golden();
    let directory = tempfile::tempdir().unwrap();
    let damaged = Arc::new(Memory::new());
    for (key, (bytes, ms)) in &replica.objects {
        if !key.contains("/snapshots/") {
            put(&damaged, key, bytes.clone(), *ms);
        }
    }
    let result = ready(&settings(directory.path(), &[damaged as SharedStore], "a"));
    assert!(
        matches!(result, Err(StartupError::Restore { .. })),
        "{result:?}"
    );

    // The store lists our files first, then the generations.
    let plan = FaultPlan::none().at(1, Fault::Fail(StoreErrorKind::Unreachable));
    let silent = Arc::new(Faulty::new(Arc::clone(&memory), plan));
    let result = ready(&settings(
        directory.path(),
        &[silent.clone() as SharedStore],
        "b",
    ));
    assert!(
        matches!(result, Err(StartupError::CouldNotLook { .. })),
        "{result:?}"
    );
    assert_eq!(silent.calls()[1].key, "generations/");
    assert!(!directory.path().join("app.db").exists());
}

#[test]
fn replication_never_asks_for_generations_and_a_restore_does_once() {
    let memory = Arc::new(Memory::with_clock(unix_ms));
    let faulty = Arc::new(Faulty::new(memory, FaultPlan::none()));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path(), &[Arc::clone(&store)], "the sidecar");
    create(&settings.path);
    assert!(matches!(ready(&settings).unwrap(), Ready::Present));
    replicate(&settings);
    insert(&settings.path);
    replicate(&settings);
    let asked = || {
        let calls = faulty.calls().into_iter();
        calls.filter(|call| call.key == "generations/").count()
    };
    assert_eq!(asked(), 0);
    restored(&store, Point::Latest).unwrap();
    assert_eq!(asked(), 1);
}
