//! Requests of restore tests.

use std::collections::BTreeSet;

use api::proof::TestLevel;
use api::{RestoreTest, SqliteBackup};
use protocol::names::VERIFY_REQUEST_ENV;
use protocol::verify::{Check, MemberExpectation, Point, VerifyLevel, VerifyRequest};

use super::key;
use super::members::Member;
use crate::answer::json_bytes;

/// Limit on a request, in bytes. It is passed in an environment variable; Linux limits each to 128
/// KiB, with its name, `=` and a final zero byte.
pub const REQUEST_BYTES: usize = (128 << 10) - VERIFY_REQUEST_ENV.len() - 2;

/// The names of the members alone exceed the limit of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{members} members do not fit into one restore test; divide them among several SqliteBackups"
)]
pub struct TooManyMembers {
    /// Number of members.
    pub members: usize,
}

/// Builds the request of one run: the members to restore, and the positions that live sidecars have
/// acknowledged, so that a stale backup cannot pass. Positions are added while there is room.
///
/// # Errors
/// The members do not fit. Checks always fit: the schema limits them.
pub fn request(
    backup: &SqliteBackup,
    test: &RestoreTest,
    members: &[Member<'_>],
) -> Result<VerifyRequest, TooManyMembers> {
    let policy = &backup.spec.restore_test;
    let mut request = VerifyRequest {
        level: match policy.level {
            TestLevel::Quick => VerifyLevel::Quick,
            TestLevel::Full => VerifyLevel::Full,
            TestLevel::Checksum => VerifyLevel::Checksum,
        },
        point: point(test),
        members: names(backup, members),
        max_lag: Some(backup.spec.replication.max_lag),
        checks: checks(backup),
    };
    let json = serde_json::to_string(&request).expect("a request is plain data");
    let Some(room) = REQUEST_BYTES.checked_sub(json.len()) else {
        let members = request.members.len();
        return Err(TooManyMembers { members });
    };
    add_positions(&mut request.members, members, room);
    Ok(request)
}

fn point(test: &RestoreTest) -> Point {
    let at = &test.spec.at;
    match (&at.timestamp, &at.txid) {
        (Some(time), _) => Point::Timestamp(time.0),
        (None, Some(txid)) => Point::Txid(txid.clone()),
        (None, None) => Point::Latest,
    }
}

/// The live members, else the members of the last status, else the one member of a Deployment.
fn names(backup: &SqliteBackup, members: &[Member<'_>]) -> Vec<MemberExpectation> {
    let mut names: BTreeSet<String> = members.iter().map(|m| m.name.clone()).collect();
    if names.is_empty() {
        let known = backup.status.iter().flat_map(|s| &s.members);
        names = known.map(|m| m.name.clone()).collect();
    }
    if names.is_empty() {
        names.insert(key(backup).1);
    }
    let expectation = |member| MemberExpectation {
        member,
        databases: Vec::new(),
    };
    names.into_iter().map(expectation).collect()
}

/// Adds acknowledged positions, member by member, until `room` bytes of JSON are used.
fn add_positions(expected: &mut [MemberExpectation], members: &[Member<'_>], mut room: usize) {
    for member in members {
        let Some(answer) = member.answer() else {
            continue;
        };
        // Members are ordered by name.
        let Ok(place) = expected.binary_search_by(|e| e.member.cmp(&member.name)) else {
            continue;
        };
        let databases = &mut expected[place].databases;
        for position in &answer.acknowledged {
            let list = match databases.is_empty() {
                true => r#","databases":[]"#.len(),
                false => 0,
            };
            match room.checked_sub(json_bytes(position) + list) {
                Some(left) => room = left,
                None => return,
            }
            databases.push(position.clone());
        }
    }
}

fn checks(backup: &SqliteBackup) -> Vec<Check> {
    let check = |c: &api::proof::CheckSpec| Check {
        name: c.name.clone(),
        database: c.database.clone(),
        query: c.query.clone(),
        min: c.min,
        max: c.max,
        rows: c.rows,
        equals: c.equals.clone(),
        max_age: c.max_age,
    };
    backup.spec.restore_test.checks.iter().map(check).collect()
}
