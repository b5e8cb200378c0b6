use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use ltx::FileName;
use store::{Body, Fault, FaultPlan, Faulty, Memory, PutMeta, PutMode, Store};

use super::*;
use crate::env::clock::SystemClock;
use crate::env::host::Host;
use crate::replica::lease::{self, Claim, Lease};
use crate::replica::manifest;
use crate::source::capture::Capture;
use crate::spool::progress::Captured;
use crate::spool::state_dir::{LocalFile, ReplicaRecord};

/// The target of a database in a temporary directory.
pub(super) struct Bench {
    pub(super) target: Uploader,
    _drain: watch::Sender<bool>,
    _directory: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new(store: SharedStore) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("db"), "database").unwrap();
        let (drain, drained) = watch::channel(false);
        let progress = SharedProgress::default();
        progress.update(|progress| progress.targets = vec![TargetProgress::default()]);
        let target = Uploader {
            index: 0,
            settings: TargetSettings {
                name: "here".into(),
                store,
                compaction_interval: Duration::from_secs(30),
                higher_levels: Vec::new(),
                retention: RetentionPolicy::default(),
            },
            database: directory.path().join("db"),
            holder: "us".into(),
            on_divergence: OnDivergence::Block,
            snapshot_interval: Duration::from_secs(24 * 3600),
            env: Env::new(Capture::start().unwrap()),
            local: Arc::new(
                LocalState::open(&directory.path().join("state"), &Host::default().disk).unwrap(),
            ),
            records: Arc::default(),
            progress: Arc::new(progress),
            report: Arc::default(),
            drain: drained,
        };
        Bench {
            target,
            _drain: drain,
            _directory: directory,
        }
    }
}

/// A store whose lease another holder has, with stored files of these levels and TXIDs.
async fn held_by_another(store: &SharedStore, announced: u64, files: &[(u8, u64)]) -> Lease {
    let claim = Claim {
        holder: "another".into(),
        source: None,
    };
    let now = Timestamp::UNIX_EPOCH;
    let taken = lease::take(store, &claim, 0, now, |_| true).await.unwrap();
    let announce = |lease: &mut Lease| lease.announced = Txid::new(announced);
    lease::amend(store, "another", announce).await.unwrap();
    for (level, max) in files {
        put(&**store, *level, *max).await;
    }
    let lease = taken.unwrap();
    Lease {
        announced: Txid::new(announced),
        ..lease
    }
}

/// Stores a file with one page.
async fn put(store: &dyn Store, level: u8, max: u64) {
    let max = Txid::new(max);
    let min = if level == 0 { max } else { Txid::FIRST };
    let name = FileName { min, max };
    let header = ltx::Header {
        flags: ltx::Header::NO_CHECKSUM,
        page_size: sqlite_format::PageSize::MIN,
        commit: 1,
        min_txid: min,
        max_txid: max,
        timestamp_ms: 1,
        pre_apply: 0,
        wal_offset: 32,
        wal_size: 0,
        wal_salts: sqlite_format::Salts { salt1: 1, salt2: 1 },
        node_id: 1,
        reserved: [0; 20],
    };
    let mut encoder = ltx::Encoder::new(Vec::new(), header).unwrap();
    encoder.encode_page(1, &[0; 512]).unwrap();
    let bytes = Bytes::from(encoder.finish().unwrap().0);
    let key = manifest::key(store.layout(), level, name);
    let put = store.put(
        &key,
        Body::Bytes(bytes),
        PutMode::Create,
        &PutMeta::default(),
    );
    put.await.unwrap();
}

#[tokio::test]
async fn no_fence_stands_behind_a_full_copy_that_may_still_come() {
    for (what, announced, fence_at) in [
        ("none announced", 0, Some(4)),
        ("it is there", 2, Some(4)),
        ("it has gone, and what came after it is there", 2, Some(4)),
        ("it would be the newest", 3, None),
        ("it would be the newest by far", 9, None),
    ] {
        let copies: &[(u8, u64)] = match what {
            "it is there" => &[(9, 1), (9, 2), (0, 3)],
            _ => &[(9, 1), (0, 2), (0, 3)],
        };
        let store: SharedStore = Arc::new(Memory::new());
        let lease = held_by_another(&store, announced, copies).await;
        let before = manifest::list(&store).await.unwrap().len();
        let files = fence(&store, &lease, &SystemClock).await.unwrap();
        let newest = manifest::newest(&files);
        assert_eq!(newest, Txid::new(fence_at.unwrap_or(3)), "{what}");
        let listed = manifest::list(&store).await.unwrap().len();
        assert_eq!(listed, before + usize::from(fence_at.is_some()), "{what}");
    }
}

