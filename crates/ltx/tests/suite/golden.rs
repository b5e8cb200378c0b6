//! Files that released Litestream binaries wrote; see `golden/README.md`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{decode, encode, index_of};
use ltx::{
    DatabaseChecksum, Decoder, FileName, Level, MergeOptions, decode_frame, merge, page_checksum,
};

/// Every replica: Litestream's version, page size, directory.
fn replicas() -> Vec<(&'static str, u32, PathBuf)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let of_version = |version| [512, 4096, 65_536].map(|page_size| (version, page_size));
    ["0.5.14", "0.5.17"]
        .into_iter()
        .flat_map(of_version)
        .map(|(version, page_size)| {
            (
                version,
                page_size,
                golden.join(version).join(page_size.to_string()),
            )
        })
        .collect()
}

/// Returns the files of a level in order.
fn files(replica: &Path, level: Level) -> Vec<(FileName, Vec<u8>)> {
    let directory = replica.join(level.to_string());
    let mut files: Vec<_> = fs::read_dir(&directory)
        .expect("a level")
        .map(|entry| {
            let path = entry.expect("a file").path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a name");
            (
                FileName::parse(name).expect("an LTX file"),
                fs::read(&path).expect("its bytes"),
            )
        })
        .collect();
    files.sort();
    files
}

fn levels() -> [Level; 3] {
    [
        Level::CAPTURED,
        Level::new(1).expect("a level"),
        Level::SNAPSHOT,
    ]
}

fn merged(files: &[&[u8]]) -> Vec<u8> {
    let open = |file: &&'_ [u8]| Decoder::new(std::io::Cursor::new(file.to_vec()));
    let inputs = files
        .iter()
        .map(open)
        .collect::<Result<_, _>>()
        .expect("headers");
    merge(inputs, MergeOptions::default(), Vec::new())
        .expect("neighbours")
        .0
}

/// Returns size and database checksum of the database in a snapshot, in the format of
/// `restored.txt`.
fn restored(snapshot: &[u8]) -> String {
    let (header, pages, _) = decode(snapshot).expect("a snapshot");
    assert!(header.is_snapshot());
    let mut checksum = DatabaseChecksum::EMPTY;
    for (pgno, page) in pages {
        checksum.toggle(page_checksum(pgno, &page));
    }
    format!("{} {checksum}\n", header.commit)
}

#[test]
fn every_file_of_litestream_is_read_whole_and_page_by_page() {
    let mut count = 0;
    for (version, page_size, replica) in replicas() {
        for (name, file) in levels()
            .into_iter()
            .flat_map(|level| files(&replica, level))
        {
            let (header, pages, trailer) = decode(&file).unwrap();
            assert_eq!(header.file_name(), name);
            assert_eq!(header.page_size.get(), page_size);
            assert_eq!((header.flags, header.node_id), (0x2, 0));

            let index = index_of(&file);
            index.check(&header).unwrap();
            assert_eq!(index.trailer(), trailer);
            assert_eq!(index.len() as usize, pages.len());
            let mut page = Vec::new();
            for (entry, (pgno, expected)) in index.entries().zip(&pages) {
                let frame = &file[entry.offset as usize..][..entry.bytes as usize];
                let is_block = frame[5] == 1;
                assert_eq!(is_block, version == "0.5.17");
                assert_eq!(
                    decode_frame(frame, header.page_size, &mut page).unwrap(),
                    *pgno
                );
                assert_eq!(&page, expected);
            }
            count += 1;
        }
    }
    assert!(count >= 42, "only {count} files");
}

#[test]
fn every_way_through_the_levels_restores_what_litestream_restores() {
    for (_, _, replica) in replicas() {
        let expected = fs::read_to_string(replica.join("restored.txt")).unwrap();
        let [captured, level_1, snapshots] = levels().map(|level| files(&replica, level));
        let all = |files: &[(FileName, Vec<u8>)]| {
            merged(&files.iter().map(|(_, file)| &file[..]).collect::<Vec<_>>())
        };
        assert_eq!(restored(&all(&captured)), expected);
        assert_eq!(restored(&all(&level_1)), expected);
        let from_snapshot = [&snapshots[..1], &captured[1..]].concat();
        assert_eq!(restored(&all(&from_snapshot)), expected);
    }
}

#[test]
fn merging_captures_gives_litestreams_compaction_byte_for_byte() {
    let mut wide = 0;
    for (version, _, replica) in replicas() {
        let [captured, level_1, _] = levels().map(|level| files(&replica, level));
        for (name, expected) in level_1 {
            let inside =
                |file: &&(FileName, Vec<u8>)| name.min <= file.0.min && file.0.max <= name.max;
            let inputs: Vec<&[u8]> = captured
                .iter()
                .filter(inside)
                .map(|(_, f)| &f[..])
                .collect();
            let ours = merged(&inputs);
            let (our_header, our_pages, _) = decode(&ours).unwrap();
            let (header, pages, _) = decode(&expected).unwrap();
            assert_eq!((our_header, &our_pages), (header, &pages));
            wide += usize::from(!name.is_single());
            if version == "0.5.17" {
                assert_eq!(ours, expected);
            } else {
                // Frames become blocks, the format of 0.5.16 and later.
                assert_eq!(ours, encode(header, &pages).unwrap());
            }
        }
    }
    assert!(wide >= 6, "only {wide} files of several captures");
}

#[test]
fn every_changed_byte_of_a_frame_file_is_noticed_or_changes_no_page() {
    let (_, _, replica) = replicas().remove(0);
    let (_, file) = files(&replica, Level::CAPTURED).remove(1);
    let good = decode(&file).unwrap();
    for offset in 0..file.len() {
        for change in [0x01, 0x40, 0xff] {
            let mut bad = file.clone();
            bad[offset] ^= change;
            if let Ok(read) = decode(&bad) {
                assert_eq!(read, good, "byte {offset} with {change:#x}");
            }
        }
        assert!(decode(&file[..offset]).is_err());
    }
}
