//! Summary of a sidecar's answer, with the parts that plans need. Its size has limits, however many
//! databases the sidecar has: [`KEPT_BYTES`] for positions, [`TEXT_MAX`] characters for each text.
//!
//! Answers come from Pods of users and are not trusted. An answer is summarized while it is read,
//! database by database, so a long one never becomes a large object in memory. Figures are clamped
//! to the range that the API server can store.

use std::fmt;

use jiff::Timestamp;
use protocol::status::{DatabaseState, DatabaseStatus, TargetState, TargetStatus};
use protocol::verify::DatabaseExpectation;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

/// Limit on the acknowledged positions of one sidecar, in bytes of JSON. It holds about 300
/// positions with ordinary paths, and 90 with the longest. A restore test has room for twice as
/// much.
pub const KEPT_BYTES: usize = 64 << 10;

/// Limit on each text, in characters.
pub const TEXT_MAX: usize = 512;

/// Digits of a TXID and of a checksum.
const DIGITS: usize = 16;

/// The largest number that the API server can store.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// Summary of one answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Whether it has read a configuration.
    pub is_configured: bool,
    /// Number of its databases.
    pub count: usize,
    /// Total size of its databases, in bytes.
    pub size_bytes: u64,
    /// Age of the oldest commit that some target has not stored, in milliseconds.
    pub lag_ms: u64,
    /// Bytes captured and not stored in every target.
    pub backlog_bytes: u64,
    /// Time at which a target last acknowledged data.
    pub last_sync: Option<Timestamp>,
    /// The first database of each state.
    pub databases: Vec<DatabaseSeen>,
    /// The target with the longest lag of each combination of state, [`TargetSeen::is_stored`] and
    /// [`TargetSeen::rotation_pending`].
    pub targets: Vec<TargetSeen>,
    /// The newest acknowledged positions in the order of the databases, up to [`KEPT_BYTES`].
    pub acknowledged: Vec<DatabaseExpectation>,
}

/// A database that represents all databases in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSeen {
    /// Its path.
    pub path: String,
    /// State of its replication.
    pub state: DatabaseState,
    /// Cause of the state, for people.
    pub message: String,
}

/// A target that represents all targets in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSeen {
    /// Path of the database.
    pub path: String,
    /// Name of the target.
    pub name: String,
    /// State of the target.
    pub state: TargetState,
    /// Last failure, for people.
    pub message: String,
    /// Whether it ever stored a position.
    pub is_stored: bool,
    /// Age of the oldest commit that it has not stored, in milliseconds.
    pub lag_ms: u64,
    /// Whether the store refuses new credentials.
    pub rotation_pending: bool,
}

impl TargetSeen {
    fn stands_for(&self) -> (TargetState, bool, bool) {
        (self.state, self.is_stored, self.rotation_pending)
    }
}

/// A received answer, with its version and origin.
#[derive(Debug)]
pub struct Received {
    /// Version of the answer.
    pub version: u32,
    /// The SqliteBackup of the sidecar, as `namespace/name`.
    pub backup: String,
    /// The summary.
    pub answer: Answer,
}

/// Reads the JSON of a [`protocol::status::SidecarStatus`].
///
/// # Errors
/// When the JSON is not a status.
pub fn read(json: &[u8]) -> Result<Received, serde_json::Error> {
    let sent: Sent = serde_json::from_slice(json)?;
    let SummedUp { mut answer, .. } = sent.databases;
    answer.is_configured = !sent.config_hash.is_empty();
    answer.acknowledged.shrink_to_fit();
    Ok(Received {
        version: sent.version,
        backup: sent.backup,
        answer,
    })
}

/// Cuts text of a user's Pod to [`TEXT_MAX`] characters.
pub fn clipped(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The relevant fields of a [`protocol::status::SidecarStatus`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    version: u32,
    #[serde(default)]
    backup: String,
    config_hash: String,
    databases: SummedUp,
}

/// The databases of an answer, one at a time in memory.
struct SummedUp {
    answer: Answer,
    room: usize,
}

impl<'de> Deserialize<'de> for SummedUp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<SummedUp, D::Error> {
        struct Databases;
        impl<'de> Visitor<'de> for Databases {
            type Value = SummedUp;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of databases")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<SummedUp, A::Error> {
                let mut sum = SummedUp {
                    answer: Answer::default(),
                    room: KEPT_BYTES,
                };
                while let Some(database) = list.next_element()? {
                    sum.add(&database);
                }
                Ok(sum)
            }
        }
        deserializer.deserialize_seq(Databases)
    }
}

