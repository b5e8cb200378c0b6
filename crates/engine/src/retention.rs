//! The rule that picks files no promised restore can need. Nothing else deletes.

use std::collections::BTreeSet;
use std::time::Duration;

use ltx::{Level, Txid};

use crate::remote::RemoteFile;

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// False: nothing is deleted.
    pub enabled: bool,
    /// Inside this span every captured TXID stays a position of its own.
    pub exact: Duration,
    /// Inside this span level 1 steps can be restored.
    pub window: Duration,
    /// Full copies kept beyond the window: one for each of this many days,
    pub daily: u32,
    /// weeks of seven days,
    pub weekly: u32,
    /// and months of thirty days.
    pub monthly: u32,
}

impl Default for RetentionPolicy {
    fn default() -> RetentionPolicy {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        RetentionPolicy {
            enabled: true,
            exact: hours(24),
            window: hours(168),
            daily: 7,
            weekly: 4,
            monthly: 3,
        }
    }
}

const DAY_MS: i64 = 86_400_000;

/// Returns the files that no promised restore can need, oldest first.
///
/// Three things always stay: the newest level 0 file (it is what a Litestream that takes over
/// looks at), the newest full copy, and the newest full copy from before the window, the *floor*:
/// every point in the window restores from it or from a newer one plus later files, so it stays
/// however old it is. With no floor, no base expires. A file goes only when the floor lies above
/// it, or when a merged file covers it that is itself older than `exact`: as long as one point
/// inside a merged file is promised, the way there leads over the captured files before it.
pub fn expired(
    files: &BTreeSet<RemoteFile>,
    policy: &RetentionPolicy,
    now_ms: i64,
) -> Vec<RemoteFile> {
    if !policy.enabled {
        return Vec::new();
    }
    let older = |file: &RemoteFile, span: Duration| {
        now_ms.saturating_sub(file.modified_ms)
            >= i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
    };
    let kept_bases = kept_bases(files, policy, now_ms);
    let floor = files
        .iter()
        .filter(|file| file.is_snapshot() && older(file, policy.window))
        .map(|file| file.max)
        .max()
        .unwrap_or(Txid::ZERO);
    let newest_capture = files
        .iter()
        .filter(|file| file.level == 0)
        .map(|file| file.max)
        .max();
    let merged = |file: &RemoteFile| {
        files.iter().any(|wide| {
            wide.level > file.level
                && wide.level < Level::SNAPSHOT.get()
                && wide.min <= file.min
                && wide.max >= file.max
                && older(wide, policy.exact)
        })
    };
    let mut expired: Vec<RemoteFile> = files
        .iter()
        .filter(|file| {
            if file.is_snapshot() {
                return file.max < floor && !kept_bases.contains(&file.max);
            }
            if file.level == 0 && Some(file.max) == newest_capture {
                return false;
            }
            let below_floor = file.max <= floor && older(file, policy.window);
            let covered = file.level == 0 && merged(file);
            below_floor || covered
        })
        .copied()
        .collect();
    expired.sort_by_key(|file| (file.max, file.level));
    expired
}

