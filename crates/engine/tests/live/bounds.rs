//! The cost of replication: length of the WAL, latency, CPU, locks. Also databases of unusual
//! sizes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::replication::DatabaseSettings;
use engine::restore::Point;
use engine::source::capture::Capture;
use engine::source::probe::{Probe, probe};
use store::{Fault, FaultPlan, Faulty, Memory, SharedStore, StoreErrorKind};

use crate::app::{App, Habits, seed};
use crate::bench::{
    PATIENCE, Place, Replication, assert_every_point, assert_stored, block_on, files, memory,
    restored, settings, wait_for,
};
use crate::gated::{Gate, Gated};
use crate::large::make_large;

fn log_bytes(path: &Path) -> u64 {
    let log = engine::env::files::with_suffix(path, "-wal");
    std::fs::metadata(log).map_or(0, |meta| meta.len())
}

/// Lets the application write for a while and returns the greatest length of the WAL.
fn write_for(app: &mut App, path: &Path, time: Duration) -> u64 {
    let (until, mut longest) = (Instant::now() + time, 0);
    app.go();
    while Instant::now() < until {
        longest = longest.max(log_bytes(path));
        std::thread::sleep(Duration::from_millis(5)); // bounded: the application works meanwhile
    }
    app.pause();
    longest
}

#[test]
fn writes_that_never_pause_keep_their_speed_and_a_short_log() {
    let time = Duration::from_secs(3);
    let alone = Place::new();
    let mut app = App::start(&Habits::calm(&alone.database(), seed()));
    let longest = write_for(&mut app, &alone.database(), time);
    println!(
        "without us: {:?} us, {} commits, log {longest}",
        app.latencies(),
        app.commits()
    );
    drop(app);
    for dead in [false, true] {
        let place = Place::new();
        let failing = Fault::Fail(StoreErrorKind::Unreachable);
        let plan = if dead {
            FaultPlan::none().from(12, failing)
        } else {
            FaultPlan::none()
        };
        let faulty = Arc::new(Faulty::new(
            Memory::with_clock(engine::env::clock::unix_ms),
            plan,
        ));
        let store: SharedStore = Arc::clone(&faulty) as SharedStore;
        let mut app = App::start(&Habits::calm(&place.database(), seed()));
        let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
        let replication = Replication::start_with_state(&settings, 8 << 20);
        wait_for("a first position", || replication.status().position);
        let longest = write_for(&mut app, &place.database(), time);
        println!(
            "with us, store dead {dead}: {:?} us, {} commits, log {longest}",
            app.latencies(),
            app.commits()
        );
        // Without a bound the WAL holds everything that was written. A machine that gives us no
        // time lets it grow, but not in proportion to the writes.
        let bound = (app.written() / 2).max(40 << 20);
        assert!(
            longest < bound,
            "the log grew to {longest} of {bound} bytes"
        );
        faulty.set_plan(FaultPlan::none());
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
    }
}

#[test]
fn a_log_that_its_application_never_checkpoints_begins_anew_while_it_writes() {
    let place = Place::new();
    let store: SharedStore = memory();
    let habits = Habits {
        autocheckpoint: 0,
        page_size: 512,
        ..Habits::calm(&place.database(), seed())
    };
    let mut app = App::start(&habits);
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&store)],
    ));
    wait_for("a first position", || replication.status().position);
    app.go();
    wait_for("the last resort, twice", || {
        (replication.handle.blocking_checkpoints() >= 2).then_some(())
    });
    app.pause();
    let (log, written) = (log_bytes(&place.database()), app.written());
    println!("{:?} us, log {log}, written {written}", app.latencies());
    assert!(log < written, "{log} of {written} bytes");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn an_idle_database_with_a_long_log_costs_nothing() {
    if !crate::alone("bounds::an_idle_database_with_a_long_log_costs_nothing") {
        return;
    }
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none(),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let habits = Habits {
        autocheckpoint: 0,
        ..Habits::calm(&place.database(), seed())
    };
    let mut app = App::start(&habits);
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&store)],
    ));
    write_for(&mut app, &place.database(), Duration::from_millis(800));
    assert!(log_bytes(&place.database()) > 2000 * 4096);
    assert_stored(&replication, &mut app, &store);
    // Work after the last commit: compaction, a checkpoint, frequent polls.
    wait_for("silence", || {
        let before = (faulty.operations(), capture_wakeups());
        std::thread::sleep(Duration::from_secs(1)); // bounded: one pause of a load
        (faulty.operations() == before.0 && capture_wakeups() < before.1 + 5).then_some(())
    });
    let (requests, wakeups, ticks) = (faulty.operations(), capture_wakeups(), own_ticks());
    std::thread::sleep(Duration::from_secs(4)); // bounded: the time in which idleness is measured
    let (requests, wakeups, ticks) = (
        faulty.operations() - requests,
        capture_wakeups() - wakeups,
        own_ticks() - ticks,
    );
    println!("4 s idle: {requests} requests, {wakeups} wake-ups, {ticks} ticks of 10 ms");
    assert_eq!(requests, 0);
    assert!(
        wakeups <= 8 && ticks <= 1,
        "{wakeups} wake-ups, {ticks} ticks"
    );
    assert!(replication.stop());
}

