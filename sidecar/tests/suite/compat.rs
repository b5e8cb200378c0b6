//! Compatibility with released Litestream binaries in both directions, in directories and in
//! buckets.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ltx::Decoder;
use store::{Credentials, Store as _, Target};

use crate::support::bucket::{Bucket, block_on};
use crate::support::database::{Rows, assert_same, create, files, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{clean, finish, program, signal, wait_for_end};
use crate::support::sidecar::Sidecar;
use crate::support::until;

/// Releases that read and write pages as LZ4 blocks, as we do.
const BLOCK_RELEASES: [&str; 2] = ["0.5.16", "0.5.17"];
/// The last release that supports only LZ4 frames.
const FRAME_RELEASE: &str = "0.5.14";
/// All of them.
const RELEASES: [&str; 3] = [FRAME_RELEASE, "0.5.16", "0.5.17"];
/// The release that takes over a replica from us.
const NEWEST: &str = "0.5.17";

/// Returns the path of the program of one release.
pub fn litestream_program(version: &str) -> PathBuf {
    let variable = format!("LITESTREAM_{}_BIN", version.replace('.', "_"));
    let program = std::env::var_os(&variable).unwrap_or_else(|| {
        panic!(
            "{variable} is not set: tests of compatibility need the real litestream {version}; \
             run them through `cargo xtask test`, which fetches it"
        )
    });
    program.into()
}

fn litestream(version: &str) -> Command {
    clean(Command::new(litestream_program(version)))
}

/// The location of a replica, and its keys.
struct Replica<'a> {
    url: String,
    bucket: Option<&'a Bucket>,
}

impl Replica<'_> {
    fn directory(place: &Place) -> Replica<'static> {
        Replica {
            url: place.url("replica"),
            bucket: None,
        }
    }

    fn bucket<'a>(bucket: &'a Bucket, prefix: &str) -> Replica<'a> {
        Replica {
            url: format!("{}&forcePathStyle=true", bucket.url(prefix)),
            bucket: Some(bucket),
        }
    }

    fn sign(&self, mut command: Command) -> Command {
        if let Some(bucket) = self.bucket {
            bucket.sign(&mut command);
        }
        command
    }

    /// Returns the rows that our program restores.
    fn restored_by_us(&self, place: &Place, arguments: &[&str]) -> Rows {
        let output = place.fresh("ours.db");
        let mut command = self.sign(program());
        command.args(["restore", &self.url, "-o", text(&output)]);
        command.args(["--integrity-check", "full"]).args(arguments);
        finish(command).succeeds();
        rows(&output)
    }

    /// Returns the rows that a release restores.
    fn restored_by(&self, version: &str, place: &Place, arguments: &[&str]) -> Rows {
        let output = place.fresh("theirs.db");
        self.restore_with(version, &output, arguments).succeeds();
        rows(&output)
    }

    fn restore_with(
        &self,
        version: &str,
        output: &Path,
        arguments: &[&str],
    ) -> crate::support::process::Finished {
        let mut command = self.sign(litestream(version));
        command
            .args(["restore", "-o", text(output)])
            .args(arguments);
        command.arg(&self.url);
        finish(command)
    }

    /// Asserts that every program restores the source.
    fn equals(&self, place: &Place, source: &Rows) {
        assert_same(&self.restored_by_us(place, &[]), source);
        for version in BLOCK_RELEASES {
            assert_same(&self.restored_by(version, place, &[]), source);
        }
    }

    /// Returns its objects, copied to a directory under the names of either layout.
    fn objects(&self, place: &Place) -> Vec<PathBuf> {
        let mut target = Target::from_url(&self.url).unwrap();
        if let (Target::S3(s3), Some(bucket)) = (&mut target, self.bucket) {
            s3.credentials = Credentials::Static(bucket.weed.admin());
        }
        let directory = place.fresh("objects");
        block_on(async {
            let store = store::open(&target).unwrap();
            for object in store.list("", None).await.unwrap() {
                let path = directory.join(&object.key);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let bytes = store.get(&object.key, None).await.unwrap();
                std::fs::write(path, bytes).unwrap();
            }
        });
        files(&directory, &|name| name.ends_with(".ltx"))
    }
}

