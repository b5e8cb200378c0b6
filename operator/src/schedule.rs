//! Schedules of restore tests.
//!
//! A schedule is five cron fields in a time zone. `H` in a field stands for a value from a hash of
//! the object's UID: runs of different objects spread out, and each object keeps its time.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};

/// Smallest and largest value of `H`, by field. Days end at 28, so that every month has one.
const HASH_RANGES: [(u32, u32); 5] = [(0, 59), (0, 23), (1, 28), (1, 12), (0, 6)];

/// A parsed schedule of one object.
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: croner::Cron,
    zone: TimeZone,
}

/// Reason for which a schedule is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The schedule does not have five fields.
    #[error("{schedule:?} has {fields} fields, expected 5: minute hour day month weekday")]
    Fields {
        /// As given.
        schedule: String,
        /// Number of fields.
        fields: usize,
    },
    /// A field is invalid.
    #[error("{schedule:?} is not a cron schedule: {problem}")]
    Cron {
        /// As given.
        schedule: String,
        /// Cause.
        problem: String,
    },
    /// The time zone does not exist.
    #[error("{0:?} is not an IANA time zone")]
    Zone(String),
    /// The schedule is well formed but has no time, such as 30 February.
    #[error("{0:?} never matches a date")]
    Never(String),
}

impl Schedule {
    /// Parses a schedule for the object with this UID.
    ///
    /// # Errors
    /// [`ScheduleError`]; a retry never helps.
    pub fn parse(schedule: &str, zone: &str, uid: &str) -> Result<Schedule, ScheduleError> {
        let fields: Vec<&str> = schedule.split_whitespace().collect();
        if fields.len() != HASH_RANGES.len() {
            return Err(ScheduleError::Fields {
                schedule: schedule.to_owned(),
                fields: fields.len(),
            });
        }
        let error = |problem: String| ScheduleError::Cron {
            schedule: schedule.to_owned(),
            problem,
        };
        let mut plain = Vec::new();
        for (index, field) in fields.iter().enumerate() {
            plain.push(resolve(field, index, uid).map_err(error)?);
        }
        let cron: croner::Cron = plain
            .join(" ")
            .parse()
            .map_err(|e: croner::errors::CronError| error(e.to_string()))?;
        let zone = TimeZone::get(zone).map_err(|_| ScheduleError::Zone(zone.to_owned()))?;
        let schedule_ = Schedule { cron, zone };
        if schedule_.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(ScheduleError::Never(schedule.to_owned()));
        }
        Ok(schedule_)
    }

    /// The first time after `after`; `None` at the end of the calendar.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let start = after.to_zoned(self.zone.clone());
        let found = self.cron.find_next_occurrence(&start, false).ok()?;
        Some(found.timestamp())
    }

    /// The newest time in `(after, now]`. Several missed runs become this one run.
    pub fn due(&self, after: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let end = now.to_zoned(self.zone.clone());
        let found = self
            .cron
            .find_previous_occurrence(&end, true)
            .ok()?
            .timestamp();
        (found > after && found <= now).then_some(found)
    }

    /// Time at which a test that passed at `since` counts as overdue: after two scheduled times
    /// without another pass.
    pub fn overdue_after(&self, since: Timestamp) -> Option<Timestamp> {
        self.next(self.next(since)?)
    }
}

/// Replaces `H`, `H/n`, `H(a-b)` and `H(a-b)/n` in one field by numbers.
fn resolve(field: &str, index: usize, uid: &str) -> Result<String, String> {
    let Some(rest) = field.strip_prefix('H') else {
        return match field.contains('H') && !field.contains("TH") && !field.contains("MAR") {
            true => Err(format!("H must stand alone in its field, not in {field:?}")),
            false => Ok(field.to_owned()),
        };
    };
    let (lowest, highest) = HASH_RANGES[index];
    let (range, step) = match rest.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (rest, None),
    };
    let (low, high) = match range.strip_prefix('(').and_then(|r| r.strip_suffix(')')) {
        Some(inner) => {
            let (low, high) = inner
                .split_once('-')
                .ok_or_else(|| format!("{field:?} needs a range a-b"))?;
            (number(low)?, number(high)?)
        }
        None if range.is_empty() => (lowest, highest),
        None => return Err(format!("{field:?} is neither H, H/n nor H(a-b)")),
    };
    if low > high || low < lowest || high > highest {
        return Err(format!("{field:?} must stay within {lowest}-{highest}"));
    }
    match step {
        None => Ok((low + draw(uid, index, high - low + 1)).to_string()),
        Some(step) => {
            let step = number(step)?;
            if step == 0 || step > high - low + 1 {
                return Err(format!("the step of {field:?} is out of range"));
            }
            Ok(format!("{}-{high}/{step}", low + draw(uid, index, step)))
        }
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not a number"))
}