#[tokio::test]
async fn a_name_that_is_taken_meanwhile_is_fenced_behind_only_by_who_holds_the_lease() {
    // The calls are: list, header, put.
    let plan = FaultPlan::none().at(2, Fault::Fail(StoreErrorKind::Exists));
    for (superseded, stored) in [(false, 4), (true, 3)] {
        let memory: SharedStore = Arc::new(Memory::new());
        let lease = held_by_another(&memory, 0, &[(9, 1), (0, 2), (0, 3)]).await;
        if superseded {
            let claim = Claim {
                holder: "a third".into(),
                source: None,
            };
            let now = Timestamp::UNIX_EPOCH;
            let taken = lease::take(&memory, &claim, 0, now, |_| true).await;
            assert!(taken.unwrap().is_some());
        }
        let faulty: SharedStore = Arc::new(Faulty::new(Arc::clone(&memory), plan.clone()));
        let fenced = fence(&faulty, &lease, &SystemClock).await;
        assert_eq!(fenced.is_err(), superseded);
        let files = manifest::list(&memory).await.unwrap();
        assert_eq!(manifest::newest(&files), Txid::new(stored));
    }
}

#[tokio::test]
async fn a_replica_after_whose_last_file_nothing_can_be_stored_is_an_error() {
    for holder in ["another", "us"] {
        let store: SharedStore = Arc::new(Memory::new());
        let lease = held_by_another(&store, 0, &[(9, 1), (0, u64::MAX)]).await;
        let names_it = |result: Result<(), TargetError>| {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("ffffffffffffffff"), "{message}");
        };
        names_it(fence(&store, &lease, &SystemClock).await.map(drop));
        let mut bench = Bench::new(Arc::clone(&store));
        bench.target.holder = holder.to_owned();
        bench.target.on_divergence = OnDivergence::NewLineage;
        names_it(bench.target.connect().await.map(drop));
        assert_eq!(bench.target.target_progress(), TargetProgress::default());
    }
}

#[tokio::test]
async fn what_goes_on_behind_an_announced_copy_or_a_hole_begins_with_a_newer_one() {
    for (announced, stored, needed) in [
        (0, &[(9, 1), (0, 2), (0, 3)][..], None),
        (9, &[(9, 1), (0, 2), (0, 3)], Some(9)),
        (0, &[(9, 1), (0, 3)], Some(3)),
        (0, &[(0, 2), (0, 3)], Some(3)),
    ] {
        let store: SharedStore = Arc::new(Memory::new());
        let mut bench = Bench::new(Arc::clone(&store));
        bench.target.connect().await.unwrap();
        for (level, max) in stored {
            put(&*store, *level, *max).await;
        }
        // All these files are ours.
        let mut record = ReplicaRecord::clone(&bench.target.records.lock().unwrap()["here"]);
        record.restored = 3;
        let records = [("here".to_owned(), Box::new(record))];
        *bench.target.records.lock().unwrap() = records.into();
        bench
            .target
            .progress
            .update(|progress| progress.txid = Txid::new(3));
        let announce = |lease: &mut Lease| lease.announced = Txid::new(announced);
        assert!(lease::amend(&store, "us", announce).await.unwrap());
        bench.target.connect().await.unwrap();
        let found = bench.target.target_progress().needs_snapshot;
        assert_eq!(found, needed.map(Txid::new), "{announced} {stored:?}");
    }
}

#[tokio::test]
async fn a_stored_file_of_our_number_with_other_content_is_not_gone_on_from() {
    for is_ours in [true, false] {
        let store: SharedStore = Arc::new(Memory::new());
        let mut bench = Bench::new(Arc::clone(&store));
        bench.target.connect().await.unwrap();
        put(&*store, 9, 1).await;
        put(&*store, 0, 2).await;
        let txid = Txid::new(2);
        let name = FileName {
            min: txid,
            max: txid,
        };
        let key = manifest::key(store.layout(), 0, name);
        let mut bytes = store.get(&key, None).await.unwrap().to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= u8::from(!is_ours);
        std::fs::write(bench.target.local.captured_path(txid), &bytes).unwrap();
        bench.target.progress.update(|progress| {
            progress.txid = txid;
            progress.push(Captured {
                file: LocalFile {
                    txid,
                    bytes: bytes.len() as u64,
                    timestamp_ms: 0,
                },
                checksum: None,
                oldest_ms: 0,
            });
        });
        bench.target.connect().await.unwrap();
        let needed = bench.target.target_progress().needs_snapshot;
        assert_eq!(needed, (!is_ours).then_some(txid));
    }
}

