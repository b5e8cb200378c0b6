use std::sync::{Arc, Mutex};

use ltx::{FileName, Txid};
use store::{Body, Fault, FaultPlan, Faulty, Memory, PutMeta, PutMode};

use super::*;
use crate::env::clock::unix_ms;
use crate::replication::uploader::tests;

const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 365 * 24 * HOUR_MS;
const HOUR: Duration = Duration::from_secs(3600);
/// Captured files before the newest one. All of them are compacted and old.
const OLD: u64 = 10;

struct Bench {
    store: Arc<Faulty<Memory>>,
    inner: tests::Bench,
}

impl Bench {
    /// A target of a store whose clock differs from this machine's. It keeps an hour of exact
    /// points.
    fn new(off_ms: i64) -> Bench {
        let memory = Memory::with_clock(move || unix_ms() + off_ms);
        let store = Arc::new(Faulty::new(memory, FaultPlan::none()));
        let mut inner = tests::Bench::new(Arc::clone(&store) as SharedStore);
        inner.target.settings.retention.exact = HOUR;
        Bench { store, inner }
    }

    /// Connects, then stores a snapshot, captured files and a compacted file over all but the last.
    async fn connected(&mut self) -> LeasedReplica {
        let mut replica = self.inner.target.connect().await.unwrap();
        for txid in 2..=OLD + 2 {
            self.put(&mut replica, 0, txid, txid).await;
        }
        self.put(&mut replica, 9, 1, 1).await;
        self.put(&mut replica, 1, 2, OLD + 1).await;
        replica
    }

    async fn put(&self, replica: &mut LeasedReplica, level: u8, min: u64, max: u64) {
        let (min, max) = (Txid::new(min), Txid::new(max));
        let (name, body) = (FileName { min, max }, Body::from(vec![0; 8]));
        let put = self.inner.target.put(replica, level, name, body, 1);
        put.await.unwrap();
    }

    /// One run of retention; true when there is more to delete.
    async fn retain(&self, replica: &mut LeasedReplica) -> Result<bool, TargetError> {
        let retained = self.inner.target.retention(replica).run().await;
        let has_more = retained.has_more;
        self.inner.target.retained(replica, retained)?;
        Ok(has_more)
    }

