//! Decides when captured commits are written, as a pure function of earlier times.

use std::time::Duration;

use tokio::time::Instant;

/// Most files that can be saved up.
const SAVED: u32 = 15;

/// The pace of captured files: one per interval on average, and sooner after quiet times, which
/// save up files. Any span of time has at most [`SAVED`] and one more files than intervals. See
/// `docs/decisions/0015-pace.md`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    interval: Duration,
    /// Time of the newest file.
    last: Option<Instant>,
    /// Elapsed time whose intervals were not used by files.
    saved: Duration,
}

impl Pace {
    /// The pace before the first file, with the maximum saved.
    pub(super) fn new(interval: Duration) -> Pace {
        Pace {
            interval,
            last: None,
            saved: interval * SAVED,
        }
    }

    /// When the next file is due; none: at once. `keeps_up`: a target has every file so far.
    pub(super) fn due(&self, keeps_up: bool) -> Option<Instant> {
        let pause = if keeps_up {
            self.shortest()
                .max(self.interval.saturating_sub(self.saved))
        } else {
            // More files would only wait for their upload.
            self.interval
        };
        Some(self.last? + pause)
    }

    /// Records a file that was written at `now`.
    pub(super) fn made(&mut self, now: Instant) {
        let passed = self.last.map_or(self.interval, |last| now - last);
        self.saved = (self.saved + passed)
            .saturating_sub(self.interval)
            .min(self.interval * SAVED);
        self.last = Some(now);
    }

    /// The shortest time between two files. If an upload takes a tenth of an interval, commits
    /// that wait or are being uploaded are then at most half an interval old.
    fn shortest(&self) -> Duration {
        self.interval * 2 / 5
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// Times of files in milliseconds, from `start` on, under a load that never pauses.
    fn steady(pace: &mut Pace, start: Instant, end: Duration, keeps_up: bool) -> Vec<u128> {
        let mut made = Vec::new();
        let mut now = start;
        loop {
            now = pace.due(keeps_up).map_or(now, |due| due.max(now));
            if now >= start + end {
                return made;
            }
            pace.made(now);
            made.push((now - start).as_millis());
        }
    }

    #[test]
    fn a_burst_is_sent_twice_as_often_and_a_load_that_goes_on_once_each_interval() {
        let mut pace = Pace::new(INTERVAL);
        let start = Instant::now();
        let made = steady(&mut pace, start, Duration::from_secs(600), true);
        assert_eq!(made[..4], [0, 400, 800, 1200]);
        assert!((600..=616).contains(&made.len()), "{}", made.len());
        let last = &made[made.len() - 100..];
        assert!(last.windows(2).all(|pair| pair[1] - pair[0] == 1000));

        // Ten quiet seconds save up ten files.
        let later = start + Duration::from_secs(610);
        let again = steady(&mut pace, later, Duration::from_secs(60), true);
        assert!((69..=71).contains(&again.len()), "{}", again.len());
    }

    #[test]
    fn a_store_that_does_not_keep_up_gets_no_more_files_than_intervals() {
        let mut pace = Pace::new(INTERVAL);
        let made = steady(&mut pace, Instant::now(), Duration::from_secs(10), false);
        assert_eq!(
            made,
            (0..10).map(|second| second * 1000).collect::<Vec<_>>()
        );
    }

    proptest! {
        #[test]
        fn no_commit_waits_longer_than_an_interval_and_no_span_has_many_files_more_than_intervals(
            commits in prop::collection::vec((0_u64..5_000, any::<bool>()), 1..600),
        ) {
            let start = Instant::now();
            let mut pace = Pace::new(INTERVAL);
            let mut now = start;
            let mut made: Vec<Duration> = Vec::new();
            for (pause, keeps_up) in commits {
                let commit = now.max(start + Duration::from_millis(pause) + made.last().copied().unwrap_or_default());
                now = pace.due(keeps_up).map_or(commit, |due| due.max(commit));
                prop_assert!(now - commit <= INTERVAL);
                pace.made(now);
                made.push(now - start);
            }
            for (first, from) in made.iter().enumerate() {
                for (last, to) in made.iter().enumerate().skip(first) {
                    let most = (*to - *from).as_secs_f64() + f64::from(SAVED) + 1.0;
                    prop_assert!((last - first + 1) as f64 <= most + 1e-6);
                }
            }
        }
    }
}
