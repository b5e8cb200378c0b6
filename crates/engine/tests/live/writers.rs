//! Two writers, one replica: the newer one wins, and the older one changes nothing any more.

use std::sync::Arc;
use std::time::Duration;

use engine::env::clock::SystemClock;
use engine::env::host::Host;
use engine::replication::DatabaseSettings;
use engine::replication::uploader::TargetSettings;
use engine::restore::{IntegrityCheck, Point, RestoreOptions};
use engine::startup::{Ready, StartupError, make_ready, restore_in_place};
use protocol::config::{OnDivergence, OnMissing};
use protocol::status::{DatabaseState, TargetState};
use store::{
    Body, Fault, FaultPlan, Faulty, Memory, PutMeta, PutMode, SharedStore, Store, StoreErrorKind,
};

use crate::app::{App, Habits, seed};
use crate::bench::{
    Place, Replication, assert_every_point, assert_stored, block_on, files, memory, restored,
    settings, wait_for,
};
use crate::gated::{Gate, Gated};

/// Every object with its version, which a write would change.
fn content(store: &Memory) -> Vec<(String, Option<String>)> {
    let objects = block_on(store.list("", None)).unwrap();
    objects
        .into_iter()
        .map(|object| (object.key, object.version))
        .collect()
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

fn another_writer(place: &Place, store: &Arc<Memory>) -> DatabaseSettings {
    let store: SharedStore = Arc::clone(store) as SharedStore;
    settings(&place.database(), &place.state(), &[store])
}

/// Keys of objects that an older writer wrote after it was superseded.
type Changed = Vec<String>;

/// A writer cut off in the middle of an upload.
struct CutOff {
    place: Place,
    app: App,
    replication: Replication,
    gated: Arc<Gated>,
    memory: Arc<Memory>,
}

/// Cuts a writer off in the middle of an upload that `change` causes, to a key that begins with
/// `key`.
fn cut_off(change: impl Fn(&Place, &mut DatabaseSettings), key: &'static str) -> CutOff {
    let place = Place::new();
    let memory = memory();
    let gated = Arc::new(Gated::new(Arc::clone(&memory)));
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let shared: SharedStore = Arc::clone(&gated) as SharedStore;
    let mut settings = settings(&place.database(), &place.state(), &[Arc::clone(&shared)]);
    let first = Replication::start(&settings);
    assert_stored(&first, &mut app, &shared);
    assert!(first.stop());
    change(&place, &mut settings);
    gated.gate.send_replace(Gate::Closed(key));
    let replication = Replication::start_with(&settings, Duration::from_secs(1));
    wait_for("an upload that hangs", || {
        // Change pages that no other step changes, so that a mix of both histories is seen.
        app.sql("UPDATE account SET balance = balance + 3 - 2 * id WHERE id IN (1, 2)");
        (!gated.waiting.lock().unwrap().is_empty()).then_some(())
    });
    CutOff {
        place,
        app,
        replication,
        gated,
        memory,
    }
}

/// Cuts a writer off, lets another one take over from the backup, brings the first one back, and
/// checks the replica. Only the very upload that was in flight may be new. Returns the keys of the
/// new objects.
fn take_over_during(change: impl Fn(&Place, &mut DatabaseSettings), key: &'static str) -> Changed {
    let mut old = cut_off(change, key);
    let memory = Arc::clone(&old.memory);
    let new_place = Place::new();
    let mut new_settings = another_writer(&new_place, &memory);
    new_settings.targets[0].compaction_interval = Duration::from_secs(3600);
    new_settings.targets[0].higher_levels = Vec::new();
    assert!(matches!(
        ready(&new_settings).unwrap(),
        Ready::Restored { .. }
    ));
    let mut new_app = App::start(&Habits::calm(&new_place.database(), 1));
    let new = Replication::start(&new_settings);
    new_app.sql("INSERT INTO item VALUES(NULL, 'of the new writer')");
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    assert_stored(&new, &mut new_app, &store);
    new.settled();
    // The new writer compacts once: the step to its first snapshot.
    let snapshot = files(&store).into_iter().filter(|file| file.level == 9);
    let snapshot = snapshot.map(|file| file.max).max();
    wait_for("the new writer to compact", || {
        let mut compacted = files(&store).into_iter().filter(|file| file.level == 1);
        compacted
            .any(|file| Some(file.max) > snapshot)
            .then_some(())
    });
    let before = content(&memory);

    old.gated.gate.send_replace(Gate::Open);
    old.replication.wait_target(0, TargetState::Superseded);
    wait_for("the database to be reported", || {
        (old.replication.status().state == DatabaseState::Superseded).then_some(())
    });
    let uploads = old.replication.status().position;
    old.app
        .sql("INSERT INTO item VALUES(NULL, 'of the old writer')");
    assert!(!old.replication.stop(), "{uploads:?}");
    let mut after = content(&memory);
    after.retain(|object| !before.contains(object));
    let removed = content(&memory).len() - after.len() < before.len();
    assert!(!removed, "the old writer removed something");
    let changed: Changed = after.into_iter().map(|(key, _)| key).collect();
    let waiting = old.gated.waiting.lock().unwrap();
    assert!(
        changed.iter().all(|key| waiting.contains(key)),
        "{changed:?}"
    );
    new_app.sql("INSERT INTO item VALUES(NULL, 'once more')");
    assert_stored(&new, &mut new_app, &store);
    assert!(new.stop());
    assert_every_point(&store);
    changed
}

/// The state is gone: the writer continues with a new snapshot.
fn state_lost(place: &Place, _: &mut DatabaseSettings) {
    std::fs::remove_dir_all(place.state()).unwrap();
}

#[test]
fn a_writer_cut_off_in_an_upload_changes_nothing_when_it_comes_back() {
    assert_eq!(take_over_during(|_, _| {}, "ltx/0/"), Changed::new());
}

#[test]
fn a_writer_cut_off_in_a_new_base_adds_no_more_than_that() {
    assert_eq!(take_over_during(state_lost, "ltx/9/").len(), 1);
}

#[test]
fn a_writer_cut_off_in_a_copy_of_what_is_stored_adds_no_more_than_that() {
    let often = |_: &Place, settings: &mut DatabaseSettings| {
        settings.snapshot_interval = Duration::from_millis(1);
    };
    // The snapshot is stored beside everything else, so the writer may learn of the other one first
    // and give it up.
    assert!(take_over_during(often, "ltx/9/").len() <= 1);
}

#[test]
fn a_writer_cut_off_in_a_merge_of_what_is_stored_adds_no_more_than_that() {
    let often = |_: &Place, settings: &mut DatabaseSettings| {
        settings.targets[0].compaction_interval = Duration::from_millis(1);
    };
    // As for the snapshot above.
    assert!(take_over_during(often, "ltx/1/").len() <= 1);
}

/// As [`state_lost`], and another target is so far ahead that the snapshot gets an unexpected
/// number.
fn state_lost_and_far_ahead(place: &Place, settings: &mut DatabaseSettings) {
    let other: SharedStore = memory();
    let ahead = crate::bench::settings(&place.database(), &place.state(), &[Arc::clone(&other)]);
    state_lost(place, settings);
    let replication = Replication::start(&ahead);
    replication.settled();
    assert!(replication.stop());
    let lease = block_on(engine::replica::lease::read(&other))
        .unwrap()
        .unwrap()
        .lease;
    for _ in 2..40 {
        block_on(engine::replication::uploader::fence(
            &other,
            &lease,
            &SystemClock,
        ))
        .unwrap();
    }
    state_lost(place, settings);
    settings.targets.push(TargetSettings {
        name: "ahead".into(),
        ..ahead.targets[0].clone()
    });
}

#[test]
fn a_new_base_that_lands_after_its_writer_died_is_never_built_upon() {
    type Change = fn(&Place, &mut DatabaseSettings);
    let changes: [Change; 2] = [state_lost, state_lost_and_far_ahead];
    // The snapshot lands after the take-over: before the new writer has stored a file, and after.
    for (change, stored_first) in changes.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let old = cut_off(change, "ltx/9/");
        let store: SharedStore = Arc::clone(&old.memory) as SharedStore;
        let place = Place::new();
        let settings = another_writer(&place, &old.memory);
        assert!(matches!(ready(&settings).unwrap(), Ready::Restored { .. }));
        let mut app = App::start(&Habits::calm(&place.database(), 1));
        let land = || {
            let before = content(&old.memory).len();
            old.gated.gate.send_replace(Gate::Late);
            wait_for("the late copy", || {
                (content(&old.memory).len() > before).then_some(())
            });
        };
        if !stored_first {
            land();
        }
        let new = Replication::start(&settings);
        if stored_first {
            assert_stored(&new, &mut app, &store);
            app.sql("INSERT INTO item VALUES(NULL, 'of the new writer')");
            new.settled();
            land();
        }
        app.sql("INSERT INTO item VALUES(NULL, 'of the new writer')");
        assert_stored(&new, &mut app, &store);
        assert!(new.stop());
        assert_every_point(&store);
        assert!(!old.replication.stop());
        drop((old.place, old.app));
    }
}

