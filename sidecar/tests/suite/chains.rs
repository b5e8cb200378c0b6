//! Replicas built object by object, in every shape that a writer may leave. Each TXID is restored
//! exactly, or refused with the reason. Released Litestream reads the same objects for comparison.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;
use ltx::{Encoder, Header, Txid};
use rusqlite::Connection;
use sqlite_format::{PageSize, Salts};

use crate::compat::litestream_program;
use crate::support::database::{create, files, insert, rows};
use crate::support::place::{Place, text};
use crate::support::process::{Finished, clean, finish, run, signal, wait_for_end};
use crate::support::until;

const PAGE: usize = 512;
/// Number of TXIDs in a history.
const NEWEST: u64 = 6;
/// The TXID that shrinks the database.
const SHRINKS: u64 = 4;
/// Time of TXID 0, in Unix milliseconds. Each TXID is one second later than the one before.
const START_MS: u64 = 1_700_000_000_000;

/// An object: its level, its first and its last TXID.
type Object = (u8, u64, u64);

/// A snapshot, and a capture for each later TXID.
const COPY_AND_CAPTURES: [Object; 6] = [
    (9, 1, 1),
    (0, 2, 2),
    (0, 3, 3),
    (0, 4, 4),
    (0, 5, 5),
    (0, 6, 6),
];
/// Captures are compacted, and only the newest one is left.
const MERGED: [Object; 3] = [(9, 1, 2), (1, 3, 5), (0, 6, 6)];

/// The states of a database, and a place for its replica.
struct History {
    place: Place,
    /// The database at TXID 1, 2 and so on.
    states: Vec<Vec<u8>>,
}

