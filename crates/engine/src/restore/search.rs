//! Finds the position of a time with few reads of stored files.
//!
//! The time of a position is in the header of its file, and times never decrease with TXIDs. The
//! list gives the time at which the store received each file. That is a little later, or off by as
//! much as two clocks differ. So the search begins where the list suggests, and learns from each
//! header how far the list is off. It ends when two neighbours are known, one on each side of the
//! wanted time. Where the list misleads, the search continues by halves.

/// Headers that are chosen by the times of the list.
const GUIDED: u32 = 6;

/// Finds how many files, sorted by their ends, are at or before a time.
#[derive(Debug)]
pub(super) struct TimeSearch {
    /// Time at which the store received each file or any later one: its captures are no younger.
    stored_ms: Vec<i64>,
    wanted_ms: i64,
    /// How much later a header's time is than the list's, by the last header read.
    later_ms: i64,
    /// The answer is in `low..=high`.
    low: usize,
    high: usize,
    guided: u32,
}

impl TimeSearch {
    /// `stored_ms`: when the store received each file, in the order of their ends, by any clock.
    pub(super) fn new(mut stored_ms: Vec<i64>, wanted_ms: i64) -> TimeSearch {
        let mut earliest_ms = i64::MAX;
        for ms in stored_ms.iter_mut().rev() {
            earliest_ms = earliest_ms.min(*ms);
            *ms = earliest_ms;
        }
        TimeSearch {
            low: 0,
            high: stored_ms.len(),
            stored_ms,
            wanted_ms,
            later_ms: 0,
            guided: GUIDED,
        }
    }

    /// The file whose header to read next; none when the search has ended.
    pub(super) fn poll_probe(&self) -> Option<usize> {
        if self.low == self.high {
            return None;
        }
        if self.guided == 0 {
            return Some(self.low + (self.high - self.low) / 2);
        }
        let is_before = |ms: &i64| ms.saturating_add(self.later_ms) <= self.wanted_ms;
        let first_after = self.stored_ms.partition_point(is_before);
        // The first file after the time, then the last one that is not after it.
        Some(first_after.clamp(self.low, self.high - 1))
    }

    /// Takes the time in a file's header.
    pub(super) fn handle_time(&mut self, index: usize, ms: i64) {
        if ms <= self.wanted_ms {
            self.low = index + 1;
        } else {
            self.high = index;
        }
        self.later_ms = ms.saturating_sub(self.stored_ms[index]);
        self.guided = self.guided.saturating_sub(1);
    }

    /// Number of files at or before the time, once no header is left to read.
    pub(super) fn found(&self) -> usize {
        debug_assert_eq!(self.low, self.high);
        self.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Searches. Returns the answer and the number of headers read.
    fn search(captured_ms: &[i64], stored_ms: Vec<i64>, wanted_ms: i64) -> (usize, u32) {
        let mut search = TimeSearch::new(stored_ms, wanted_ms);
        let mut probes = 0;
        while let Some(index) = search.poll_probe() {
            search.handle_time(index, captured_ms[index]);
            probes += 1;
        }
        (search.found(), probes)
    }

    fn most(files: usize) -> u32 {
        let halves = usize::BITS - files.leading_zeros();
        (GUIDED + halves).min(files as u32)
    }

    proptest! {
        #[test]
        fn it_finds_the_time_in_few_steps_whatever_the_list_says(
            steps in prop::collection::vec((0i64..3000, 0i64..100_000), 0..300),
            wanted_ms in -10i64..500_000,
            off_ms in prop_oneof![Just(0i64), -1_000_000i64..1_000_000],
            kind in 0u8..4,
        ) {
            let mut captured_ms: Vec<i64> = Vec::new();
            for (pause, _) in &steps {
                captured_ms.push(captured_ms.last().copied().unwrap_or(0) + pause);
            }
            let stored = captured_ms.iter().zip(&steps).map(|(ms, (pause, delay))| match kind {
                // Captured files; compacted files; a copied bucket; arbitrary times.
                0 => ms + pause / 2 + off_ms,
                1 => ms + delay + off_ms,
                2 => off_ms,
                _ => *delay,
            });
            let (found, probes) = search(&captured_ms, stored.collect(), wanted_ms);
            prop_assert_eq!(found, captured_ms.partition_point(|ms| *ms <= wanted_ms));
            prop_assert!(probes <= most(captured_ms.len()), "{} of {}", probes, captured_ms.len());
        }
    }

    /// A pseudorandom number below `end`, derived from `index`.
    fn any(index: i64, end: i64) -> i64 {
        (index
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f)
            >> 33)
            .rem_euclid(end)
    }

    /// Number of headers read by 200 searches of a day with a capture each second.
    fn of_a_day(every_s: i64, stored_ms: impl Fn(i64, i64) -> i64) -> (f64, u32) {
        let captured: Vec<i64> = (0..86_400 / every_s)
            .map(|index| index * every_s * 1000 + any(index, 300))
            .collect();
        let stored = (0..)
            .zip(&captured)
            .map(|(index, ms)| stored_ms(index, *ms));
        let stored: Vec<i64> = stored.collect();
        let probes = (0..200).map(|n| {
            let wanted_ms = any(n, 86_400_000);
            let (found, probes) = search(&captured, stored.clone(), wanted_ms);
            assert_eq!(found, captured.partition_point(|ms| *ms <= wanted_ms));
            probes
        });
        let probes: Vec<u32> = probes.collect();
        let mean = f64::from(probes.iter().sum::<u32>()) / 200.0;
        (mean, probes.into_iter().max().unwrap_or(0))
    }

    #[test]
    fn a_day_of_captures_takes_two_to_four_headers_when_the_list_says_when_they_came() {
        let minutes = 60_000;
        let directory = of_a_day(1, |_, ms| ms);
        let bucket = of_a_day(1, |index, ms| ms + 100 + any(index, 900));
        let slow = of_a_day(1, |index, ms| ms + 100 + any(index, 5000));
        let skewed = of_a_day(1, |index, ms| ms + 100 + any(index, 900) - 7 * minutes);
        let compacted = of_a_day(30, |index, ms| ms + 200 + any(index, 30_000));
        let copied = of_a_day(1, |_, _| 90_000_000);
        let nonsense = of_a_day(1, |index, _| any(index, 86_400_000));
        for (name, (mean, max)) in [
            ("directory", directory),
            ("bucket", bucket),
            ("bucket, up to 5 s late", slow),
            ("bucket, clock 7 minutes behind", skewed),
            ("compacted files", compacted),
            ("copied bucket", copied),
            ("nonsense", nonsense),
        ] {
            println!("{name}: {mean:.1}, at most {max}");
        }
        for (mean, max) in [directory, bucket, compacted] {
            assert!(mean < 3.0 && max <= 4, "{mean} {max}");
        }
        for (mean, max) in [slow, skewed] {
            assert!(mean < 5.0 && max <= most(86_400), "{mean} {max}");
        }
        for (_, max) in [copied, nonsense] {
            assert!(max <= 23, "{max}");
        }
    }
}