impl SummedUp {
    fn add(&mut self, database: &DatabaseStatus) {
        let answer = &mut self.answer;
        answer.count += 1;
        answer.size_bytes = sum(answer.size_bytes, database.size_bytes);
        if answer.databases.iter().all(|d| d.state != database.state) {
            answer.databases.push(DatabaseSeen {
                path: clipped(&database.path),
                state: database.state,
                message: clipped(&database.message),
            });
        }
        for target in &database.targets {
            self.add_target(database, target);
        }
    }

    fn add_target(&mut self, database: &DatabaseStatus, target: &TargetStatus) {
        let answer = &mut self.answer;
        answer.lag_ms = answer.lag_ms.max(target.lag_ms.min(NUMBER_MAX));
        answer.backlog_bytes = sum(answer.backlog_bytes, target.backlog_bytes);
        // The API server rejects times before year 1.
        let synced = target.last_sync.filter(|at| *at >= Timestamp::UNIX_EPOCH);
        answer.last_sync = answer.last_sync.max(synced);

        let seen = TargetSeen {
            path: String::new(),
            name: String::new(),
            state: target.state,
            message: String::new(),
            is_stored: target.position.is_some(),
            lag_ms: target.lag_ms.min(NUMBER_MAX),
            rotation_pending: (target.credentials.as_ref()).is_some_and(|c| c.rotation_pending),
        };
        let same = |t: &TargetSeen| t.stands_for() == seen.stands_for();
        let place = answer.targets.iter().position(same);
        if place.is_none_or(|place| answer.targets[place].lag_ms < seen.lag_ms) {
            let seen = TargetSeen {
                path: clipped(&database.path),
                name: clipped(&target.name),
                message: clipped(&target.message),
                ..seen
            };
            match place {
                Some(place) => answer.targets[place] = seen,
                None => answer.targets.push(seen),
            }
        }
        self.keep_position(database, target);
    }

    fn keep_position(&mut self, database: &DatabaseStatus, target: &TargetStatus) {
        let Some(position) = &target.position else {
            return;
        };
        // A position that cannot fit is not copied.
        let texts = database.path.len() + target.name.len();
        let proper = position.txid.len() == DIGITS && position.checksum.len() == DIGITS;
        if !proper || texts > self.room {
            return;
        }
        let expectation = DatabaseExpectation {
            path: database.path.clone(),
            target: target.name.clone(),
            acknowledged: position.clone(),
            lag_ms: target.lag_ms,
        };
        match self.room.checked_sub(json_bytes(&expectation)) {
            Some(room) => {
                self.room = room;
                self.answer.acknowledged.push(expectation);
            }
            // Stop at the first position that does not fit: the summary stays the same between
            // polls.
            None => self.room = 0,
        }
    }
}

/// Size of an expectation in a JSON list with its comma, in bytes.
pub fn json_bytes(expectation: &DatabaseExpectation) -> usize {
    let json = serde_json::to_string(expectation).expect("an expectation is plain data");
    json.len() + 1
}

fn sum(one: u64, other: u64) -> u64 {
    one.saturating_add(other).min(NUMBER_MAX)
}

#[cfg(test)]
mod tests {
    use protocol::status::Position;
    use serde_json::{Value, json};

    use super::*;
    use crate::poll::ANSWER_BYTES;

    fn position() -> Position {
        Position {
            txid: "000000000000000a".into(),
            checksum: "00c0ffee00c0ffee".into(),
            time: "2026-11-20T11:59:59.123456789Z".parse().unwrap(),
        }
    }

    fn target(name: &str, state: &str, lag_ms: u64) -> Value {
        json!({
            "name": name, "state": state, "position": position(), "lagMs": lag_ms,
            "backlogBytes": 10, "lastSync": "2026-11-20T11:59:59.123456789Z",
            "lastSnapshot": "2026-11-20T08:00:01.123456789Z", "epoch": 3,
            "credentials": {"fingerprint": "9f86d081884c7d65", "since": "2026-11-20T08:00:00Z",
                            "rotationPending": false},
        })
    }

    fn database(path: &str, state: &str, targets: &[Value]) -> Value {
        json!({
            "path": path, "state": state, "position": position(), "sizeBytes": 100,
            "targets": targets,
        })
    }

    fn json(databases: &[Value]) -> Vec<u8> {
        let status = json!({
            "version": 1, "program": "0.1.0", "backup": "shop/orders", "member": "orders-0",
            "configHash": "9f86", "started": "2026-11-20T08:00:00Z", "now": "2026-11-20T12:00:00Z",
            "databases": databases,
        });
        serde_json::to_vec(&status).unwrap()
    }

    fn answer(databases: &[Value]) -> Answer {
        read(&json(databases)).unwrap().answer
    }