#[test]
fn a_copied_directory_never_writes_into_the_backup_of_its_original() {
    let (place, copy) = (Place::new(), Place::new());
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = another_writer(&place, &memory);
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    app.close();
    drop(app);
    copy_tree(place.directory.path(), copy.directory.path());

    let mut other = App::start(&Habits::calm(&copy.database(), 3));
    other.sql("INSERT INTO item VALUES(NULL, 'of the copy')");
    let mut copied = another_writer(&copy, &memory);
    copied.targets[0].compaction_interval = Duration::from_secs(3600);
    let before = content(&memory);
    let second = Replication::start(&copied);
    second.wait_target(0, TargetState::Diverged);
    assert!(!second.stop());
    assert_eq!(content(&memory), before);

    let mut app = App::start(&Habits::calm(&place.database(), 2));
    let original = Replication::start(&settings);
    assert_stored(&original, &mut app, &store);
    copied.on_divergence = OnDivergence::NewLineage;
    let second = Replication::start(&copied);
    second.wait_target(0, TargetState::Superseded);
    assert!(!second.stop());
    assert_stored(&original, &mut app, &store);

    // Without its state of the original, the copy is a database of its own. If told to, it takes
    // over.
    std::fs::remove_dir_all(copy.state()).unwrap();
    let second = Replication::start(&copied);
    assert_stored(&second, &mut other, &store);
    app.sql("INSERT INTO item VALUES(NULL, 'of the original')");
    original.wait_target(0, TargetState::Superseded);
    assert!(!original.stop());
    let original = Replication::start(&settings);
    original.wait_target(0, TargetState::Superseded);
    assert!(!original.stop());
    assert_stored(&second, &mut other, &store);
    assert!(second.stop());
    assert_every_point(&store);
}

