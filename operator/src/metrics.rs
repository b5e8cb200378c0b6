//! Metrics about SqliteBackups and about the operator.
//!
//! Each scrape builds the series of a SqliteBackup from its stored status: they survive restarts of
//! the operator and disappear with the object. Only the leader exposes them, so that each exists
//! once.

use std::sync::Arc;
use std::time::Duration;

use api::SqliteBackup;
use api::status::{ReplicationStatus, TestSummary};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::apply::Outcome;
use crate::certs::Serving;
use crate::observe::Observer;

/// Labels of one series.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Metrics of the reconcile loop. Clones share them.
#[derive(Debug, Clone)]
pub struct Figures {
    seconds: Histogram,
    writes: Counter,
    errors: Counter,
}

impl Default for Figures {
    fn default() -> Self {
        Figures {
            // From 1 ms to 33 s.
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            writes: Counter::default(),
            errors: Counter::default(),
        }
    }
}

impl Figures {
    /// Registers the metrics under `sqlite_backup_operator_`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "sqlite_backup_operator_pass_duration_seconds",
            "Time of one pass: plan and writes",
            self.seconds.clone(),
        );
        registry.register(
            "sqlite_backup_operator_writes",
            "Writes to the API server that succeeded",
            self.writes.clone(),
        );
        registry.register(
            "sqlite_backup_operator_write_errors",
            "Writes to the API server that failed; each is tried again",
            self.errors.clone(),
        );
    }

    /// Counts one pass.
    pub(crate) fn pass(&self, took: Duration, outcome: Outcome) {
        self.seconds.observe(took.as_secs_f64());
        self.writes.inc_by(outcome.written);
        self.errors.inc_by(outcome.failed);
    }
}

/// Collector of the metrics that are built at each scrape.
#[derive(Debug)]
pub struct Live {
    /// Source of the SqliteBackups.
    pub observer: Arc<Observer>,
    /// True while this replica leads.
    pub leader: watch::Receiver<bool>,
    /// The served certificate.
    pub serving: watch::Receiver<Option<Serving>>,
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let leads = *self.leader.borrow();
        let own: Vec<(Labels<'_>, f64)> = vec![(Vec::new(), f64::from(u8::from(leads)))];
        family(
            &mut encoder,
            "sqlite_backup_operator_leader",
            "1 while this replica leads",
            own,
        )?;
        let expiry = self.serving.borrow().as_ref().map(|s| seconds(s.not_after));
        family(
            &mut encoder,
            "sqlite_backup_operator_certificate_expiry_timestamp_seconds",
            "End of the served certificate",
            expiry.map(|at| (Vec::new(), at)).into_iter().collect(),
        )?;
        if leads {
            backups(&mut encoder, &self.observer.backups())?;
        }
        Ok(())
    }
}

fn backups(
    encoder: &mut DescriptorEncoder<'_>,
    backups: &[Arc<SqliteBackup>],
) -> Result<(), std::fmt::Error> {
    conditions(encoder, backups)?;
    pods(encoder, backups)?;
    figures(encoder, backups)
}

fn conditions(
    encoder: &mut DescriptorEncoder<'_>,
    backups: &[Arc<SqliteBackup>],
) -> Result<(), std::fmt::Error> {
    let mut series = Vec::new();
    for backup in backups {
        for condition in backup.status.iter().flat_map(|s| &s.conditions) {
            let mut labels = labels(backup);
            labels.push(("type", &condition.type_));
            labels.push(("status", &condition.status));
            labels.push(("reason", &condition.reason));
            series.push((labels, 1.0));
        }
    }
    let help = "1 for the present status and reason of each condition";
    family(encoder, "sqlite_backup_condition", help, series)
}