impl History {
    /// A database that grows, changes, shrinks and grows again.
    fn new() -> History {
        let place = Place::new();
        let mut connection = Connection::open(place.fresh("source.db")).unwrap();
        connection
            .execute_batch(&format!("PRAGMA page_size={PAGE}; PRAGMA journal_mode=WAL"))
            .unwrap();
        let mut states = Vec::new();
        for txid in 1..=NEWEST {
            let change = match txid {
                1 => "CREATE TABLE log(id INTEGER PRIMARY KEY, body BLOB)",
                3 => "UPDATE log SET body = randomblob(200) WHERE id = 2",
                SHRINKS => "DELETE FROM log WHERE id > 3; VACUUM",
                _ => {
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<9)
                      INSERT INTO log(body) SELECT randomblob(300) FROM n"
                }
            };
            connection.execute_batch(change).unwrap();
            states.push(connection.serialize(rusqlite::MAIN_DB).unwrap().to_vec());
        }
        History { place, states }
    }

    /// Creates a history whose replica holds these objects.
    fn stored(objects: &[Object]) -> History {
        let history = History::new();
        for object in objects {
            history.store(*object);
        }
        history
    }

    fn state(&self, txid: u64) -> &[u8] {
        &self.states[txid as usize - 1]
    }

    fn header(&self, (level, min, max): Object) -> Header {
        let page_size = PageSize::new(PAGE as u32).unwrap();
        let pages = (self.state(max).len() / PAGE) as u32;
        let mut header = Header::new(page_size, pages, Txid::new(min), Txid::new(max));
        header.timestamp_ms = (START_MS + max * 1000) as i64;
        if level == 0 {
            header.wal_offset = 32;
            header.wal_salts = Salts { salt1: 7, salt2: 9 };
        }
        header
    }

    /// Returns the pages of an object: all of them, or those that its TXIDs changed.
    fn pages(&self, (_, min, max): Object) -> Vec<(u32, Vec<u8>)> {
        let before: Vec<&[u8]> = match min {
            1 => Vec::new(),
            min => self.state(min - 1).chunks(PAGE).collect(),
        };
        let now = self.state(max).chunks(PAGE).enumerate();
        now.filter(|(index, page)| before.get(*index) != Some(page))
            .map(|(index, page)| (index as u32 + 1, page.to_vec()))
            .collect()
    }

    fn path(&self, (level, min, max): Object) -> PathBuf {
        let directory = self.place.path().join(format!("backup/ltx/{level}"));
        std::fs::create_dir_all(&directory).unwrap();
        directory.join(format!("{min:016x}-{max:016x}.ltx"))
    }

    fn store(&self, object: Object) {
        self.store_pages(object, &self.header(object), &self.pages(object));
    }

    fn store_pages(&self, object: Object, header: &Header, pages: &[(u32, Vec<u8>)]) {
        let mut encoder = Encoder::new(Vec::new(), *header).unwrap();
        for (pgno, page) in pages {
            encoder.encode_page(*pgno, page).unwrap();
        }
        self.store_bytes(object, &encoder.finish().unwrap().0);
    }

    /// Stores an object with its time, which the file layout keeps as modification time.
    fn store_bytes(&self, object: Object, bytes: &[u8]) {
        std::fs::write(self.path(object), bytes).unwrap();
        let file = std::fs::File::options().write(true).open(self.path(object));
        let time = UNIX_EPOCH + Duration::from_millis(START_MS + object.2 * 1000);
        file.unwrap().set_modified(time).unwrap();
    }

    /// Restores with our program; without a point, the newest state.
    fn ours(&self, point: &[&str]) -> (Finished, Option<Vec<u8>>) {
        let (output, url) = (self.place.fresh("ours.db"), self.place.url("backup"));
        let arguments = ["restore", &url, "-o", text(&output)];
        let done = run(arguments.iter().chain(point));
        (done, std::fs::read(output).ok())
    }

    /// Restores with Litestream.
    fn theirs(&self, point: &[&str]) -> (Finished, Option<Vec<u8>>) {
        let output = self.place.fresh("theirs.db");
        let mut command = litestream();
        command.args(["restore", "-o", text(&output)]).args(point);
        let done = finish({
            command.arg(self.place.url("backup"));
            command
        });
        (done, std::fs::read(output).ok())
    }

    #[track_caller]
    fn is(&self, (done, bytes): (Finished, Option<Vec<u8>>), txid: u64) {
        assert_eq!(done.code, Some(0), "{done:?}");
        assert!(
            bytes.as_deref() == Some(self.state(txid)),
            "not the state of {txid}"
        );
    }

    /// Both programs restore the newest state, and ours restores each TXID exactly or not at all.
    #[track_caller]
    fn leads_everyone_to_the_newest(&self) {
        self.is(self.ours(&["--integrity-check", "full"]), NEWEST);
        self.is(self.theirs(&[]), NEWEST);
        self.never_gives_another_txid();
    }

    #[track_caller]
    fn never_gives_another_txid(&self) {
        for txid in 1..=NEWEST {
            let (done, bytes) = self.ours(&["--txid", &format!("{txid:016x}")]);
            if done.code == Some(0) {
                assert!(bytes.as_deref() == Some(self.state(txid)), "TXID {txid}");
            } else {
                assert!(bytes.is_none(), "TXID {txid}: {done:?}");
            }
        }
    }

    #[track_caller]
    fn is_refused(&self, point: &[&str], code: i32, words: &[&str]) {
        let (done, bytes) = self.ours(point);
        done.fails_with(code, words);
        assert!(bytes.is_none(), "something was restored");
    }
}

fn litestream() -> Command {
    clean(Command::new(litestream_program("0.5.17")))
}

fn time(txid: u64, later_ms: i64) -> String {
    let ms = (START_MS + txid * 1000) as i64 + later_ms;
    Timestamp::from_millisecond(ms).unwrap().to_string()
}

#[test]
fn a_full_copy_alone_is_restored() {
    History::stored(&[(9, 1, 6)]).leads_everyone_to_the_newest();
}

#[test]
fn captures_alone_are_restored() {
    let captures: Vec<Object> = (1..=NEWEST).map(|txid| (0, txid, txid)).collect();
    History::stored(&captures).leads_everyone_to_the_newest();
}