/// Times that the capture thread of this process went to sleep.
fn capture_wakeups() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of = |path: &Path| {
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        (name.trim() == "capture").then(|| line.trim().parse::<u64>().unwrap())
    };
    tasks.filter_map(|task| of(&task.unwrap().path())).sum()
}

/// CPU time of this process, in units of 10 ms.
fn own_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Locks that this process holds on the database and on its `-shm`.
fn own_locks(path: &Path) -> (usize, usize) {
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let own = format!(" {} ", std::process::id());
    let on = |suffix: &str| {
        let inode = std::fs::metadata(engine::env::files::with_suffix(path, suffix))
            .unwrap()
            .ino();
        let file = format!(":{inode} ");
        locks
            .lines()
            .filter(|line| line.contains(&own) && line.contains(&file))
            .count()
    };
    (on(""), on("-shm"))
}

#[test]
fn our_locks_outlive_every_other_look_at_the_file() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&store)],
    ));
    assert_stored(&replication, &mut app, &store);
    let path = place.database();
    let held = || {
        let (database, index) = own_locks(&path);
        (database > 0 && index > 0).then_some(())
    };
    wait_for("our locks", held);
    // Only the application may find it closed. Our own probes must report it in use.
    for _ in 0..20 {
        assert_eq!(probe(&path), Probe::InUse);
    }
    wait_for("our locks after a look", held);
    // A second driver for the same file, as a mistake in a configuration would create.
    let second = Replication::start(&settings(
        &path,
        &place.directory.path().join("other"),
        &[memory()],
    ));
    app.sql("INSERT INTO item VALUES(NULL, 'seen by both')");
    assert_stored(&replication, &mut app, &store);
    second.stop();
    wait_for("our locks after another driver", held);
    app.sql("INSERT INTO item VALUES(NULL, 'still captured')");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn a_crowd_lets_quiet_databases_go_and_still_gets_what_is_written_later() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_secs(8),
        ..settings(&place.database(), &place.state(), &[Arc::clone(&store)])
    };
    let crowded = Capture::with_room(0).unwrap();
    let replication = Replication::start_in(crowded, &settings, PATIENCE);
    let path = place.database();
    let let_go = || (own_locks(&path) == (0, 0)).then_some(());
    for round in 0..3 {
        app.sql(&format!("INSERT INTO item VALUES(NULL, 'round {round}')"));
        assert_stored(&replication, &mut app, &store);
        wait_for("the database to be let go", let_go);
        // The WAL is restarted or copied while the database is detached.
        let modes = ["TRUNCATE", "PASSIVE", "NOOP"];
        app.sql(&format!("PRAGMA wal_checkpoint({})", modes[round]));
    }
    let copies = || files(&store).iter().filter(|file| file.level == 9).count();
    wait_for("a snapshot in time", || (copies() > 1).then_some(()));
    wait_for("the database to be let go", let_go);
    app.sql("INSERT INTO item VALUES(NULL, 'right before the end')");
    let expected = app.dump();
    assert!(replication.stop());
    let (_, bytes) = restored(&store, Point::Latest).unwrap();
    assert!(bytes == expected);
}

#[test]
fn no_mark_stands_in_the_way_of_a_checkpoint_while_nothing_is_written() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&store)],
    ));
    app.sql("INSERT INTO item VALUES(NULL, 'a short log')");
    assert_stored(&replication, &mut app, &store);
    // One lock shows that `-shm` is in use. A read mark is another lock.
    let path = place.database();
    let mut since = Instant::now();
    wait_for("the mark to be given back for good", || {
        if own_locks(&path) != (1, 1) {
            since = Instant::now();
        }
        (since.elapsed() > Duration::from_millis(500)).then_some(())
    });
    app.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    app.sql("INSERT INTO item VALUES(NULL, 'another log')");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn a_database_that_was_closed_while_we_waited_is_not_opened() {
    let place = Place::new();
    let faulty = Arc::new(Faulty::new(
        Memory::with_clock(engine::env::clock::unix_ms),
        FaultPlan::none().from(1, Fault::Fail(StoreErrorKind::Unreachable)),
    ));
    let store: SharedStore = Arc::clone(&faulty) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let replication = Replication::start(&settings);
    wait_for("it waits for its target", || {
        let message = replication.status().message;
        message.contains("until a target says").then_some(())
    });
    app.close();
    assert_eq!(probe_is_cold(&place.database()), Some(true));
    faulty.set_plan(FaultPlan::none());
    wait_for("all is stored", || {
        let status = replication.status();
        (status.position.is_some() && status.targets[0].position == status.position).then_some(())
    });
    assert_eq!(
        probe_is_cold(&place.database()),
        Some(true),
        "no log of ours"
    );
    assert!(replication.stop());
    assert_eq!(
        probe_is_cold(&place.database()),
        Some(true),
        "nor left behind"
    );
}