/// Adds a captured file of this TXID, with one page.
async fn capture(target: &Uploader, txid: u64) {
    let elsewhere = Memory::new();
    put(&elsewhere, 0, txid).await;
    let txid = Txid::new(txid);
    let name = FileName {
        min: txid,
        max: txid,
    };
    let key = manifest::key(elsewhere.layout(), 0, name);
    let bytes = elsewhere.get(&key, None).await.unwrap();
    std::fs::write(target.local.captured_path(txid), &bytes).unwrap();
    target.progress.update(|progress| {
        progress.txid = txid;
        progress.push(Captured {
            file: LocalFile {
                txid,
                bytes: bytes.len() as u64,
                timestamp_ms: 0,
            },
            checksum: Some(1),
            oldest_ms: 0,
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_was_idle_looks_at_the_lease_before_it_uploads() {
    let store: SharedStore = Arc::new(Memory::new());
    let mut bench = Bench::new(Arc::clone(&store));
    let mut replica = bench.target.connect().await.unwrap();
    capture(&bench.target, 1).await;
    bench.target.upload_next(&mut replica).await.unwrap();
    // Retention has removed the fence of the next writer meanwhile.
    let claim = Claim {
        holder: "another".into(),
        source: None,
    };
    let now = Timestamp::UNIX_EPOCH;
    let taken = lease::take(&store, &claim, 0, now, |_| true).await.unwrap();
    assert!(taken.is_some());
    tokio::time::advance(CONFIRMED_TIME + Duration::from_secs(1)).await;
    capture(&bench.target, 2).await;
    let uploaded = bench.target.upload_next(&mut replica).await;
    assert!(matches!(uploaded, Err(TargetError::Superseded { .. })));
    assert_eq!(manifest::list(&store).await.unwrap().len(), 1);
}

#[tokio::test]
async fn wherever_a_taking_over_fails_the_next_attempt_leaves_a_fence() {
    for call in 0.. {
        let memory: SharedStore = Arc::new(Memory::new());
        held_by_another(&memory, 0, &[(9, 1), (0, 2), (0, 3)]).await;
        let plan = FaultPlan::none().at(call, Fault::Fail(StoreErrorKind::Unreachable));
        let faulty: SharedStore = Arc::new(Faulty::new(Arc::clone(&memory), plan));
        let mut bench = Bench::new(faulty);
        let record = ReplicaRecord {
            location: bench.target.settings.store.describe(),
            adopt: true,
            ..ReplicaRecord::default()
        };
        let records = [("here".to_owned(), Box::new(record))];
        *bench.target.records.lock().unwrap() = records.into();
        if bench.target.connect().await.is_ok() {
            assert!(call > 8, "{call}");
            break;
        }
        // The other writer stores one more file, unless a fence exists already.
        let fenced = manifest::newest(&manifest::list(&memory).await.unwrap()) > Txid::new(3);
        if !fenced {
            put(&*memory, 0, 4).await;
        }
        bench.target.connect().await.unwrap();
        let files = manifest::list(&memory).await.unwrap();
        let newest = files.iter().max_by_key(|file| file.max).unwrap();
        assert!(!newest.has_pages(), "{call}: {newest:?} is no fence");
        let needed = bench.target.target_progress().needs_snapshot;
        assert_eq!(needed, Some(newest.max), "{call}");
    }
}

#[tokio::test]
async fn a_replica_in_which_nothing_is_stored_is_free_and_any_other_is_not() {
    for (announced, files) in [(0, vec![]), (7, vec![]), (1, vec![(9, 1)])] {
        let store: SharedStore = Arc::new(Memory::new());
        held_by_another(&store, announced, &files).await;
        let mut bench = Bench::new(Arc::clone(&store));
        let connected = bench.target.connect().await;
        let lease = lease::read(&store).await.unwrap().unwrap().lease;
        if !files.is_empty() {
            assert!(matches!(connected, Err(TargetError::Diverged { .. })));
            assert_eq!(lease.holder, "another");
            continue;
        }
        assert!(connected.is_ok());
        assert_eq!(lease.holder, "us");
        let above = bench.target.target_progress().needs_snapshot;
        assert_eq!(above, Some(Txid::new(announced)), "a late one is older");
    }
}

#[tokio::test]
async fn what_is_stored_while_the_lease_is_taken_is_not_taken() {
    // The memory store reads its clock at each put: just before the lease, a file is stored.
    let (itself, armed) = (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)));
    let (memory, due) = (Arc::clone(&itself), Arc::clone(&armed));
    let clock = move || {
        if due.swap(false, Ordering::Relaxed) {
            let memory: &Arc<Memory> = memory.get().unwrap();
            put(&**memory, 9, 1).now_or_never().unwrap();
        }
        0
    };
    let memory = Arc::new(Memory::with_clock(clock));
    assert!(itself.set(Arc::clone(&memory)).is_ok());
    let store: SharedStore = memory;
    held_by_another(&store, 1, &[]).await;
    let mut bench = Bench::new(Arc::clone(&store));
    armed.store(true, Ordering::Relaxed);
    for _start in 0..2 {
        let connected = bench.target.connect().await;
        assert!(matches!(connected, Err(TargetError::Diverged { .. })));
        // Another attempt never makes it ours.
        bench.target.holder.push_str(" again");
    }
}
