//! Two writers, one replica: the newer one wins, and the older one changes nothing any more.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use engine::database::DatabaseSettings;
use engine::restore::{IntegrityCheck, Point};
use engine::startup::{Ready, StartupError, make_ready};
use futures::FutureExt;
use futures::future::BoxFuture;
use protocol::config::{OnDivergence, OnMissing};
use protocol::status::{DatabaseState, TargetState};
use store::{
    Body, Capabilities, Fault, FaultPlan, Faulty, Layout, Memory, ObjectInfo, PutMeta, PutMode,
    SharedStore, Store, StoreError, StoreErrorKind,
};
use tokio::sync::watch;

use crate::app::{App, Habits, seed};
use crate::bench::{
    Place, Replication, assert_every_point, assert_stored, block_on, memory, restored, settings,
    wait_for,
};

/// A store of which some writes wait while its gate is closed, as behind a network that is cut.
struct Gated {
    inner: Arc<Memory>,
    /// The gate is closed for keys that begin so.
    closed: watch::Sender<Option<&'static str>>,
    waiting: Mutex<Vec<String>>,
}

impl Gated {
    fn new(inner: Arc<Memory>) -> Gated {
        Gated {
            inner,
            closed: watch::Sender::new(None),
            waiting: Mutex::default(),
        }
    }
}

impl Store for Gated {
    fn put(
        &self,
        key: &str,
        body: Body,
        mode: PutMode,
        meta: &PutMeta,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let (key, meta) = (key.to_owned(), *meta);
        async move {
            let shut = |closed: &Option<&str>| closed.is_some_and(|prefix| key.starts_with(prefix));
            if shut(&self.closed.borrow()) {
                self.waiting.lock().unwrap().push(key.clone());
            }
            let mut closed = self.closed.subscribe();
            closed.wait_for(|closed| !shut(closed)).await.unwrap();
            self.inner.put(&key, body, mode, &meta).await
        }
        .boxed()
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        self.inner.get(key, range)
    }

    fn head(&self, key: &str) -> BoxFuture<'_, Result<ObjectInfo, StoreError>> {
        self.inner.head(key)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> BoxFuture<'_, Result<Vec<ObjectInfo>, StoreError>> {
        self.inner.list(prefix, after)
    }

    fn delete(&self, keys: &[String]) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.delete(keys)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn layout(&self) -> Layout {
        self.inner.layout()
    }
}

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
    block_on(make_ready(settings, OnMissing::Restore, check, &|_, _| {}))
}

fn another_writer(place: &Place, store: &Arc<Memory>) -> DatabaseSettings {
    let store: SharedStore = Arc::clone(store) as SharedStore;
    settings(&place.database(), &place.state(), &[store])
}

/// Keys of objects that an older writer wrote after it was superseded.
type Changed = Vec<String>;

/// Cuts a writer off in the middle of what `begin` makes it upload, lets another one take over
/// from the backup, brings the first one back, and looks at the replica: nothing but the very
/// upload that was on its way may be new. Returns what is.
fn take_over_during(change: impl Fn(&Place, &mut DatabaseSettings), key: &'static str) -> Changed {
    let (old_place, new_place) = (Place::new(), Place::new());
    let memory = memory();
    let gated = Arc::new(Gated::new(Arc::clone(&memory)));
    let mut old_app = App::start(&Habits::calm(&old_place.database(), seed()));
    let shared: SharedStore = Arc::clone(&gated) as SharedStore;
    let mut old_settings = settings(
        &old_place.database(),
        &old_place.state(),
        &[Arc::clone(&shared)],
    );
    let old = Replication::start(&old_settings);
    assert_stored(&old, &mut old_app, &shared);
    assert!(old.stop());
    change(&old_place, &mut old_settings);
    let old = Replication::start(&old_settings);
    wait_for("the old writer to go on", || {
        (old.status().targets[0].state == TargetState::Ok).then_some(())
    });
    gated.closed.send_replace(Some(key));
    wait_for("an upload that hangs", || {
        old_app.sql("INSERT INTO item VALUES(NULL, randomblob(500))");
        (!gated.waiting.lock().unwrap().is_empty()).then_some(())
    });

    let mut new_settings = another_writer(&new_place, &memory);
    new_settings.targets[0].merge_interval = Duration::from_secs(3600);
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
    let before = content(&memory);

    gated.closed.send_replace(None);
    old.wait_target(0, TargetState::Superseded);
    wait_for("the database to be reported", || {
        (old.status().state == DatabaseState::Superseded).then_some(())
    });
    old_app.go();
    std::thread::sleep(Duration::from_millis(100)); // bounded: the application works meanwhile
    old_app.pause();
    assert!(!old.stop());
    let mut after = content(&memory);
    after.retain(|object| !before.contains(object));
    let removed = content(&memory).len() - after.len() < before.len();
    assert!(!removed, "the old writer removed something");
    let changed: Changed = after.into_iter().map(|(key, _)| key).collect();
    assert!(
        changed
            .iter()
            .all(|key| gated.waiting.lock().unwrap().contains(key)),
        "{changed:?}"
    );
    new_app.sql("INSERT INTO item VALUES(NULL, 'once more')");
    assert_stored(&new, &mut new_app, &store);
    assert!(new.stop());
    assert_every_point(&store);
    changed
}

