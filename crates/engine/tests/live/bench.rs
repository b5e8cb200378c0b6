//! Shared by the tests: a database directory, its replication, and the proof of the stored files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::env::budget::{Budgets, Limits};
use engine::env::clock::unix_ms;
use engine::env::host::Host;
use engine::replica::manifest::{self, RemoteFile};
use engine::replica::restore_plan::plan_restore;
use engine::replica::retention::RetentionPolicy;
use engine::replication::uploader::TargetSettings;
use engine::replication::{Database, DatabaseHandle, DatabaseSettings, Env};
use engine::restore::{
    Assembly, IntegrityCheck, Point, RestoreError, RestoreOptions, Restored, restore,
};
use engine::source::capture::Capture;
use engine::source::sqlite::{Checked, Inspection};
use ltx::Txid;
use protocol::config::OnDivergence;
use protocol::status::{DatabaseStatus, TargetState};
use store::{Memory, SharedStore};
use tokio::sync::watch;

use crate::app::{App, TOTAL};

/// Longest wait of a test before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until `ready` answers.
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "gave up waiting for {what}");
        std::thread::sleep(Duration::from_millis(2)); // bounded: a poll, up to a deadline
    }
}

/// Runs a future to its end.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// A unique name of a process that holds leases.
fn process() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("process {}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An empty store in memory whose clock is the system's.
pub fn memory() -> Arc<Memory> {
    Arc::new(Memory::with_clock(unix_ms))
}

/// Settings with short intervals.
pub fn settings(path: &Path, state: &Path, stores: &[SharedStore]) -> DatabaseSettings {
    let target = |(index, store): (usize, &SharedStore)| TargetSettings {
        name: format!("target{index}"),
        store: Arc::clone(store),
        compaction_interval: Duration::from_millis(300),
        higher_levels: vec![Duration::from_millis(700), Duration::from_millis(1500)],
        retention: RetentionPolicy::default(),
    };
    DatabaseSettings {
        path: path.to_owned(),
        state: state.to_owned(),
        targets: stores.iter().enumerate().map(target).collect(),
        sync_interval: Duration::from_millis(20),
        snapshot_interval: Duration::from_secs(3600),
        holder: process(),
        on_divergence: OnDivergence::Block,
    }
}

/// A running replication.
pub struct Replication {
    pub handle: DatabaseHandle,
    stop: watch::Sender<bool>,
    thread: JoinHandle<bool>,
}

impl Replication {
    pub fn start(settings: &DatabaseSettings) -> Replication {
        Replication::start_with(settings, Duration::from_secs(10))
    }

    /// `drain`: longest wait for the targets at the end.
    pub fn start_with(settings: &DatabaseSettings, drain: Duration) -> Replication {
        Replication::start_in(Capture::start().unwrap(), settings, drain)
    }

    /// With this many bytes for local state.
    pub fn start_with_state(settings: &DatabaseSettings, state_bytes: u64) -> Replication {
        let limits = Limits {
            state_bytes,
            ..Limits::default()
        };
        let env = Env {
            host: Host::default(),
            source: Arc::new(Capture::start().unwrap()),
            budgets: Budgets::new(limits),
        };
        Replication::start_within(&env, settings, Duration::from_secs(10))
    }

    /// With a given capture thread.
    pub fn start_in(capture: Capture, settings: &DatabaseSettings, drain: Duration) -> Replication {
        Replication::start_within(&Env::new(capture), settings, drain)
    }

    /// Beside other databases of the same process.
    pub fn start_within(env: &Env, settings: &DatabaseSettings, drain: Duration) -> Replication {
        let _second = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_test_writer()
            .try_init();
        let (stop, stopped) = watch::channel(false);
        let settings = DatabaseSettings {
            holder: process(),
            ..settings.clone()
        };
        let (database, handle) = Database::new(settings, env, stopped);
        let thread = std::thread::spawn(move || block_on(database.run(drain)));
        Replication {
            handle,
            stop,
            thread,
        }
    }

    pub fn status(&self) -> DatabaseStatus {
        self.handle.status()
    }

    /// Stops in order; true when every target has everything.
    pub fn stop(self) -> bool {
        self.stop.send_replace(true);
        let complete = self.thread.join().unwrap();
        if !complete {
            println!("stopped early: {:?}", self.handle.status());
        }
        complete
    }

    /// Waits until each target has every captured file.
    pub fn settled(&self) -> DatabaseStatus {
        wait_for("all targets to have everything", || self.has_settled())
    }

    fn has_settled(&self) -> Option<DatabaseStatus> {
        let status = self.status();
        let position = status.position.clone()?;
        let current = |target: &protocol::status::TargetStatus| {
            target.lag_ms == 0 && target.position.as_ref() == Some(&position)
        };
        status.targets.iter().all(current).then_some(status)
    }

    pub fn wait_target(&self, index: usize, state: TargetState) {
        wait_for(&format!("{state:?}"), || {
            (self.status().targets[index].state == state).then_some(())
        });
    }
}

/// Restores a point into a file of its own and returns it with its bytes.
pub fn restored(store: &SharedStore, point: Point) -> Result<(Restored, Vec<u8>), RestoreError> {
    restored_and_checked(store, point, IntegrityCheck::Full)
}

/// As [`restored`], without SQLite's check.
pub fn restored_as_it_is(
    store: &SharedStore,
    point: Point,
) -> Result<(Restored, Vec<u8>), RestoreError> {
    restored_and_checked(store, point, IntegrityCheck::None)
}

fn restored_and_checked(
    store: &SharedStore,
    point: Point,
    integrity: IntegrityCheck,
) -> Result<(Restored, Vec<u8>), RestoreError> {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("restored");
    let options = RestoreOptions {
        point,
        output: output.clone(),
        force: false,
        integrity: integrity.into(),
        parallelism: 4,
    };
    let restored = block_on(restore(store, &options, &|_, _| {}))?;
    Ok((restored, std::fs::read(output).unwrap()))
}

/// Asserts that the lag of a target grows as time passes since `since`.
pub fn assert_lag_grows(replication: &Replication, target: usize, since: Instant) {
    wait_for("the lag to grow", || {
        let waited = since.elapsed();
        let lag = Duration::from_millis(replication.status().targets[target].lag_ms);
        let least = waited.saturating_sub(Duration::from_secs(1));
        assert!(lag >= least, "{lag:?} after {waited:?}");
        (lag >= Duration::from_secs(2)).then_some(())
    });
}

/// Waits until the newest stored position equals, byte for byte, the database that the resting
/// application sees. It must also have the checksum that replication reports.
pub fn assert_stored(replication: &Replication, app: &mut App, store: &SharedStore) {
    let expected = app.dump();
    let mut last = String::new();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let Some(status) = replication.has_settled() else {
            last = format!("not settled: {:?}", replication.status());
            std::thread::sleep(Duration::from_millis(5)); // bounded: a poll, up to a deadline
            continue;
        };
        let (restored, bytes) = restored(store, Point::Latest).unwrap();
        let position = status.position.unwrap();
        if bytes == expected && restored.txid.to_string() == position.txid {
            assert_eq!(
                format!("{:016x}", restored.hashes.checksum()),
                position.checksum
            );
            return;
        }
        last = format!(
            "TXID {} differs at {:?}",
            restored.txid,
            first_difference(&bytes, &expected)
        );
    }
    panic!("the backup does not become what the application sees: {last}");
}

