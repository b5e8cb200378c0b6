//! What a restore test is asked.

use std::collections::BTreeMap;

use api::proof::TestLevel;
use api::{RestoreTest, SqliteBackup};
use protocol::status::SidecarStatus;
use protocol::verify::{
    Check, DatabaseExpectation, MemberExpectation, Point, VerifyLevel, VerifyRequest,
};

use super::key;
use super::members::Member;

/// Most acknowledged positions in one request. It travels in an environment variable, of which
/// Linux takes 128 KiB; each position costs up to 700 bytes of it at the longest paths.
const EXPECTATIONS_MAX: usize = 150;

/// Builds the request of one run: what to restore, and what live sidecars had acknowledged at this
/// moment, so that a backup that has fallen behind cannot pass.
pub fn request(backup: &SqliteBackup, test: &RestoreTest, members: &[Member<'_>]) -> VerifyRequest {
    let policy = &backup.spec.restore_test;
    VerifyRequest {
        level: match policy.level {
            TestLevel::Quick => VerifyLevel::Quick,
            TestLevel::Full => VerifyLevel::Full,
            TestLevel::Checksum => VerifyLevel::Checksum,
        },
        point: point(test),
        members: expectations(backup, members),
        max_lag: Some(backup.spec.replication.max_lag),
        checks: checks(backup),
    }
}

fn point(test: &RestoreTest) -> Point {
    let at = &test.spec.at;
    match (&at.timestamp, &at.txid) {
        (Some(time), _) => Point::Timestamp(time.0),
        (None, Some(txid)) => Point::Txid(txid.clone()),
        (None, None) => Point::Latest,
    }
}

/// The members that run, else those that ran last, else the one that a Deployment has.
fn expectations(backup: &SqliteBackup, members: &[Member<'_>]) -> Vec<MemberExpectation> {
    let mut found: BTreeMap<String, Vec<DatabaseExpectation>> = BTreeMap::new();
    let mut left = EXPECTATIONS_MAX;
    for member in members {
        let databases = found.entry(member.name.clone()).or_default();
        let acknowledged = member.answer().map(acknowledged).unwrap_or_default();
        let room = left.min(acknowledged.len());
        left -= room;
        databases.extend(acknowledged.into_iter().take(room));
    }
    if found.is_empty() {
        let known = backup
            .status
            .iter()
            .flat_map(|s| &s.members)
            .map(|m| m.name.clone());
        found.extend(known.map(|name| (name, Vec::new())));
    }
    if found.is_empty() {
        found.insert(key(backup).1, Vec::new());
    }
    let expectation = |(member, databases)| MemberExpectation { member, databases };
    found.into_iter().map(expectation).collect()
}

fn acknowledged(status: &SidecarStatus) -> Vec<DatabaseExpectation> {
    let mut all = Vec::new();
    for database in &status.databases {
        for target in &database.targets {
            if let Some(position) = &target.position {
                all.push(DatabaseExpectation {
                    path: database.path.clone(),
                    target: target.name.clone(),
                    acknowledged: position.clone(),
                    lag_ms: target.lag_ms,
                });
            }
        }
    }
    all
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
