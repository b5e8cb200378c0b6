//! Every missing or changed object is reported, and never gives a silently different database.

use engine::restore::RestoreError;
use engine::restore::litestream03::{Damage, GenerationError};
use sqlite_format::WalHeader;

use crate::replica::{Database, PAGE_SIZES, Replica};

/// Bytes of a WAL header, and of a frame header.
const HEADERS: (usize, usize) = (32, 24);

fn generation_error(result: Result<Database, RestoreError>, what: &str) -> GenerationError {
    match result {
        Err(RestoreError::Generation(error)) => error,
        other => panic!("{what}: {other:?}"),
    }
}

/// The replica up to the end of its first generation, and the keys that a restore of that needs.
fn first_generation(page_size: usize) -> (Replica, Vec<String>) {
    let mut replica = Replica::golden(page_size);
    let first_ms = replica.states[0].time_ms;
    let keys = replica.generation_at(first_ms);
    replica.objects.retain(|key, _| keys.contains(key));
    // Without its second snapshot every WAL is needed.
    replica
        .objects
        .remove(&replica.key("00000001.snapshot.lz4"));
    (replica.clone(), replica.objects.into_keys().collect())
}

#[test]
fn every_missing_object_is_named_but_the_end_of_a_log() {
    for page_size in PAGE_SIZES {
        let (whole, keys) = first_generation(page_size);
        let newest = whole.restore(None).unwrap();
        for key in &keys {
            let mut replica = whole.clone();
            replica.objects.remove(key);
            let next = keys.iter().find(|other| *other > key);
            let log = |key: &str| key[33..].split_once('_').map(|(log, _)| log.to_owned());
            if next.is_none_or(|next| log(next) != log(key)) && !key.ends_with("_00000000.wal.lz4")
            {
                // The length of a WAL is unknown, unless its end is inside a transaction.
                continue;
            }
            match (replica.restore(None), next) {
                (Err(RestoreError::Generation(error)), Some(next)) => match error {
                    GenerationError::NoSnapshot { .. } => assert!(key.contains("snapshots")),
                    GenerationError::MissingLog { .. } => {
                        assert!(key.ends_with("_00000000.wal.lz4"))
                    }
                    GenerationError::SegmentGap { key, .. } => assert_eq!(key, *next),
                    other => panic!("without {key}: {other}"),
                },
                // Without the last WAL, which is a single segment, the replica is as before its
                // upload.
                (Ok(database), None) => assert!(database.bytes != newest.bytes),
                (other, _) => panic!("without {key}: {other:?}"),
            }
        }
    }
}

#[test]
fn changed_and_missing_bytes_are_named_with_their_object() {
    let (whole, keys) = first_generation(1024);
    for key in &keys {
        let length = whole.objects[key].0.len();
        for offset in [0, 8, length / 2, length - 2] {
            let mut replica = whole.clone();
            replica.objects.get_mut(key).unwrap().0[offset] ^= 0x10;
            match generation_error(replica.restore(None), key) {
                GenerationError::Damaged { key: named, .. } => assert_eq!(named, *key),
                other => panic!("byte {offset} of {key}: {other}"),
            }
        }
        for length in [0, 7, length / 2, length - 8, length - 1] {
            let mut replica = whole.clone();
            replica.objects.get_mut(key).unwrap().0.truncate(length);
            match generation_error(replica.restore(None), key) {
                GenerationError::Damaged { key: named, damage } => {
                    assert_eq!(named, *key);
                    assert!(matches!(damage, Damage::Truncated), "{length}: {damage}");
                }
                other => panic!("{length} bytes of {key}: {other}"),
            }
        }
    }
}

#[test]
fn damage_is_nothing_to_a_time_before_it() {
    let (whole, _) = first_generation(1024);
    let states = states(&whole, "00000000");
    for (number, (key, _, _)) in states.iter().enumerate().skip(1) {
        let mut replica = whole.clone();
        replica.objects.get_mut(key).unwrap().0[20] ^= 1;
        for (_, ms, state) in &states[..number] {
            assert_eq!(replica.restore(Some(*ms)).unwrap().bytes, state.bytes);
        }
        replica.objects.remove(key);
        let (_, ms, state) = &states[number - 1];
        assert_eq!(replica.restore(Some(*ms)).unwrap().bytes, state.bytes);
    }
}

