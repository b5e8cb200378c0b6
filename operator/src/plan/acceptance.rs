//! Acceptance of SqliteBackups: each is put in force or refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::SqliteBackup;
use api::names::reason;
use api::validate::{self, Refusal};
use jiff::Timestamp;

use super::key;
use crate::cache::Key;
use crate::cluster_state::{ClusterState, PodFacts};
use crate::schedule::Schedule;

/// Decision on one SqliteBackup.
#[derive(Debug, Clone)]
pub enum Acceptance {
    /// It is in force, with this schedule.
    Accepted(Box<Schedule>),
    /// It is not in force.
    Refused(Refused),
}

/// Reason for which a SqliteBackup is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Reason of the condition `Ready`.
    pub reason: &'static str,
    /// Message for people.
    pub message: String,
    /// Reason of the condition `WriterConflict`; only for a conflict.
    pub conflict: Option<&'static str>,
}

impl Acceptance {
    /// The schedule of an accepted SqliteBackup.
    pub fn schedule(&self) -> Option<&Schedule> {
        match self {
            Acceptance::Accepted(schedule) => Some(schedule),
            Acceptance::Refused(_) => None,
        }
    }
}

/// Decides on every SqliteBackup, alone and against the others. Of two in conflict the older one
/// stays in force, so that a second one never disturbs the first.
pub fn decide(cluster: &ClusterState) -> BTreeMap<Key, Acceptance> {
    let mut order: Vec<&Arc<SqliteBackup>> = cluster.backups.iter().collect();
    order.sort_by_key(|b| (seniority(b), key(b)));

    let mut destinations: BTreeMap<String, Key> = BTreeMap::new();
    let mut seniors: BTreeMap<String, Vec<Key>> = BTreeMap::new();
    let by_key: BTreeMap<Key, &Arc<SqliteBackup>> =
        cluster.backups.iter().map(|b| (key(b), b)).collect();
    let mut acceptances = BTreeMap::new();
    for backup in order {
        let own = key(backup);
        let pods = cluster.pods.get(&own.0).map_or(&[][..], Vec::as_slice);
        let seniors = seniors.entry(own.0.clone()).or_default();
        let acceptance = match alone(backup) {
            Err(refused) => Acceptance::Refused(refused),
            Ok(schedule) => {
                let rival = same_destination(backup, &destinations).or_else(|| {
                    let rivals = seniors.iter().filter_map(|k| by_key.get(k));
                    same_pods(backup, rivals.map(|b| &***b), pods)
                });
                match rival {
                    Some(refused) => Acceptance::Refused(refused),
                    None => Acceptance::Accepted(Box::new(schedule)),
                }
            }
        };
        if acceptance.schedule().is_some() {
            for place in validate::destinations(backup) {
                destinations.entry(place).or_insert_with(|| own.clone());
            }
            seniors.push(own.clone());
        }
        acceptances.insert(own, acceptance);
    }
    acceptances
}

fn seniority(backup: &SqliteBackup) -> Timestamp {
    backup
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or(Timestamp::MAX, |t| t.0)
}

fn alone(backup: &SqliteBackup) -> Result<Schedule, Refused> {
    let refused = |reason, message: String| Refused {
        reason,
        message,
        conflict: None,
    };
    validate::validate(&backup.spec).map_err(|refusal| match refusal {
        Refusal::NotServed { .. } => refused(reason::NOT_SERVED, refusal.to_string()),
        _ => refused(reason::INVALID, refusal.to_string()),
    })?;
    let test = &backup.spec.restore_test;
    let uid = backup.metadata.uid.as_deref().unwrap_or_default();
    Schedule::parse(&test.schedule, &test.time_zone, uid)
        .map_err(|e| refused(reason::INVALID, format!("spec.restoreTest.schedule: {e}")))
}

fn same_destination(backup: &SqliteBackup, taken: &BTreeMap<String, Key>) -> Option<Refused> {
    let places = validate::destinations(backup);
    let (namespace, name) = places.iter().find_map(|place| taken.get(place))?;
    Some(Refused {
        reason: reason::CONFLICT,
        message: format!(
            "SqliteBackup {namespace}/{name} writes to the same destination; \
             give this one another bucket or prefix"
        ),
        conflict: Some(reason::SAME_DESTINATION),
    })
}

fn same_pods<'a>(
    backup: &SqliteBackup,
    rivals: impl Iterator<Item = &'a SqliteBackup>,
    pods: &[Arc<PodFacts>],
) -> Option<Refused> {
    let selector = &backup.spec.selector;
    let mine: Vec<_> = pods
        .iter()
        .filter(|p| p.is_live() && selector.matches(&p.labels))
        .collect();
    for rival in rivals {
        let theirs = &rival.spec.selector;
        let same = theirs == selector;
        let both = mine.iter().find(|p| theirs.matches(&p.labels));
        if same || both.is_some() {
            let what = match both {
                Some(pod) => format!("selects Pod {} too", pod.name),
                None => "has the same selector".to_owned(),
            };
            let name = rival.metadata.name.as_deref().unwrap_or_default();
            return Some(Refused {
                reason: reason::CONFLICT,
                message: format!("SqliteBackup {name} {what}; a Pod can have only one"),
                conflict: Some(reason::SAME_PODS),
            });
        }
    }
    None
}
