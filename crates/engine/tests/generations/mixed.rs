//! Replicas that have both: files of Litestream 0.5, which are ours, and generations of 0.3.

use std::sync::Arc;

use engine::replica::manifest;
use engine::replica::restore_plan::PlanError;
use engine::restore::litestream03::GenerationError;
use engine::restore::{Point, RestoreError, Way, find};
use engine::verify::{VerifyOptions, verify};
use jiff::Timestamp;
use ltx::{Encoder, FileName, Header, Txid};
use protocol::status::Position;
use protocol::verify::{DatabaseExpectation, VerifyLevel, VerifyResult};
use sqlite_format::{PageSize, Salts};
use store::{Fault, FaultPlan, Faulty, Layout, Memory, SharedStore, Store, StoreErrorKind};

use crate::replica::{Replica, at, block_on, put, restored};

/// A file of ours with these pages, stored at its own time.
fn put_file(memory: &Arc<Memory>, (min, max): (u64, u64), ms: i64, pages: u32) {
    let header = Header {
        flags: Header::NO_CHECKSUM,
        page_size: PageSize::MIN,
        commit: 1,
        min_txid: Txid::new(min),
        max_txid: Txid::new(max),
        timestamp_ms: ms,
        pre_apply: 0,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: Salts { salt1: 1, salt2: 1 },
        node_id: 1,
        reserved: [0; 20],
    };
    let mut encoder = Encoder::new(Vec::new(), header).unwrap();
    for pgno in 1..=pages {
        encoder.encode_page(pgno, &[7; 512]).unwrap();
    }
    let (bytes, _) = encoder.finish().unwrap();
    let (min, max) = (header.min_txid, header.max_txid);
    let level = if min == Txid::new(1) { 9 } else { 0 };
    let key = manifest::key(memory.layout(), level, FileName { min, max });
    put(memory, &key, bytes, ms);
}

/// The source of a restore: the position of our files, or the time of a generation.
#[derive(Debug, PartialEq)]
enum Found {
    Ours(u64),
    Theirs(i64),
}

fn found(memory: &Arc<Memory>, point: Point) -> Result<Found, RestoreError> {
    let store: SharedStore = Arc::clone(memory) as SharedStore;
    Ok(match block_on(find(&store, point))? {
        Way::Files(resolved) => Found::Ours(resolved.plan.txid.get()),
        Way::Generation(plan) => Found::Theirs(plan.time_ms),
    })
}

/// The golden replica, its first and its last time, and the time of its first segment.
fn golden() -> (Replica, i64, i64, i64) {
    let replica = Replica::golden(4096);
    let times = replica.objects.values().map(|object| object.1);
    let (first, last) = (times.clone().min().unwrap(), times.max().unwrap());
    let some = replica.states[0].time_ms;
    (replica, first, last, some)
}

#[test]
fn the_newer_of_both_is_restored_and_at_a_time_the_one_that_was_newer_then() {
    let (replica, first, last, some) = golden();
    // The usual case: Litestream 0.3 was replaced.
    let memory = replica.memory();
    put_file(&memory, (1, 1), last + 1000, 1);
    put_file(&memory, (2, 2), last + 2000, 1);
    assert_eq!(found(&memory, Point::Latest).unwrap(), Found::Ours(2));
    for (ms, expected) in [
        (some, Found::Theirs(some)),
        (last, Found::Theirs(last)),
        (last + 999, Found::Theirs(last)),
        (last + 1000, Found::Ours(1)),
        (last + 9000, Found::Ours(2)),
    ] {
        assert_eq!(found(&memory, at(ms)).unwrap(), expected, "at {ms}");
    }
    // A user went back to Litestream 0.3.
    let memory = replica.memory();
    put_file(&memory, (1, 1), first - 2000, 1);
    put_file(&memory, (2, 2), first - 1000, 1);
    assert_eq!(found(&memory, Point::Latest).unwrap(), Found::Theirs(last));
    for (ms, expected) in [
        (first - 2000, Found::Ours(1)),
        (first - 1, Found::Ours(2)),
        (some, Found::Theirs(some)),
        (last + 1000, Found::Theirs(last)),
    ] {
        assert_eq!(found(&memory, at(ms)).unwrap(), expected, "at {ms}");
    }
    assert!(matches!(
        found(&memory, at(first - 2001)),
        Err(RestoreError::TooEarly { oldest, .. }) if oldest.as_millisecond() == first - 2000
    ));
}

#[test]
fn a_fence_makes_nothing_newer() {
    let (replica, first, last, _) = golden();
    let memory = replica.memory();
    put_file(&memory, (1, 1), first - 2000, 1);
    put_file(&memory, (2, 2), last + 1000, 0);
    assert_eq!(found(&memory, Point::Latest).unwrap(), Found::Theirs(last));
    assert_eq!(
        found(&memory, at(last + 2000)).unwrap(),
        Found::Theirs(last)
    );
    put_file(&memory, (1, 3), last + 1500, 1);
    assert_eq!(found(&memory, Point::Latest).unwrap(), Found::Ours(3));
}

