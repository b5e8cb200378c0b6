//! Picks the objects of Litestream 0.3 that lead to a point. Pure.

use jiff::Timestamp;
use store::ObjectInfo;

use super::{Generation, GenerationError, GenerationId, Segment, Snapshot};
use crate::replica::restore_plan::PlanError;
use crate::restore::RestoreError;

/// A snapshot and the segments to apply to it, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationPlan {
    /// The generation.
    pub id: GenerationId,
    /// The snapshot to begin with.
    pub snapshot: Snapshot,
    /// The segments that follow, without a gap as far as names tell.
    pub segments: Vec<Segment>,
    /// The rest of the snapshot's own WAL, when the point lies inside that WAL. The snapshot may
    /// already contain some of it.
    pub ahead: Vec<Segment>,
    /// Time of the newest object in use, in Unix milliseconds.
    pub time_ms: i64,
}

impl GenerationPlan {
    /// Every object to read, in order.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectInfo> {
        let segments = self.segments.iter().chain(&self.ahead);
        std::iter::once(&self.snapshot.object).chain(segments.map(|segment| &segment.object))
    }

    /// Bytes to read from the store.
    pub fn bytes(&self) -> u64 {
        self.objects().map(|object| object.size).sum()
    }
}

/// Plans a restore to the newest state that was stored at or before a time, or to the newest one.
///
/// The plan takes the generation that was written last, its newest snapshot, and every segment from
/// that snapshot's WAL on. Another generation, an older snapshot or fewer segments would give an
/// older state than the stored one. So an object missing there is an error.
///
/// # Errors
///
/// [`PlanError::Empty`], [`RestoreError::TooEarly`], or a [`GenerationError`].
pub fn plan(
    generations: &[Generation],
    at: Option<Timestamp>,
) -> Result<GenerationPlan, RestoreError> {
    let at_ms = at.map(Timestamp::as_millisecond);
    let stored = |object: &ObjectInfo| at_ms.is_none_or(|at_ms| object.modified_ms <= at_ms);
    let newest = generations
        .iter()
        .filter_map(|generation| Some((generation.newest_ms(at_ms)?, generation)))
        .max_by_key(|(newest_ms, _)| *newest_ms);
    let Some((_, generation)) = newest else {
        return Err(too_early(generations, at));
    };
    let id = generation.id;
    let mut snapshots = generation.snapshots.iter();
    let Some(snapshot) = snapshots.rfind(|snapshot| stored(&snapshot.object)) else {
        return Err(no_snapshot(generations, generation, at));
    };
    let from_snapshot = |segment: &&Segment| segment.log >= snapshot.log;
    let mut following = generation.segments.iter().filter(from_snapshot).cloned();
    let mut segments: Vec<Segment> = Vec::new();
    let mut after = None;
    for segment in following.by_ref() {
        if !stored(&segment.object) {
            after = Some(segment);
            break;
        }
        segments.push(segment);
    }
    check_logs(id, snapshot.log, &segments)?;
    let inside = segments.last().is_some_and(|last| last.log == snapshot.log);
    let ahead = after.into_iter().chain(following);
    let ahead: Vec<Segment> = ahead
        .filter(|segment| inside && segment.log == snapshot.log)
        .collect();
    let times = segments.iter().map(|segment| segment.object.modified_ms);
    let time_ms = times.fold(snapshot.object.modified_ms, i64::max);
    Ok(GenerationPlan {
        id,
        snapshot: snapshot.clone(),
        segments,
        ahead,
        time_ms,
    })
}

/// Checks that each WAL begins at its first byte, and that no WAL is missing. The end of a segment
/// is known only after decoding.
fn check_logs(id: GenerationId, first: u32, segments: &[Segment]) -> Result<(), GenerationError> {
    let logs = segments.chunk_by(|one, next| one.log == next.log);
    for (expected, log) in (u64::from(first)..).zip(logs) {
        let segment = &log[0];
        if u64::from(segment.log) != expected {
            return Err(GenerationError::MissingLog {
                id,
                missing: expected as u32,
                next: segment.log,
            });
        }
        if segment.offset != 0 {
            return Err(GenerationError::SegmentGap {
                key: segment.object.key.clone(),
                found: segment.offset,
                expected: 0,
            });
        }
    }
    Ok(())
}