/// Whether no process has a database open; none if that is not known.
fn probe_is_cold(path: &Path) -> Option<bool> {
    match probe(path) {
        Probe::Cold(_) => Some(true),
        Probe::Live => Some(false),
        Probe::InUse | Probe::Unfit(..) => None,
    }
}

#[test]
fn a_file_that_is_exchanged_while_its_database_rests_is_compared() {
    let place = Place::new();
    let store: SharedStore = memory();
    let habits = Habits::calm(&place.database(), seed());
    let mut app = App::start(&habits);
    app.sql("CREATE TABLE fixed(x)");
    app.sql("INSERT INTO fixed VALUES('before')");
    app.sql("PRAGMA wal_checkpoint(PASSIVE)");
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    let crowded = Capture::with_room(0).unwrap();
    let replication = Replication::start_in(crowded, &settings, PATIENCE);
    assert_stored(&replication, &mut app, &store);
    let path = place.database();
    wait_for("the database to be let go", || {
        (own_locks(&path) == (0, 0)).then_some(())
    });
    // The WAL stays, but the database file is replaced by one with other content.
    app.kill();
    let other = place.directory.path().join("other.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(6)
        .position(|window| window == b"before")
        .unwrap();
    bytes[at..at + 6].copy_from_slice(b"AFTER!");
    std::fs::write(&other, bytes).unwrap();
    std::fs::rename(&other, &path).unwrap();
    let mut app = App::start(&habits);
    app.sql("INSERT INTO item VALUES(NULL, 'in the new file')");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn a_cold_database_that_changed_gets_its_periodic_copy() {
    let place = Place::new();
    let store: SharedStore = memory();
    drop(App::start(&Habits::calm(&place.database(), seed())));
    let settings = DatabaseSettings {
        snapshot_interval: Duration::from_secs(2),
        ..settings(&place.database(), &place.state(), &[Arc::clone(&store)])
    };
    let replication = Replication::start(&settings);
    wait_for("a first position", || {
        replication.status().targets[0].position.clone()
    });
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    app.sql("INSERT INTO item VALUES(NULL, 'x')");
    assert_stored(&replication, &mut app, &store);
    let expected = app.dump();
    drop(app);
    let newest = || files(&store).iter().map(|file| file.max).max();
    let copied = || {
        let copies = files(&store);
        let copies = copies.iter().filter(|file| file.level == 9);
        // The file that directly follows a snapshot is not in it.
        copies.map(|file| file.max.next()).max() >= newest()
    };
    wait_for("a copy of the newest state", || copied().then_some(()));
    assert!(replication.stop());
    let (_, bytes) = restored(&store, Point::Latest).unwrap();
    assert!(bytes == expected);
}

#[test]
fn tiny_and_empty_databases_are_restored() {
    let place = Place::new();
    let store: SharedStore = memory();
    let connection = rusqlite::Connection::open(place.database()).unwrap();
    connection
        .execute_batch("PRAGMA journal_mode=WAL; PRAGMA user_version=7")
        .unwrap();
    drop(connection);
    // No process has it open: one page, no table.
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&store)],
    ));
    replication.settled();
    let (one, bytes) = restored(&store, Point::Latest).unwrap();
    assert_eq!(
        (one.hashes.commit(), bytes),
        (1, std::fs::read(place.database()).unwrap())
    );
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    assert_stored(&replication, &mut app, &store);
    app.sql("DELETE FROM item; DROP TABLE item; VACUUM");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn a_database_beyond_the_lock_page_is_restored() {
    let place = Place::new();
    make_large(&place.database());
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let replication = Replication::start(&settings(
        &place.database(),
        &place.state(),
        &[Arc::clone(&store)],
    ));
    // The database grows at its end, too.
    app.sql("INSERT INTO large VALUES(zeroblob(3000000))");
    app.sql("INSERT INTO large VALUES(randomblob(300000))");
    let before = replication.settled().position.unwrap();
    app.sql("INSERT INTO large VALUES('end')");
    wait_for("the last commit", || {
        (replication.status().position? != before).then_some(())
    });
    let position = replication.settled().position.unwrap();
    let (restored, _) = restored(&store, Point::Latest).unwrap();
    assert!(restored.hashes.commit() >= 16_400);
    assert_eq!(
        format!("{:016x}", restored.hashes.checksum()),
        position.checksum
    );
    assert!(replication.stop());
}

