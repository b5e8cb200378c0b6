//! Stores and disks that fail at each point and in each way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::replication::DatabaseSettings;
use engine::restore::Point;
use protocol::config::OnDivergence;
use protocol::status::{DatabaseState, TargetState};
use store::{
    Body, Fault, FaultPlan, Faulty, Memory, PutMeta, PutMode, SharedStore, Store, StoreErrorKind,
};

use crate::app::{App, Habits, seed};
use crate::bench::{
    PATIENCE, Place, Replication, assert_every_point, assert_stored, block_on, files, memory,
    restored, settings, wait_for,
};
use crate::gated::{Gate, Gated};

/// Runs a whole life cycle over a store whose call number `call` fails. Returns whether the run
/// reached that call.
fn live_with(fault: Fault, call: u64, seed: u64) -> bool {
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none().at(call, fault),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let habits = Habits::calm(&place.database(), seed);
    let mut app = App::start(&habits);
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.targets[0].compaction_interval = Duration::from_millis(30);
    for _ in 0..2 {
        let replication = Replication::start(&settings);
        for _ in 0..3 {
            app.sql("INSERT INTO item VALUES(NULL, randomblob(500))");
            let txid = replication.settled().position.unwrap().txid;
            app.sql("INSERT INTO item VALUES(NULL, randomblob(500))");
            wait_for("the next position", || {
                (replication.settled().position?.txid > txid).then_some(())
            });
        }
        assert!(replication.stop(), "{fault:?} at {call}");
    }
    let hit = faulty.operations() > call;
    faulty.set_plan(FaultPlan::none());
    let (_, bytes) = restored(&store, Point::Latest).unwrap();
    assert!(bytes == app.dump(), "{fault:?} at {call}");
    assert_every_point(&store);
    hit
}

fn fail_each_call(fault: impl Fn(StoreErrorKind) -> Fault + Sync) {
    let seed = seed();
    let next = std::sync::atomic::AtomicU64::new(0);
    let most = std::thread::scope(|scope| {
        let work = || {
            loop {
                let call = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if !live_with(fault(StoreErrorKind::Unreachable), call, seed) {
                    return call;
                }
            }
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .max()
            .unwrap()
    });
    println!("{most} calls");
    assert!(most > 20);
}

#[test]
fn each_call_to_the_store_may_fail() {
    fail_each_call(Fault::Fail);
}

#[test]
fn the_answer_to_each_call_may_be_lost() {
    fail_each_call(Fault::ApplyThenFail);
}

#[test]
fn a_dead_store_bounds_the_disk_and_heals_by_a_delta() {
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none(),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let habits = Habits::calm(&place.database(), seed());
    let mut app = App::start(&habits);
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let replication = Replication::start_with_state(&settings, 400_000);
    app.sql("INSERT INTO item VALUES(9999, randomblob(100000))");
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    assert_stored(&replication, &mut app, &store);
    faulty.set_plan(FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)));
    app.go();
    wait_for("the outage", || {
        let target = &replication.status().targets[0];
        (target.state == TargetState::DestinationUnavailable && target.backlog_bytes > 200_000)
            .then_some(())
    });
    let began = Instant::now();
    app.wait_for_commits(2000);
    app.pause();
    let kept: u64 = disk_bytes(&place.state());
    assert!(kept < 1_000_000, "{kept} bytes are kept");
    let log =
        std::fs::metadata(engine::env::files::with_suffix(&place.database(), "-wal")).unwrap();
    assert!(log.len() < 40 << 20, "the log has {} bytes", log.len());
    // The oldest waiting commit is from before the outage was noticed.
    let waited = began.elapsed().as_millis() as u64;
    assert!(replication.status().targets[0].lag_ms >= waited);
    faulty.set_plan(FaultPlan::none());
    assert_stored(&replication, &mut app, &store);
    app.work(500);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    let bases = files(&store)
        .into_iter()
        .filter(|file| file.level == 9)
        .count();
    assert_eq!(bases, 1, "healed by deltas");
    assert_every_point(&store);
}