/// Damage inside a frame whose LZ4 checksum is correct.
#[test]
fn content_that_does_not_belong_there_is_named() {
    let (whole, _) = first_generation(1024);
    let snapshot = whole.key("00000000.snapshot.lz4");
    let start = whole.key("00000000_00000000.wal.lz4");
    let middle = whole.key("00000000_00002910.wal.lz4");
    let other_log = whole.key("00000001_00000438.wal.lz4");
    let (database, log) = (whole.content(&snapshot), whole.content(&start));
    let (frames, foreign) = (whole.content(&middle), whole.content(&other_log));
    let mut changed = frames.clone();
    changed[HEADERS.1 + 100] ^= 1;
    let mut header = log.clone();
    header[9] ^= 1;
    let small = Replica::golden(4096);
    let other_size = small.content(&small.generation_at(small.states[0].time_ms)[2]);
    for (key, content, expected) in [
        (&snapshot, vec![7; 4096], "not a SQLite database"),
        (&snapshot, Vec::new(), "not a SQLite database"),
        (
            &snapshot,
            database[..1500].to_vec(),
            "no whole number of pages of 1024",
        ),
        (&start, Vec::new(), "before the first one"),
        (&start, log[..20].to_vec(), "before the first one"),
        (&start, header, "header checksum"),
        (&start, frames.clone(), "wal magic"),
        (&start, other_size, "pages have 4096 bytes"),
        (&middle, Vec::new(), "before the first one"),
        (&middle, frames[..500].to_vec(), "inside a frame"),
        (&middle, changed, "checksum"),
        (&middle, foreign, "salts"),
    ] {
        let mut replica = whole.clone();
        let ms = replica.objects[key].1;
        replica.store_content(key, &content, ms);
        let message = generation_error(replica.restore(None), expected).to_string();
        assert!(
            message.starts_with(key) && message.contains(expected),
            "{message}"
        );
    }
}

/// Computes the checksums again after a change of frames.
fn rechained(mut log: Vec<u8>, page_size: usize) -> Vec<u8> {
    let header = WalHeader::parse(log.first_chunk().unwrap()).unwrap();
    let mut checksum = header.checksum;
    for frame in log[HEADERS.0..].chunks_mut(HEADERS.1 + page_size) {
        checksum = checksum
            .update(header.big_endian_checksums, &frame[..8])
            .update(header.big_endian_checksums, &frame[HEADERS.1..]);
        frame[16..20].copy_from_slice(&checksum.s1.to_be_bytes());
        frame[20..24].copy_from_slice(&checksum.s2.to_be_bytes());
    }
    log
}

#[test]
fn a_page_that_is_in_no_object_is_named() {
    let (mut replica, _) = first_generation(1024);
    let first = replica.key("00000000_00000000.wal.lz4");
    let ms = replica.objects[&first].1;
    let expected = replica.restore(Some(ms)).unwrap();
    let log = replica.content(&first);
    replica.store_content(&first, &rechained(log.clone(), 1024), ms);
    assert_eq!(replica.restore(Some(ms)).unwrap().bytes, expected.bytes);
    // The last transaction states that the database has one page more.
    let mut longer = log;
    let commit = longer.len() - 1024 - HEADERS.1 + 7;
    longer[commit] += 1;
    replica.store_content(&first, &rechained(longer, 1024), ms);
    let error = replica.restore(Some(ms)).unwrap_err();
    assert!(
        matches!(error, RestoreError::MissingPage { pgno: 7, commit: 7 }),
        "{error}"
    );

    // After the database has shrunk to four pages, it grows by one that it had before.
    let (mut replica, keys) = first_generation(1024);
    let last: Vec<&String> = keys
        .iter()
        .filter(|key| key.contains("/00000002_"))
        .collect();
    let contents = last.iter().map(|key| replica.content(key));
    let mut log = contents.collect::<Vec<_>>().concat();
    let commit = log.len() - 1024 - HEADERS.1 + 7;
    assert_eq!(log[commit], 4);
    log[commit] += 1;
    let ms = replica.objects[last[0]].1;
    replica.objects.retain(|key, _| !last.contains(&key));
    replica.store_content(last[0], &rechained(log, 1024), ms);
    let error = replica.restore(None).unwrap_err();
    assert!(
        matches!(error, RestoreError::MissingPage { pgno: 5, commit: 5 }),
        "{error}"
    );
}