/// Why the generation that was written last does not lead to the point.
fn no_snapshot(
    generations: &[Generation],
    generation: &Generation,
    at: Option<Timestamp>,
) -> RestoreError {
    let (Some(wanted), Some(after_ms)) = (at, generation.oldest_ms()) else {
        return GenerationError::NoSnapshot { id: generation.id }.into();
    };
    let at_ms = wanted.as_millisecond();
    let earlier = generations
        .iter()
        .filter(|other| {
            other
                .oldest_ms()
                .is_some_and(|oldest_ms| oldest_ms <= at_ms)
        })
        .filter_map(|other| other.newest_ms(Some(at_ms)));
    match earlier.max() {
        Some(before_ms) => GenerationError::Between {
            wanted,
            before: time_of(before_ms),
            after: time_of(after_ms),
        }
        .into(),
        None => too_early(generations, at),
    }
}

fn too_early(generations: &[Generation], at: Option<Timestamp>) -> RestoreError {
    let oldest_ms = generations.iter().filter_map(Generation::oldest_ms).min();
    match (at, oldest_ms) {
        (Some(wanted), Some(oldest_ms)) => RestoreError::TooEarly {
            wanted,
            oldest: time_of(oldest_ms),
        },
        _ => PlanError::Empty.into(),
    }
}