/// Stops a process with SIGTERM.
fn stop(mut child: Child) {
    signal(child.id(), "TERM");
    let (code, _) = wait_for_end(&mut child);
    assert_eq!(code, Some(0));
}

/// Returns a configuration with levels and snapshots within seconds, so that a test covers them.
fn quick_config(place: &Place, url: &str) -> String {
    place.write(
        "config.yml",
        &format!(
            "snapshot: {{interval: 4s}}\nlevels: [{{interval: 500ms}}, {{interval: 1500ms}}]\ndbs:\n- path: {}\n  replica: {{url: '{url}', sync-interval: 50ms}}\n",
            place.database_text()
        ),
    )
}

/// Writes through our own process until compacted files and several snapshots exist. Returns a
/// position in the middle with its time and its rows.
fn written_by_us(place: &Place, replica: &Replica) -> (String, jiff::Timestamp, Rows) {
    let connection = create(&place.database(), 5);
    let config = quick_config(place, &replica.url);
    let command = replica.sign(program());
    let sidecar = Sidecar::spawn(place.path(), &["--config", &config], command);
    let first = sidecar.wait_until_stored();
    let mut middle = None;
    let mut last = first.position.unwrap().txid;
    until("there are merged files and several snapshots", || {
        insert(&connection, 1);
        let status = sidecar.wait_until("the commit is stored", |status| {
            status.targets[0].position == status.position
                && status.position.as_ref().is_some_and(|at| at.txid > last)
        });
        let position = status.position.unwrap();
        let time = position.time;
        last = position.txid.clone();
        middle = middle.take().or_else(|| {
            let here = rows(&place.database());
            (here.len() >= 8).then_some((position.txid, position.time, here))
        });
        let levels = |level: &str| {
            let objects = replica.objects(place);
            objects
                .iter()
                .filter(|path| path.parent().unwrap().ends_with(level))
                .count()
        };
        let (merged, copies) = match replica.bucket {
            None => (levels("1").min(levels("2")), levels("9")),
            Some(_) => (levels("0001").min(levels("0002")), levels("0009")),
        };
        // Litestream reads times from the bucket, which keeps them in whole seconds.
        let later = middle
            .as_ref()
            .is_some_and(|(_, at, _)| time.duration_since(*at).as_secs() >= 2);
        (merged >= 1 && copies >= 2 && later).then_some(())
    });
    insert(&connection, 2);
    assert_eq!(sidecar.terminate().0, Some(0));
    middle.unwrap()
}

/// Every object that we wrote satisfies an independent reader, and the newest captured one has the
/// fields that Litestream needs to take over.
fn objects_are_well_formed(place: &Place, replica: &Replica) {
    let objects = replica.objects(place);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/ltx/tests/ltx_probe.py");
    let mut command = Command::new("python3");
    command.arg(script).arg("dump").args(&objects);
    let verdicts = finish(command).succeeds();
    let said = |verdict: &str| verdicts.matches(verdict).count();
    for verdict in [
        "asc=True",
        "matches_frames=True",
        "file_checksum_ok=True trailing_bytes=0",
    ] {
        assert_eq!(said(verdict), objects.len(), "{verdict}: {verdicts}");
    }
    let copies = objects
        .iter()
        .filter(|path| text(path).contains("/0000000000000001-"));
    assert_eq!(said("snapshot complete=True"), copies.count(), "{verdicts}");
    let captured = |path: &&PathBuf| {
        let level = path.parent().unwrap().file_name().unwrap();
        level == "0" || level == "0000"
    };
    let newest = objects
        .iter()
        .filter(captured)
        .max_by_key(|path| path.file_name().unwrap().to_owned());
    let file = std::fs::File::open(newest.expect("level 0 is never empty")).unwrap();
    let header = *Decoder::new(std::io::BufReader::new(file))
        .unwrap()
        .header();
    assert_eq!(header.min_txid, header.max_txid);
    assert!(header.wal_offset >= 32, "{header:?}");
}

