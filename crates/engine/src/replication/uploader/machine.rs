//! Decides the next step of a connected target, without I/O and without a clock.
//!
//! Captured files are uploaded one after another. Beside them run one snapshot and one upkeep
//! task: a compaction or a run of retention. These two share a lane, because a file must not
//! expire while it is compacted. Work in these lanes starts when it is due, even while uploads are
//! behind.

use ltx::Txid;
use tokio::time::Instant;

/// The state that the next step of a target depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// The newest acknowledged TXID.
    pub(super) acked: Txid,
    /// The newest TXID in level 1 or above.
    pub(super) compacted: Txid,
    /// The newest captured TXID.
    pub(super) newest: Txid,
    /// The captured file after `acked` is on our disk.
    pub(super) has_next: bool,
    /// The position of the newest snapshot of the target.
    pub(super) snapshot: Txid,
    /// The target cannot continue without a snapshot above this TXID.
    pub(super) needs_snapshot: Option<Txid>,
    /// The position of the cut that the target has taken for its next snapshot.
    pub(super) cut: Option<Txid>,
    /// A cut that the target can use is offered.
    pub(super) is_cut_offered: bool,
    /// The target has asked for a cut.
    pub(super) wants_cut: bool,
    /// A snapshot is being stored.
    pub(super) is_storing_snapshot: bool,
    /// A compaction or a run of retention is in progress.
    pub(super) is_keeping_up: bool,
    /// Level 0 has no file for the TXID of the newest snapshot itself. A Litestream that takes
    /// over compacts from the end of level 1, so level 1 must soon reach past that TXID.
    pub(super) has_step: bool,
    /// The application overwrites pages faster than periodic snapshots are read. The next snapshot
    /// is compacted from stored files.
    pub(super) is_outrun: bool,
    /// When the next periodic snapshot is due, if the database has changed by then.
    pub(super) next_snapshot: Instant,
    /// When captured files are compacted next.
    pub(super) next_compaction: Instant,
    /// When files of higher levels are compacted next; none: there is nothing to compact.
    pub(super) next_level_compaction: Option<Instant>,
    /// When retention runs next.
    pub(super) next_retention: Instant,
    /// After a failure beside the uploads: earliest time of new work there.
    pub(super) not_before: Option<Instant>,
    /// Store every captured file, then end.
    pub(super) is_draining: bool,
}

/// A step of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Store the next captured file.
    Upload,
    /// Captured files are missing: a snapshot is needed above this TXID.
    NeedSnapshot { above: Txid },
    /// Ask the database for a cut.
    AskForCut,
    /// Take the cut that is offered.
    TakeCut,
    /// Start to store a snapshot: one that all later files build on (`is_base`), or a periodic
    /// one.
    BeginSnapshot { is_base: bool },
    /// Start to compact stored files into a snapshot.
    BeginSnapshotCompaction,
    /// Start to compact captured files into one file of level 1.
    BeginCompaction,
    /// Start to compact files of a level into one file of the next.
    BeginLevelCompaction,
    /// Start to delete files that no promised restore needs.
    BeginRetention,
    /// Wait for an event, or until this time.
    Wait { until: Option<Instant> },
    /// Everything is stored, and the target may end.
    End,
}

/// The most urgent step.
pub(super) fn next(facts: &Facts, now: Instant) -> Step {
    let pause = facts.not_before.filter(|at| now < *at);
    if let Some(above) = facts.needs_snapshot {
        return match pause {
            Some(_) => Step::Wait { until: pause },
            None => next_with_need(facts, above),
        };
    }
    let beside = match pause.is_some() || facts.is_draining {
        true => Ok(pause),
        false => next_beside(facts, now),
    };
    if let Err(step) = beside {
        return step;
    }
    if facts.has_next {
        return Step::Upload;
    }
    if facts.acked < facts.newest {
        return Step::NeedSnapshot { above: facts.acked };
    }
    if facts.is_draining {
        // Compacting past the snapshot is worth a wait. The next process can do everything else.
        return match (facts.has_step, facts.is_keeping_up) {
            (true, true) => Step::Wait { until: None },
            (true, false) if is_behind(facts) => Step::BeginCompaction,
            _ => Step::End,
        };
    }
    Step::Wait {
        until: beside.ok().flatten(),
    }
}

/// True when captured files are stored that level 1 does not cover.
fn is_behind(facts: &Facts) -> bool {
    facts.acked > facts.compacted
}