#[test]
fn history_of_ours_that_has_expired_is_not_filled_with_an_older_state() {
    let (replica, _, last, _) = golden();
    let memory = replica.memory();
    put_file(&memory, (1, 40), last + 4000, 1);
    put_file(&memory, (41, 41), last + 5000, 1);
    assert_eq!(found(&memory, at(last)).unwrap(), Found::Theirs(last));
    let error = found(&memory, at(last + 1)).unwrap_err();
    assert!(
        matches!(
            error,
            RestoreError::Generation(GenerationError::Between { .. })
        ),
        "{error}"
    );
    assert_eq!(found(&memory, at(last + 4000)).unwrap(), Found::Ours(40));
}

#[test]
fn what_is_broken_in_the_newer_one_is_no_reason_for_the_older_one() {
    let (mut replica, first, last, _) = golden();
    let memory = replica.memory();
    put_file(&memory, (1, 1), last + 1000, 1);
    put_file(&memory, (3, 3), last + 2000, 1);
    let error = found(&memory, Point::Latest).unwrap_err();
    assert!(
        matches!(error, RestoreError::Plan(PlanError::Hole { .. })),
        "{error}"
    );

    replica
        .objects
        .retain(|key, _| !key.contains("/snapshots/"));
    let memory = replica.memory();
    put_file(&memory, (1, 1), first - 1000, 1);
    let error = found(&memory, Point::Latest).unwrap_err();
    assert!(
        matches!(
            error,
            RestoreError::Generation(GenerationError::NoSnapshot { .. })
        ),
        "{error}"
    );
}

#[test]
fn a_txid_is_one_of_ours() {
    let (replica, _, last, _) = golden();
    let memory = replica.memory();
    let one = Point::Txid(Txid::new(1));
    let error = found(&memory, one).unwrap_err();
    assert!(
        matches!(error, RestoreError::Generation(GenerationError::NoTxid)),
        "{error}"
    );
    put_file(&memory, (1, 1), last - 9_000_000, 1);
    assert_eq!(found(&memory, one).unwrap(), Found::Ours(1));
}

#[test]
fn a_generation_is_proven_but_is_not_what_a_sidecar_had_acknowledged() {
    let (replica, first, _, _) = golden();
    let memory = replica.memory();
    put_file(&memory, (1, 1), first - 1000, 1);
    let store: SharedStore = memory;
    let scratch = tempfile::tempdir().unwrap();
    let expectation = DatabaseExpectation {
        path: "/data/app.db".to_owned(),
        target: "primary".to_owned(),
        acknowledged: Position {
            txid: Txid::new(1).to_string(),
            checksum: "8000000000000000".to_owned(),
            time: Timestamp::UNIX_EPOCH,
        },
        lag_ms: 0,
    };
    for (expected, result) in [
        (None, VerifyResult::Passed),
        (Some(&expectation), VerifyResult::ChecksumMismatch),
    ] {
        let options = VerifyOptions {
            member: "app-0",
            path: "/data/app.db",
            point: Point::Latest,
            level: VerifyLevel::Full,
            expected,
            max_lag: None,
            max_age: None,
            exact: None,
            checks: &[],
            scratch: scratch.path(),
        };
        let verified = block_on(verify("primary", &store, &options));
        assert_eq!(verified.report.result, result, "{:?}", verified.report);
        let named = verified.report.message.contains("generation");
        assert_eq!(named, expected.is_some());
    }
}

#[test]
fn a_bucket_names_generations_as_a_directory_does() {
    let replica = Replica::golden(1024);
    let memory = Arc::new(Memory::new().with_layout(Layout::S3));
    for (key, (bytes, ms)) in &replica.objects {
        put(&memory, key, bytes.clone(), *ms);
    }
    let store: SharedStore = memory;
    let database = restored(&store, Point::Latest).unwrap();
    assert_eq!(database.bytes, replica.restore(None).unwrap().bytes);
}

/// Every request fails once; then the objects of a plan go missing.
#[test]
fn an_error_of_the_store_is_told_as_one_and_what_has_expired_meanwhile_is_planned_anew() {
    let replica = Replica::golden(1024);
    let expected = replica.restore(None).unwrap().bytes;
    for kind in [StoreErrorKind::Unreachable, StoreErrorKind::Denied] {
        let mut request = 0;
        loop {
            let plan = FaultPlan::none().at(request, Fault::Fail(kind));
            let store: SharedStore = Arc::new(Faulty::new(replica.memory(), plan));
            match restored(&store, Point::Latest) {
                Err(RestoreError::Store(error)) => assert_eq!(error.kind(), kind),
                Err(error) => panic!("request {request}: {error}"),
                Ok(database) => {
                    assert_eq!(database.bytes, expected);
                    break;
                }
            }
            request += 1;
        }
        assert!(request > 4, "{request} requests");
    }
    let plan = FaultPlan::none().at(3, Fault::Fail(StoreErrorKind::Missing));
    let store: SharedStore = Arc::new(Faulty::new(replica.memory(), plan));
    assert_eq!(restored(&store, Point::Latest).unwrap().bytes, expected);
}
