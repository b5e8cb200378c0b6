//! Status of a SqliteBackup from its members.

use api::names::condition::{
    CREDENTIALS_VALID, INJECTED, READY, REPLICATING, RESTORED_CLEANLY, WRITER_CONFLICT,
};
use api::names::reason;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use protocol::status::{CredentialsReport, DatabaseState, SidecarStatus, TargetState};
use protocol::verify::StartupNotes;

use crate::fixture::{Cluster, backup, pod, seconds, start, well};

fn with(change: impl FnOnce(&mut SidecarStatus)) -> SidecarStatus {
    let mut status = well();
    change(&mut status);
    status
}

fn target(state: TargetState, lag_ms: u64) -> SidecarStatus {
    with(|s| {
        s.databases[0].targets[0].state = state;
        s.databases[0].targets[0].lag_ms = lag_ms;
    })
}

#[test]
fn a_healthy_backup_reads_well() {
    let cluster = Cluster::at_rest();
    cluster.assert_condition(READY, "True", reason::ACCEPTED);
    cluster.assert_condition(INJECTED, "True", reason::ALL_INJECTED);
    cluster.assert_condition(REPLICATING, "True", reason::UP_TO_DATE);
    cluster.assert_condition(CREDENTIALS_VALID, "True", reason::VALID);
    cluster.assert_condition(WRITER_CONFLICT, "False", reason::ONE_WRITER);
    let status = cluster.status("orders");
    assert_eq!(status.pods.unwrap().summary, "1/1");
    let replication = status.replication.unwrap();
    assert_eq!(replication.lag_summary, "0s");
    assert_eq!(replication.last_sync_time.unwrap().0, start());
}

#[test]
fn what_a_sidecar_says_becomes_a_condition() {
    use DatabaseState as D;
    use TargetState as T;
    let database = |state| with(|s| s.databases[0].state = state);
    let never = with(|s| {
        s.databases[0].targets[0].state = T::DestinationUnavailable;
        s.databases[0].targets[0].position = None;
    });
    for (answer, status, reason) in [
        (well(), "True", reason::UP_TO_DATE),
        (database(D::Idle), "True", reason::UP_TO_DATE),
        (database(D::Starting), "Unknown", reason::STARTING),
        (database(D::Missing), "Unknown", "Missing"),
        (database(D::NotWal), "False", "NotWal"),
        (database(D::UnknownUser), "False", "UnknownUser"),
        (database(D::Diverged), "False", "Diverged"),
        (target(T::Ok, 60_000), "True", reason::UP_TO_DATE),
        (target(T::Ok, 60_001), "False", reason::LAG_EXCEEDED),
        (target(T::NoBucket, 0), "False", "NoBucket"),
        // An outage is tolerated until commits wait too long, unless no position was ever stored.
        (
            target(T::DestinationUnavailable, 1000),
            "True",
            reason::UP_TO_DATE,
        ),
        (
            target(T::DestinationUnavailable, 60_001),
            "False",
            "DestinationUnavailable",
        ),
        (never, "False", "DestinationUnavailable"),
        (with(|s| s.databases.clear()), "Unknown", reason::STARTING),
    ] {
        let mut cluster = Cluster::at_rest();
        cluster.answer("orders-0", Ok(answer));
        cluster.settle();
        cluster.assert_condition(REPLICATING, status, reason);
        let member = &cluster.status("orders").members[0];
        match status {
            "True" => assert!(["Idle", "Replicating"].contains(&member.state.as_str())),
            _ => assert_eq!(
                member.state, reason,
                "a member's state says what the condition says"
            ),
        }
    }
}

#[test]
fn an_outage_that_is_tolerated_shows_in_the_message_of_its_member() {
    let mut cluster = Cluster::at_rest();
    cluster.add_pod(pod(&backup("orders"), "orders-1"));
    cluster.answer("orders-0", Ok(well()));
    let mut outage = target(TargetState::DestinationUnavailable, 1000);
    outage.databases[0].targets[0].message = "connection refused".into();
    cluster.answer("orders-1", Ok(outage));
    cluster.settle();
    cluster.assert_condition(REPLICATING, "True", reason::UP_TO_DATE);
    let status = cluster.status("orders");
    assert_eq!(status.pods.unwrap().summary, "2/2");
    let [worst, other] = &status.members[..] else {
        panic!("two members, not {:?}", status.members)
    };
    assert_eq!(
        (worst.pod.as_str(), worst.state.as_str()),
        ("orders-1", "Replicating")
    );
    assert!(worst.message.contains("connection refused"));
    assert_eq!(
        (other.pod.as_str(), other.message.as_str()),
        ("orders-0", "")
    );
}