#[test]
fn what_was_sealed_before_a_take_over_is_never_laid_over_its_fence() {
    let (source, place) = (Place::new(), Place::new());
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&source.database(), seed()));
    let replication = Replication::start(&another_writer(&source, &memory));
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());

    let gated = Arc::new(Gated::new(Arc::clone(&memory)));
    let shared: SharedStore = Arc::clone(&gated) as SharedStore;
    let settings = settings(&place.database(), &place.state(), &[Arc::clone(&shared)]);
    let options = RestoreOptions {
        point: Point::Latest,
        output: place.database(),
        force: false,
        integrity: IntegrityCheck::Full.into(),
        parallelism: 1,
    };
    let restored = restore_in_place(&settings, &shared, &options, &|_, _| {});
    let restored = block_on(restored).unwrap().txid;
    let mut app = App::start(&Habits::calm(&place.database(), 7));
    // Written while the store does not answer, on pages that no later step changes.
    gated.gate.send_replace(Gate::Closed("lock"));
    let replication = Replication::start_with(&settings, Duration::from_secs(1));
    let change = |app: &mut App, replication: &Replication| {
        let before = wait_for("a position", || replication.status().position).txid;
        app.sql("UPDATE account SET balance = balance + 3 - 2 * id WHERE id IN (1, 2)");
        wait_for("a capture", || {
            (replication.status().position?.txid > before).then_some(())
        });
    };
    change(&mut app, &replication);
    // The lease and the two proofs pass, and the fence; the announcement of a snapshot hangs.
    gated.let_pass(3);
    wait_for("the fence", || {
        let files = crate::bench::files(&store);
        files
            .iter()
            .any(|file| file.level == 0 && file.max > restored)
            .then_some(())
    });
    app.sql("INSERT INTO item VALUES(NULL, 'later')");
    wait_for("the announcement", || {
        (gated.waiting.lock().unwrap().len() > 1).then_some(())
    });
    assert!(!replication.stop());
    gated.gate.send_replace(Gate::Open);
    let replication = Replication::start(&settings);
    app.sql("INSERT INTO item VALUES(NULL, 'after')");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn a_damaged_newest_file_does_not_keep_the_next_writer_out() {
    let place = Place::new();
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = another_writer(&place, &memory);
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    let mut files = crate::bench::files(&store).into_iter();
    let newest = files.rfind(|file| file.level == 0);
    let key = engine::replica::manifest::key(store.layout(), 0, newest.unwrap().name());
    let body = Body::from(vec![1; 50]);
    block_on(store.put(&key, body, PutMode::Overwrite, &PutMeta::default())).unwrap();
    state_lost(&place, &mut settings.clone());
    let replication = Replication::start(&settings);
    app.sql("INSERT INTO item VALUES(NULL, 'after')");
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
}

