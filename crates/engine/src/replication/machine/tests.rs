use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(1);

fn machine(now: Instant) -> Machine {
    let mut machine = Machine::new(Pace::new(INTERVAL), Duration::ZERO, now);
    machine.handle_captured(attached());
    machine.handle_surroundings(Surroundings {
        keeps_up: true,
        ..Surroundings::default()
    });
    machine
}

fn attached() -> Captured {
    Captured {
        is_attached: true,
        ..Captured::default()
    }
}

fn with_commits() -> Captured {
    Captured {
        has_commits: true,
        ..attached()
    }
}

#[test]
fn a_checkpoint_that_never_ends_holds_no_commit_back() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    machine.handle_captured(Captured {
        wants_checkpoint: true,
        ..with_commits()
    });
    let first = machine.poll_action(now);
    assert_eq!(first, Some(Action::Checkpoint { may_resort: true }));
    for _ in 0..10 {
        assert_eq!(machine.poll_action(now), Some(Action::Commit));
        assert_eq!(machine.poll_action(now), None, "one file at a time");
        machine.handle_commit_done(Outcome::Written, now);
        now = machine.poll_timeout(now).expect("the pace says when");
    }
    // A checkpoint that takes longer than its pause is followed by commits, too.
    machine.handle_checkpoint_done(Checkpointed::Passive, now);
    assert_eq!(machine.poll_action(now), Some(Action::Commit));
    now += CHECKPOINT_PAUSE;
    assert!(matches!(
        machine.poll_action(now),
        Some(Action::Checkpoint { .. })
    ));
}

#[test]
fn what_is_urgent_comes_first() {
    let now = Instant::now();
    let everything = Surroundings {
        lacks_cut: true,
        is_full: true,
        can_make_room: true,
        ..Surroundings::default()
    };
    let gap = Captured {
        has_gap: true,
        ..with_commits()
    };
    for (captured, surroundings, expected) in [
        (Captured::default(), everything, None),
        (gap, everything, Some(Action::Resync)),
        (with_commits(), everything, Some(Action::TakeCut)),
        (
            with_commits(),
            Surroundings {
                lacks_cut: false,
                ..everything
            },
            Some(Action::MakeRoom),
        ),
        (
            with_commits(),
            Surroundings {
                is_full: true,
                ..Surroundings::default()
            },
            None,
        ),
        (
            with_commits(),
            Surroundings {
                is_full: true,
                keeps_up: true,
                ..Surroundings::default()
            },
            Some(Action::Commit),
        ),
        (
            with_commits(),
            Surroundings::default(),
            Some(Action::Commit),
        ),
        (attached(), Surroundings::default(), None),
        (
            attached(),
            Surroundings {
                has_leftovers: true,
                ..Surroundings::default()
            },
            Some(Action::Tidy),
        ),
        (
            attached(),
            Surroundings {
                is_in_doubt: true,
                ..Surroundings::default()
            },
            Some(Action::Resync),
        ),
    ] {
        let mut machine = machine(now);
        machine.handle_captured(captured);
        machine.handle_surroundings(surroundings);
        let action = machine.poll_action(now);
        assert_eq!(action, expected, "{captured:?} {surroundings:?}");
    }
}

#[test]
fn a_cut_that_fails_is_tried_again_later_and_commits_go_on() {
    let start = Instant::now();
    let mut machine = machine(start);
    machine.handle_surroundings(Surroundings {
        lacks_cut: true,
        keeps_up: true,
        ..Surroundings::default()
    });
    assert_eq!(machine.poll_action(start), Some(Action::TakeCut));
    machine.handle_commit_done(Outcome::CutFailed, start);
    assert_eq!(machine.poll_action(start), None);
    assert_eq!(machine.poll_timeout(start), Some(start + CUT_PAUSE));
    machine.handle_captured(with_commits());
    assert_eq!(machine.poll_action(start), Some(Action::Commit));
    machine.handle_commit_done(Outcome::Written, start);
    machine.handle_captured(attached());
    let again = start + CUT_PAUSE;
    assert_eq!(machine.poll_timeout(start), Some(again));
    assert_eq!(machine.poll_action(again), Some(Action::TakeCut));
}

#[test]
fn a_full_budget_is_looked_at_again_and_room_is_used_at_once() {
    let now = Instant::now();
    let mut machine = machine(now);
    let full = Surroundings {
        is_full: true,
        ..Surroundings::default()
    };
    machine.handle_captured(with_commits());
    machine.handle_surroundings(full);
    assert_eq!(machine.poll_action(now), None);
    assert_eq!(machine.poll_timeout(now), Some(now + FULL_PAUSE));
    machine.handle_surroundings(Surroundings::default());
    assert_eq!(machine.poll_action(now), Some(Action::Commit));
}