#[test]
fn captures_after_a_full_copy_are_restored() {
    History::stored(&COPY_AND_CAPTURES).leads_everyone_to_the_newest();
}

#[test]
fn a_capture_of_many_txids_is_restored() {
    History::stored(&[(9, 1, 1), (0, 2, 5), (0, 6, 6)]).leads_everyone_to_the_newest();
}

#[test]
fn files_that_overlap_are_restored() {
    let objects = [(9, 1, 2), (1, 2, 4), (0, 3, 3), (0, 4, 4), (1, 4, 6)];
    History::stored(&objects).leads_everyone_to_the_newest();
}

#[test]
fn files_of_every_level_are_restored() {
    for level in 1..=8 {
        let objects = [(9, 1, 1), (level, 2, 4), (0, 5, 5), (0, 6, 6)];
        History::stored(&objects).leads_everyone_to_the_newest();
    }
}

#[test]
fn a_file_without_pages_is_restored() {
    let mut history = History::new();
    history.states[5] = history.states[4].clone();
    for object in COPY_AND_CAPTURES {
        history.store(object);
    }
    assert!(history.pages((0, 6, 6)).is_empty());
    history.leads_everyone_to_the_newest();
}

#[test]
fn a_database_that_shrinks_is_restored_at_its_size() {
    let history = History::stored(&COPY_AND_CAPTURES);
    let sizes: Vec<usize> = history.states.iter().map(Vec::len).collect();
    assert!(sizes[2] > sizes[3] && sizes[3] < sizes[4], "{sizes:?}");
    history.is(history.ours(&["--txid", "0000000000000004"]), SHRINKS);
    history.leads_everyone_to_the_newest();
    // Compacted across the shrinking TXID: pages past the new end are gone.
    History::stored(&[(9, 1, 1), (1, 2, 6)]).leads_everyone_to_the_newest();
}

#[test]
fn objects_of_others_are_left_alone() {
    let history = History::stored(&COPY_AND_CAPTURES);
    let root = history.place.path().join("backup");
    for name in [
        "lock.json",
        "notes.txt",
        "ltx/index.json",
        "ltx/0/0000000000000007-0000000000000007.ltx.tmp",
        "ltx/0/000000000000000A-000000000000000A.ltx",
        "ltx/0/7-7.ltx",
        "ltx/10/0000000000000007-0000000000000007.ltx",
        "ltx/other/0000000000000007-0000000000000007.ltx",
    ] {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "not ours").unwrap();
    }
    history.leads_everyone_to_the_newest();
}

#[test]
fn database_checksums_are_read_by_us_and_refused_by_them() {
    let history = History::new();
    let source = history.place.fresh("tracked-source.db");
    std::fs::write(&source, history.state(NEWEST)).unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../crates/ltx/tests/ltx_probe.py"
    );
    let mut make = clean(Command::new("python3"));
    make.args([script, "make", text(&source)])
        .arg(history.path((9, 1, 6)))
        .args(["--txid", "6", "--checksum"]);
    finish(make).succeeds();
    history.is(history.ours(&[]), NEWEST);
    let (done, bytes) = history.theirs(&[]);
    assert!(done.code != Some(0) && bytes.is_none(), "{done:?}");
    assert!(done.err.contains("checksum not allowed"), "{done:?}");
}

#[test]
fn a_hole_at_each_object_of_a_chain_is_named() {
    for missing in COPY_AND_CAPTURES {
        let history = History::stored(&COPY_AND_CAPTURES);
        let (_, min, max) = missing;
        std::fs::remove_file(history.path(missing)).unwrap();
        history.never_gives_another_txid();
        if max == NEWEST {
            // The stored chain ends earlier and is complete. Only `verify` knows of more.
            history.is(history.ours(&[]), NEWEST - 1);
            history.is_refused(&["--txid", "0000000000000006"], 30, &["the newest is"]);
            continue;
        }
        let said = match min {
            1 => "no snapshot".to_owned(),
            min => format!("TXID {:016x} is followed by nothing", min - 1),
        };
        history.is_refused(&[], 11, &[&said]);
        history.is_refused(&["--timestamp", &time(NEWEST, 0)], 11, &[&said]);
        if min > 1 {
            let point = format!("{:016x}", min - 1);
            history.is(history.ours(&["--txid", &point]), min - 1);
        }
    }
}