fn they_restore_ours(place: &Place, replica: &Replica) {
    let (txid, time, middle) = written_by_us(place, replica);
    let source = rows(&place.database());
    replica.equals(place, &source);
    // Litestream looks for objects before the time, we for positions up to it.
    let after = (time + jiff::SignedDuration::from_millis(1)).to_string();
    for version in BLOCK_RELEASES {
        assert_same(
            &replica.restored_by(version, place, &["-txid", &txid]),
            &middle,
        );
        assert_same(
            &replica.restored_by(version, place, &["-timestamp", &after]),
            &middle,
        );
    }
    assert_same(&replica.restored_by_us(place, &["--txid", &txid]), &middle);
    assert_same(
        &replica.restored_by_us(place, &["--timestamp", &time.to_string()]),
        &middle,
    );
    // A release that cannot read our pages reports it, and leaves no file that looks restored.
    let output = place.fresh("refused.db");
    let done = replica.restore_with(FRAME_RELEASE, &output, &[]);
    assert_ne!(done.code, Some(0), "{done:?}");
    assert!(!output.exists());
    objects_are_well_formed(place, replica);
}

/// Lets a release replicate the commits of `write`.
fn written_by(version: &str, database: &Path, replica: &Replica, write: impl FnOnce()) {
    let mut command = replica.sign(litestream(version));
    command
        .args(["replicate", text(database), &replica.url])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().expect("start litestream");
    write();
    stop(child);
}

fn we_restore_theirs(place: &Place, replica: &Replica, version: &str) {
    let connection = create(&place.database(), 5);
    // Its own restore shows when the commits are stored: replication starts with a delay.
    written_by(version, &place.database(), replica, || {
        insert(&connection, 20);
        until("litestream has stored something", || {
            let output = place.fresh("look.db");
            (replica.restore_with(version, &output, &[]).code == Some(0)).then_some(())
        });
        insert(&connection, 20);
    });
    assert_same(
        &replica.restored_by_us(place, &[]),
        &rows(&place.database()),
    );
    let mut command = replica.sign(program());
    command.args(["verify", &replica.url]);
    finish(command).succeeds();
}

/// Litestream continues where we stopped, on a database that it restored itself.
fn they_take_over(place: &Place, replica: &Replica, version: &str) {
    written_by_us(place, replica);
    let moved = place.fresh("moved.db");
    replica.restore_with(version, &moved, &[]).succeeds();
    let connection = create(&moved, 0);
    written_by(version, &moved, replica, || {
        insert(&connection, 10);
        until("litestream goes on", || {
            let output = place.fresh("look.db");
            let done = replica.restore_with(version, &output, &[]);
            (done.code == Some(0) && rows(&output).len() == rows(&moved).len()).then_some(())
        });
        insert(&connection, 10);
    });
    replica.equals(place, &rows(&moved));
}

/// We continue where Litestream stopped, on the very same database.
fn we_take_over(place: &Place, replica: &Replica, version: &str) {
    we_restore_theirs(place, replica, version);
    let before = rows(&place.database()).len();
    let (_, _, _) = written_by_us(place, replica);
    let source = rows(&place.database());
    assert!(source.len() > before + 5);
    replica.equals(place, &source);
    // And back again, because a return to Litestream must stay possible.
    let connection = create(&place.database(), 0);
    written_by(NEWEST, &place.database(), replica, || {
        insert(&connection, 10);
        let wanted = rows(&place.database()).len();
        until("litestream goes on", || {
            let output = place.fresh("look.db");
            let done = replica.restore_with(NEWEST, &output, &[]);
            (done.code == Some(0) && rows(&output).len() == wanted).then_some(())
        });
    });
    replica.equals(place, &rows(&place.database()));
}

#[test]
fn they_restore_what_we_wrote_to_a_directory() {
    let place = Place::new();
    they_restore_ours(&place, &Replica::directory(&place));
}

#[test]
fn they_restore_what_we_wrote_to_a_bucket() {
    let place = Place::new();
    let bucket = Bucket::create("compat-ours");
    they_restore_ours(&place, &Replica::bucket(&bucket, "a/b"));
}

#[test]
fn we_restore_what_each_release_wrote_to_a_directory() {
    for version in RELEASES {
        let place = Place::new();
        we_restore_theirs(&place, &Replica::directory(&place), version);
    }
}