/// Offset of the first different byte, and both sizes.
pub fn first_difference(a: &[u8], b: &[u8]) -> (Option<usize>, usize, usize) {
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    (at, a.len(), b.len())
}

/// Every stored file.
pub fn files(store: &SharedStore) -> Vec<RemoteFile> {
    block_on(manifest::list(store))
        .unwrap()
        .into_iter()
        .collect()
}

/// Restores every position that has a file of its own, one after the other, and proves each. Its
/// pages and SQLite's check must be right, and the accounts must add up, which they do only at
/// commits.
pub fn assert_every_point(store: &SharedStore) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let files = block_on(manifest::list(store)).unwrap();
    let first = files
        .iter()
        .filter(|file| file.level == 9)
        .map(|file| file.max)
        .min();
    let first = first.expect("a snapshot is stored");
    let points: Vec<Txid> = files
        .iter()
        .filter(|file| file.level == 0 && file.max >= first)
        .map(|file| file.max)
        .collect();
    let mut assembly: Option<Assembly> = None;
    let mut page_size = None;
    for point in &points {
        let plan = plan_restore(&files, Some(*point)).unwrap();
        let base = plan.files[0];
        let header = block_on(manifest::read_header(store, &base)).unwrap();
        let advanced = assembly.as_mut().is_some_and(|assembly| {
            page_size == Some(header.page_size)
                && base.max <= assembly.txid()
                && block_on(assembly.advance(store, &files, *point, 1)).is_ok()
        });
        if !advanced {
            // The old assembly removes its file when dropped, and the next one uses the same path.
            drop(assembly.take());
            let mut fresh = Assembly::create(&directory.path().join("point")).unwrap();
            block_on(fresh.fetch(store, &plan, 4, &|_, _| {})).unwrap();
            assembly = Some(fresh);
            page_size = Some(header.page_size);
        }
        let assembly = assembly.as_mut().unwrap();
        let proven = block_on(assembly.prove(IntegrityCheck::Full));
        let proven = proven.unwrap_or_else(|error| panic!("TXID {point}: {error}"));
        assert_eq!(proven.checked, Checked::default(), "TXID {point}");
        assert_sums(assembly.path(), &format!("TXID {point}"));
    }
    points.len()
}

/// Checks that the accounts add up.
pub fn assert_sums(path: &Path, what: &str) {
    let mut inspection = Inspection::open(path).unwrap();
    let sql = "SELECT coalesce(sum(balance), 0) FROM account";
    let sum = inspection.query(sql, PATIENCE).unwrap();
    assert_eq!(sum.first, Some(TOTAL.to_string()), "{what}");
}

/// A directory with a place for a database and one for our state.
pub struct Place {
    pub directory: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn database(&self) -> PathBuf {
        self.directory.path().join("app.db")
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }
}
