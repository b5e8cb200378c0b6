//! Decides which sidecar is polled next. Pure: time comes in as an argument.
//!
//! A sidecar that does not answer occupies its slot for the whole time limit of a poll. Thus
//! sidecars that did not answer last time, or were never polled, share a part of the slots only.
//! The rest is left to sidecars that answer, however many Pods are unreachable.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// Time between two polls of a healthy sidecar.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Time between two polls while a sidecar is new, unhealthy or silent.
pub const INTERVAL_UNHEALTHY: Duration = Duration::from_secs(5);

/// Number of polls in progress at once.
pub const AT_ONCE: usize = 128;

/// Number of them to sidecars that did not answer last time, or were never polled.
pub const UNPROVEN_AT_ONCE: usize = 96;

/// Result of one poll, as far as it affects the order of polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollResult {
    /// The sidecar answered, and is healthy.
    Healthy,
    /// The sidecar answered, and reported a problem.
    Unhealthy,
    /// It did not answer.
    Silent,
}

/// Order of polls. For each sidecar: [`Queue::next`], then [`Queue::handle_result`].
#[derive(Debug, Default)]
pub struct Queue {
    sidecars: BTreeMap<String, Sidecar>,
    /// Sidecars that answered last time, by the time of their next poll.
    answering: BTreeSet<(Instant, String)>,
    /// All others.
    unproven: BTreeSet<(Instant, String)>,
    polls: usize,
    unproven_polls: usize,
}

#[derive(Debug, Clone, Copy)]
enum Sidecar {
    Waiting { until: Instant, answers: bool },
    Polled { answers: bool, removed: bool },
}

impl Queue {
    /// Replaces the set of sidecars, by Pod UID. New ones are due at once.
    pub fn handle_sidecars<'a>(&mut self, uids: impl Iterator<Item = &'a str>, now: Instant) {
        let uids: BTreeSet<&str> = uids.collect();
        let gone: Vec<String> = (self.sidecars.keys())
            .filter(|uid| !uids.contains(uid.as_str()))
            .cloned()
            .collect();
        for uid in gone {
            self.remove(&uid);
        }
        for uid in uids {
            match self.sidecars.get_mut(uid) {
                Some(Sidecar::Polled { removed, .. }) => *removed = false,
                Some(Sidecar::Waiting { .. }) => {}
                None => self.wait(uid.to_owned(), now, false),
            }
        }
    }

    /// The sidecar to poll now, if one is due and a slot is free. Call until it returns `None`.
    pub fn next(&mut self, now: Instant) -> Option<String> {
        if self.polls >= AT_ONCE {
            return None;
        }
        let due = |queue: &BTreeSet<(Instant, String)>| {
            queue.first().filter(|(until, _)| *until <= now).cloned()
        };
        let unproven = due(&self.unproven).filter(|_| self.unproven_polls < UNPROVEN_AT_ONCE);
        let (answers, next) = match (due(&self.answering), unproven) {
            (Some(answering), unproven) if unproven.as_ref().is_none_or(|u| answering <= *u) => {
                (true, answering)
            }
            (_, unproven) => (false, unproven?),
        };
        let queue = match answers {
            true => &mut self.answering,
            false => &mut self.unproven,
        };
        queue.remove(&next);
        self.polls += 1;
        self.unproven_polls += usize::from(!answers);
        let polled = Sidecar::Polled {
            answers,
            removed: false,
        };
        self.sidecars.insert(next.1.clone(), polled);
        Some(next.1)
    }

    /// Frees the slot of a poll. Returns whether the sidecar still exists.
    pub fn handle_result(&mut self, uid: &str, result: PollResult, now: Instant) -> bool {
        let Some(Sidecar::Polled { answers, removed }) = self.sidecars.get(uid).copied() else {
            return false;
        };
        self.polls -= 1;
        self.unproven_polls -= usize::from(!answers);
        self.sidecars.remove(uid);
        if removed {
            return false;
        }
        let interval = match result {
            PollResult::Healthy => INTERVAL,
            PollResult::Unhealthy | PollResult::Silent => INTERVAL_UNHEALTHY,
        };
        let until = now + spread(uid, interval);
        self.wait(uid.to_owned(), until, result != PollResult::Silent);
        true
    }

    fn wait(&mut self, uid: String, until: Instant, answers: bool) {
        let queue = match answers {
            true => &mut self.answering,
            false => &mut self.unproven,
        };
        queue.insert((until, uid.clone()));
        self.sidecars
            .insert(uid, Sidecar::Waiting { until, answers });
    }

    /// Removes a sidecar. One that is being polled keeps its slot until its result arrives.
    fn remove(&mut self, uid: &str) {
        match self.sidecars.get_mut(uid) {
            Some(Sidecar::Polled { removed, .. }) => *removed = true,
            Some(Sidecar::Waiting { until, answers }) => {
                let queue = match answers {
                    true => &mut self.answering,
                    false => &mut self.unproven,
                };
                queue.remove(&(*until, uid.to_owned()));
                self.sidecars.remove(uid);
            }
            None => {}
        }
    }
}

