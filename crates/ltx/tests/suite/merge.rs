//! A merged file has the same effect as its inputs in order.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::common::{Pages, decode, encode, header, page};
use ltx::{Decoder, ErrorKind, Header, LtxError, MergeOptions, Misuse, PagesError, Txid, merge};
use sqlite_format::Salts;

const PAGE_BYTES: u32 = 512;

fn merged(files: &[Vec<u8>]) -> Result<Vec<u8>, LtxError> {
    let inputs = files
        .iter()
        .map(|file| Decoder::new(&file[..]))
        .collect::<Result<Vec<_>, _>>()?;
    let (bytes, merged) = merge(inputs, MergeOptions { node_id: 7 }, Vec::new())?;
    assert_eq!(merged.summary.bytes, bytes.len() as u64);
    assert_eq!(decode(&bytes)?.0, merged.header);
    Ok(bytes)
}

fn file(commit: u32, min: u64, max: u64, pgnos: &[u32]) -> Vec<u8> {
    let image = |pgno: &u32| (*pgno, page(PAGE_BYTES as usize, *pgno + 100 * max as u32));
    let pages: Pages = pgnos.iter().map(image).collect();
    encode(header(PAGE_BYTES, commit, min, max), &pages).expect("a valid file")
}

#[test]
fn the_header_begins_with_the_first_input_and_ends_with_the_last() {
    let first = Header {
        timestamp_ms: 1000,
        wal_offset: 32,
        wal_size: 536,
        wal_salts: Salts { salt1: 1, salt2: 2 },
        node_id: 1,
        reserved: [1; 20],
        ..header(PAGE_BYTES, 3, 1, 4)
    };
    let last = Header {
        timestamp_ms: 2000,
        max_txid: Txid::new(6),
        commit: 2,
        ..first
    };
    let last = Header {
        min_txid: Txid::new(5),
        ..last
    };
    let pages: Pages = (1..=3).map(|pgno| (pgno, page(512, pgno))).collect();
    let bytes = merged(&[
        encode(first, &pages).unwrap(),
        encode(last, &vec![]).unwrap(),
    ])
    .unwrap();

    let (found, found_pages, _) = decode(&bytes).unwrap();
    let expected = Header {
        timestamp_ms: 2000,
        node_id: 7,
        ..header(PAGE_BYTES, 2, 1, 6)
    };
    assert_eq!(found, expected);
    assert_eq!(found_pages, pages[..2]);
}

#[test]
fn inputs_must_be_neighbours_of_one_page_size() {
    let base = file(3, 1, 4, &[1, 2, 3]);
    let misuse = |files: &[Vec<u8>]| match merged(files) {
        Err(LtxError::Misuse(misuse)) => misuse,
        other => panic!("{other:?}"),
    };
    assert_eq!(misuse(&[]), Misuse::NoInputs);
    let gap = |min, max| {
        let (after, min, max) = (Txid::new(4), Txid::new(min), Txid::new(max));
        Misuse::Gap { after, min, max }
    };
    assert_eq!(misuse(&[base.clone(), file(3, 6, 6, &[1])]), gap(6, 6));
    assert_eq!(misuse(&[base.clone(), file(3, 2, 4, &[1])]), gap(2, 4));
    let other = encode(header(1024, 3, 5, 5), &vec![]).unwrap();
    assert!(matches!(
        misuse(&[base.clone(), other]),
        Misuse::PageSizes { .. }
    ));
    assert!(
        merged(&[base.clone(), file(3, 2, 5, &[1])]).is_ok(),
        "overlaps are allowed"
    );
    assert!(merged(&[base, file(3, 5, 9, &[1])]).is_ok());
}

#[test]
fn a_snapshot_that_would_lack_a_page_is_not_made() {
    let error = merged(&[file(2, 1, 1, &[1, 2]), file(4, 2, 2, &[4])]).unwrap_err();
    assert!(
        matches!(error, LtxError::Pages(PagesError::Missing { expected: 3 })),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = merged(&[file(2, 1, 1, &[1, 2]), file(3, 2, 2, &[1])]).unwrap_err();
    assert!(
        matches!(error, LtxError::Pages(PagesError::Missing { expected: 3 })),
        "{error}"
    );
}

#[test]
fn a_bad_input_is_named_wherever_it_is_bad() {
    let good = [
        file(3, 1, 1, &[1, 2, 3]),
        file(3, 2, 2, &[2]),
        file(3, 3, 3, &[3]),
    ];
    assert!(merged(&good).is_ok());
    for length in 100..good[1].len() {
        let mut files = good.clone();
        files[1].truncate(length);
        let error = merged(&files).unwrap_err();
        assert!(
            matches!(error, LtxError::Input { input: 1, .. }),
            "{length} bytes: {error}"
        );
        assert_eq!(error.kind(), ErrorKind::Truncated);
    }
}

/// A database as a sequence of deltas: for each, the new size and the changed pages.
fn history() -> impl Strategy<Value = Vec<(u32, Vec<u32>)>> {
    let delta = (1u32..30, prop::collection::btree_set(1u32..30, 0..12));
    prop::collection::vec(delta, 1..8).prop_map(|deltas| {
        let mut size = 0;
        let mut whole = Vec::new();
        for (commit, changed) in deltas {
            // A delta holds every page by which the database grows; the first is a snapshot.
            let grown = size + 1..=commit;
            let changed = changed.into_iter().filter(|pgno| *pgno <= size.min(commit));
            whole.push((commit, changed.chain(grown).collect()));
            size = commit;
        }
        whole
    })
}

proptest! {
    #[test]
    fn a_merge_has_the_effect_of_its_inputs(history in history(), skip in any::<prop::sample::Index>()) {
        let skip = skip.index(history.len());
        let files: Vec<_> = (1..)
            .zip(&history)
            .map(|(txid, (commit, pgnos))| file(*commit, txid, txid, pgnos))
            .skip(skip)
            .collect();

        let mut model = BTreeMap::new();
        let mut commit = 0;
        for file in &files {
            let (header, pages, _) = decode(file).unwrap();
            model.extend(pages);
            commit = header.commit;
            model.split_off(&(commit + 1));
        }

        let (header, pages, _) = decode(&merged(&files).unwrap()).unwrap();
        prop_assert_eq!(header.commit, commit);
        prop_assert_eq!(header.min_txid.get(), skip as u64 + 1);
        prop_assert_eq!(pages, model.into_iter().collect::<Pages>());
    }

    #[test]
    fn merging_in_steps_gives_the_same_file(history in history(), cut in any::<prop::sample::Index>()) {
        let files: Vec<_> = (1..)
            .zip(&history)
            .map(|(txid, (commit, pgnos))| file(*commit, txid, txid, pgnos))
            .collect();
        let (head, tail) = files.split_at(1 + cut.index(files.len()));
        let mut steps = vec![merged(head).unwrap()];
        if !tail.is_empty() {
            steps.push(merged(tail).unwrap());
        }
        prop_assert_eq!(merged(&steps).unwrap(), merged(&files).unwrap());
    }
}
