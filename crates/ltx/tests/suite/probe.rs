//! An independent reader and writer of LTX files, `ltx_probe.py`, agrees with this crate.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Pages, decode, encode, header, index_of, page};
use ltx::{DatabaseChecksum, Header, page_checksum};
use sqlite_format::Salts;

/// Runs the checker and returns its output.
fn probe(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ltx_probe.py");
    let output = Command::new("python3")
        .arg(script)
        .args(arguments)
        .output()
        .expect("python3");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn directory(name: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&path).expect("a directory for the test");
    path.to_str().expect("a path of text").to_owned()
}

#[test]
fn the_checker_accepts_what_we_write() {
    let directory = directory("probe-accepts");
    for page_bytes in [512, 4096, 65_536] {
        let pages: Pages = (1..=4)
            .map(|pgno| (pgno, page(page_bytes as usize, pgno)))
            .collect();
        let snapshot = Header {
            timestamp_ms: 1_700_000_000_123,
            wal_offset: 32,
            wal_size: 4120,
            wal_salts: Salts {
                salt1: 0xdead_beef,
                salt2: 1,
            },
            node_id: 42,
            ..header(page_bytes, 4, 1, 3)
        };
        let mut checksum = DatabaseChecksum::EMPTY;
        for (pgno, page) in &pages {
            checksum.toggle(page_checksum(*pgno, page));
        }
        let path = format!("{directory}/{page_bytes}.ltx");
        fs::write(&path, encode(snapshot, &pages).unwrap()).unwrap();
        let verdict = probe(&["dump", &path]);
        for expected in [
            format!("flags=0x2 page_size={page_bytes} commit=4 min_txid=1 max_txid=3"),
            "ts_ms=1700000000123 pre=0x0 wal_offset=32 wal_size=4120".to_owned(),
            "salt1=0xdeadbeef salt2=0x1 node=42 reserved_zero=True".to_owned(),
            "pages n=4 asc=True first=[1] last=[4] page_flags=[1]".to_owned(),
            "index n=4".to_owned(),
            "matches_frames=True".to_owned(),
            "file_checksum_ok=True trailing_bytes=0".to_owned(),
            format!("snapshot complete=True rolling_of_pages={checksum}"),
        ] {
            assert!(
                verdict.contains(&expected),
                "{expected} is not in:\n{verdict}"
            );
        }
    }
}

#[test]
fn we_read_every_form_that_the_checker_writes() {
    let directory = directory("probe-writes");
    let database = format!("{directory}/database");
    let mut bytes: Vec<u8> = (1..=3).flat_map(|pgno| page(512, pgno)).collect();
    bytes[16..18].copy_from_slice(&512u16.to_be_bytes());
    fs::write(&database, &bytes).unwrap();
    let expected: Pages = (1..).zip(bytes.chunks(512).map(<[u8]>::to_vec)).collect();

    for (tracked, frame) in [(false, false), (false, true), (true, false), (true, true)] {
        let path = format!("{directory}/{tracked}-{frame}.ltx");
        let mut arguments = vec!["make", &database, &path, "--node", "9", "--txid", "5"];
        arguments.extend(tracked.then_some("--checksum"));
        arguments.extend(frame.then_some("--frame"));
        arguments.extend(frame.then_some("--reserved"));
        probe(&arguments);

        let mut file = fs::read(&path).unwrap();
        let (header, pages, trailer) = decode(&file).unwrap();
        assert_eq!(pages, expected);
        assert_eq!((header.node_id, header.max_txid.get()), (9, 5));
        assert_eq!(header.reserved, if frame { [0xaa; 20] } else { [0; 20] });
        assert_eq!(header.is_tracked(), tracked);
        assert_eq!(trailer.post_apply != 0, tracked);
        assert_eq!(index_of(&file).len(), 3);

        let post_apply = file.len() - 16;
        file[post_apply + 7] ^= 1;
        assert!(decode(&file).is_err());
    }
}