#[test]
fn we_restore_what_each_release_wrote_to_a_bucket() {
    let bucket = Bucket::create("compat-theirs");
    for version in RELEASES {
        let place = Place::new();
        we_restore_theirs(&place, &Replica::bucket(&bucket, version), version);
    }
}

/// A release with frames only writes, the newest release continues with blocks, and we restore.
fn we_restore_after_their_upgrade(place: &Place, replica: &Replica) {
    let connection = create(&place.database(), 5);
    for version in [FRAME_RELEASE, NEWEST] {
        let before = rows(&place.database()).len();
        written_by(version, &place.database(), replica, || {
            insert(&connection, 20);
            until("litestream has stored something", || {
                let output = place.fresh("look.db");
                let done = replica.restore_with(NEWEST, &output, &[]);
                (done.code == Some(0) && rows(&output).len() > before).then_some(())
            });
            insert(&connection, 20);
        });
    }
    let source = rows(&place.database());
    assert_same(&replica.restored_by_us(place, &[]), &source);
    let mut command = replica.sign(program());
    command.args(["verify", &replica.url]);
    finish(command).succeeds();
}

#[test]
fn we_restore_a_directory_whose_writer_was_upgraded() {
    let place = Place::new();
    we_restore_after_their_upgrade(&place, &Replica::directory(&place));
}

#[test]
fn we_restore_a_bucket_whose_writer_was_upgraded() {
    let place = Place::new();
    let bucket = Bucket::create("compat-upgrade");
    we_restore_after_their_upgrade(&place, &Replica::bucket(&bucket, "app"));
}

fn same_bytes(one: &Path, other: &Path) {
    let mut compare = Command::new("cmp");
    compare.args([one, other]);
    finish(compare).succeeds();
}

#[test]
fn a_database_beyond_the_lock_page_goes_both_ways() {
    let place = Place::new();
    crate::large::make_large(&place.database());
    let source = place.fresh("source.db");
    std::fs::copy(place.database(), &source).unwrap();
    let replica = Replica::directory(&place);
    let mut once = program();
    once.args(["replicate", place.database_text(), &replica.url, "--once"]);
    finish(once).succeeds();
    let restored = place.fresh("theirs.db");
    replica.restore_with(NEWEST, &restored, &[]).succeeds();
    same_bytes(&restored, &source);

    let replica = Replica {
        url: place.url("theirs"),
        bucket: None,
    };
    let objects = place.path().join("theirs/ltx/9");
    written_by(NEWEST, &restored, &replica, || {
        until("litestream has stored it", || {
            let stored =
                objects.exists() && !files(&objects, &|name| name.ends_with(".ltx")).is_empty();
            stored.then_some(())
        });
    });
    let ours = place.fresh("ours.db");
    let mut restore = program();
    restore.args(["restore", &replica.url, "-o", text(&ours)]);
    finish(restore).succeeds();
    let connection = rusqlite::Connection::open(&restored).unwrap();
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    connection.query_row(checkpoint, [], |_| Ok(())).unwrap();
    drop(connection);
    same_bytes(&ours, &restored);
}

#[test]
fn they_take_a_directory_over_from_us() {
    for version in BLOCK_RELEASES {
        let place = Place::new();
        they_take_over(&place, &Replica::directory(&place), version);
    }
}

#[test]
fn they_take_a_bucket_over_from_us() {
    let bucket = Bucket::create("compat-to-them");
    for version in BLOCK_RELEASES {
        let place = Place::new();
        they_take_over(&place, &Replica::bucket(&bucket, version), version);
    }
}

#[test]
fn we_take_a_directory_over_from_each_release_and_give_it_back() {
    for version in RELEASES {
        let place = Place::new();
        we_take_over(&place, &Replica::directory(&place), version);
    }
}

#[test]
fn we_take_a_bucket_over_from_each_release_and_give_it_back() {
    let bucket = Bucket::create("compat-to-us");
    for version in RELEASES {
        let place = Place::new();
        we_take_over(&place, &Replica::bucket(&bucket, version), version);
    }
}