    #[test]
    fn every_state_keeps_an_example_and_figures_add_up() {
        let seen = answer(&[
            database("/a", "Replicating", &[target("one", "Ok", 5)]),
            database("/b", "NotWal", &[]),
            database(
                "/c",
                "Replicating",
                &[target("one", "Ok", 9), target("two", "Denied", 0)],
            ),
            database("/d", "Replicating", &[target("one", "Ok", 9)]),
        ]);
        let databases: Vec<_> = seen.databases.iter().map(|d| d.path.as_str()).collect();
        assert_eq!(databases, ["/a", "/b"], "the first of each state");
        let targets: Vec<_> = seen.targets.iter().map(|t| (&*t.path, &*t.name)).collect();
        assert_eq!(targets, [("/c", "one"), ("/c", "two")], "with the most lag");
        assert_eq!((seen.count, seen.size_bytes), (4, 400));
        assert_eq!((seen.lag_ms, seen.backlog_bytes), (9, 40));
        assert_eq!(seen.last_sync, Some(position().time));
        assert_eq!(seen.acknowledged.len(), 4);
        assert!(seen.is_configured);
    }

    #[test]
    fn what_was_never_stored_or_waits_for_credentials_has_an_example_of_its_own() {
        let mut never = target("one", "Ok", 0);
        never["position"] = Value::Null;
        let mut pending = target("one", "Ok", 0);
        pending["credentials"]["rotationPending"] = json!(true);
        let all = [target("one", "Ok", 0), never, pending];
        let seen = answer(&[database("/a", "Idle", &all)]);
        assert_eq!(seen.targets.len(), 3);
    }

    #[test]
    fn ten_thousand_databases_fit_into_an_answer_and_little_of_them_is_kept() {
        let targets = [target("primary", "Ok", 0), target("secondary", "Ok", 0)];
        let path = |index: usize| format!("/data/tenants/{index:08}-3f29c1/application.db");
        let databases: Vec<Value> = (0..10_000)
            .map(|index| database(&path(index), "Replicating", &targets))
            .collect();
        let text = json(&databases);
        assert!(text.len() < ANSWER_BYTES, "{}", text.len());
        let seen = read(&text).unwrap().answer;
        assert_eq!((seen.count, seen.size_bytes), (10_000, 1_000_000));
        assert_eq!((seen.databases.len(), seen.targets.len()), (1, 1));
        let kept = serde_json::to_string(&seen.acknowledged).unwrap().len();
        assert!((KEPT_BYTES - 300..=KEPT_BYTES).contains(&kept), "{kept}");
        assert!(seen.acknowledged.len() > 250, "{}", seen.acknowledged.len());
        assert_eq!(
            seen.acknowledged.last().unwrap().path,
            path(seen.acknowledged.len() / 2)
        );
    }

    #[test]
    fn texts_are_cut_and_figures_held_to_what_the_api_server_can_store() {
        let long = "ü".repeat(100_000);
        let mut wild = target(&long, "Ok", u64::MAX);
        wild["message"] = json!(long);
        wild["backlogBytes"] = json!(u64::MAX);
        wild["lastSync"] = json!("-000044-03-15T12:00:00Z");
        let mut database = database(&long, "Failed", &[wild.clone(), wild]);
        database["message"] = json!(long);
        database["sizeBytes"] = json!(u64::MAX);
        let seen = answer(&[database]);
        let (d, t) = (&seen.databases[0], &seen.targets[0]);
        for text in [&d.path, &d.message, &t.path, &t.name, &t.message] {
            assert_eq!(text.chars().count(), TEXT_MAX + 1);
            assert!(text.ends_with('…'));
        }
        for figure in [seen.size_bytes, seen.lag_ms, seen.backlog_bytes, t.lag_ms] {
            assert_eq!(figure, NUMBER_MAX);
        }
        assert_eq!(seen.last_sync, None);
        assert_eq!(seen.acknowledged, []);
    }

    #[test]
    fn positions_that_are_none_are_not_kept() {
        let mut odd = target("one", "Ok", 0);
        odd["position"]["txid"] = json!("1".repeat(10_000));
        let seen = answer(&[database("/a", "Idle", &[odd, target("two", "Ok", 0)])]);
        let kept: Vec<_> = seen
            .acknowledged
            .iter()
            .map(|a| a.target.as_str())
            .collect();
        assert_eq!(kept, ["two"]);
    }

    #[test]
    fn a_list_of_targets_without_end_is_no_answer() {
        let many = vec![target("one", "Ok", 0); protocol::status::TARGETS_MAX + 1];
        assert!(read(&json(&[database("/a", "Idle", &many[1..])])).is_ok());
        let error = read(&json(&[database("/a", "Idle", &many)])).unwrap_err();
        assert!(error.to_string().contains("at most 16 targets"), "{error}");
    }
}
