use super::*;

fn found(rows: u64, first: &str) -> QueryResult {
    QueryResult {
        rows,
        first: Some(first.to_owned()),
    }
}

fn outcome(check: Check, result: &QueryResult) -> bool {
    evaluate(&check, result, "2026-11-20T12:00:00Z".parse().unwrap()).is_ok()
}

#[test]
fn ranges_hold_at_their_ends_and_fail_beyond() {
    for (value, holds) in [("99", false), ("100", true), ("200", true), ("201", false)] {
        let check = Check {
            min: Some(100),
            max: Some(200),
            ..Check::default()
        };
        assert_eq!(outcome(check, &found(1, value)), holds, "{value}");
    }
    let check = Check {
        min: Some(1),
        ..Check::default()
    };
    assert!(!outcome(check, &found(1, "many")));
}

#[test]
fn rows_and_values_are_compared_exactly() {
    assert!(outcome(
        Check {
            rows: Some(1),
            ..Check::default()
        },
        &found(1, "x")
    ));
    assert!(!outcome(
        Check {
            rows: Some(1),
            ..Check::default()
        },
        &found(0, "x")
    ));
    let check = Check {
        equals: Some("on".into()),
        ..Check::default()
    };
    assert!(outcome(check.clone(), &found(1, "on")));
    assert!(!outcome(check, &found(1, "off")));
}

#[test]
fn age_is_judged_at_the_restored_point_in_every_common_form_of_time() {
    for (time, holds) in [
        ("2026-11-20T11:50:00Z", true),
        ("2026-11-20 11:50:00", true),
        ("2026-11-20 11:40:00", false),
        ("1795175400", true),
        ("1795175400000", true),
        ("1795170000", false),
        ("2027-01-01 00:00:00", true),
        ("yesterday", false),
    ] {
        let max_age = Some("15m".parse().unwrap());
        let check = Check {
            max_age,
            ..Check::default()
        };
        assert_eq!(outcome(check, &found(1, time)), holds, "{time}");
    }
}

#[test]
fn a_commit_from_the_future_is_of_another_clock_and_not_old() {
    let now = Timestamp::from_second(1_000_000).unwrap();
    let limit = Some("15m".parse().unwrap());
    for (age, holds) in [(0, true), (900, true), (901, false), (-901, true)] {
        let judged = judge_age((1_000_000 - age) * 1000, limit, now);
        assert_eq!(judged.is_ok(), holds, "{age} s");
    }
    assert!(judge_age(0, None, now).is_ok());
}

#[test]
fn a_check_that_expects_nothing_fails() {
    assert!(!outcome(Check::default(), &found(1, "1")));
}
