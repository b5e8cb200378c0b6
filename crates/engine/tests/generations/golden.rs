//! The files of Litestream 0.3.13 restore to the state that it stored.

use ltx::Txid;

use crate::replica::{Database, PAGE_SIZES, Replica, State};

fn assert_is(database: &Database, state: &State, page_size: usize) {
    let checksum = format!("{:016x}", database.restored.hashes.checksum());
    let pages = database.bytes.len() / page_size;
    assert_eq!(
        (database.rows, pages, &checksum),
        (state.rows, state.pages, &state.checksum),
        "at {}",
        state.time_ms
    );
}

#[test]
fn every_noted_state_comes_back_page_by_page() {
    for page_size in PAGE_SIZES {
        let replica = Replica::golden(page_size);
        for state in &replica.states {
            let database = replica.restore(Some(state.time_ms)).unwrap();
            assert_is(&database, state, page_size);
            assert_eq!(database.restored.timestamp_ms, state.time_ms);
            assert_eq!(database.restored.txid, Txid::ZERO);
            assert!(database.restored.generation.is_some());
        }
        // Until the next object is stored, that state is the newest.
        let times: Vec<i64> = replica.objects.values().map(|object| object.1).collect();
        for state in &replica.states {
            let next = times.iter().filter(|time| **time > state.time_ms).min();
            let before = next.map_or(i64::from(u32::MAX) * 1000, |next| next - 1);
            let database = replica.restore(Some(before)).unwrap();
            assert_is(&database, state, page_size);
        }
    }
}

#[test]
fn the_newest_state_is_that_of_the_source_when_litestream_ended() {
    for page_size in PAGE_SIZES {
        let replica = Replica::golden(page_size);
        let state = replica.states.last().unwrap();
        assert_is(&replica.restore(None).unwrap(), state, page_size);
    }
}

#[test]
fn the_golden_replicas_have_what_they_are_for() {
    for page_size in PAGE_SIZES {
        let replica = Replica::golden(page_size);
        let keys: Vec<&String> = replica.objects.keys().collect();
        let mut generations: Vec<&str> = keys.iter().map(|key| &key[12..28]).collect();
        generations.dedup();
        assert_eq!(generations.len(), 2);
        let snapshots = keys.iter().filter(|key| key.contains("snapshots"));
        assert!(snapshots.count() > 2, "a generation has another one");
        assert!(keys.iter().any(|key| key.contains("wal/00000001_")));
        let segments = keys.iter().filter(|key| key.contains("wal/00000000_"));
        assert!(segments.count() > 3);
        let sizes: Vec<usize> = replica.states.iter().map(|state| state.pages).collect();
        assert!(sizes.windows(2).any(|pair| pair[0] < pair[1]));
        assert!(sizes.windows(2).any(|pair| pair[0] > pair[1]));
    }
}