/// A stable number below `range`, different for each field.
fn draw(uid: &str, index: usize, range: u32) -> u32 {
    let digest = Sha256::digest(format!("{uid}/{index}"));
    let bytes: [u8; 4] = digest[..4].try_into().expect("a digest has 32 bytes");
    u32::from_be_bytes(bytes) % range
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(text: &str) -> Schedule {
        Schedule::parse(text, "Etc/UTC", "uid-1").unwrap()
    }

    #[test]
    fn missed_runs_collapse_into_the_newest() {
        let daily = schedule("0 3 * * *");
        let due = daily.due(at("2026-01-01T03:00:00Z"), at("2026-01-09T12:00:00Z"));
        assert_eq!(due, Some(at("2026-01-09T03:00:00Z")));
    }

    #[test]
    fn nothing_is_due_twice() {
        let daily = schedule("0 3 * * *");
        let handled = at("2026-01-09T03:00:00Z");
        assert_eq!(daily.due(handled, at("2026-01-09T23:59:00Z")), None);
        assert_eq!(
            daily.due(handled, at("2026-01-10T03:00:00Z")),
            Some(at("2026-01-10T03:00:00Z"))
        );
    }

    #[test]
    fn a_time_zone_shifts_the_run() {
        let zurich = Schedule::parse("0 3 * * *", "Europe/Zurich", "u").unwrap();
        assert_eq!(
            zurich.next(at("2026-07-01T00:00:00Z")),
            Some(at("2026-07-01T01:00:00Z"))
        );
    }

    #[test]
    fn a_run_in_the_spring_gap_is_not_lost() {
        let gap = Schedule::parse("30 2 * * *", "Europe/Zurich", "u").unwrap();
        let next = gap.next(at("2026-03-28T12:00:00Z")).unwrap();
        assert!(next <= at("2026-03-29T02:00:00Z"), "{next}");
    }

    #[test]
    fn what_cannot_be_scheduled_is_refused_with_the_reason() {
        let parse = |s: &str, z: &str| Schedule::parse(s, z, "u").map(|_| ()).unwrap_err();
        assert!(matches!(
            parse("* * *", "Etc/UTC"),
            ScheduleError::Fields { fields: 3, .. }
        ));
        assert!(matches!(
            parse("61 * * * *", "Etc/UTC"),
            ScheduleError::Cron { .. }
        ));
        assert!(matches!(
            parse("H(5-70) * * * *", "Etc/UTC"),
            ScheduleError::Cron { .. }
        ));
        assert!(matches!(
            parse("0,H * * * *", "Etc/UTC"),
            ScheduleError::Cron { .. }
        ));
        assert_eq!(
            parse("0 3 * * *", "Mars/Olympus"),
            ScheduleError::Zone("Mars/Olympus".into())
        );
    }

    proptest! {
        #[test]
        fn h_is_stable_for_one_object_and_inside_its_field(uid in "[a-f0-9-]{8,36}") {
            let one = Schedule::parse("H H(2-5) * * H", "Etc/UTC", &uid).unwrap();
            let again = Schedule::parse("H H(2-5) * * H", "Etc/UTC", &uid).unwrap();
            let start = at("2026-01-01T00:00:00Z");
            let next = one.next(start).unwrap();
            prop_assert_eq!(Some(next), again.next(start));
            prop_assert!((2..=5).contains(&next.to_zoned(TimeZone::UTC).hour()));
            prop_assert!(next.duration_since(start) <= jiff::SignedDuration::from_hours(7 * 24));
        }

        #[test]
        fn due_is_the_newest_time_that_next_would_have_given(
            minute in 0..60u8, hour in 0..24u8, now in 1_700_000_000i64..1_900_000_000,
            back in 0i64..5_000_000,
        ) {
            let schedule = schedule(&format!("{minute} {hour} * * *"));
            let now = Timestamp::from_second(now).unwrap();
            let after = now - jiff::SignedDuration::from_secs(back);
            let mut newest = None;
            let mut cursor = after;
            while let Some(next) = schedule.next(cursor).filter(|next| *next <= now) {
                newest = Some(next);
                cursor = next;
            }
            prop_assert_eq!(schedule.due(after, now), newest);
        }
    }
}
