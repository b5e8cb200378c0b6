//! Computes the desired state from the observed state: pure, so that every decision has a table
//! test.
//!
//! [`plan`] takes one [`ClusterState`] and returns the writes that lead to the desired state, and
//! the drafts of Events. The same state always gives the same plan. After a plan, whether executed
//! or not, the cluster is observed again. Plans share no memory; the observer holds the ConfigMaps
//! that were applied and the reports of sidecars.

pub mod acceptance;
pub mod conditions;
pub mod config;
pub mod events;
pub mod health;
pub mod job;
pub mod lag;
pub mod matching;
pub mod members;
pub mod requests;
pub mod restore_tests;
pub mod status;
pub mod verdict;
pub mod webhook;

use std::collections::BTreeMap;

use api::names::{condition, reason};
use api::restore::SqliteRestoreStatus;
use api::{RestoreTest, RestoreTestStatus, SqliteBackup, SqliteBackupStatus};
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;

use crate::cache::Key;
use crate::cluster_state::ClusterState;
use crate::inject;
use conditions::Conditions;
use events::EventDraft;

/// Settings from the command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Settings of the injected containers.
    pub inject: inject::Settings,
    /// Limit on restore tests that run at once in the cluster.
    pub tests_at_once: usize,
}

/// One write to the API server.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Apply a sidecar configuration.
    ConfigMap(Box<ConfigMap>),
    /// Apply the webhook entries.
    Webhooks(Box<MutatingWebhookConfiguration>),
    /// Create a scheduled run; it may exist already.
    CreateTest(Box<RestoreTest>),
    /// Delete an old run.
    DeleteTest(Key),
    /// Create the Job of a run; it may exist already.
    CreateJob(Box<Job>),
    /// Apply the status of a SqliteBackup.
    BackupStatus(Key, Box<SqliteBackupStatus>),
    /// Apply the status of a RestoreTest.
    TestStatus(Key, Box<RestoreTestStatus>),
    /// Apply the status of a SqliteRestore.
    RestoreStatus(Key, Box<SqliteRestoreStatus>),
}

/// Writes in their order, drafts of Events, and the time of the next plan.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The writes. After a failure the later writes for the same object are skipped.
    pub changes: Vec<Change>,
    /// Drafts of Events, which are written only after the writes for their object have succeeded.
    pub events: Vec<EventDraft>,
    /// Time at which the next plan is due even without a change.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn wake_at(&mut self, at: Option<Timestamp>) {
        self.wake = [self.wake, at].into_iter().flatten().min();
    }
}

/// Plans everything except webhook entries. [`webhook::plan`] plans those, so that they never wait
/// for other writes.
pub fn plan(cluster: &ClusterState, settings: &Settings) -> Plan {
    let mut plan = Plan::default();
    let acceptances = acceptance::decide(cluster);
    config::plan(cluster, &acceptances, &mut plan);
    let runs = restore_tests::plan(cluster, settings, &acceptances, &mut plan);
    for backup in &cluster.backups {
        let key = key(backup);
        // Without a list of the Pods nothing is known about this namespace yet.
        if !cluster.pods.contains_key(&key.0) {
            continue;
        }
        let Some(acceptance) = acceptances.get(&key) else {
            continue;
        };
        let run = runs.get(&key).cloned().unwrap_or_default();
        status::plan(cluster, settings, backup, acceptance, run, &mut plan);
    }
    unreadable(cluster, &mut plan);
    restores(cluster, &mut plan);
    plan
}

/// Sets `Ready` to False on SqliteBackups that cannot be read, and does nothing else with them.
fn unreadable(cluster: &ClusterState, plan: &mut Plan) {
    for bad in &cluster.unreadable {
        let mut conditions = Conditions::new(&[], bad.generation, cluster.now);
        let message = format!("the object cannot be read: {}", bad.error);
        conditions.set(condition::READY, false, reason::INVALID, message);
        let status = SqliteBackupStatus {
            observed_generation: bad.generation,
            conditions: conditions.finish(),
            ..SqliteBackupStatus::default()
        };
        plan.changes
            .push(Change::BackupStatus(bad.key.clone(), Box::new(status)));
    }
}

/// Sets `Served` to False on SqliteRestores: this version does not support them.
fn restores(cluster: &ClusterState, plan: &mut Plan) {
    for restore in &cluster.restores {
        let old = restore.status.clone().unwrap_or_default();
        let generation = restore.metadata.generation;
        let mut conditions = Conditions::new(&old.conditions, generation, cluster.now);
        let message = "this version does not support SqliteRestores; use `sqlite-backup restore`";
        conditions.set(condition::SERVED, false, reason::NOT_SERVED_YET, message);
        let status = SqliteRestoreStatus {
            observed_generation: generation,
            conditions: conditions.finish(),
        };
        if old != status {
            let key = (
                restore.metadata.namespace.clone().unwrap_or_default(),
                restore.metadata.name.clone().unwrap_or_default(),
            );
            plan.changes
                .push(Change::RestoreStatus(key, Box::new(status)));
        }
    }
}

/// Namespace and name of a SqliteBackup.
pub(crate) fn key(backup: &SqliteBackup) -> Key {
    (
        backup.metadata.namespace.clone().unwrap_or_default(),
        backup.metadata.name.clone().unwrap_or_default(),
    )
}

/// Labels of every object that the operator creates for a SqliteBackup.
pub(crate) fn labels(backup: &str) -> BTreeMap<String, String> {
    use api::names::{BACKUP, FIELD_MANAGER, MANAGED_BY_LABEL};
    BTreeMap::from([
        (MANAGED_BY_LABEL.to_owned(), FIELD_MANAGER.to_owned()),
        (BACKUP.to_owned(), backup.to_owned()),
    ])
}
