//! Requests of restore tests: any request fits into one environment variable.

use api::names::reason;
use api::proof::{CHECKS_CHARACTERS, CheckSpec};
use api::restore_test::RestoreTestPhase;
use operator::plan::Change;
use operator::plan::requests::REQUEST_BYTES;
use protocol::names::VERIFY_REQUEST_ENV;
use protocol::verify::VerifyRequest;

use crate::fixture::{Cluster, backup, pod, well};

/// Longest string that Linux accepts in an environment, including the name and the final zero byte.
const MAX_ARG_STRLEN: usize = 128 << 10;

/// Returns the request of a run created by hand; `None` when no Job was created.
fn request(cluster: &mut Cluster) -> Option<VerifyRequest> {
    cluster.add_test("t");
    let job = cluster
        .settle()
        .into_iter()
        .find_map(|change| match change {
            Change::CreateJob(job) => Some(job),
            _ => None,
        })?;
    let pod = job.spec.unwrap().template.spec.unwrap();
    let env = pod.containers[0].env.clone().unwrap();
    let request = env.into_iter().find(|e| e.name == VERIFY_REQUEST_ENV);
    // As the kubelet does.
    let value = request.unwrap().value.unwrap().replace("$$(", "$(");
    assert!(value.len() <= REQUEST_BYTES);
    assert!(format!("{VERIFY_REQUEST_ENV}={value}\0").len() <= MAX_ARG_STRLEN);
    Some(serde_json::from_str(&value).unwrap())
}

/// Returns a cluster with this number of Pods, each with this number of databases.
fn crowd(pods: usize, databases: usize) -> Cluster {
    let mut cluster = Cluster::new([backup("orders")]);
    let mut status = well();
    let database = status.databases.remove(0);
    for index in 0..databases {
        let mut database = database.clone();
        database.path = format!("/data/{index}.db");
        status.databases.push(database);
    }
    for index in 0..pods {
        let name = format!("orders-{index}");
        cluster.add_pod(pod(&backup("orders"), &name));
        cluster.answer(&name, Ok(status.clone()));
    }
    cluster
}

fn positions(request: &VerifyRequest) -> usize {
    request.members.iter().map(|m| m.databases.len()).sum()
}

#[test]
fn the_largest_checks_that_are_accepted_can_be_asked_with_positions() {
    let mut cluster = crowd(20, 20);
    cluster.edit("orders", |backup| {
        let check = |index: usize| CheckSpec {
            name: format!("{index:0>63}"),
            // The character with the longest form in JSON, and text that Kubernetes would expand.
            query: "\u{1}".repeat(CHECKS_CHARACTERS / 32 - 3) + "$(A",
            min: Some(i64::MIN),
            max: Some(i64::MAX),
            ..CheckSpec::default()
        };
        backup.spec.restore_test.checks = (0..32).map(check).collect();
        assert_eq!(api::validate::validate(&backup.spec), Ok(()));
    });
    let request = request(&mut cluster).unwrap();
    assert_eq!((request.checks.len(), request.members.len()), (32, 20));
    assert!(request.checks[0].query.ends_with("$(A"));
    assert!(positions(&request) > 100, "{}", positions(&request));
}

#[test]
fn positions_that_do_not_fit_are_left_out_and_members_are_not() {
    let all = request(&mut crowd(5, 20)).unwrap();
    assert_eq!((all.members.len(), positions(&all)), (5, 100));
    let some = request(&mut crowd(500, 20)).unwrap();
    assert_eq!(some.members.len(), 500);
    let count = positions(&some);
    assert!((400..10_000).contains(&count), "{count}");
    let json = serde_json::to_string(&some).unwrap();
    assert!(
        json.len() > REQUEST_BYTES - 300,
        "{}: there is room",
        json.len()
    );
}

#[test]
fn members_that_do_not_fit_are_an_error_and_no_job() {
    let mut cluster = crowd(6000, 1);
    assert_eq!(request(&mut cluster), None);
    let test = cluster.test("t");
    assert_eq!(test.phase, RestoreTestPhase::Error);
    assert_eq!(test.result.as_deref(), Some(reason::TOO_MANY_MEMBERS));
    assert!(test.message.contains("6000 members"), "{}", test.message);
}