/// Restores with each object damaged at positions all over it.
fn damage(change: impl Fn(&mut Vec<u8>, usize)) {
    let history = History::stored(&MERGED);
    for object in MERGED {
        let path = history.path(object);
        let whole = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let positions = (0..whole.len()).step_by(whole.len().div_ceil(12));
        // In addition: the first and the last byte of header, pages, index and trailer.
        let edges = [
            3,
            99,
            100,
            106,
            whole.len() - 17,
            whole.len() - 16,
            whole.len() - 1,
        ];
        for position in positions.chain(edges) {
            let mut bytes = whole.clone();
            change(&mut bytes, position);
            history.store_bytes(object, &bytes);
            println!("{name}, byte {position} of {}", whole.len());
            history.is_refused(&[], 10, &[name]);
        }
        history.store_bytes(object, &whole);
    }
    history.is(history.ours(&[]), NEWEST);
}

#[test]
fn a_changed_byte_anywhere_in_a_chain_is_named() {
    damage(|bytes, position| bytes[position] ^= 0x41);
}

#[test]
fn an_object_cut_short_anywhere_in_a_chain_is_named() {
    damage(|bytes, position| bytes.truncate(position));
}

#[test]
fn a_damaged_object_is_gone_around_where_others_lead_to_the_same_txid() {
    // Two snapshots, captures, and the files that they were compacted to.
    let all: Vec<Object> = [&COPY_AND_CAPTURES[..], &[(9, 1, 4), (1, 2, 3), (1, 5, 6)]].concat();
    for damaged in [(9, 1, 4), (1, 2, 3), (1, 5, 6), (0, 2, 2), (0, 5, 5)] {
        let history = History::stored(&all);
        let mut bytes = std::fs::read(history.path(damaged)).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        history.store_bytes(damaged, &bytes);
        let name = format!("{:016x}-{:016x}.ltx", damaged.1, damaged.2);
        let (done, restored) = history.ours(&["--json"]);
        assert!(
            restored.as_deref() == Some(history.state(NEWEST)),
            "{damaged:?}: {done:?}"
        );
        let result: serde_json::Value = serde_json::from_str(&done.out).unwrap();
        let gone_around = result["damaged"].as_array().unwrap();
        assert_eq!(
            gone_around.is_empty(),
            !done.err.contains(&name),
            "{done:?}"
        );
        let url = history.place.url("backup");
        // A restore test does not restore around damaged files.
        let verified = run(["verify", &url]);
        let expected = if gone_around.is_empty() { 0 } else { 10 };
        assert_eq!(verified.code, Some(expected), "{damaged:?}: {verified:?}");
    }
    // No other file leads to the newest position.
    let history = History::stored(&COPY_AND_CAPTURES);
    history.store_bytes((0, 6, 6), b"nothing of this");
    let (done, restored) = history.ours(&[]);
    assert_eq!((done.code, restored), (Some(10), None), "{done:?}");
}