pub(super) fn time_of(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sorted;
    use super::*;

    fn object(generation: u64, name: &str, modified_ms: i64) -> ObjectInfo {
        ObjectInfo {
            key: format!("generations/{generation:016x}/{name}"),
            size: 10,
            modified_ms,
            version: None,
        }
    }

    fn snapshot(generation: u64, log: u32, ms: i64) -> ObjectInfo {
        let name = format!("snapshots/{log:08x}.snapshot.lz4");
        object(generation, &name, ms)
    }

    fn segment(generation: u64, log: u32, offset: u64, ms: i64) -> ObjectInfo {
        let name = format!("wal/{log:08x}_{offset:08x}.wal.lz4");
        object(generation, &name, ms)
    }

    fn at(ms: i64) -> Option<Timestamp> {
        Some(time_of(ms))
    }

    /// Names without directories, in the order in which they are read.
    fn names(plan: &GenerationPlan) -> Vec<&str> {
        let keys = plan.objects().map(|object| object.key.rsplit('/'));
        keys.map(|mut parts| parts.next().unwrap()).collect()
    }

    fn planned(objects: &[ObjectInfo], at: Option<Timestamp>) -> GenerationPlan {
        plan(&sorted(objects.to_vec()), at).unwrap()
    }

    fn refused(objects: &[ObjectInfo], at: Option<Timestamp>) -> String {
        plan(&sorted(objects.to_vec()), at).unwrap_err().to_string()
    }

    /// Two generations. The first one has a second snapshot, stored while its WAL grew.
    fn history() -> Vec<ObjectInfo> {
        vec![
            snapshot(7, 0, 100),
            segment(7, 0, 0, 110),
            segment(7, 0, 4152, 120),
            segment(7, 1, 0, 130),
            snapshot(7, 1, 140),
            segment(7, 1, 4152, 150),
            segment(7, 2, 0, 160),
            snapshot(3, 0, 200),
            segment(3, 0, 0, 210),
        ]
    }

    #[test]
    fn the_generation_stored_to_last_is_taken_and_all_of_it_after_its_newest_snapshot() {
        let newest = planned(&history(), None);
        assert_eq!((newest.id, newest.time_ms), (GenerationId(3), 210));
        assert_eq!(
            names(&newest),
            ["00000000.snapshot.lz4", "00000000_00000000.wal.lz4"]
        );
        assert_eq!(planned(&history(), at(i64::from(u32::MAX))), newest);
        let before = planned(&history(), at(199));
        assert_eq!((before.id, before.time_ms), (GenerationId(7), 160));
        assert_eq!(
            names(&before),
            [
                "00000001.snapshot.lz4",
                "00000001_00000000.wal.lz4",
                "00000001_00001038.wal.lz4",
                "00000002_00000000.wal.lz4"
            ]
        );
        assert!(before.ahead.is_empty());
    }

    #[test]
    fn a_time_inside_the_snapshots_own_log_takes_the_rest_of_that_log_along() {
        for (ms, log, segments, ahead) in [
            (100, 0, 0, 0),
            (110, 0, 1, 1),
            (120, 0, 2, 0),
            (139, 0, 3, 0),
            (140, 1, 1, 1),
            (150, 1, 2, 0),
        ] {
            let plan = planned(&history(), at(ms));
            let found = (plan.snapshot.log, plan.segments.len(), plan.ahead.len());
            assert_eq!(found, (log, segments, ahead), "at {ms}");
            assert!(plan.time_ms <= ms);
        }
    }

    #[test]
    fn times_that_nothing_leads_to_are_told_apart() {
        assert_eq!(refused(&[], None), "there is no backup");
        let early = refused(&history(), at(99));
        assert!(early.starts_with("the oldest backup is of 1970-01-01T00:00:00.1Z"));
        // The snapshot before this segment has expired.
        let mut expired = history();
        expired.retain(|object| object.modified_ms != 200);
        expired.push(snapshot(3, 1, 220));
        let between = refused(&expired, at(215));
        for time in [
            "00.215Z",
            "ends at 1970-01-01T00:00:00.16Z",
            "at 1970-01-01T00:00:00.22Z",
        ] {
            assert!(between.contains(time), "{between}");
        }
        assert!(refused(&expired[7..], at(215)).contains("oldest backup is of"));
    }

    #[test]
    fn what_is_missing_in_the_newest_generation_is_an_error_and_no_older_state() {
        let without = |gone: &str| {
            let mut objects = history();
            objects.retain(|object| !object.key.ends_with(gone));
            objects
        };
        let objects = without("3/snapshots/00000000.snapshot.lz4");
        let expected = "generation 0000000000000003 has no snapshot";
        assert_eq!(refused(&objects, None), expected);
        assert_eq!(refused(&objects, at(210)), expected);
        let objects = without("7/wal/00000001_00000000.wal.lz4");
        let message = refused(&objects[..6], None);
        assert!(message.contains("00000001_00001038.wal.lz4 begins at byte 4152"));
        let mut objects = history();
        objects.truncate(4);
        objects.push(segment(7, 3, 0, 170));
        assert_eq!(
            refused(&objects, None),
            "generation 0000000000000007 has no log 00000002; the next one stored is 00000003"
        );
    }

    proptest! {
        #[test]
        fn a_plan_takes_all_that_is_stored_by_the_time_or_names_what_is_missing(
            logs in prop::collection::vec((1u64..4, any::<bool>()), 1..6),
            gone in prop::option::of(any::<prop::sample::Index>()),
            wanted in prop::option::of(0i64..300),
        ) {
            let mut objects = vec![snapshot(1, 0, 10)];
            for (log, (segments, copied)) in (0u32..).zip(&logs) {
                for number in 0..*segments {
                    let ms = (objects.len() as i64 + 1) * 10;
                    objects.push(segment(1, log, number * 100, ms));
                }
                if *copied && log > 0 {
                    let ms = (objects.len() as i64 + 1) * 10;
                    objects.push(snapshot(1, log, ms));
                }
            }
            if let Some(gone) = gone {
                objects.remove(gone.index(objects.len()));
            }
            let generations = sorted(objects);
            let stored = |object: &ObjectInfo| wanted.is_none_or(|at| object.modified_ms <= at);
            let generation = generations.first();
            let base = generation.and_then(|all| {
                all.snapshots.iter().rfind(|snapshot| stored(&snapshot.object))
            });
            let expected: Vec<&Segment> = generation.iter().flat_map(|all| &all.segments)
                .filter(|segment| base.is_some_and(|base| segment.log >= base.log))
                .filter(|segment| stored(&segment.object))
                .collect();
            let mut next = base.map_or(0, |base| base.log);
            let mut whole = base.is_some();
            for segment in &expected {
                if segment.offset == 0 {
                    whole &= segment.log == next;
                    next += 1;
                } else {
                    // Only as far as names tell: gaps inside a WAL show in its bytes.
                    whole &= segment.log + 1 == next;
                }
            }
            match plan(&generations, wanted.map(time_of)) {
                Ok(plan) => {
                    prop_assert!(whole);
                    prop_assert_eq!(Some(&plan.snapshot), base);
                    prop_assert_eq!(plan.segments.iter().collect::<Vec<_>>(), expected);
                    prop_assert!(plan.ahead.iter().all(|segment| segment.log == plan.snapshot.log));
                    prop_assert!(plan.ahead.iter().all(|segment| !stored(&segment.object)));
                    let used = plan.objects().filter(|object| stored(object));
                    let newest_ms = used.map(|object| object.modified_ms).max();
                    prop_assert_eq!(newest_ms, Some(plan.time_ms));
                }
                Err(RestoreError::Generation(GenerationError::MissingLog { missing, next, .. })) => {
                    prop_assert!(!whole && missing < next);
                }
                Err(RestoreError::Generation(GenerationError::SegmentGap { found, .. })) => {
                    prop_assert!(!whole && found > 0);
                }
                Err(error) => {
                    prop_assert!(base.is_none(), "{}", error);
                }
            }
        }
    }
}