/// An interval up to a tenth shorter than `interval`, always the same for one Pod.
fn spread(uid: &str, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let share = u32::try_from(hasher.finish() % 100).expect("less than 100");
    interval - interval * share / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time that a poll of a silent sidecar takes, and of one that answers.
    const SILENCE: Duration = Duration::from_secs(3);
    const ANSWER: Duration = Duration::from_millis(20);

    /// Polls sidecars for a period of virtual time, and records the time of each poll.
    struct Cluster {
        queue: Queue,
        now: Instant,
        polls: BTreeSet<(Instant, String)>,
        asked: BTreeMap<String, Vec<Instant>>,
        most: (usize, usize),
    }

    impl Cluster {
        fn new() -> Cluster {
            Cluster {
                queue: Queue::default(),
                now: Instant::now(),
                polls: BTreeSet::new(),
                asked: BTreeMap::new(),
                most: (0, 0),
            }
        }

        /// Runs until `end`; `answers` decides which sidecars answer.
        fn run(&mut self, time: Duration, answers: impl Fn(&str) -> bool) {
            let end = self.now + time;
            while self.now < end {
                while let Some((at, uid)) = self.polls.first().cloned()
                    && at <= self.now
                {
                    self.polls.pop_first();
                    let result = match answers(&uid) {
                        true => PollResult::Healthy,
                        false => PollResult::Silent,
                    };
                    self.queue.handle_result(&uid, result, self.now);
                }
                while let Some(uid) = self.queue.next(self.now) {
                    let took = if answers(&uid) { ANSWER } else { SILENCE };
                    self.polls.insert((self.now + took, uid.clone()));
                    self.asked.entry(uid).or_default().push(self.now);
                }
                let (polls, unproven) = &mut self.most;
                *polls = self.queue.polls.max(*polls);
                *unproven = self.queue.unproven_polls.max(*unproven);
                self.now += Duration::from_millis(10);
            }
        }
    }

    fn uids(healthy: usize, silent: usize) -> Vec<String> {
        let healthy = (0..healthy).map(|n| format!("healthy-{n}"));
        healthy
            .chain((0..silent).map(|n| format!("silent-{n}")))
            .collect()
    }

    fn is_healthy(uid: &str) -> bool {
        uid.starts_with("healthy")
    }

    #[test]
    fn sidecars_that_answer_are_polled_in_time_beside_thousands_that_do_not() {
        let mut cluster = Cluster::new();
        let uids = uids(300, 2000);
        let all = uids.iter().map(String::as_str);
        cluster.queue.handle_sidecars(all, cluster.now);
        // Each sidecar answers at first; then most of the nodes are cut off.
        cluster.run(Duration::from_secs(30), |_| true);
        cluster.run(Duration::from_secs(60), is_healthy);
        let settled = cluster.now;
        cluster.run(Duration::from_secs(300), is_healthy);
        for (uid, asked) in &cluster.asked {
            let since: Vec<&Instant> = asked.iter().filter(|at| **at >= settled).collect();
            let longest = since.windows(2).map(|pair| *pair[1] - *pair[0]).max();
            let longest = longest.unwrap_or(Duration::MAX);
            let limit = match is_healthy(uid) {
                true => INTERVAL + Duration::from_millis(100),
                false => Duration::from_secs(90),
            };
            assert!(longest <= limit, "{uid}: {longest:?}");
        }
        assert_eq!(cluster.most.0, AT_ONCE);
        assert_eq!(cluster.most.1, UNPROVEN_AT_ONCE);
    }

    #[test]
    fn a_sidecar_that_answers_again_is_polled_as_often_as_the_others() {
        let mut cluster = Cluster::new();
        cluster
            .queue
            .handle_sidecars(["a"].into_iter(), cluster.now);
        cluster.run(Duration::from_secs(20), |_| false);
        let before = cluster.asked["a"].len();
        assert!((3..=4).contains(&before), "{before}");
        cluster.run(Duration::from_secs(100), |_| true);
        let polls = cluster.asked["a"].len() - before;
        assert!((10..=12).contains(&polls), "{polls}");
        assert_eq!(cluster.queue.unproven.len(), 0);
    }

    #[test]
    fn a_pod_that_goes_while_it_is_polled_frees_its_slot_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.handle_sidecars(["a", "b"].into_iter(), now);
        assert_eq!(queue.next(now).as_deref(), Some("a"));
        queue.handle_sidecars(["b"].into_iter(), now);
        assert_eq!(queue.polls, 1);
        assert!(!queue.handle_result("a", PollResult::Healthy, now));
        assert!(!queue.handle_result("a", PollResult::Healthy, now));
        assert_eq!((queue.polls, queue.unproven_polls), (0, 0));
        assert_eq!(queue.next(now).as_deref(), Some("b"));
        assert_eq!(queue.next(now), None);
    }

    #[test]
    fn a_pod_that_goes_and_comes_back_is_due_at_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.handle_sidecars(["a"].into_iter(), now);
        assert_eq!(queue.next(now).as_deref(), Some("a"));
        assert!(queue.handle_result("a", PollResult::Healthy, now));
        assert_eq!(queue.next(now), None);
        queue.handle_sidecars([].into_iter(), now);
        queue.handle_sidecars(["a"].into_iter(), now);
        assert_eq!(queue.next(now).as_deref(), Some("a"));
    }
}