#[test]
fn a_pattern_may_find_nothing_so_far() {
    let mut cluster = Cluster::at_rest();
    cluster.edit("orders", |b| b.spec.databases[0].path = "/data/*.db".into());
    for (hash, status, reason) in [
        ("", "Unknown", reason::STARTING),
        ("9f86", "True", reason::UP_TO_DATE),
    ] {
        let answer = with(|s| {
            s.databases.clear();
            s.config_hash = hash.into();
        });
        cluster.answer("orders-0", Ok(answer));
        cluster.settle();
        cluster.assert_condition(REPLICATING, status, reason);
    }
}

#[test]
fn refused_credentials_show_at_once_even_when_nothing_waits() {
    let pending = with(|s| {
        s.databases[0].targets[0].credentials = Some(CredentialsReport {
            fingerprint: "f".into(),
            since: start(),
            rotation_pending: true,
        });
    });
    for (answer, status, reason) in [
        (target(TargetState::Denied, 0), "False", reason::DENIED),
        (
            target(TargetState::CredentialsMissing, 0),
            "False",
            reason::MISSING,
        ),
        (pending, "False", reason::ROTATION_PENDING),
        (
            target(TargetState::DestinationUnavailable, 0),
            "Unknown",
            reason::UNKNOWN,
        ),
    ] {
        let mut cluster = Cluster::at_rest();
        cluster.answer("orders-0", Ok(answer));
        cluster.settle();
        cluster.assert_condition(CREDENTIALS_VALID, status, reason);
    }
}

#[test]
fn a_sidecar_that_does_not_answer_is_unknown_and_never_healthy() {
    let mut cluster = Cluster::at_rest();
    cluster.answer("orders-0", Err("no answer within 3 s"));
    assert_eq!(cluster.settle(), vec![], "one failure may be a restart");
    cluster.answer("orders-0", Err("no answer within 3 s"));
    cluster.settle();
    cluster.assert_condition(REPLICATING, "Unknown", reason::SIDECAR_UNREACHABLE);
    cluster.assert_condition(CREDENTIALS_VALID, "Unknown", reason::SIDECAR_UNREACHABLE);
    let status = cluster.status("orders");
    assert_eq!(status.pods.unwrap().summary, "0/1");
    let replication = status.replication.unwrap();
    assert_eq!(replication.lag_summary, "unknown");
    assert_eq!(replication.last_sync_time.unwrap().0, start(), "stays true");
    assert_eq!(status.members[0].state, reason::SIDECAR_UNREACHABLE);
    assert_eq!(status.members[0].message, "no answer within 3 s");
}

#[test]
fn no_lag_is_shown_while_one_of_several_sidecars_is_silent() {
    let mut cluster = Cluster::at_rest();
    cluster.add_pod(pod(&backup("orders"), "orders-1"));
    for _ in 0..2 {
        cluster.answer("orders-1", Err("silent"));
    }
    cluster.answer("orders-0", Ok(target(TargetState::Ok, 5000)));
    cluster.settle();
    let status = cluster.status("orders");
    assert_eq!(status.members[1].lag_seconds, Some(5));
    let replication = status.replication.unwrap();
    assert_eq!(
        (replication.lag_seconds, replication.lag_summary.as_str()),
        (None, "unknown")
    );
}

#[test]
fn what_is_known_to_be_bad_counts_before_what_is_unknown() {
    let mut cluster = Cluster::at_rest();
    cluster.add_pod(pod(&backup("orders"), "orders-1"));
    cluster.answer("orders-1", Err("x"));
    cluster.answer("orders-1", Err("x"));
    cluster.answer(
        "orders-0",
        Ok(with(|s| s.databases[0].state = DatabaseState::NotWal)),
    );
    cluster.settle();
    cluster.assert_condition(REPLICATING, "False", "NotWal");
    let members = cluster.status("orders").members;
    assert_eq!(
        members.iter().map(|m| m.pod.as_str()).collect::<Vec<_>>(),
        ["orders-0", "orders-1"]
    );
}

#[test]
fn pods_without_or_with_an_older_sidecar_are_counted() {
    let mut cluster = Cluster::at_rest();
    let mut old = pod(&backup("orders"), "orders-1");
    old.injection = Some("older".into());
    cluster.add_pod(old);
    cluster.answer("orders-1", Ok(well()));
    cluster.settle();
    cluster.assert_condition(INJECTED, "False", reason::OUTDATED);

    let mut bare = pod(&backup("orders"), "orders-2");
    (bare.has_sidecar, bare.backup) = (false, None);
    cluster.add_pod(bare);
    cluster.settle();
    cluster.assert_condition(INJECTED, "False", reason::PODS_MISSING_SIDECAR);
    assert!(cluster.condition(INJECTED).message.contains("orders-2"));
    let pods = cluster.status("orders").pods.unwrap();
    assert_eq!(
        (pods.desired, pods.injected, pods.replicating, pods.outdated),
        (3, 2, 2, 1)
    );
}

