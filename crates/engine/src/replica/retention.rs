//! Retention: the promised positions, the rule that picks files they do not need, and the proof
//! that it was right. Nothing else deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ltx::{Level, Txid};

use crate::replica::manifest::RemoteFile;
use crate::replica::reachability::Reach;

/// Retention: how long each kind of file is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// False: nothing is deleted.
    pub enabled: bool,
    /// Inside this span every captured TXID stays a position of its own. It ends with the window.
    pub exact: Duration,
    /// Inside this span level 1 steps can be restored.
    pub window: Duration,
    /// Snapshots kept beyond the window: one for each of this many days, the present one included.
    pub daily: u32,
    /// The same for weeks of seven days.
    pub weekly: u32,
    /// The same for months of thirty days.
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
/// Lost positions that are repaired one by one. With more of them the rule cannot be trusted.
const REPAIRS: usize = 16;

/// Why a position has to stay restorable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The position is the newest one.
    Newest,
    /// The position was captured inside `exact`.
    Exact,
    /// A compacted file or a snapshot from inside the window ends at the position.
    Window,
    /// A snapshot at the position is kept for its day, week or month.
    Period,
    /// A Litestream that takes over reads the newest file of level 0.
    TakeOver,
}

/// A file that the rule picked although a promised position needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spared {
    /// The file, which stays.
    pub file: RemoteFile,
    /// A position that would be lost with the file.
    pub point: Txid,
    /// Why that position has to stay.
    pub reason: Reason,
}

/// The files to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// Files that no promised position needs, the oldest first. Any subset of them may be deleted.
    pub expired: Vec<RemoteFile>,
    /// Files that stay though the rule picked them. Empty, unless the rule or the times of the
    /// files are wrong.
    pub spared: Vec<Spared>,
}

/// Plans which files of a replica to delete, at a time that is not ahead of the store's.
///
/// A rule picks files. Each promised position is then proven to be restorable without them, and the
/// proof knows nothing of the rule. Files that a promised position needs stay, and are reported.
pub fn plan_retention(
    files: &BTreeSet<RemoteFile>,
    policy: &RetentionPolicy,
    now_ms: i64,
) -> RetentionPlan {
    if !policy.enabled {
        return RetentionPlan::default();
    }
    let files = Aged::all(files, now_ms);
    let periods = periods(&files, policy, now_ms);
    let picked = pick(&files, policy, &periods);
    prove(&files, picked, &promises(&files, policy, &periods))
}

/// A file and its age.
#[derive(Debug, Clone, Copy)]
struct Aged {
    file: RemoteFile,
    /// Milliseconds. Never more than the age of a file that ends before it: whatever the times are,
    /// a file that ends later was captured later.
    age_ms: i64,
}

impl Aged {
    /// All files, in the order of their ends.
    fn all(files: &BTreeSet<RemoteFile>, now_ms: i64) -> Vec<Aged> {
        let mut files: Vec<RemoteFile> = files.iter().copied().collect();
        files.sort_by_key(|file| (file.max, file.level));
        let mut youngest_ms = i64::MAX;
        files
            .into_iter()
            .map(|file| {
                youngest_ms = youngest_ms.min(now_ms.saturating_sub(file.modified_ms));
                let age_ms = youngest_ms;
                Aged { file, age_ms }
            })
            .collect()
    }

    fn is_older(&self, span: Duration) -> bool {
        self.age_ms >= i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
    }
}

/// The positions that have to stay, in order.
fn promises(
    files: &[Aged],
    policy: &RetentionPolicy,
    periods: &BTreeSet<Txid>,
) -> Vec<(Txid, Reason)> {
    let newest = files.last().map(|newest| newest.file.max);
    let reason = |aged: &Aged| {
        let (file, inside) = (aged.file, |span| !aged.is_older(span));
        match file.level {
            // `exact` ends with the window: before the window, only snapshots are promised.
            0 if inside(policy.exact.min(policy.window)) => Some(Reason::Exact),
            1.. if inside(policy.window) => Some(Reason::Window),
            _ if file.is_snapshot() && periods.contains(&file.max) => Some(Reason::Period),
            _ if Some(file.max) == newest => Some(Reason::Newest),
            _ => None,
        }
    };
    let promised = files
        .iter()
        .filter_map(|aged| Some((aged.file.max, reason(aged)?)));
    promised.collect()
}