/// Work beside the uploads: a step as an error, or the time when one is due.
fn next_beside(facts: &Facts, now: Instant) -> Result<Option<Instant>, Step> {
    if facts.has_step && is_behind(facts) && !facts.is_keeping_up {
        return Err(Step::BeginCompaction);
    }
    let snapshot = next_snapshot(facts, now)?;
    let upkeep = next_upkeep(facts, now)?;
    Ok(snapshot.into_iter().chain(upkeep).min())
}

/// No other file is stored before the snapshot that it would build on.
fn next_with_need(facts: &Facts, above: Txid) -> Step {
    if facts.is_storing_snapshot {
        return Step::Wait { until: None };
    }
    match facts.cut {
        Some(cut) if cut > above => Step::BeginSnapshot { is_base: true },
        _ if facts.is_cut_offered => Step::TakeCut,
        _ if !facts.wants_cut => Step::AskForCut,
        _ => Step::Wait { until: None },
    }
}

/// A periodic snapshot: a step as an error, or the time when one is due.
fn next_snapshot(facts: &Facts, now: Instant) -> Result<Option<Instant>, Step> {
    if facts.is_storing_snapshot {
        return Ok(None);
    }
    if let Some(cut) = facts.cut {
        return match facts.acked >= cut {
            true => Err(Step::BeginSnapshot { is_base: false }),
            false => Ok(None),
        };
    }
    if facts.wants_cut {
        return match facts.is_cut_offered {
            true => Err(Step::TakeCut),
            false => Ok(None),
        };
    }
    // The file that directly follows a first snapshot is no change.
    if facts.acked <= facts.snapshot.next() {
        return Ok(None);
    }
    if now < facts.next_snapshot {
        return Ok(Some(facts.next_snapshot));
    }
    match (facts.is_outrun, facts.is_keeping_up) {
        (false, _) => Err(Step::AskForCut),
        (true, false) => Err(Step::BeginSnapshotCompaction),
        (true, true) => Ok(None),
    }
}

