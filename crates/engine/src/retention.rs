//! What stays restorable, the rule that picks files nobody needs for it, and the proof that it
//! was right. Nothing else deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ltx::{Level, Txid};

use crate::reach::Reach;
use crate::remote::RemoteFile;

/// How long what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// False: nothing is deleted.
    pub enabled: bool,
    /// Inside this span every captured TXID stays a position of its own. It ends with the window.
    pub exact: Duration,
    /// Inside this span level 1 steps can be restored.
    pub window: Duration,
    /// Full copies kept beyond the window: one for each of this many days, the present one
    /// included,
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
/// Broken points that are repaired one by one. With more of them the rule cannot be trusted.
const REPAIRS: usize = 16;

/// Why a position has to stay restorable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is the newest one.
    Newest,
    /// It was captured inside `exact`.
    Exact,
    /// A merged file or a full copy from inside the window ends there.
    Window,
    /// A full copy there is kept for its day, week or month.
    Period,
    /// The newest file of level 0 is what a Litestream that takes over looks at.
    TakeOver,
}

/// A file that the rule picked although a promised position needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spared {
    /// The file, which stays.
    pub file: RemoteFile,
    /// A position that would be lost with it.
    pub point: Txid,
    /// Why that has to stay.
    pub reason: Reason,
}

/// What to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// Files that no promised position needs, the oldest first. Any part of them may go.
    pub expired: Vec<RemoteFile>,
    /// Files that are left alone though the rule picked them: empty, unless the rule or the times
    /// of the files are wrong.
    pub spared: Vec<Spared>,
}

/// Plans what to delete of all files of a replica, at a time that is not ahead of the store's.
///
/// A rule picks files, and each promised position is then proven to be restorable without them:
/// the proof knows nothing of the rule. What a promised position needs stays, and is named.
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

/// A file and how old it is.
#[derive(Debug, Clone, Copy)]
struct Aged {
    file: RemoteFile,
    /// Milliseconds. Never more than that of a file that ends before it: whatever the times say,
    /// what ends later was captured later.
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
            // `exact` ends with the window: before it, nothing but full copies is promised.
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

/// Picks files, by their place among `files`.
///
/// Three things always stay: the newest level 0 file, the newest full copy, and the newest full
/// copy from before the window, the *floor*: every point in the window restores from it or from a
/// newer one plus later files, so it stays however old it is. With no floor, no base expires. A
/// file goes only when the floor lies above it, or when a merged file covers it that is itself
/// older than `exact`: as long as one point inside a merged file is promised, the way there leads
/// over the captured files before it.
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

/// Merged files in which no position is promised to be exact any more.
struct Covering {
    /// First TXID of each, ascending, and the furthest end of it and those before.
    furthest: Vec<(Txid, Txid)>,
}

impl Covering {
    fn of(files: &[Aged], exact: Duration) -> Covering {
        let merged = |aged: &&Aged| (1..Level::SNAPSHOT.get()).contains(&aged.file.level);
        let old = files
            .iter()
            .filter(merged)
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

/// The full copies that the daily, weekly and monthly rules keep, by TXID: of each period up to
/// the present one, the newest.
///
/// Periods are those of the calendar in UTC, so that what is the newest of a past period stays
/// that: with periods that are counted back from now, each copy would become the second of its
/// period some day. A copy counts by the time that its store says and by that of its neighbours.
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

/// Proves for each promised position that was reached that it is without the picked files, and
/// takes back what that needs.
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
        // What leads there among all files leads there again once it stays.
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