    /// Number of files of level 0 in the store.
    fn captured(&self) -> usize {
        let keys = self.store.inner().keys();
        keys.iter().filter(|key| key.starts_with("ltx/0/")).count()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

/// Runs with virtual time, by which files age. The store's clock differs from this machine's wall
/// clock by `off_ms`.
fn run(off_ms: i64, test: impl AsyncFnOnce(Bench)) {
    runtime().block_on(test(Bench::new(off_ms)));
}

#[test]
fn a_wall_clock_that_is_a_year_ahead_of_the_store_deletes_nothing_early() {
    run(-YEAR_MS, async |mut bench| {
        let mut replica = bench.connected().await;
        let dated = replica.files.first().unwrap().modified_ms;
        assert!((unix_ms() - YEAR_MS - dated).abs() < HOUR_MS, "{dated}");
        assert!(!bench.retain(&mut replica).await.unwrap());
        assert_eq!(bench.captured() as u64, OLD + 1);
        // They age all the same as time passes.
        tokio::time::advance(HOUR).await;
        assert!(!bench.retain(&mut replica).await.unwrap());
        assert_eq!(bench.captured(), 1);
        assert_eq!(replica.files.len(), 3);
    });
}

#[test]
fn a_store_whose_clock_is_a_year_ahead_of_the_machine_deletes_nothing_early() {
    run(YEAR_MS, async |mut bench| {
        let mut replica = bench.connected().await;
        let listed = |file: &RemoteFile| RemoteFile {
            modified_ms: unix_ms(),
            ..*file
        };
        replica.files = replica.files.iter().map(listed).collect();
        assert!(!bench.retain(&mut replica).await.unwrap());
        assert_eq!(bench.captured() as u64, OLD + 1);
    });
}

#[test]
fn files_from_the_future_are_taken_for_new_when_they_are_listed() {
    run(0, async |mut bench| {
        let key = manifest::key(
            bench.store.layout(),
            0,
            FileName {
                min: Txid::new(2),
                max: Txid::new(2),
            },
        );
        // The writer's clock was ahead. Files in a directory carry their writers' times.
        let meta = PutMeta {
            timestamp_ms: Some(unix_ms() + YEAR_MS),
        };
        let bytes = crate::replication::uploader::fence::empty_file(header()).unwrap();
        let put = bench
            .store
            .put(&key, Body::Bytes(bytes), PutMode::Create, &meta);
        put.await.unwrap();
        let replica = bench.inner.target.connect().await.unwrap();
        let now_ms = replica.clock.now_ms();
        assert!((now_ms - unix_ms()).abs() < HOUR_MS);
        // The fence that was stored for us is not ahead, either.
        assert_eq!(replica.files.len(), 2);
        assert!(replica.files.iter().all(|file| file.modified_ms <= now_ms));
    });
}

fn header() -> ltx::Header {
    ltx::Header {
        flags: ltx::Header::NO_CHECKSUM,
        page_size: sqlite_format::PageSize::MIN,
        commit: 1,
        min_txid: Txid::new(2),
        max_txid: Txid::new(2),
        timestamp_ms: 1,
        pre_apply: 0,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: sqlite_format::Salts { salt1: 1, salt2: 1 },
        node_id: 1,
        reserved: [0; 20],
    }
}

#[test]
fn one_refused_object_stays_known_and_keeps_no_other_one() {
    run(-YEAR_MS, async |mut bench| {
        let mut replica = bench.connected().await;
        tokio::time::advance(HOUR).await;
        // After the read of the lease: all in one call, then one by one.
        let calls = bench.store.operations();
        let plan = FaultPlan::none().at(calls + 2, Fault::Fail(StoreErrorKind::Denied));
        bench
            .store
            .set_plan(plan.at(calls + 5, Fault::Fail(StoreErrorKind::Other)));
        let log = Log::default();
        let _listening = log.listen();
        assert!(!bench.retain(&mut replica).await.unwrap());
        assert_eq!(bench.captured(), 2);
        assert_eq!(replica.files.len(), 4);
        let refused: Vec<u64> = replica
            .undeletable
            .files
            .iter()
            .map(|it| it.max.get())
            .collect();
        assert_eq!(refused, [4]);
        // Its deletion is neither retried nor logged until a day has passed.
        bench.store.set_plan(FaultPlan::none());
        let calls = bench.store.operations();
        tokio::time::advance(HOUR).await;
        assert!(!bench.retain(&mut replica).await.unwrap());
        assert_eq!(bench.store.operations(), calls);
        let said = log.text();
        assert_eq!(said.matches("WARN").count(), 1, "{said}");
        assert!(said.contains("delete ltx/0/0000000000000004"), "{said}");
        tokio::time::advance(HOUR * 24).await;
        assert!(!bench.retain(&mut replica).await.unwrap());
        assert_eq!((bench.captured(), replica.files.len()), (1, 3));
        assert!(replica.undeletable.files.is_empty());
    });
}

#[test]
fn without_the_right_to_delete_it_is_said_once_and_nothing_is_forgotten() {
    run(-YEAR_MS, async |mut bench| {
        let mut replica = bench.connected().await;
        let log = Log::default();
        let _listening = log.listen();
        let old = replica.files.len();
        for round in 0..3 {
            let begin = OLD + 3 + round * 200;
            for txid in begin..begin + 200 {
                bench.put(&mut replica, 0, txid, txid).await;
            }
            bench.put(&mut replica, 1, begin, begin + 199).await;
            tokio::time::advance(HOUR).await;
            let lease = bench.store.operations();
            let refuse = Fault::Fail(StoreErrorKind::Denied);
            bench
                .store
                .set_plan(FaultPlan::none().from(lease + 2, refuse));
            // The next files would be refused, too, so they wait for the next run.
            assert!(!bench.retain(&mut replica).await.unwrap());
            let calls = bench.store.operations() - lease;
            assert_eq!(calls as usize, 2 + 1 + DELETE_FILES);
            bench.store.set_plan(FaultPlan::none());
        }
        assert_eq!(replica.files.len(), old + 3 * 201);
        assert_eq!(log.text().matches("WARN").count(), 1, "{}", log.text());
        // With the right to delete, all of them are deleted, some at a time.
        tokio::time::advance(HOUR * 24).await;
        while bench.retain(&mut replica).await.unwrap() {}
        // The file that no compacted file covers stays, and so does the newest.
        assert_eq!((bench.captured(), replica.files.len()), (2, 7));
    });
}

#[test]
fn each_call_of_retention_may_fail_and_its_answer_may_be_lost() {
    let faults = [
        Fault::Fail(StoreErrorKind::Unreachable),
        Fault::ApplyThenFail(StoreErrorKind::Unreachable),
        Fault::Fail(StoreErrorKind::Denied),
        Fault::ApplyThenFail(StoreErrorKind::Denied),
    ];
    for fault in faults {
        let mut calls = 0;
        for call in 0.. {
            let hit = std::cell::Cell::new(false);
            run(-YEAR_MS, async |mut bench| {
                let mut replica = bench.connected().await;
                tokio::time::advance(HOUR).await;
                let at = bench.store.operations() + call;
                // One by one from the second call on.
                let plan = FaultPlan::none().at(at - call + 2, Fault::Fail(StoreErrorKind::Denied));
                bench.store.set_plan(plan.at(at, fault));
                let _answer = bench.retain(&mut replica).await;
                hit.set(bench.store.operations() > at);
                // A file that was deleted although the answer was lost stays known until it is
                // deleted again.
                let known = replica.files.iter().filter(|file| file.level == 0).count();
                assert!(known >= bench.captured(), "{fault:?} at {call}");
                bench.store.set_plan(FaultPlan::none());
                tokio::time::advance(HOUR * 25).await;
                while bench.retain(&mut replica).await.unwrap() {}
                assert_eq!((bench.captured(), replica.files.len()), (1, 3));
            });
            calls = call;
            if !hit.get() {
                break;
            }
        }
        assert!(calls > OLD, "{calls}");
    }
}

/// The captured log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time();
        let subscriber = subscriber.with_writer(move || log.clone()).finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