/// Splits a segment of several frames after its first frame; the rest is stored a moment later.
fn split(replica: &mut Replica, key: &str) -> String {
    let content = replica.content(key);
    let ms = replica.objects[key].1;
    let (place, offset) = key.split_once(".wal").unwrap().0.rsplit_once('_').unwrap();
    let offset = usize::from_str_radix(offset, 16).unwrap();
    let begin = if offset == 0 { HEADERS.0 } else { 0 };
    let cut = begin + HEADERS.1 + replica.page_size;
    assert!(content.len() > cut, "it has one frame only");
    let rest = format!("{place}_{:08x}.wal.lz4", offset + cut);
    replica.store_content(key, &content[..cut], ms);
    replica.store_content(&rest, &content[cut..], ms + 1);
    rest
}

#[test]
fn a_log_that_ends_inside_a_transaction_ends_before_it_or_is_an_error_before_another_log() {
    let (mut replica, _) = first_generation(1024);
    let expected = replica.restore(None).unwrap();
    // A segment with one transaction of several frames, in a WAL that another one follows.
    let segment = replica.key("00000001_00000c68.wal.lz4");
    let rest = split(&mut replica, &segment);
    assert_eq!(replica.restore(None).unwrap().bytes, expected.bytes);
    let half_ms = replica.objects[&rest].1 - 1;
    let at_half = replica.restore(Some(half_ms)).unwrap();
    let before = replica
        .restore(Some(replica.objects[&rest].1 - 100))
        .unwrap();
    assert_eq!(at_half.bytes, before.bytes);

    // The WAL ends there, and another one follows.
    let end = replica.key("00000001_00002d28.wal.lz4");
    replica.objects.remove(&end);
    replica.objects.remove(&rest);
    let error = generation_error(replica.restore(None), "without its end");
    assert!(
        matches!(error, GenerationError::Unfinished { log: 1, .. }),
        "{error}"
    );
    // No WAL follows: the whole transactions are the newest state.
    replica.objects.retain(|key, _| !key.contains("/00000002_"));
    assert_eq!(replica.restore(None).unwrap().bytes, before.bytes);
}

/// The database at the end of each segment of a WAL, with the key and the time of the segment.
fn states(replica: &Replica, log: &str) -> Vec<(String, i64, Database)> {
    let part = format!("/{log}_");
    let segments = replica
        .objects
        .iter()
        .filter(|(key, _)| key.contains(&part));
    segments
        .map(|(key, (_, ms))| (key.clone(), *ms, replica.restore(Some(*ms)).unwrap()))
        .collect()
}

/// The pages of one database, every other one from another.
fn torn(one: &[u8], other: &[u8], page_size: usize) -> Vec<u8> {
    let mut bytes = one.to_vec();
    let pages = bytes.chunks_mut(page_size).zip(other.chunks(page_size));
    for (page, newer) in pages.skip(1).step_by(2) {
        page.copy_from_slice(newer);
    }
    bytes
}

#[test]
fn a_snapshot_that_is_ahead_of_its_log_is_never_mixed_with_it() {
    let mut ahead = 0;
    for (page_size, log) in [(1024, "00000000"), (1024, "00000001"), (4096, "00000000")] {
        let (mut replica, _) = first_generation(page_size);
        let states = states(&replica, log);
        let (first, first_ms, _) = &states[0];
        let base = replica.restore(Some(first_ms - 1)).unwrap();
        let place = first.split("/wal/").next().unwrap();
        let snapshot = format!("{place}/snapshots/{log}.snapshot.lz4");
        for (copied, (_, _, newer)) in states.iter().enumerate() {
            replica.store_content(&snapshot, &newer.bytes, first_ms - 1);
            for (wanted, (_, ms, state)) in states.iter().enumerate() {
                let expected = if copied > wanted { newer } else { state };
                match replica.restore(Some(*ms)) {
                    Ok(found) => {
                        assert_eq!(found.bytes, expected.bytes, "{copied}, {wanted}")
                    }
                    Err(RestoreError::Generation(error)) => {
                        let expected = format!("{snapshot} is further");
                        assert!(error.to_string().starts_with(&expected), "{error}");
                        assert!(copied > wanted, "{copied}, {wanted}");
                        ahead += 1;
                    }
                    Err(error) => panic!("{copied}, {wanted}: {error}"),
                }
            }
            // A checkpoint ran while the snapshot was read: the WAL repairs it.
            let content = torn(&base.bytes, &newer.bytes, page_size);
            replica.store_content(&snapshot, &content, first_ms - 1);
            for (_, ms, state) in &states[copied..] {
                assert_eq!(replica.restore(Some(*ms)).unwrap().bytes, state.bytes);
            }
        }
    }
    assert!(ahead > 3, "{ahead}");
}