fn pods(
    encoder: &mut DescriptorEncoder<'_>,
    backups: &[Arc<SqliteBackup>],
) -> Result<(), std::fmt::Error> {
    let mut series = Vec::new();
    for backup in backups {
        let Some(pods) = backup.status.as_ref().and_then(|s| s.pods.as_ref()) else {
            continue;
        };
        let states = [
            ("desired", pods.desired),
            ("injected", pods.injected),
            ("replicating", pods.replicating),
            ("outdated", pods.outdated),
        ];
        for (state, count) in states {
            let mut labels = labels(backup);
            labels.push(("state", state));
            series.push((labels, f64::from(count)));
        }
    }
    family(
        encoder,
        "sqlite_backup_pods",
        "Selected Pods by state",
        series,
    )
}

/// Families with one series for each SqliteBackup that has a value.
fn figures(
    encoder: &mut DescriptorEncoder<'_>,
    backups: &[Arc<SqliteBackup>],
) -> Result<(), std::fmt::Error> {
    type Value = fn(&SqliteBackup) -> Option<f64>;
    let families: [(&str, &str, Value); 10] = [
        (
            "sqlite_backup_created_timestamp_seconds",
            "Creation time of the SqliteBackup",
            |b| b.metadata.creation_timestamp.as_ref().map(time),
        ),
        (
            "sqlite_backup_lag_seconds",
            "Age of the oldest commit that is not stored",
            |b| replication(b)?.lag_seconds.map(number),
        ),
        (
            "sqlite_backup_backlog_bytes",
            "Bytes captured and not stored",
            |b| replication(b)?.backlog_bytes.map(number),
        ),
        (
            "sqlite_backup_last_sync_timestamp_seconds",
            "Time at which a store last acknowledged data",
            |b| replication(b)?.last_sync_time.as_ref().map(time),
        ),
        (
            "sqlite_backup_restore_test_last_success_timestamp_seconds",
            "Time at which a restore test last passed",
            |b| test(b)?.last_success_time.as_ref().map(time),
        ),
        (
            "sqlite_backup_restore_test_last_finish_timestamp_seconds",
            "Time at which a restore test last ended",
            |b| test(b)?.last_finish_time.as_ref().map(time),
        ),
        (
            "sqlite_backup_restore_test_next_timestamp_seconds",
            "Time of the next scheduled restore test",
            |b| test(b)?.next_time.as_ref().map(time),
        ),
        (
            "sqlite_backup_restore_test_consecutive_failures",
            "Restore tests in a row that did not pass",
            |b| test(b).map(|t| f64::from(t.consecutive_failures)),
        ),
        (
            "sqlite_backup_restore_test_rpo_seconds",
            "Recovery point of the last passed restore test",
            |b| test(b)?.rpo_seconds.map(number),
        ),
        (
            "sqlite_backup_restore_test_rto_seconds",
            "Recovery time of the last passed restore test",
            |b| test(b)?.rto_seconds.map(number),
        ),
    ];
    for (name, help, value) in families {
        let series = backups
            .iter()
            .filter_map(|b| Some((labels(b), value(b)?)))
            .collect();
        family(encoder, name, help, series)?;
    }
    Ok(())
}

fn replication(backup: &SqliteBackup) -> Option<&ReplicationStatus> {
    backup.status.as_ref()?.replication.as_ref()
}

fn test(backup: &SqliteBackup) -> Option<&TestSummary> {
    backup.status.as_ref()?.restore_test.as_ref()
}

fn labels(backup: &SqliteBackup) -> Labels<'_> {
    vec![
        (
            "namespace",
            backup.metadata.namespace.as_deref().unwrap_or_default(),
        ),
        (
            "backup",
            backup.metadata.name.as_deref().unwrap_or_default(),
        ),
    ]
}

fn time(time: &Time) -> f64 {
    seconds(time.0)
}

fn seconds(at: Timestamp) -> f64 {
    number(u64::try_from(at.as_second()).unwrap_or_default())
}

/// Exact up to 2^53, which no time in seconds and no byte count here reaches.
fn number(value: u64) -> f64 {
    value as f64
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: Vec<(Labels<'_>, f64)>,
) -> Result<(), std::fmt::Error> {
    if series.is_empty() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        let gauge = ConstGauge::new(value);
        gauge.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