#[test]
fn a_dead_target_does_not_hold_another_back_and_comes_back_with_a_copy() {
    let place = Place::new();
    let dead = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)),
    ));
    let stores: [SharedStore; 2] = [memory(), Arc::clone(&dead) as SharedStore];
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(&place.database(), &place.state(), &stores);
    let replication = Replication::start_with_state(&settings, 400_000);
    app.go();
    let target = |index: usize| replication.status().targets[index].clone();
    wait_for("the live target to pass the backlog", || {
        let uploaded = &replication.handle.counters()[0].1;
        (uploaded.uploaded_bytes > 1_000_000).then_some(())
    });
    app.pause();
    let expected = app.dump();
    wait_for("the live target to have everything", || {
        let (_, bytes) = restored(&stores[0], Point::Latest).ok()?;
        (target(0).lag_ms == 0 && bytes == expected).then_some(())
    });
    // Files over the limit are removed before the next file is made, but the newest always stays.
    let kept: BTreeMap<_, u64> = std::fs::read_dir(place.state().join("ltx/0"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
        .collect();
    let older: Vec<u64> = kept.into_values().rev().skip(1).collect();
    assert!(
        older.len() <= 1 || older.iter().sum::<u64>() <= 200_000,
        "{older:?} bytes are kept"
    );
    dead.set_plan(FaultPlan::none());
    assert_stored(&replication, &mut app, &stores[1]);
    app.sql("INSERT INTO item VALUES(NULL, 'after')");
    assert_stored(&replication, &mut app, &stores[1]);
    assert!(replication.stop());
    assert_every_point(&stores[0]);
    assert_every_point(&stores[1]);
}

#[test]
fn files_that_wait_for_a_store_survive_a_restart() {
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none(),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let replication = Replication::start_with(&settings, Duration::ZERO);
    assert_stored(&replication, &mut app, &store);
    let first = replication.settled().position.unwrap();
    faulty.set_plan(FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)));
    for index in 0..5 {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(500))");
        wait_for("a capture", || {
            let position = replication.status().position?;
            let captured = u64::from_str_radix(&position.txid, 16).unwrap();
            (captured > u64::from_str_radix(&first.txid, 16).unwrap() + index).then_some(())
        });
    }
    assert!(!replication.stop(), "everything still waits");
    let replication = Replication::start(&settings);
    for _ in 0..2 {
        let before = wait_for("the state", || replication.status().position).txid;
        app.sql("INSERT INTO item VALUES(NULL, randomblob(500))");
        wait_for("a capture of the next run", || {
            (replication.status().position?.txid > before).then_some(())
        });
    }
    faulty.set_plan(FaultPlan::none());
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    let bases = files(&store)
        .into_iter()
        .filter(|file| file.level == 9)
        .count();
    assert_eq!(bases, 1, "everything that waited was uploaded");
    assert_every_point(&store);
}

/// Bytes of all files below a directory.
fn disk_bytes(directory: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(directory).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            }
        })
        .sum()
}

/// A small file system of our own, mounted until this is dropped.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn new(bytes: u64) -> SmallDisk {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts a small tmpfs: run it as root"
        );
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(mounted.success());
        SmallDisk { directory }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.directory.path())
            .status();
        assert!(unmounted.unwrap().success());
    }
}

#[test]
fn a_full_disk_of_ours_is_reported_and_heals_when_there_is_room() {
    let place = Place::new();
    let disk = SmallDisk::new(2 << 20);
    let state = disk.directory.path().join("state");
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let replication =
        Replication::start(&settings(&place.database(), &state, &[Arc::clone(&store)]));
    assert_stored(&replication, &mut app, &store);
    let ballast = disk.directory.path().join("ballast");
    let mut size = 2 << 20;
    while size > 4096 {
        if std::fs::write(&ballast, vec![1u8; size]).is_ok() {
            break;
        }
        size -= 4096;
    }
    app.sql("INSERT INTO item VALUES(NULL, randomblob(300000))");
    wait_for("the full disk to be reported", || {
        (replication.status().state == DatabaseState::DiskFull).then_some(())
    });
    // The application is not harmed meanwhile.
    app.work(500);
    std::fs::remove_file(&ballast).unwrap();
    assert_stored(&replication, &mut app, &store);
    assert_eq!(replication.status().state, DatabaseState::Replicating);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn a_stored_file_that_is_found_damaged_is_left_behind_with_a_new_copy() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.targets[0].compaction_interval = Duration::from_secs(3600);
    let replication = Replication::start(&settings);
    for _ in 0..6 {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        assert_stored(&replication, &mut app, &store);
    }
    assert!(replication.stop());
    // Damage a file in the store, and remove the files from our disk.
    let captured: Vec<_> = files(&store)
        .into_iter()
        .filter(|file| file.level == 0)
        .collect();
    let damaged = captured[captured.len() / 2];
    let key = engine::replica::manifest::key(store.layout(), 0, damaged.name());
    let mut bytes = block_on(store.get(&key, None)).unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let body = Body::from(bytes);
    block_on(store.put(&key, body, PutMode::Overwrite, &PutMeta::default())).unwrap();
    for file in &captured[..captured.len() - 1] {
        std::fs::remove_file(place.state().join("ltx/0").join(file.name().to_string())).unwrap();
    }
    settings.targets[0].compaction_interval = Duration::from_millis(10);
    let replication = Replication::start(&settings);
    wait_for("a new copy", || {
        let mut copies = files(&store).into_iter().filter(|file| file.level == 9);
        (copies.next_back()?.max > damaged.max).then_some(())
    });
    assert_stored(&replication, &mut app, &store);
    app.sql("INSERT INTO item VALUES(NULL, 'after')");
    assert_stored(&replication, &mut app, &store);
    replication.wait_target(0, TargetState::Ok);
    assert!(replication.stop());
    // The positions that it led to are lost, and the restore reports that.
    assert!(restored(&store, Point::Txid(damaged.max)).is_err());
}