#[test]
fn a_page_that_no_object_holds_is_named() {
    let history = History::stored(&COPY_AND_CAPTURES);
    let object = (0, 2, 2);
    let (header, mut pages) = (history.header(object), history.pages(object));
    let before = (history.state(1).len() / PAGE) as u32;
    let (grown, _) = pages.remove(pages.len() - 2);
    assert!(grown > before, "the database grew by the page");
    history.store_pages(object, &header, &pages);
    let words = [
        format!("page {grown} of"),
        "is in no stored file".to_owned(),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    history.is_refused(&["--txid", "0000000000000002"], 11, &words);
    history.is_refused(&["--txid", "0000000000000003"], 11, &words);
    // A delta under the name of a snapshot is not a snapshot.
    let history = History::stored(&COPY_AND_CAPTURES[1..]);
    let path = history.path((9, 1, 1));
    let delta = std::fs::read(history.path((0, 2, 2))).unwrap();
    std::fs::write(&path, delta).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    history.is_refused(&[], 10, &[name]);
}

#[test]
fn a_page_behind_an_end_that_shrank_does_not_come_back_when_the_database_grows_again() {
    let history = History::new();
    let pages = history.pages((9, 1, NEWEST));
    for (object, commit, held) in [
        ((9, 1, 1), 5, 0..5),
        ((0, 2, 2), 3, 0..1),
        ((0, 3, 3), 5, 3..4),
    ] {
        let header = Header {
            commit,
            ..history.header(object)
        };
        history.store_pages(object, &header, &pages[held]);
    }
    history.is_refused(&[], 11, &["page 5 of 5 is in no stored file"]);
}

#[test]
fn a_txid_inside_a_merged_file_is_refused_with_its_neighbours() {
    let history = History::stored(&MERGED);
    for inside in [3, 4] {
        let wanted = format!("{inside:016x}");
        let words = [
            "no longer a position",
            "0000000000000002",
            "0000000000000005",
        ];
        history.is_refused(&["--txid", &wanted], 30, &words);
        let (done, bytes) = history.theirs(&["-txid", &wanted]);
        assert!(done.code != Some(0) && bytes.is_none(), "{done:?}");
    }
    for whole in [2, 5, 6] {
        let wanted = format!("{whole:016x}");
        history.is(history.ours(&["--txid", &wanted]), whole);
        history.is(history.theirs(&["-txid", &wanted]), whole);
    }
}

#[test]
fn a_time_gives_the_newest_state_of_that_time() {
    let history = History::stored(&COPY_AND_CAPTURES);
    let too_early = ["--timestamp", &time(1, -1)];
    history.is_refused(&too_early, 30, &["the oldest backup is of"]);
    for txid in 1..=NEWEST {
        history.is(history.ours(&["--timestamp", &time(txid, 0)]), txid);
        history.is(history.ours(&["--timestamp", &time(txid, 999)]), txid);
        // Litestream looks for objects before the time, and refuses times after the newest object.
        if txid < NEWEST {
            history.is(history.theirs(&["-timestamp", &time(txid, 1)]), txid);
        }
    }
    history.is(history.ours(&["--timestamp", &time(1000, 0)]), NEWEST);
    // A compacted file has the time of its end.
    let history = History::stored(&MERGED);
    for (at, txid) in [(time(2, 0), 2), (time(4, 999), 2), (time(5, 0), 5)] {
        history.is(history.ours(&["--timestamp", &at]), txid);
    }
}

#[test]
fn a_capture_that_is_lost_below_a_compacted_file_is_told_and_its_time_refused() {
    let captures = (2..=NEWEST).map(|txid| (0, txid, txid));
    for lost in 2..5 {
        let history = History::stored(&[(9, 1, 1), (1, 2, 5)]);
        for object in captures.clone().filter(|object| object.1 != lost) {
            history.store(object);
        }
        history.is(history.ours(&[]), NEWEST);
        let hole = [format!("{lost:016x}"), "cannot be known".to_owned()];
        let hole = [hole[0].as_str(), &hole[1]];
        for beside in [time(lost - 1, 999), time(lost, 0), time(lost, 999)] {
            history.is_refused(&["--timestamp", &beside], 11, &hole);
        }
        if lost > 2 {
            history.is(
                history.ours(&["--timestamp", &time(lost - 2, 999)]),
                lost - 2,
            );
        }
        history.is(history.ours(&["--timestamp", &time(5, 0)]), 5);
        let url = history.place.url("backup");
        let told = run(["inspect", &url, "--json"]).succeeds();
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["holes"][0]["first"], hole[0], "{told}");
        assert_eq!(told["holes"][0]["covered"], true, "{told}");
        let done = run(["verify", &url]);
        assert_eq!(done.code, Some(11), "{done:?}");
        assert!(
            done.out.contains("the restored database is good"),
            "{done:?}"
        );
    }
}