/// A compaction or a run of retention: a step as an error, or the time when one is due.
fn next_upkeep(facts: &Facts, now: Instant) -> Result<Option<Instant>, Step> {
    if facts.is_keeping_up {
        return Ok(None);
    }
    let captured = is_behind(facts).then_some(facts.next_compaction);
    for (due, step) in [
        (captured, Step::BeginCompaction),
        (facts.next_level_compaction, Step::BeginLevelCompaction),
    ] {
        if due.is_some_and(|at| now >= at) {
            return Err(step);
        }
    }
    if now >= facts.next_retention {
        return Err(Step::BeginRetention);
    }
    // Without new files nothing expires, so retention alone is no reason to wake up.
    let next = captured.into_iter().chain(facts.next_level_compaction);
    Ok(next.min())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Everything is stored, and nothing is due for an hour.
    fn idle(now: Instant) -> Facts {
        let later = now + Duration::from_secs(3600);
        Facts {
            acked: Txid::new(9),
            compacted: Txid::new(9),
            newest: Txid::new(9),
            has_next: false,
            snapshot: Txid::new(8),
            needs_snapshot: None,
            cut: None,
            is_cut_offered: false,
            wants_cut: false,
            is_storing_snapshot: false,
            is_keeping_up: false,
            has_step: false,
            is_outrun: false,
            next_snapshot: later,
            next_compaction: later,
            next_level_compaction: None,
            next_retention: later,
            not_before: None,
            is_draining: false,
        }
    }

    fn assert_next(facts: Facts, expected: Step) {
        assert_eq!(next(&facts, Instant::now()), expected, "{facts:?}");
    }

    #[test]
    fn an_idle_target_never_wakes_up() {
        let now = Instant::now();
        assert_next(idle(now), Step::Wait { until: None });
        let draining = Facts {
            is_draining: true,
            ..idle(now)
        };
        assert_next(draining, Step::End);
    }

    #[test]
    fn captured_files_are_uploaded_beside_everything_else_and_hold_nothing_back() {
        let now = Instant::now();
        let behind = Facts {
            has_next: true,
            newest: Txid::new(20),
            compacted: Txid::new(3),
            snapshot: Txid::new(3),
            next_snapshot: now,
            next_compaction: now,
            next_retention: now,
            ..idle(now)
        };
        assert_next(behind, Step::AskForCut);
        let asked = Facts {
            wants_cut: true,
            ..behind
        };
        assert_next(asked, Step::BeginCompaction);
        let busy = Facts {
            is_storing_snapshot: true,
            is_keeping_up: true,
            has_step: true,
            ..asked
        };
        assert_next(busy, Step::Upload);
        let draining = Facts {
            is_draining: true,
            ..behind
        };
        assert_next(draining, Step::Upload);
    }

    #[test]
    fn a_snapshot_that_the_application_outruns_is_compacted_from_what_is_stored() {
        let now = Instant::now();
        let outrun = Facts {
            snapshot: Txid::new(3),
            is_outrun: true,
            next_snapshot: now,
            ..idle(now)
        };
        assert_next(outrun, Step::BeginSnapshotCompaction);
        let busy = Facts {
            is_keeping_up: true,
            ..outrun
        };
        assert_next(busy, Step::Wait { until: None });
    }

    #[test]
    fn a_target_that_cannot_go_on_waits_for_a_cut_and_stores_it_first() {
        let now = Instant::now();
        let lost = Facts {
            newest: Txid::new(12),
            ..idle(now)
        };
        let above = Txid::new(9);
        assert_next(lost, Step::NeedSnapshot { above });
        let mut facts = Facts {
            needs_snapshot: Some(above),
            has_next: true,
            ..lost
        };
        assert_next(facts, Step::AskForCut);
        facts.wants_cut = true;
        assert_next(facts, Step::Wait { until: None });
        facts.is_cut_offered = true;
        assert_next(facts, Step::TakeCut);
        (facts.wants_cut, facts.is_cut_offered) = (false, false);
        facts.cut = Some(above);
        assert_next(facts, Step::AskForCut);
        facts.cut = Some(above.next());
        assert_next(facts, Step::BeginSnapshot { is_base: true });
        (facts.cut, facts.is_storing_snapshot) = (None, true);
        assert_next(facts, Step::Wait { until: None });
    }

    #[test]
    fn a_periodic_snapshot_is_made_of_what_is_stored_and_only_after_a_change() {
        let now = Instant::now();
        let due = Facts {
            next_snapshot: now,
            ..idle(now)
        };
        assert_next(due, Step::Wait { until: None });
        let changed = Facts {
            snapshot: Txid::new(7),
            ..due
        };
        assert_next(changed, Step::AskForCut);
        let later = now + Duration::from_secs(5);
        let not_yet = Facts {
            next_snapshot: later,
            ..changed
        };
        assert_next(not_yet, Step::Wait { until: Some(later) });
        for (acked, expected) in [
            (9, Step::BeginSnapshot { is_base: false }),
            (8, Step::Wait { until: None }),
        ] {
            let facts = Facts {
                cut: Some(Txid::new(9)),
                acked: Txid::new(acked),
                newest: Txid::new(acked),
                compacted: Txid::new(8),
                next_compaction: now + Duration::from_secs(60),
                is_keeping_up: true,
                ..changed
            };
            assert_next(facts, expected);
        }
    }

    #[test]
    fn upkeep_is_one_thing_at_a_time_beside_a_snapshot() {
        let now = Instant::now();
        let all = Facts {
            compacted: Txid::new(3),
            next_compaction: now,
            next_level_compaction: Some(now),
            next_retention: now,
            is_storing_snapshot: true,
            ..idle(now)
        };
        assert_next(all, Step::BeginCompaction);
        let compacted = Facts {
            compacted: Txid::new(9),
            ..all
        };
        assert_next(compacted, Step::BeginLevelCompaction);
        let levels = Facts {
            next_level_compaction: None,
            ..compacted
        };
        assert_next(levels, Step::BeginRetention);
        let busy = Facts {
            is_keeping_up: true,
            ..all
        };
        assert_next(busy, Step::Wait { until: None });
    }

    #[test]
    fn a_failure_beside_the_uploads_holds_no_upload_back() {
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let failed = Facts {
            compacted: Txid::new(3),
            next_compaction: now,
            not_before: Some(later),
            ..idle(now)
        };
        assert_next(failed, Step::Wait { until: Some(later) });
        let captured = Facts {
            has_next: true,
            newest: Txid::new(10),
            ..failed
        };
        assert_next(captured, Step::Upload);
        let draining = Facts {
            is_draining: true,
            ..failed
        };
        assert_next(draining, Step::End);
        let needs = Facts {
            needs_snapshot: Some(Txid::new(9)),
            ..failed
        };
        assert_next(needs, Step::Wait { until: Some(later) });
    }

    #[test]
    fn the_step_to_a_new_snapshot_is_compacted_before_the_end() {
        let now = Instant::now();
        let facts = Facts {
            compacted: Txid::new(7),
            has_step: true,
            is_draining: true,
            ..idle(now)
        };
        assert_next(facts, Step::BeginCompaction);
        let busy = Facts {
            is_keeping_up: true,
            ..facts
        };
        assert_next(busy, Step::Wait { until: None });
    }
}