#[test]
fn retention_keeps_every_point_that_it_promises() {
    let place = Place::new();
    let store: SharedStore = memory();
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.snapshot_interval = Duration::from_millis(300);
    settings.targets[0].compaction_interval = Duration::from_millis(100);
    let policy = &mut settings.targets[0].retention;
    policy.exact = Duration::from_secs(3);
    policy.window = Duration::from_secs(4);
    (policy.daily, policy.weekly, policy.monthly) = (0, 0, 0);
    let replication = Replication::start(&settings);
    app.go();
    // The spans of retention pass in real time: wait until a good part has passed.
    wait_for("retention", || {
        let files = crate::bench::files(&store);
        let captured: Vec<_> = files.iter().filter(|file| file.level == 0).collect();
        (captured.first()?.max.get() > 50).then_some(())
    });
    app.pause();
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    // Files that are younger than `exact` now were so at every run of retention.
    let exact_from = engine::env::clock::unix_ms() - 3000;
    let files = crate::bench::files(&store);
    let captured: Vec<_> = files.iter().filter(|file| file.level == 0).collect();
    let newest = captured.last().unwrap().max.get();
    println!(
        "{} of {newest} captured files are left, {} files",
        captured.len(),
        files.len()
    );
    let (mut exact, mut expected) = (0, None);
    for file in captured.iter().filter(|file| file.modified_ms > exact_from) {
        assert!(
            expected.is_none_or(|expected| expected == file.max),
            "a hole before {}",
            file.max
        );
        expected = Some(file.max.next());
        restored(&store, Point::Txid(file.max)).unwrap();
        exact += 1;
    }
    println!("{exact} exact points proven");
    assert!(exact > 3);
}

#[test]
fn stored_files_become_fewer_in_higher_levels_and_a_lost_one_is_left_behind() {
    let place = Place::new();
    let concrete = memory();
    let store: SharedStore = Arc::clone(&concrete) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&store)]);
    settings.targets[0].compaction_interval = Duration::from_millis(50);
    settings.targets[0].higher_levels = vec![Duration::from_millis(300), Duration::from_secs(1)];
    let replication = Replication::start(&settings);
    let of_level = |level| {
        files(&store)
            .into_iter()
            .filter(move |it| it.level == level)
    };
    let write_until = |app: &mut App, what: &str, ready: &dyn Fn() -> bool| {
        wait_for(what, || {
            app.sql("INSERT INTO item VALUES(NULL, 'x')");
            ready().then_some(())
        });
    };
    write_until(&mut app, "two files of level 3", &|| {
        of_level(3).count() > 1
    });
    assert_stored(&replication, &mut app, &store);
    for level in [2, 3] {
        let compacted = of_level(level).next().unwrap();
        let parts =
            of_level(level - 1).filter(|it| compacted.min <= it.min && it.max <= compacted.max);
        assert!(parts.count() > 1, "level {level}");
    }
    assert_every_point(&store);
    // A file that is to be compacted is lost: no restore can pass it.
    let newest = of_level(2).map(|it| it.max).max();
    let unmerged = || of_level(1).find(|it| Some(it.min) > newest);
    write_until(&mut app, "a file to be compacted", &|| unmerged().is_some());
    let copies = of_level(9).count();
    let lost = unmerged().unwrap();
    let key = engine::replica::manifest::key(store.layout(), 1, lost.name());
    block_on(store.delete(&[key])).unwrap();
    write_until(&mut app, "a new snapshot", &|| of_level(9).count() > copies);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn commits_are_stored_while_a_full_copy_is_on_its_way() {
    let place = Place::new();
    let concrete = memory();
    let gated = Arc::new(Gated::new(Arc::clone(&concrete)));
    let store: SharedStore = Arc::clone(&concrete) as SharedStore;
    let through: SharedStore = Arc::clone(&gated) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let mut settings = settings(&place.database(), &place.state(), &[through]);
    settings.snapshot_interval = Duration::from_millis(200);
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    gated.gate.send_replace(Gate::Closed("ltx/9/"));
    wait_for("a copy that hangs", || {
        app.sql("INSERT INTO item VALUES(NULL, 'before')");
        (!gated.waiting.lock().unwrap().is_empty()).then_some(())
    });
    app.sql("INSERT INTO item VALUES(NULL, 'meanwhile')");
    assert_stored(&replication, &mut app, &store);
    gated.gate.send_replace(Gate::Open);
    assert!(replication.stop());
}