#[test]
fn a_place_without_files_of_a_backup_is_no_backup() {
    let history = History::new();
    history.is_refused(&[], 30, &["there is no backup"]);
    drop(history.path((0, 1, 1)));
    drop(history.path((9, 1, 1)));
    history.is_refused(&[], 30, &["there is no backup"]);
    let (done, bytes) = history.theirs(&[]);
    assert!(done.code != Some(0) && bytes.is_none(), "{done:?}");
}

/// We replicate the database of these objects, then Litestream does, and every state restores.
fn is_taken_over(objects: &[Object], wal_offset: i64) {
    let history = History::new();
    for object in objects {
        let header = Header {
            wal_offset: history.header(*object).wal_offset.min(wal_offset),
            wal_salts: Salts::default(),
            ..history.header(*object)
        };
        history.store_pages(*object, &header, &history.pages(*object));
    }
    let (place, url) = (&history.place, history.place.url("backup"));
    std::fs::write(place.database(), history.state(NEWEST)).unwrap();
    let connection = create(&place.database(), 3);
    run(["replicate", place.database_text(), &url, "--once"]).succeeds();
    let source = rows(&place.database());
    equals(&history, &source);
    let above = files(&place.path().join("backup"), &|name| {
        name.ends_with(".ltx") && name[name.len() - 20..] > *"0000000000000006.ltx"
    });
    assert!(above.len() >= 2, "a snapshot and a capture: {above:?}");

    let mut replicate = litestream();
    let config = place.write(
        "litestream.yml",
        &format!(
            "levels: [{{interval: 1s}}]\ndbs: [{{path: '{}', replica: {{url: '{url}'}}}}]\n",
            place.database_text()
        ),
    );
    replicate.args(["replicate", "-config", &config]);
    let merged = || {
        let stored = files(&place.path().join("backup"), &|name| name.ends_with(".ltx"));
        let merged = stored.into_iter();
        merged
            .filter(|path| path.parent().unwrap().ends_with("1"))
            .max()
    };
    let merged_by_us = merged();
    let log = place.fresh("litestream.log");
    let written = std::fs::File::create(&log).unwrap();
    replicate
        .stdout(written.try_clone().unwrap())
        .stderr(written);
    let mut child = replicate.spawn().unwrap();
    insert(&connection, 3);
    let source = rows(&place.database());
    let log = || std::fs::read_to_string(&log).unwrap();
    until("litestream goes on", || {
        assert!(!log().contains("sync error"), "{}", log());
        assert!(!log().contains("compaction failed"), "{}", log());
        if merged() == merged_by_us {
            return None;
        }
        let (_, bytes) = history.theirs(&[]);
        let output = place.fresh("look.db");
        std::fs::write(&output, bytes?).unwrap();
        (rows(&output) == source).then_some(())
    });
    signal(child.id(), "TERM");
    assert_eq!(wait_for_end(&mut child).0, Some(0));
    equals(&history, &source);
}

#[track_caller]
fn equals(history: &History, source: &[String]) {
    for (done, bytes) in [history.ours(&[]), history.theirs(&[])] {
        assert_eq!(done.code, Some(0), "{done:?}");
        let output = history.place.fresh("restored.db");
        std::fs::write(&output, bytes.unwrap()).unwrap();
        assert_eq!(rows(&output), source);
    }
}

#[test]
fn a_replica_without_captures_is_taken_over_and_given_back() {
    is_taken_over(&[(9, 1, 6)], 0);
    is_taken_over(&[(9, 1, 4), (1, 5, 6)], 0);
}

#[test]
fn a_replica_whose_newest_capture_names_no_place_in_a_log_is_taken_over_and_given_back() {
    is_taken_over(&COPY_AND_CAPTURES, 0);
}

#[test]
fn a_replica_whose_newest_capture_begins_a_log_is_taken_over_and_given_back() {
    is_taken_over(&COPY_AND_CAPTURES, 32);
}
