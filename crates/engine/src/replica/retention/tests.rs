use super::*;
use crate::replica::compaction::next_run;
use crate::replica::restore_plan::plan_restore;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

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

/// The deleted files, if the rule is right.
fn expired(files: &BTreeSet<RemoteFile>, policy: &RetentionPolicy, now_ms: i64) -> Vec<RemoteFile> {
    let plan = plan_retention(files, policy, now_ms);
    assert_eq!(plan.spared, []);
    plan.expired
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
fn a_copy_of_each_day_week_and_month_stays_though_retention_runs_every_day() {
    let gfs = RetentionPolicy {
        daily: 7,
        weekly: 4,
        monthly: 3,
        ..policy(1, 2)
    };
    let mut files = BTreeSet::new();
    for day in 0..200 {
        files.insert(file(9, 1, day as u64 + 2, day));
        for gone in expired(&files, &gfs, day * DAY_MS + DAY_MS / 2) {
            files.remove(&gone);
        }
        let days: BTreeSet<i64> = files.iter().map(|file| file.modified_ms / DAY_MS).collect();
        for (length, count) in [(1, 7), (7, 4), (30, 3)] {
            let present = day / length;
            for period in (present - count + 1).max(0)..=present {
                let last = ((period + 1) * length - 1).min(day);
                assert!(days.contains(&last), "day {day}: {last} of {days:?}");
            }
        }
    }
    let kept: Vec<i64> = files.iter().map(|file| file.modified_ms / DAY_MS).collect();
    assert_eq!(
        kept,
        [149, 179, 181, 188, 193, 194, 195, 196, 197, 198, 199]
    );
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

/// A replica with every kind of promise, at day 10 with `policy(1, 5)`.
fn replica() -> BTreeSet<RemoteFile> {
    [
        file(9, 1, 1, 0),
        file(1, 2, 5, 1),
        file(9, 1, 5, 3),
        file(1, 6, 8, 7),
        file(0, 9, 9, 10),
        file(0, 10, 10, 10),
    ]
    .into()
}

/// The plan that the proof makes of wrong deletions.
fn proven(files: BTreeSet<RemoteFile>, wrong: &[RemoteFile]) -> RetentionPlan {
    let policy = policy(1, 5);
    let files = Aged::all(&files, 10 * DAY_MS);
    let promised = promises(&files, &policy, &BTreeSet::new());
    let picked = files.iter().map(|aged| wrong.contains(&aged.file));
    prove(&files, picked.collect(), &promised)
}

#[test]
fn a_rule_that_picks_wrong_files_is_caught_and_the_rest_of_its_files_goes() {
    let (base, step) = (file(9, 1, 5, 3), file(1, 6, 8, 7));
    // Without its snapshot the window is reached from the older one.
    let plan = proven(replica(), &[base]);
    assert_eq!((plan.expired, plan.spared), (vec![base], vec![]));
    let plan = proven(replica(), &[file(9, 1, 1, 0), file(1, 2, 5, 1), base]);
    assert_eq!(plan.expired, [file(9, 1, 1, 0), file(1, 2, 5, 1)]);
    let (point, reason) = (Txid::new(8), Reason::Window);
    let spared = |file| Spared {
        file,
        point,
        reason,
    };
    assert_eq!(plan.spared, [spared(base)]);
    let plan = proven(replica(), &[file(1, 2, 5, 1), step]);
    assert_eq!(plan.expired, [file(1, 2, 5, 1)]);
    assert_eq!(plan.spared, [spared(step)]);
    let newest = file(0, 10, 10, 10);
    let plan = proven(replica(), &[file(0, 9, 9, 10), newest]);
    assert_eq!(plan.expired, []);
    let said: Vec<_> = plan.spared.iter().map(|it| (it.file, it.reason)).collect();
    assert_eq!(
        said,
        [
            (newest, Reason::TakeOver),
            (file(0, 9, 9, 10), Reason::Exact)
        ]
    );
}

#[test]
fn a_rule_that_is_wrong_all_over_deletes_nothing() {
    let captured = (2..100).map(|txid| file(0, txid, txid, 10));
    let files: BTreeSet<_> = [file(9, 1, 1, 0)].into_iter().chain(captured).collect();
    let odd: Vec<_> = files
        .iter()
        .copied()
        .filter(|file| file.max.get() % 2 == 1)
        .collect();
    let plan = proven(files, &odd);
    assert_eq!(plan.expired, []);
    assert!(!plan.spared.is_empty() && plan.spared.len() < 40);
}

#[test]
fn a_hundred_thousand_files_are_planned_and_proven() {
    let (files, count) = (busy_day(100_000), 100_000);
    let mut planned = files.clone();
    planned.insert(file(9, 1, count + 1, 1));
    let began = std::time::Instant::now();
    let plan = plan_retention(&planned, &policy(1, 1), 2 * DAY_MS);
    println!("{} files: {:?}", files.len(), began.elapsed());
    assert_eq!(plan.spared, []);
    assert!(plan.expired.len() > 50_000, "{}", plan.expired.len());
    // A wrong rule costs some more passes.
    let aged = Aged::all(&files, DAY_MS);
    let promised = promises(&aged, &policy(1, 1), &BTreeSet::new());
    assert!(promised.len() > 90_000);
    let began = std::time::Instant::now();
    let plan = prove(&aged, vec![true; aged.len()], &promised);
    println!("all of them picked wrongly: {:?}", began.elapsed());
    assert_eq!(plan.expired, []);
}

/// A capture each second up to the end of day 1, compacted each half minute, five minutes and hour.
fn busy_day(count: u64) -> BTreeSet<RemoteFile> {
    let mut files: BTreeSet<_> = [file(9, 1, 1, 0)].into();
    let at = |txid: u64| DAY_MS - (count - txid) as i64 * 864;
    let mut push = |level, min, max| {
        let modified_ms = at(max);
        files.insert(RemoteFile {
            modified_ms,
            ..file(level, min, max, 0)
        });
    };
    for txid in 2..=count {
        push(0, txid, txid);
        for (level, length) in [(1, 30), (2, 300), (3, 3600)] {
            if txid % length == 0 {
                push(level, (txid - length + 1).max(2), txid);
            }
        }
    }
    files
}

/// Files with any times, on any levels.
fn any_files() -> impl Strategy<Value = BTreeSet<RemoteFile>> {
    let one = (0u8..4, 1u64..25, 0u64..8, -1i64..13);
    prop::collection::vec(one, 1..50).prop_map(|files| {
        let files = files.iter().map(|(level, min, span, day)| {
            let level = if *min == 1 { 9 } else { *level };
            file(level, *min, min + span, *day)
        });
        let mut seen = BTreeSet::new();
        files
            .filter(|file| seen.insert((file.level, file.min, file.max)))
            .collect()
    })
}

proptest! {
    /// Whatever the rule picks, and whatever files and times are stored: a promised position that
    /// was reached is reached without the deleted files, and without any subset of them.
    #[test]
    fn no_choice_of_files_breaks_a_promise(
        all in any_files(),
        picks in prop::collection::vec(any::<bool>(), 50),
        parts in prop::collection::vec(any::<bool>(), 50),
        daily in 0u32..3,
    ) {
        let policy = RetentionPolicy { daily, ..policy(1, 5) };
        let now_ms = 10 * DAY_MS;
        let aged = Aged::all(&all, now_ms);
        let periods = periods(&aged, &policy, now_ms);
        let promised = promises(&aged, &policy, &periods);
        let newest = all.iter().filter(|file| file.level == 0).map(|file| file.max).max();
        let wrong = prove(&aged, picks[..aged.len()].to_vec(), &promised);
        let ruled = plan_retention(&all, &policy, now_ms);
        for plan in [wrong, ruled] {
            for part in [None, Some(&parts)] {
                let goes = plan.expired.iter().zip(&parts);
                let goes = goes.filter(|(_, goes)| part.is_none() || **goes);
                let goes: BTreeSet<RemoteFile> = goes.map(|(file, _)| *file).collect();
                let left: BTreeSet<RemoteFile> = all.difference(&goes).copied().collect();
                for (point, reason) in &promised {
                    let before = plan_restore(&all, Some(*point)).is_ok();
                    let after = plan_restore(&left, Some(*point)).is_ok();
                    prop_assert!(after || !before, "{} ({:?})", point, reason);
                }
                let captured = left.iter().filter(|file| file.level == 0);
                prop_assert_eq!(captured.map(|file| file.max).max(), newest);
            }
        }
    }

    /// Captures one TXID a quarter day, compacts on three levels, makes snapshots now and then, and
    /// deletes expired files. After each step it checks every promised point. The proof never has
    /// to correct the rule.
    #[test]
    fn every_promised_point_stays_restorable(
        steps in prop::collection::vec((0u8..4, 0u8..9), 20..120),
        exact in 1u64..3,
        window in 3u64..6,
    ) {
        let mut life = Life::new(policy(exact, window));
        for (merge, copy) in steps {
            life.step(merge == 0, copy == 0, Stamp::Honest);
            life.retain(life.now_ms)?;
        }
    }

    /// Some times are a year ahead, some are from 1970. A point stays as long as it is promised,
    /// while the time of one file is right that ends there, or before it and inside the same span.
    #[test]
    fn wrong_times_of_stored_files_lose_no_promised_point(
        steps in prop::collection::vec((0u8..4, 0u8..9, stamp()), 20..80),
        exact in 1u64..3,
        window in 3u64..6,
    ) {
        let mut life = Life::new(policy(exact, window));
        for (merge, copy, stamp) in steps {
            life.step(merge == 0, copy == 0, stamp);
            life.retain(life.now_ms)?;
        }
    }

    /// A clock that is behind keeps more, and one that goes back loses no point.
    #[test]
    fn a_time_that_is_behind_loses_no_promised_point(
        steps in prop::collection::vec((0u8..4, 0u8..9, 0i64..20), 20..80),
        exact in 1u64..3,
        window in 3u64..6,
    ) {
        let mut life = Life::new(policy(exact, window));
        for (merge, copy, behind) in steps {
            life.step(merge == 0, copy == 0, Stamp::Honest);
            life.retain(life.now_ms - behind * DAY_MS)?;
        }
    }
}

/// How a store dates a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stamp {
    Honest,
    Future,
    Past,
}

fn stamp() -> impl Strategy<Value = Stamp> {
    prop_oneof![
        6 => Just(Stamp::Honest),
        1 => Just(Stamp::Future),
        2 => Just(Stamp::Past),
    ]
}

/// A replica and its writer.
struct Life {
    policy: RetentionPolicy,
    files: BTreeSet<RemoteFile>,
    txid: u64,
    /// End of level 1.
    compacted: u64,
    now_ms: i64,
    /// The promised points: TXID, whether its file is of level 0, and when that file was stored.
    points: Vec<(u64, bool, i64)>,
}

impl Life {
    fn new(policy: RetentionPolicy) -> Life {
        Life {
            policy,
            files: [file(9, 1, 1, 0)].into(),
            txid: 1,
            compacted: 1,
            now_ms: 0,
            points: Vec::new(),
        }
    }

    fn step(&mut self, merge: bool, copy: bool, stamp: Stamp) {
        self.now_ms += DAY_MS / 4;
        self.txid += 1;
        let txid = self.txid;
        self.store(0, txid, txid, stamp);
        if merge {
            self.store(1, self.compacted + 1, txid, stamp);
            self.compacted = txid;
        }
        if copy {
            self.store(9, 1, txid, stamp);
        }
        for level in [2, 3] {
            if let Some(run) = next_run(&self.files, level) {
                let run = run.files;
                self.store(level, run[0].min.get(), run[run.len() - 1].max.get(), stamp);
            }
        }
    }

    fn store(&mut self, level: u8, min: u64, max: u64, stamp: Stamp) {
        let stored_ms = self.now_ms;
        let modified_ms = match stamp {
            Stamp::Honest => stored_ms,
            Stamp::Future => stored_ms + 400 * DAY_MS,
            Stamp::Past => 0,
        };
        let file = file(level, min, max, 0);
        self.files.insert(RemoteFile {
            modified_ms,
            ..file
        });
        self.points.push((max, level == 0, stored_ms));
    }

    /// Deletes expired files, and checks that the promised points are left.
    fn retain(&mut self, now_ms: i64) -> Result<(), TestCaseError> {
        let (policy, now) = (self.policy, self.now_ms);
        let inside = |exact: bool, ms: i64| {
            let span = if exact { policy.exact } else { policy.window };
            now - ms < span.as_millis() as i64
        };
        let wrong = |file: &RemoteFile| file.modified_ms == 0 || file.modified_ms > now;
        let is_known = |point: u64, exact: bool| {
            let before = self.files.iter().filter(|file| file.max.get() <= point);
            let mut honest = before.filter(|file| !wrong(file));
            honest.any(|file| inside(exact, file.modified_ms))
        };
        let mut points = std::mem::take(&mut self.points);
        points.retain(|(point, exact, ms)| inside(*exact, *ms) && is_known(*point, *exact));
        let plan = plan_retention(&self.files, &policy, now_ms);
        if !self.files.iter().any(wrong) {
            prop_assert_eq!(plan.spared, []);
        }
        for gone in &plan.expired {
            self.files.remove(gone);
        }
        for (point, exact, _) in &points {
            let plan = plan_restore(&self.files, Some(Txid::new(*point)));
            prop_assert!(plan.is_ok(), "{} exact {}: {:?}", point, exact, plan);
        }
        self.points = points;
        prop_assert!(plan_restore(&self.files, None).is_ok());
        Ok(())
    }
}