#[test]
fn a_store_that_ignores_conditions_gets_no_backup_and_says_why() {
    let place = Place::new();
    let store: SharedStore =
        Arc::new(Memory::with_clock(engine::env::clock::unix_ms).ignoring_create());
    let _app = App::start(&Habits::calm(&place.database(), seed()));
    let replication = Replication::start_with(
        &settings(&place.database(), &place.state(), &[Arc::clone(&store)]),
        Duration::from_secs(1),
    );
    replication.wait_target(0, TargetState::DestinationUnavailable);
    let message = replication.status().targets[0].message.clone();
    assert!(message.contains("If-None-Match"), "{message}");
    assert!(!replication.stop());
    assert!(crate::bench::files(&store).is_empty());
}

#[test]
fn a_database_that_the_backup_is_not_of_is_blocked_or_begins_a_lineage() {
    let (one, two) = (Place::new(), Place::new());
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&one.database(), seed()));
    let mut ours = another_writer(&one, &memory);
    ours.targets[0].compaction_interval = Duration::from_secs(3600);
    let first = Replication::start(&ours);
    assert_stored(&first, &mut app, &store);
    let mut other = App::start(&Habits::calm(&two.database(), 5));
    other.sql("INSERT INTO item VALUES(NULL, 'another database')");
    let mut theirs = another_writer(&two, &memory);
    theirs.targets[0].compaction_interval = Duration::from_secs(3600);
    let before = content(&memory);
    let second = Replication::start(&theirs);
    second.wait_target(0, TargetState::Diverged);
    wait_for("the database to be reported", || {
        (second.status().state == DatabaseState::Diverged).then_some(())
    });
    assert!(!second.stop());
    assert_eq!(content(&memory), before);

    theirs.on_divergence = OnDivergence::NewLineage;
    let second = Replication::start(&theirs);
    assert_stored(&second, &mut other, &store);
    app.sql("INSERT INTO item VALUES(NULL, 'of the first')");
    first.wait_target(0, TargetState::Superseded);
    assert!(!first.stop());
    assert_stored(&second, &mut other, &store);
    assert!(second.stop());
    assert_every_point(&store);
}

#[test]
fn lost_state_of_the_same_file_goes_on_with_a_new_base() {
    let place = Place::new();
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = another_writer(&place, &memory);
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    std::fs::remove_dir_all(place.state()).unwrap();
    app.sql("INSERT INTO item VALUES(NULL, 'while we were down')");
    let replication = Replication::start(&settings);
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

#[test]
fn a_volume_rolled_back_with_our_state_never_continues_what_it_forgot() {
    let (place, saved) = (Place::new(), Place::new());
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&place.database(), seed()));
    let settings = another_writer(&place, &memory);
    let replication = Replication::start(&settings);
    for _ in 0..3 {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        assert_stored(&replication, &mut app, &store);
    }
    assert!(replication.stop());
    app.close();
    drop(app);
    copy_tree(place.directory.path(), saved.directory.path());
    let mut app = App::start(&Habits::calm(&place.database(), 2));
    let replication = Replication::start(&settings);
    for _ in 0..3 {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        assert_stored(&replication, &mut app, &store);
    }
    assert!(replication.stop());

    // The volume goes back, with every inode. Before the store answers, more is captured than was
    // stored.
    app.close();
    drop(app);
    roll_back(place.directory.path(), saved.directory.path());
    let faulty = Arc::new(Faulty::new(
        Gated::new(Arc::clone(&memory)),
        FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)),
    ));
    let mut app = App::start(&Habits::calm(&place.database(), 3));
    let shared: SharedStore = Arc::clone(&faulty) as SharedStore;
    let replication = Replication::start(&crate::bench::settings(
        &place.database(),
        &place.state(),
        &[shared],
    ));
    for _ in 0..8 {
        let before = wait_for("a position", || replication.status().position).txid;
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        wait_for("a capture", || {
            (replication.status().position?.txid > before).then_some(())
        });
    }
    faulty.set_plan(FaultPlan::none());
    assert_stored(&replication, &mut app, &store);
    assert!(replication.stop());
    assert_every_point(&store);
}