/// Picks files, by their index in `files`.
///
/// Three files always stay: the newest level 0 file, the newest snapshot, and the newest snapshot
/// from before the window, the *floor*. Every point in the window restores from the floor or a
/// newer snapshot plus later files, so the floor stays however old it is. With no floor, no
/// snapshot expires.
///
/// A file is picked only when the floor is above it, or when a compacted file covers it that is
/// itself older than `exact`. As long as one point inside a compacted file is promised, its restore
/// needs the captured files before it.
fn pick(files: &[Aged], policy: &RetentionPolicy, periods: &BTreeSet<Txid>) -> Vec<bool> {
    let is_floor = |aged: &&Aged| aged.file.is_snapshot() && aged.is_older(policy.window);
    let floor = files.iter().rfind(is_floor).map(|aged| aged.file.max);
    let newest_capture = files.iter().rposition(|aged| aged.file.level == 0);
    let covering = Covering::of(files, policy.exact);
    let picked = files.iter().enumerate().map(|(index, aged)| {
        let file = aged.file;
        if file.is_snapshot() {
            return Some(file.max) < floor && !periods.contains(&file.max);
        }
        let below_floor = Some(file.max) <= floor && aged.is_older(policy.window);
        let covered = file.level == 0 && covering.covers(&file);
        (below_floor || covered) && Some(index) != newest_capture
    });
    picked.collect()
}

/// Compacted files in which no position is promised to be exact any more.
struct Covering {
    /// First TXID of each, ascending, and the furthest end of it and those before.
    furthest: Vec<(Txid, Txid)>,
}

impl Covering {
    fn of(files: &[Aged], exact: Duration) -> Covering {
        let compacted = |aged: &&Aged| (1..Level::SNAPSHOT.get()).contains(&aged.file.level);
        let old = files
            .iter()
            .filter(compacted)
            .filter(|aged| aged.is_older(exact));
        let mut furthest: Vec<_> = old.map(|aged| (aged.file.min, aged.file.max)).collect();
        furthest.sort_unstable();
        let mut end = Txid::ZERO;
        for (_, max) in &mut furthest {
            end = end.max(*max);
            *max = end;
        }
        Covering { furthest }
    }

    fn covers(&self, file: &RemoteFile) -> bool {
        let begin_before = self.furthest.partition_point(|(min, _)| *min <= file.min);
        let last = begin_before.checked_sub(1).map(|last| self.furthest[last]);
        last.is_some_and(|(_, end)| end >= file.max)
    }
}

/// The snapshots that the daily, weekly and monthly rules keep, by TXID: of each period up to the
/// present one, the newest.
///
/// Periods are those of the calendar in UTC, so the newest snapshot of a past period stays its
/// newest. If periods were counted back from now, each snapshot would become the second of its
/// period some day. A snapshot counts both by the time of its store and by the time of its
/// neighbours.
fn periods(files: &[Aged], policy: &RetentionPolicy, now_ms: i64) -> BTreeSet<Txid> {
    let copies = files.iter().filter(|aged| aged.file.is_snapshot());
    let mut kept = BTreeSet::new();
    for (days, count) in [(1, policy.daily), (7, policy.weekly), (30, policy.monthly)] {
        let period = |ms: i64| ms.div_euclid(days * DAY_MS);
        let oldest = period(now_ms).saturating_sub(i64::from(count));
        let mut newest = BTreeMap::new();
        for aged in copies.clone() {
            let by_neighbours = now_ms.saturating_sub(aged.age_ms);
            for ms in [aged.file.modified_ms, by_neighbours] {
                newest.insert(period(ms), aged.file.max);
            }
        }
        kept.extend(newest.range(oldest + 1..).map(|(_, txid)| *txid));
    }
    kept
}

/// Proves that each promised position that was reached before is reached without the picked files.
/// Keeps the files that such a position needs.
fn prove(files: &[Aged], mut picked: Vec<bool>, promised: &[(Txid, Reason)]) -> RetentionPlan {
    let mut spared = Vec::new();
    if let Some(newest) = files.iter().rposition(|aged| aged.file.level == 0)
        && std::mem::take(&mut picked[newest])
    {
        let file = files[newest].file;
        spared.push(Spared {
            file,
            point: file.max,
            reason: Reason::TakeOver,
        });
    }
    let before = Reach::of(files.iter().map(|aged| &aged.file));
    for repaired in 0.. {
        let left = files.iter().zip(&picked).filter(|(_, picked)| !**picked);
        let after = Reach::of(left.map(|(aged, _)| &aged.file));
        let is_lost =
            |(point, _): &&(Txid, Reason)| !after.contains(*point) && before.contains(*point);
        let Some((point, reason)) = promised.iter().find(is_lost).copied() else {
            break;
        };
        if repaired == REPAIRS {
            picked.fill(false);
            break;
        }
        // The files that lead to the position among all files lead to it again once they stay.
        let way: BTreeSet<RemoteFile> = before.way(point).into_iter().collect();
        for (aged, picked) in files.iter().zip(&mut picked) {
            let file = aged.file;
            if *picked && way.contains(&file) {
                *picked = false;
                spared.push(Spared {
                    file,
                    point,
                    reason,
                });
            }
        }
    }
    let expired = files.iter().zip(&picked).filter(|(_, picked)| **picked);
    RetentionPlan {
        expired: expired.map(|(aged, _)| aged.file).collect(),
        spared,
    }
}

#[cfg(test)]
mod tests;