#[test]
fn a_captured_file_that_our_disk_damages_is_neither_merged_nor_uploaded() {
    let damage = |place: &Place, txid: ltx::Txid| {
        let name = ltx::FileName {
            min: txid,
            max: txid,
        };
        let path = place.state().join("ltx/0").join(name.to_string());
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none(),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.targets[0].compaction_interval = Duration::from_secs(3600);
    let replication = Replication::start(&settings);
    for _ in 0..4 {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        assert_stored(&replication, &mut app, &store);
    }
    assert!(replication.stop());
    // A stored file: compaction reads it from the store.
    let captured: Vec<_> = files(&store)
        .into_iter()
        .filter(|file| file.level == 0)
        .collect();
    damage(&place, captured[captured.len() - 2].max);
    settings.targets[0].compaction_interval = Duration::from_millis(10);
    let replication = Replication::start(&settings);
    wait_for("a merge", || {
        files(&store)
            .iter()
            .any(|file| file.level == 1)
            .then_some(())
    });
    replication.wait_target(0, TargetState::Ok);
    // Two files that are not stored: the later ones build on a new snapshot.
    faulty.set_plan(FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)));
    for _ in 0..3 {
        let before = replication.status().position.unwrap().txid;
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        wait_for("a capture", || {
            (replication.status().position?.txid > before).then_some(())
        });
    }
    let newest: ltx::Txid = replication.status().position.unwrap().txid.parse().unwrap();
    replication.stop();
    damage(&place, ltx::Txid::new(newest.get() - 1));
    faulty.set_plan(FaultPlan::none());
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn a_restore_by_time_begins_anew_when_a_file_that_it_looks_at_has_gone() {
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none(),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let replication = Replication::start(&settings);
    for _ in 0..5 {
        app.sql("INSERT INTO item VALUES(NULL, 'x')");
        assert_stored(&replication, &mut app, &store);
    }
    assert!(replication.stop());
    let ends = files(&store);
    let middle = ends
        .iter()
        .find(|file| file.level == 0 && file.max.get() == 4)
        .unwrap();
    let header = block_on(engine::replica::manifest::read_header(&store, middle)).unwrap();
    let time = jiff::Timestamp::from_millisecond(header.timestamp_ms).unwrap();
    let point = Point::Timestamp(time);
    let (whole, _) = restored(&store, point).unwrap();
    let mut looked_at = 0;
    for call in 0.. {
        let at = faulty.operations() + call;
        faulty.set_plan(FaultPlan::none().at(at, Fault::Fail(StoreErrorKind::Missing)));
        let (again, _) = restored(&store, point).unwrap();
        assert_eq!(again.txid, whole.txid, "call {call}");
        if faulty.operations() <= at {
            break;
        }
        looked_at += 1;
    }
    assert!(looked_at > 4, "{looked_at}");
}

#[test]
fn a_stop_waits_for_a_store_that_comes_back_and_then_needs_the_database() {
    for is_open in [true, false] {
        let place = Place::new();
        let failing = Fault::Fail(StoreErrorKind::Unreachable);
        let memory = Memory::with_clock(engine::env::clock::unix_ms);
        let faulty = Arc::new(Faulty::new(memory, FaultPlan::none()));
        let store: SharedStore = Arc::clone(&faulty) as SharedStore;
        let mut app = App::start(&Habits::calm(&place.database(), seed()));
        let first = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
        let replication = Replication::start_with(&first, PATIENCE);
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
        // The state of another process. The store has no file of it, so it needs a snapshot.
        app.sql("INSERT INTO item VALUES(NULL, 'new')");
        let expected = app.dump();
        if !is_open {
            app.close();
        }
        faulty.set_plan(FaultPlan::none().from(0, failing));
        let other_state = place.directory.path().join("other-state");
        let second = DatabaseSettings {
            on_divergence: OnDivergence::NewLineage,
            ..settings(&place.database(), &other_state, &[Arc::clone(&store)])
        };
        let replication = Replication::start_with(&second, PATIENCE);
        replication.wait_target(0, TargetState::DestinationUnavailable);
        let stopping = std::thread::spawn(move || replication.stop());
        wait_for("some more attempts", || {
            (faulty.operations() > 4).then_some(())
        });
        faulty.set_plan(FaultPlan::none());
        assert!(stopping.join().unwrap());
        let (_, bytes) = restored(&store, Point::Latest).unwrap();
        assert!(bytes == expected);
    }
}

#[test]
fn work_beside_the_uploads_that_cannot_begin_holds_no_upload_back() {
    let place = Place::new();
    let concrete = memory();
    let gated = Arc::new(Gated::new(Arc::clone(&concrete)));
    let store: SharedStore = concrete;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_millis(300),
        ..settings(
            &place.database(),
            &place.state(),
            &[Arc::clone(&gated) as SharedStore],
        )
    };
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    // Compactions and snapshots ask for the lease first.
    gated.gate.send_replace(Gate::LeaseUnreadable);
    for round in 0..30 {
        app.sql(&format!("INSERT INTO item VALUES(NULL, 'round {round}')"));
        let expected = app.dump();
        wait_for("the commit to be stored", || {
            let (_, bytes) = restored(&store, Point::Latest).ok()?;
            (bytes == expected).then_some(())
        });
    }
    gated.gate.send_replace(Gate::Open);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}
