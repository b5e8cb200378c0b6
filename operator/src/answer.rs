//! What is kept of a sidecar's answer: what plans need of it, and never more than [`KEPT_BYTES`] for
//! positions and [`TEXT_MAX`] characters for each text, however many databases it has.
//!
//! What sidecars say comes from Pods of users. It is summed up while it is read, database by
//! database, so that a long answer does not become a large object of ours; figures are held to what
//! the API server can store.

use std::fmt;

use jiff::Timestamp;
use protocol::status::{DatabaseState, DatabaseStatus, TargetState, TargetStatus};
use protocol::verify::DatabaseExpectation;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

/// Most bytes of acknowledged positions that are kept of one sidecar, counted as JSON: some 300 with
/// ordinary paths, 90 with the longest. A restore test has room for twice as much.
pub const KEPT_BYTES: usize = 64 << 10;

/// Longest text that is kept, in characters.
pub const TEXT_MAX: usize = 512;

/// Digits of a TXID and of a checksum.
const DIGITS: usize = 16;

/// The largest number that the API server can store.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// What a sidecar answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Whether it has read a configuration.
    pub is_configured: bool,
    /// How many databases it knows.
    pub count: usize,
    /// Sizes of all of them, in bytes.
    pub size_bytes: u64,
    /// Age in milliseconds of the oldest commit that some target lacks.
    pub lag_ms: u64,
    /// Bytes that wait for some target.
    pub backlog_bytes: u64,
    /// When some target last acknowledged something.
    pub last_sync: Option<Timestamp>,
    /// For each state in which there are databases, the first of them.
    pub databases: Vec<DatabaseSeen>,
    /// For each state in which there are targets, by whether anything was stored and whether new
    /// credentials wait: the target that lags most.
    pub targets: Vec<TargetSeen>,
    /// The newest acknowledged positions, in the order of the databases, as far as they fit.
    pub acknowledged: Vec<DatabaseExpectation>,
}

/// A database that stands for all in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSeen {
    /// Its path.
    pub path: String,
    /// What the sidecar does with it.
    pub state: DatabaseState,
    /// Why, for people.
    pub message: String,
}

/// A target of a database that stands for all in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSeen {
    /// Path of the database.
    pub path: String,
    /// Name of the target.
    pub name: String,
    /// How it goes.
    pub state: TargetState,
    /// What failed last, for people.
    pub message: String,
    /// Whether anything was ever stored.
    pub is_stored: bool,
    /// Age in milliseconds of the oldest commit that it lacks.
    pub lag_ms: u64,
    /// New credentials are there, and the store refuses them.
    pub rotation_pending: bool,
}

impl TargetSeen {
    fn stands_for(&self) -> (TargetState, bool, bool) {
        (self.state, self.is_stored, self.rotation_pending)
    }
}

/// An answer as it came, with what tells whether it counts.
#[derive(Debug)]
pub struct Received {
    /// Version of the answer.
    pub version: u32,
    /// The SqliteBackup that it is about, as `namespace/name`.
    pub backup: String,
    /// What it says.
    pub answer: Answer,
}

/// Reads the JSON of a [`protocol::status::SidecarStatus`].
///
/// # Errors
/// It is not understood.
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

/// Text of users' Pods, cut to what is kept.
pub fn clipped(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// The fields of a [`protocol::status::SidecarStatus`] that matter.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    version: u32,
    #[serde(default)]
    backup: String,
    config_hash: String,
    databases: SummedUp,
}

/// Databases of which one at a time is in memory.
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
        // The API server knows no times before our era.
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
        // What cannot fit is not even copied.
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
            // From here on nothing is kept, so that what is kept does not change with each look.
            None => self.room = 0,
        }
    }
}

/// Bytes that an expectation takes in a list of JSON, with its comma.
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