/// The full copies that the daily, weekly and monthly rules keep, by TXID: of each period, counted
/// back from now, the newest one.
fn kept_bases(
    files: &BTreeSet<RemoteFile>,
    policy: &RetentionPolicy,
    now_ms: i64,
) -> BTreeSet<Txid> {
    let mut kept = BTreeSet::new();
    for (days, count) in [(1, policy.daily), (7, policy.weekly), (30, policy.monthly)] {
        for period in 0..i64::from(count) {
            let newer = now_ms.saturating_sub(period * days * DAY_MS);
            let older = newer.saturating_sub(days * DAY_MS);
            let newest = files
                .iter()
                .filter(|file| file.is_snapshot())
                .filter(|file| older < file.modified_ms && file.modified_ms <= newer)
                .map(|file| file.max)
                .max();
            kept.extend(newest);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan_restore;
    use proptest::prelude::*;

    fn file(level: u8, min: u64, max: u64, day: i64) -> RemoteFile {
        RemoteFile {
            level,
            min: Txid::new(min),
            max: Txid::new(max),
            size: 1,
            modified_ms: day * DAY_MS,
        }
    }

    fn policy(exact: u64, window: u64) -> RetentionPolicy {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let none = RetentionPolicy {
            daily: 0,
            weekly: 0,
            monthly: 0,
            ..Default::default()
        };
        RetentionPolicy {
            exact: days(exact),
            window: days(window),
            ..none
        }
    }

    #[test]
    fn an_old_base_stays_while_it_is_the_floor() {
        let files: BTreeSet<_> = [file(9, 1, 4, 0), file(9, 1, 9, 5)].into();
        assert!(expired(&files, &policy(1, 3), 6 * DAY_MS).is_empty());
        assert_eq!(
            expired(&files, &policy(1, 3), 8 * DAY_MS),
            [file(9, 1, 4, 0)]
        );
    }

    #[test]
    fn captured_files_go_when_merged_and_old_but_never_the_newest() {
        let files: BTreeSet<_> = [
            file(9, 1, 1, 0),
            file(0, 2, 2, 0),
            file(0, 3, 3, 0),
            file(1, 2, 3, 0),
        ]
        .into();
        assert_eq!(
            expired(&files, &policy(1, 30), 2 * DAY_MS),
            [file(0, 2, 2, 0)]
        );
        assert!(expired(&files, &policy(3, 30), 2 * DAY_MS).is_empty());
    }

    #[test]
    fn captured_files_stay_while_a_promised_point_lies_behind_them_in_their_merged_file() {
        let files: BTreeSet<_> = [
            file(9, 1, 1, 0),
            file(0, 2, 2, 0),
            file(0, 3, 3, 2),
            file(1, 2, 3, 2),
            file(0, 4, 4, 2),
        ]
        .into();
        assert!(expired(&files, &policy(1, 30), 2 * DAY_MS).is_empty());
        assert!(plan_restore(&files, Some(Txid::new(3))).is_ok());
    }

    #[test]
    fn daily_weekly_and_monthly_copies_outlive_the_window() {
        let files: BTreeSet<_> = (0..200)
            .map(|day| file(9, 1, day as u64 + 2, day))
            .collect();
        let gfs = RetentionPolicy {
            daily: 7,
            weekly: 4,
            monthly: 3,
            ..policy(1, 2)
        };
        let gone: BTreeSet<_> = expired(&files, &gfs, 199 * DAY_MS).into_iter().collect();
        let kept: Vec<i64> = files
            .difference(&gone)
            .map(|file| 199 - file.modified_ms / DAY_MS)
            .collect();
        assert_eq!(kept, [60, 30, 21, 14, 7, 6, 5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn disabled_means_nothing_is_deleted() {
        let files: BTreeSet<_> = [file(9, 1, 4, 0), file(9, 1, 9, 5)].into();
        let off = RetentionPolicy {
            enabled: false,
            ..policy(1, 1)
        };
        assert!(expired(&files, &off, 100 * DAY_MS).is_empty());
    }

    proptest! {
        /// Captures one TXID a quarter day, merges and copies now and then, deletes what expires,
        /// and asks after each step for every point that is promised.
        #[test]
        fn every_promised_point_stays_restorable(
            steps in prop::collection::vec((0u8..4, 0u8..9), 20..120),
            exact in 1u64..3,
            window in 3u64..6,
        ) {
            let policy = policy(exact, window);
            let mut files: BTreeSet<RemoteFile> = [file(9, 1, 1, 0)].into();
            let (mut txid, mut merged) = (1u64, 1u64);
            let mut stored: Vec<(u64, i64)> = vec![(1, 0)];
            let mut steps_ms: Vec<(u64, i64)> = vec![(1, 0)];
            for (index, (merge, copy)) in steps.iter().enumerate() {
                let now_ms = (index as i64 + 1) * DAY_MS / 4;
                txid += 1;
                let at = |level, min, max| RemoteFile { modified_ms: now_ms, ..file(level, min, max, 0) };
                files.insert(at(0, txid, txid));
                stored.push((txid, now_ms));
                if *merge == 0 {
                    files.insert(at(1, merged + 1, txid));
                    merged = txid;
                    steps_ms.push((txid, now_ms));
                }
                if *copy == 0 {
                    files.insert(at(9, 1, txid));
                }
                for gone in expired(&files, &policy, now_ms) {
                    files.remove(&gone);
                }
                let inside = |time: i64, days: u64| now_ms - time < days as i64 * DAY_MS;
                for (point, _) in stored.iter().filter(|(_, time)| inside(*time, exact)) {
                    prop_assert!(plan_restore(&files, Some(Txid::new(*point))).is_ok(), "exact {point}");
                }
                for (point, _) in steps_ms.iter().filter(|(_, time)| inside(*time, window)) {
                    prop_assert!(plan_restore(&files, Some(Txid::new(*point))).is_ok(), "window {point}");
                }
                prop_assert!(plan_restore(&files, None).is_ok());
            }
        }
    }
}