#[test]
fn a_quiet_database_is_detached_only_when_others_need_the_room() {
    let start = Instant::now();
    let resumable = Captured {
        can_resume: true,
        ..attached()
    };
    for (is_crowded, others_wait, after) in [
        (false, true, None),
        (true, false, Some(REST_AFTER)),
        (true, true, Some(REST_SOON)),
    ] {
        let mut machine = machine(start);
        machine.handle_captured(resumable);
        machine.handle_surroundings(Surroundings {
            is_crowded,
            others_wait,
            ..Surroundings::default()
        });
        let mut detached = None;
        let mut now = start;
        for _ in 0..4 {
            if machine.poll_action(now) == Some(Action::Detach) {
                detached = Some(now - start);
                break;
            }
            let Some(at) = machine.poll_timeout(now) else {
                break;
            };
            assert!(at > now, "it does not spin");
            now = at;
        }
        assert_eq!(detached, after);
    }
}

#[test]
fn a_database_that_no_other_process_has_open_is_closed_once_it_is_quiet() {
    let start = Instant::now();
    let scan_time = Duration::from_secs(1);
    for (scan_time, after) in [(Duration::ZERO, CLOSE_AFTER), (scan_time, scan_time * 10)] {
        let mut machine = Machine::new(Pace::new(INTERVAL), scan_time, start);
        machine.handle_captured(Captured {
            is_alone: true,
            ..with_commits()
        });
        assert_eq!(machine.poll_action(start), Some(Action::Commit));
        machine.handle_commit_done(Outcome::Written, start);
        let alone = Captured {
            is_alone: true,
            ..attached()
        };
        machine.handle_captured(alone);
        assert_eq!(machine.poll_action(start), None);
        let at = start + after;
        assert_eq!(machine.poll_timeout(start), Some(at));
        assert_eq!(machine.poll_action(at), Some(Action::Close));
        machine.handle_not_quiet(at);
        assert_eq!(machine.poll_action(at), None, "another pause");
        machine.handle_captured(attached());
        assert_eq!(machine.poll_action(at + after), None, "it was opened again");
    }
}

#[test]
fn the_end_waits_for_both_lanes() {
    let now = Instant::now();
    let mut machine = machine(now);
    machine.handle_captured(Captured {
        wants_checkpoint: true,
        ..with_commits()
    });
    assert!(matches!(
        machine.poll_action(now),
        Some(Action::Checkpoint { .. })
    ));
    assert_eq!(machine.poll_action(now), Some(Action::Commit));
    machine.handle_stop();
    assert_eq!(machine.poll_action(now), None);
    machine.handle_commit_done(Outcome::Written, now);
    assert_eq!(machine.poll_action(now), None);
    machine.handle_checkpoint_done(Checkpointed::Passive, now);
    assert_eq!(machine.poll_action(now), Some(Action::Finish));
    assert_eq!(machine.poll_action(now), None);
}

#[test]
fn a_last_resort_that_does_not_help_is_tried_less_and_less_often() {
    let mut now = Instant::now();
    let mut machine = machine(now);
    machine.handle_captured(Captured {
        wants_checkpoint: true,
        ..attached()
    });
    let mut pauses = Vec::new();
    let mut last = now;
    while pauses.len() < 9 {
        match machine.poll_action(now) {
            Some(Action::Checkpoint { may_resort: true }) => {
                pauses.push((now - last).as_secs());
                last = now;
                let failed = Checkpointed::LastResort { helped: false };
                machine.handle_checkpoint_done(failed, now);
            }
            Some(Action::Checkpoint { may_resort: false }) => {
                machine.handle_checkpoint_done(Checkpointed::Passive, now);
            }
            other => assert_eq!(other, None),
        }
        now += CHECKPOINT_PAUSE;
    }
    assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
}

proptest! {
    /// While a target keeps up, captured commits are written within the interval, once the
    /// commit lane is free. The other lane never delays them, however long it takes.
    #[test]
    fn commits_wait_for_no_other_lane(
        steps in prop::collection::vec((0u64..700, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let mut now = Instant::now();
        let mut machine = machine(now);
        machine.handle_captured(Captured { wants_checkpoint: true, ..with_commits() });
        let mut waits_since = now;
        for (pause_ms, checkpoint_ends, has_commits) in steps {
            let mut polled = 0;
            while let Some(action) = machine.poll_action(now) {
                polled += 1;
                prop_assert!(polled <= 3, "each lane begins one thing");
                if action == Action::Commit {
                    prop_assert!(now - waits_since <= INTERVAL);
                    machine.handle_commit_done(Outcome::Written, now);
                    machine.handle_captured(Captured { wants_checkpoint: true, has_commits, ..attached() });
                    waits_since = now;
                }
            }
            if checkpoint_ends && machine.checkpoint.is_busy {
                machine.handle_checkpoint_done(Checkpointed::Passive, now);
            }
            if !machine.captured.has_commits {
                machine.handle_captured(Captured { wants_checkpoint: true, ..with_commits() });
                waits_since = now;
            }
            let step = now + Duration::from_millis(pause_ms);
            now = machine.poll_timeout(now).map_or(step, |at| at.max(now).min(step));
        }
    }
}
