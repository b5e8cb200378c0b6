//! Estimates the cost of a replica in a bucket from its files.
//!
//! The store records when each file was stored, and each level keeps files for hours or days. This
//! gives the rate of uploads. All other requests of replication occur at the start of a process.

use std::collections::BTreeSet;

use engine::replica::manifest::RemoteFile;
use engine::replica::restore_plan::Plan;
use engine::restore::RANGE_BYTES;
use store::PART_BYTES;

/// Dollars for 1,000 PUT or LIST requests: Amazon S3's standard class in us-east-1.
pub const PUTS_DOLLARS: f64 = 0.005;
/// Dollars for 1,000 GET requests.
pub const GETS_DOLLARS: f64 = 0.0004;
/// Dollars for storing 1 GiB for a month.
pub const GIB_MONTH_DOLLARS: f64 = 0.023;

/// A month, in milliseconds.
const MONTH_MS: f64 = 30.0 * 86_400_000.0;
/// Older files say nothing about the current rate, and retention has removed some of them. In
/// milliseconds.
const RECENT_MS: i64 = 7 * 86_400_000;
/// Minimum age of a replica for an estimate, in milliseconds.
const YOUNG_MS: i64 = 600_000;
/// Number of objects on one page of a list.
const PAGE_OBJECTS: u64 = 1000;

/// Cost of a month at the current rate.
#[derive(Debug, Clone, PartialEq)]
pub struct Bill {
    /// Length of the observed period, in seconds.
    pub observed_seconds: u64,
    /// Number of requests that store.
    pub puts: u64,
    /// Number of bytes stored by them.
    pub uploaded_bytes: u64,
    /// Number of bytes kept.
    pub stored_bytes: u64,
    /// Total cost.
    pub dollars: f64,
}

/// Estimates a month; `None` for a replica that is too young.
pub fn month(files: &BTreeSet<RemoteFile>, now_ms: i64) -> Option<Bill> {
    let (mut observed_ms, mut puts, mut bytes) = (0, 0.0, 0.0);
    for level in 0..=9 {
        let of_level = files.iter().filter(|file| file.level == level);
        let mut recent: Vec<_> = of_level
            .filter(|file| now_ms - file.modified_ms <= RECENT_MS)
            .collect();
        recent.sort_by_key(|file| file.modified_ms);
        let Some((oldest, later)) = recent.split_first() else {
            continue;
        };
        // The oldest file starts the period: it stands for the time before it.
        let span_ms = now_ms - oldest.modified_ms;
        observed_ms = observed_ms.max(span_ms);
        let months = MONTH_MS / span_ms.max(1) as f64;
        puts += months * later.iter().map(|file| requests(file.size)).sum::<u64>() as f64;
        bytes += months * later.iter().map(|file| file.size).sum::<u64>() as f64;
    }
    if observed_ms < YOUNG_MS {
        return None;
    }
    let stored_bytes: u64 = files.iter().map(|file| file.size).sum();
    let kept = stored_bytes as f64 / f64::from(1 << 30) * GIB_MONTH_DOLLARS;
    Some(Bill {
        observed_seconds: observed_ms.unsigned_abs() / 1000,
        puts: puts as u64,
        uploaded_bytes: bytes as u64,
        stored_bytes,
        dollars: puts / 1000.0 * PUTS_DOLLARS + kept,
    })
}

/// Returns the number of requests that store an object of this size.
fn requests(size: u64) -> u64 {
    match size {
        0..=PART_BYTES => 1,
        // One request begins the upload and one completes it.
        _ => size.div_ceil(PART_BYTES) + 2,
    }
}

/// Returns the cost of the requests of one restore by this plan, from a replica of `files` files.
/// The cost of the bytes depends on their destination.
pub fn restore_dollars(plan: &Plan, files: usize) -> f64 {
    let reads = |file: &RemoteFile| file.size.div_ceil(RANGE_BYTES).max(1);
    let gets: u64 = plan.files.iter().map(reads).sum();
    let lists = (files as u64).div_ceil(PAGE_OBJECTS);
    gets as f64 / 1000.0 * GETS_DOLLARS + lists as f64 / 1000.0 * PUTS_DOLLARS
}

#[cfg(test)]
mod tests {
    use engine::replica::restore_plan::plan_restore;
    use ltx::Txid;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn file(level: u8, txid: u64, size: u64, modified_ms: i64) -> RemoteFile {
        let min = if level == 9 { 1 } else { txid };
        RemoteFile {
            level,
            min: Txid::new(min),
            max: Txid::new(txid),
            size,
            modified_ms,
        }
    }

    #[test]
    fn a_month_goes_on_as_the_stored_hours_went() {
        // A day with one object of 1 MiB each second, and no objects after it.
        let second = |n: u64| file(0, n + 2, 1 << 20, n as i64 * 1000);
        let day: BTreeSet<_> = (0..=86_400).map(second).collect();
        let bill = month(&day, 24 * HOUR_MS).unwrap();
        assert_eq!(bill.puts, 30 * 86_400);
        assert_eq!(bill.observed_seconds, 86_400);
        assert_eq!(bill.uploaded_bytes, (30 * 86_400) << 20);
        assert_eq!(bill.stored_bytes, 86_401 << 20);
        let expected = 30.0 * 86.4 * 0.005 + 86_401.0 / 1024.0 * 0.023;
        assert!((bill.dollars - expected).abs() < 0.001, "{bill:?}");
        // A second day without objects halves the rate.
        assert_eq!(month(&day, 48 * HOUR_MS).unwrap().puts, 15 * 86_400);
    }

    #[test]
    fn each_level_has_its_own_pace_and_large_objects_have_parts() {
        let files: BTreeSet<_> = [
            file(9, 1, 20 << 20, 0),
            // A day later: begin, three parts, complete.
            file(9, 9, 20 << 20, 24 * HOUR_MS),
            file(1, 5, 10, 23 * HOUR_MS),
            file(1, 6, 10, 24 * HOUR_MS),
            // Older than a week, so it is ignored.
            file(9, 2, 1, -200 * HOUR_MS),
        ]
        .into();
        let bill = month(&files, 24 * HOUR_MS).unwrap();
        assert_eq!(bill.puts, 30 * 6 + 30 * 24);
    }

    #[test]
    fn nothing_is_told_of_what_is_too_young_or_not_there() {
        let files: BTreeSet<_> = [file(9, 1, 10, 0), file(0, 2, 10, 1000)].into();
        assert_eq!(month(&files, 599_999), None);
        assert!(month(&files, 600_000).is_some());
        // The local clock is behind the store's.
        assert_eq!(month(&files, -5000), None);
        assert_eq!(month(&BTreeSet::new(), HOUR_MS), None);
    }

    #[test]
    fn a_restore_pays_for_pages_of_the_list_and_pieces_of_the_objects() {
        let files: BTreeSet<_> = [file(9, 1, 9 << 20, 0), file(0, 2, 10, 0)].into();
        let plan = plan_restore(&files, None).unwrap();
        let dollars = restore_dollars(&plan, 2001);
        let expected = 6.0 * 0.0004 / 1000.0 + 3.0 * 0.005 / 1000.0;
        assert!((dollars - expected).abs() < 1e-12, "{dollars}");
    }
}
