//! Decides when files of a level are compacted into one of the next.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

use crate::replica::compaction::{Run, next_run};

use super::LeasedReplica;

/// The first level that is made from compacted files.
const FIRST_LEVEL: u8 = 2;

/// Time of the next compaction of a level.
#[derive(Debug, Clone, Copy)]
pub(super) struct LevelClock {
    level: u8,
    interval: Duration,
    next: Instant,
}

impl LevelClock {
    /// The clocks of all levels from level 2 on. Each begins at a fraction of its interval that
    /// depends on the place: thousands of databases must not compact in the same second.
    pub(super) fn all(intervals: &[Duration], place: &str, now: Instant) -> Vec<LevelClock> {
        let clock = |(level, interval): (u8, &Duration)| LevelClock {
            level,
            interval: *interval,
            next: now + interval.mul_f64(fraction(place, level)),
        };
        (FIRST_LEVEL..).zip(intervals).map(clock).collect()
    }
}

/// A number from 0 to 1 that is always the same for a place and a level.
fn fraction(place: &str, level: u8) -> f64 {
    let mut hasher = DefaultHasher::new();
    (place, level).hash(&mut hasher);
    f64::from(hasher.finish() as u32) / f64::from(u32::MAX)
}

impl LeasedReplica {
    /// Time of the next compaction of any level; none while no level has files to compact.
    pub(super) fn next_level_compaction(&self) -> Option<Instant> {
        let clocks = self.levels.iter();
        let busy = clocks.filter(|clock| next_run(&self.files, clock.level).is_some());
        busy.map(|clock| clock.next).min()
    }

    /// The compaction to run now. The clock of a level advances once that level has no files left
    /// to compact.
    pub(super) fn due_compaction(&mut self) -> Option<Run> {
        let now = Instant::now();
        for clock in self.levels.iter_mut().filter(|clock| clock.next <= now) {
            if let Some(run) = next_run(&self.files, clock.level) {
                return Some(run);
            }
            clock.next = now + clock.interval;
        }
        None
    }
}

/// Spreads a first time over an interval, always the same way for a place and a level.
pub(super) fn spread(place: &str, level: u8, interval: Duration) -> Duration {
    interval.mul_f64(fraction(place, level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_merge_at_different_times_and_each_at_its_own() {
        let now = Instant::now();
        let intervals = [Duration::from_secs(300), Duration::from_secs(3600)];
        let first = |place: &str| {
            let clocks = LevelClock::all(&intervals, place, now);
            assert_eq!(clocks.len(), 2);
            assert!(
                clocks
                    .iter()
                    .all(|clock| clock.next - now <= clock.interval)
            );
            clocks[0].next - now
        };
        assert_eq!(first("s3://bucket/1"), first("s3://bucket/1"));
        let times: std::collections::BTreeSet<_> = (0..100)
            .map(|n| first(&format!("s3://bucket/{n}")).as_secs())
            .collect();
        assert!(times.len() > 50, "{times:?}");
    }
}