/// Restores the earlier content of a directory, in the same files.
fn roll_back(place: &std::path::Path, saved: &std::path::Path) {
    for entry in std::fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        let was = saved.join(path.file_name().unwrap());
        if path.is_dir() {
            roll_back(&path, &was);
        } else if !was.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
    copy_tree(saved, place);
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn nothing_starts_empty_unless_every_store_says_that_there_is_nothing() {
    let place = Place::new();
    let source = Place::new();
    let good = memory();
    let good_store: SharedStore = Arc::clone(&good) as SharedStore;
    let mut app = App::start(&Habits::calm(&source.database(), seed()));
    let replication = Replication::start(&another_writer(&source, &good));
    assert_stored(&replication, &mut app, &good_store);
    assert!(replication.stop());
    let failing = |kind| -> SharedStore {
        Arc::new(Faulty::new(
            Memory::new(),
            FaultPlan::none().from(0, Fault::Fail(kind)),
        ))
    };
    let with = |stores: &[SharedStore]| {
        let _removed = std::fs::remove_file(place.database());
        ready(&settings(&place.database(), &place.state(), stores))
    };
    let empty = || memory() as SharedStore;
    assert!(matches!(with(&[empty()]), Ok(Ready::Empty)));
    assert!(matches!(with(&[empty(), empty()]), Ok(Ready::Empty)));
    for kind in [
        StoreErrorKind::Denied,
        StoreErrorKind::Unreachable,
        StoreErrorKind::Throttled,
        StoreErrorKind::NoBucket,
        StoreErrorKind::CredentialsMissing,
    ] {
        for stores in [
            vec![failing(kind)],
            vec![empty(), failing(kind)],
            vec![failing(kind), empty()],
        ] {
            let result = with(&stores);
            assert!(
                matches!(result, Err(StartupError::CouldNotLook { .. })),
                "{kind:?}"
            );
            assert!(!place.database().exists());
        }
        let result = with(&[failing(kind), empty(), Arc::clone(&good_store)]);
        assert!(matches!(result, Ok(Ready::Restored { .. })), "{kind:?}");
    }
    let corrupt = memory();
    let name = "ltx/9/0000000000000001-0000000000000004.ltx";
    let body = Body::Bytes("garbage".into());
    block_on(corrupt.put(name, body, PutMode::Create, &PutMeta::default())).unwrap();
    let result = with(&[Arc::clone(&corrupt) as SharedStore]);
    assert!(result.is_err() && !place.database().exists());
    let result = with(&[corrupt as SharedStore, Arc::clone(&good_store)]);
    assert!(matches!(result, Ok(Ready::Restored { .. })));
    let (_, bytes) = restored(&good_store, Point::Latest).unwrap();
    assert!(bytes == std::fs::read(place.database()).unwrap());
}

#[test]
fn each_call_of_a_startup_may_fail_and_the_next_attempt_restores() {
    let source = Place::new();
    let mut app = App::start(&Habits::calm(&source.database(), seed()));
    for call in 0.. {
        let faulty = Arc::new(Faulty::new(
            Memory::with_clock(engine::env::clock::unix_ms),
            FaultPlan::none(),
        ));
        let store: SharedStore = Arc::clone(&faulty) as SharedStore;
        let (writer, place) = (Place::new(), Place::new());
        let stores = [Arc::clone(&store)];
        let replication =
            Replication::start(&settings(&source.database(), &writer.state(), &stores));
        assert_stored(&replication, &mut app, &store);
        assert!(replication.stop());
        let at = faulty.operations() + call;
        faulty
            .set_plan(FaultPlan::none().at(at, Fault::ApplyThenFail(StoreErrorKind::Unreachable)));
        let settings = settings(&place.database(), &place.state(), &stores);
        let first = ready(&settings);
        let second = ready(&settings).unwrap();
        let untouched = faulty.operations() <= at;
        faulty.set_plan(FaultPlan::none());
        assert!(first.is_ok() || matches!(second, Ready::Restored { .. }));
        let mut restored_app = App::start(&Habits::calm(&place.database(), 1));
        restored_app.sql("INSERT INTO item VALUES(NULL, 'after')");
        let replication = Replication::start(&settings);
        assert_stored(&replication, &mut restored_app, &store);
        assert!(replication.stop());
        if untouched {
            println!("{call} calls");
            break;
        }
    }
}
