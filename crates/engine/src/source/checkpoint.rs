//! Checkpoints of ours, where the application does not keep its WAL short.

use std::time::Duration;

use crate::source::sqlite::{Connection, SqliteError};

/// Frames of a WAL that PASSIVE checkpoints evidently do not shorten: 128 MiB with 4 KiB pages.
const LAST_RESORT_FRAMES: u32 = 32_768;
/// Frames that may be copied while writers wait. This takes some milliseconds.
const FEW_FRAMES: u32 = 1_000;
/// Longest time that writers wait for readers of the WAL.
const READERS_TIME: Duration = Duration::from_millis(20);
/// Longest duration of the preceding PASSIVE checkpoint. Up to this, the disk is fast enough to
/// copy and sync the remaining frames while writers wait.
const QUICK: Duration = Duration::from_millis(20);
/// PASSIVE checkpoints in a row. Each copies the frames written during the one before.
const PASSES: u32 = 8;
/// Copies the WAL into the database with PASSIVE checkpoints, which wait for no connection. If
/// writers never pause, the WAL still grows: as a last resort, makes them restart it. Returns none
/// if that was not tried, else whether it helped.
pub(crate) fn shorten(
    connection: &Connection,
    may_resort: bool,
) -> Result<Option<bool>, SqliteError> {
    shorten_on(connection, may_resort, QUICK)
}

/// As [`shorten`], where a PASSIVE checkpoint of up to `quick` is a sign of a fast disk.
fn shorten_on(
    connection: &Connection,
    may_resort: bool,
    quick: Duration,
) -> Result<Option<bool>, SqliteError> {
    for _ in 0..PASSES {
        let began = std::time::Instant::now();
        if !connection.checkpoint_passive()? {
            return Ok(None);
        }
        let took = began.elapsed();
        let Some(view) = connection.wal_view() else {
            return Ok(None);
        };
        let frames = view.header.max_frame;
        let left = frames.saturating_sub(view.backfilled);
        if !may_resort || frames < LAST_RESORT_FRAMES || left == 0 {
            return Ok(None);
        }
        if left <= FEW_FRAMES && took <= quick {
            return connection.checkpoint_restart(READERS_TIME).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAL that is never shortened: one commit longer than [`LAST_RESORT_FRAMES`] frames, then
    /// `behind` frames that a reader keeps from being copied. Returns writer and reader.
    fn long_log(path: &std::path::Path, behind: u32) -> [rusqlite::Connection; 2] {
        let open = || rusqlite::Connection::open(path).unwrap();
        let [writer, reader] = [open(), open()];
        let sql = "PRAGMA page_size=512; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
                   PRAGMA synchronous=OFF; CREATE TABLE t(x)";
        writer.execute_batch(sql).unwrap();
        let write = |frames: u32| {
            let rows = "INSERT INTO t SELECT zeroblob(450) FROM n";
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {frames}) {rows}"
            );
            writer.execute_batch(&sql).unwrap();
        };
        write(LAST_RESORT_FRAMES);
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM t")
            .unwrap();
        write(behind);
        [writer, reader]
    }

    #[test]
    fn the_last_resort_is_tried_only_where_little_is_left_and_waits_for_no_reader() {
        for (behind, tried) in [(FEW_FRAMES * 2, false), (FEW_FRAMES / 4, true)] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("db");
            let [writer, reader] = long_log(&path, behind);
            let ours = Connection::open(&path).unwrap();
            assert_eq!(shorten(&ours, false).unwrap(), None, "not asked for");
            assert_eq!(
                shorten_on(&ours, true, Duration::ZERO).unwrap(),
                None,
                "the disk is slow"
            );
            let began = std::time::Instant::now();
            let helped = shorten_on(&ours, true, Duration::MAX).unwrap();
            assert_eq!(helped, tried.then_some(false));
            assert!(
                began.elapsed() < Duration::from_secs(4),
                "it waits for the reader"
            );
            drop(reader);
            assert_eq!(shorten(&ours, true).unwrap(), None, "all is copied");
            // The next write begins the WAL anew: at its start, and with other salts.
            let before = ours.wal_view().unwrap().header;
            writer.execute_batch("INSERT INTO t VALUES(1)").unwrap();
            let after = ours.wal_view().unwrap().header;
            assert!(after.max_frame < before.max_frame && after.salts != before.salts);
        }
    }
}