#[test]
fn a_writer_cut_off_in_an_upload_changes_nothing_when_it_comes_back() {
    assert_eq!(take_over_during(|_, _| {}, "ltx/0/"), Changed::new());
}

#[test]
fn a_writer_cut_off_in_a_new_base_changes_nothing_when_it_comes_back() {
    let lost = |place: &Place, _: &mut DatabaseSettings| {
        std::fs::remove_dir_all(place.state()).unwrap();
    };
    assert_eq!(take_over_during(lost, "ltx/9/"), Changed::new());
}

#[test]
fn a_writer_cut_off_in_a_copy_of_what_is_stored_adds_no_more_than_that() {
    let often = |_: &Place, settings: &mut DatabaseSettings| {
        settings.snapshot_interval = Duration::from_millis(1);
    };
    assert_eq!(take_over_during(often, "ltx/9/").len(), 1);
}

#[test]
fn a_writer_cut_off_in_a_merge_of_what_is_stored_adds_no_more_than_that() {
    let often = |_: &Place, settings: &mut DatabaseSettings| {
        settings.targets[0].merge_interval = Duration::from_millis(1);
    };
    assert_eq!(take_over_during(often, "ltx/1/").len(), 1);
}

#[test]
fn a_database_that_the_backup_is_not_of_is_blocked_or_begins_a_lineage() {
    let (one, two) = (Place::new(), Place::new());
    let memory = memory();
    let store: SharedStore = Arc::clone(&memory) as SharedStore;
    let mut app = App::start(&Habits::calm(&one.database(), seed()));
    let mut ours = another_writer(&one, &memory);
    ours.targets[0].merge_interval = Duration::from_secs(3600);
    let first = Replication::start(&ours);
    assert_stored(&first, &mut app, &store);
    let mut other = App::start(&Habits::calm(&two.database(), 5));
    other.sql("INSERT INTO item VALUES(NULL, 'another database')");
    let mut theirs = another_writer(&two, &memory);
    theirs.targets[0].merge_interval = Duration::from_secs(3600);
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
    let (place, rolled_back) = (Place::new(), Place::new());
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
    copy_tree(place.directory.path(), rolled_back.directory.path());
    let mut app = App::start(&Habits::calm(&place.database(), 2));
    let replication = Replication::start(&settings);
    for _ in 0..3 {
        app.sql("INSERT INTO item VALUES(NULL, randomblob(300))");
        assert_stored(&replication, &mut app, &store);
    }
    assert!(replication.stop());

    // The snapshot comes back, and captures more than what is stored before the store answers.
    let faulty = Arc::new(Faulty::new(
        Gated::new(Arc::clone(&memory)),
        FaultPlan::none().from(0, Fault::Fail(StoreErrorKind::Unreachable)),
    ));
    let mut app = App::start(&Habits::calm(&rolled_back.database(), 3));
    let shared: SharedStore = Arc::clone(&faulty) as SharedStore;
    let replication = Replication::start(&crate::bench::settings(
        &rolled_back.database(),
        &rolled_back.state(),
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

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.metadata().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
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
            Memory::with_clock(engine::capture::unix_ms),
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
