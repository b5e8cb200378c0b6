use ltx::Txid;
use protocol::config::OnDivergence;
use sqlite_format::PageSize;
use tokio::sync::watch;

use super::*;
use crate::env::host::Host;
use crate::pages::page_hashes::PageHashes;
use crate::replication::{DatabaseSettings, Env};
use crate::source::capture::Capture;
use crate::spool::progress::{TargetPhase, TargetProgress};
use crate::spool::state_dir::LocalState;

/// A lifecycle that knows an earlier state of the database, and a driver that was asked to
/// stop.
fn stopping(directory: &std::path::Path) -> (Lifecycle, Database) {
    let state = directory.join("state");
    let local = Arc::new(LocalState::open(&state, &Host::default().disk).unwrap());
    let hashes = PageHashes::new(PageSize::MIN);
    local.write_hashes(Txid::new(1), &hashes).unwrap();
    let loaded = local.load().unwrap();
    let settings = DatabaseSettings {
        path: directory.join("db"),
        state,
        targets: Vec::new(),
        sync_interval: Duration::from_secs(1),
        snapshot_interval: Duration::from_secs(3600),
        holder: "us".into(),
        on_divergence: OnDivergence::Block,
    };
    let env = Env::new(Capture::start().unwrap());
    let (database, handle) = Database::new(settings, &env, watch::channel(true).1);
    let spill = database.spill();
    let lifecycle = Lifecycle {
        env,
        committer: Some(Committer::resume(
            local,
            spill,
            handle.progress,
            loaded,
            Vec::new(),
            0,
        )),
        position: None,
        cold: None,
        resting: None,
        pace: Pace::new(Duration::from_secs(1)),
        had_turn: false,
        scan_time: Duration::ZERO,
        was_closed: false,
        in_use_probes: 0,
        watch: None,
        next_watch: Instant::now(),
    };
    (lifecycle, database)
}

fn application(path: &std::path::Path) -> rusqlite::Connection {
    let application = rusqlite::Connection::open(path).unwrap();
    let sql = "PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t(x)";
    application.execute_batch(sql).unwrap();
    application
}

#[tokio::test]
async fn a_database_that_was_closed_before_we_came_is_captured_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (mut lifecycle, mut database) = stopping(directory.path());
    let path = database.settings.path.clone();
    drop(application(&path));
    // The caller's probe found it open, but it was closed since.
    assert!(!lifecycle.follow(&mut database, Cold::Leave).await.unwrap());
    assert!(!with_suffix(&path, "-wal").exists());
    lifecycle.run(&mut database).await.unwrap();
    assert_eq!(database.handle.progress.lock().txid, Txid::new(2));
}

#[tokio::test]
async fn a_database_that_is_open_is_followed_to_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (mut lifecycle, mut database) = stopping(directory.path());
    let _application = application(&database.settings.path);
    assert!(lifecycle.follow(&mut database, Cold::Leave).await.unwrap());
    assert_eq!(database.handle.progress.lock().txid, Txid::new(2));
}

#[tokio::test]
async fn no_number_is_given_before_a_target_has_said_which_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let (mut lifecycle, mut database) = stopping(directory.path());
    assert!(lifecycle.may_number(&mut database).await, "it is known");
    lifecycle.committer.as_mut().unwrap().hashes = None;
    assert!(!lifecycle.may_number(&mut database).await);
    let answered = TargetProgress {
        phase: TargetPhase::Connected,
        ..TargetProgress::default()
    };
    database
        .handle
        .progress
        .update(|progress| progress.targets.push(answered));
    assert!(lifecycle.may_number(&mut database).await);
}
