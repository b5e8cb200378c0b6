//! Numbers from a seed, and virtual time.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Virtual times of actors repeat after this many milliseconds. All pauses of the engine are
/// multiples of it. So each actor keeps its own residue, no two actors act at the same moment, and
/// the order never depends on threads.
const STEP_MS: u64 = 100;

/// A sequence of numbers: SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    /// Creates one sequence per seed and purpose.
    pub(super) fn new(seed: u64, purpose: u64) -> Chance {
        let mut chance = Chance(seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93));
        chance.draw();
        chance
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `end`.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.draw() % end.max(1)
    }

    /// True once in `times`.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        (!of.is_empty()).then(|| &of[self.below(of.len() as u64) as usize])
    }
}

/// Virtual time, and a log of everything that happened in it.
#[derive(Debug)]
pub(super) struct Log {
    start: Instant,
    lines: Mutex<Vec<(u64, u64, String)>>,
}

/// Wall clocks begin at this time, in Unix milliseconds.
const EPOCH_MS: i64 = 1_700_000_000_000;

impl Log {
    pub(super) fn new() -> Log {
        Log {
            start: Instant::now(),
            lines: Mutex::default(),
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// The virtual time at which a correct wall clock shows this, until now.
    pub(super) fn when(&self, unix_ms: i64) -> u64 {
        u64::try_from(unix_ms - EPOCH_MS).map_or(0, |ms| ms.min(self.now_ms()))
    }

    /// Virtual time as a correct wall clock shows it.
    pub(super) fn unix_ms(&self) -> i64 {
        EPOCH_MS + self.now_ms() as i64
    }

    pub(super) fn note(&self, actor: u64, line: String) {
        let now_ms = self.now_ms();
        self.lines.lock().unwrap().push((now_ms, actor, line));
    }

    /// The next moment of an actor that is at least this far away.
    pub(super) fn moment(&self, actor: u64, after_ms: u64) -> Instant {
        let earliest = self.now_ms() + after_ms.max(1);
        let residue = actor % STEP_MS;
        let wait = (residue + STEP_MS - earliest % STEP_MS) % STEP_MS;
        self.start + Duration::from_millis(earliest + wait)
    }

    pub(super) async fn pause(&self, actor: u64, after_ms: u64) {
        tokio::time::sleep_until(self.moment(actor, after_ms)).await;
    }

    /// All lines, by time.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = self.lines.lock().unwrap().clone();
        lines.sort_by_key(|(ms, actor, _)| (*ms, *actor));
        lines
            .into_iter()
            .map(|(ms, actor, line)| format!("{ms:>9} {actor:>3} {line}"))
            .collect()
    }
}