#[test]
fn pods_that_end_or_opted_out_or_are_our_jobs_do_not_count() {
    let mut cluster = Cluster::at_rest();
    let other = |name: &str| pod(&backup("orders"), name);
    let mut deleting = other("a");
    deleting.deleting = true;
    let mut done = other("b");
    done.phase = "Succeeded".into();
    let mut out = other("c");
    out.labels
        .insert(api::names::INJECT_LABEL.into(), "false".into());
    for pod in [deleting, done, out] {
        cluster.add_pod(pod);
    }
    assert_eq!(cluster.settle(), vec![]);
}

#[test]
fn without_pods_nothing_is_claimed_and_the_last_members_are_remembered() {
    let mut cluster = Cluster::at_rest();
    cluster.remove_pods();
    cluster.settle();
    cluster.assert_condition(INJECTED, "Unknown", reason::NO_PODS);
    cluster.assert_condition(REPLICATING, "Unknown", reason::NO_PODS);
    let status = cluster.status("orders");
    assert_eq!(status.pods.unwrap().summary, "0/0");
    assert_eq!(status.members[0].name, "orders-0");
    assert_eq!(status.members[0].state, reason::NO_PODS);
}

#[test]
fn a_status_lists_the_twenty_worst_members() {
    let mut cluster = Cluster::at_rest();
    for index in 1..40 {
        let name = format!("orders-{index}");
        cluster.add_pod(pod(&backup("orders"), &name));
        let answer = if index == 39 {
            target(TargetState::NoBucket, 0)
        } else {
            well()
        };
        cluster.answer(&name, Ok(answer));
    }
    cluster.settle();
    let status = cluster.status("orders");
    assert_eq!(status.members.len(), 20);
    assert_eq!(status.members[0].state, "NoBucket");
    assert_eq!(status.pods.unwrap().summary, "39/40");
}

#[test]
fn events_tell_changes_and_only_changes() {
    let mut cluster = Cluster::at_rest();
    cluster.answer("orders-0", Ok(target(TargetState::NoBucket, 0)));
    let told = |cluster: &Cluster| -> Vec<(String, bool)> {
        cluster
            .plan()
            .events
            .into_iter()
            .map(|n| (n.reason, n.normal))
            .collect()
    };
    assert_eq!(told(&cluster), [("NoBucket".to_owned(), false)]);
    cluster.settle();
    cluster.pass_time(seconds(10));
    assert_eq!(told(&cluster), []);
    cluster.answer("orders-0", Ok(well()));
    assert_eq!(told(&cluster), [(reason::UP_TO_DATE.to_owned(), true)]);
    cluster.settle();
    cluster.remove_pods();
    assert_eq!(
        told(&cluster),
        [],
        "a SqliteBackup without Pods causes no Event"
    );
    cluster.settle();
    cluster.add_pod(pod(&backup("orders"), "orders-0"));
    for _ in 0..2 {
        cluster.answer("orders-0", Err("silent"));
    }
    let silent = (reason::SIDECAR_UNREACHABLE.to_owned(), false);
    assert!(told(&cluster).contains(&silent));
}

#[test]
fn a_restored_database_that_sqlite_complains_about_is_a_condition_and_one_event() {
    let mut cluster = Cluster::at_rest();
    let conditions = |cluster: &Cluster| cluster.status("orders").conditions;
    let is_told = |condition: &Condition| condition.type_ == RESTORED_CLEANLY;
    assert!(
        !conditions(&cluster).iter().any(is_told),
        "nothing is wrong"
    );
    let mut noted = pod(&backup("orders"), "orders-1");
    noted.startup_notes = StartupNotes {
        complaints: vec!["/data/app.db: NULL value in t.x".into()],
        not_checked: Vec::new(),
    };
    cluster.add_pod(noted);
    cluster.answer("orders-1", Ok(well()));
    let events = cluster.plan().events;
    let told: Vec<_> = events
        .iter()
        .filter(|n| n.reason == reason::CHECK_FAILED)
        .collect();
    let [notice] = told.as_slice() else {
        panic!("one Event is expected: {events:?}");
    };
    assert!(!notice.normal && notice.message.contains("NULL value in t.x"));
    cluster.settle();
    cluster.assert_condition(RESTORED_CLEANLY, "False", reason::CHECK_FAILED);
    assert!(cluster.plan().events.is_empty(), "it is told once");
    // The next Pod starts from a database that was repaired.
    cluster.remove_pods();
    cluster.add_pod(pod(&backup("orders"), "orders-0"));
    cluster.settle();
    assert!(!conditions(&cluster).iter().any(is_told));
}
