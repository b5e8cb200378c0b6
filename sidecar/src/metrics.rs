//! Metrics, rendered at each scrape from the running databases: a series exists as long as its
//! database.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::commands::ShownDatabase;

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// Returns the metrics of these databases as OpenMetrics text.
pub fn render(databases: &[ShownDatabase]) -> String {
    let mut registry = Registry::with_prefix("sqlite_backup");
    let healthy = gauges(
        &mut registry,
        "database_healthy",
        "1 while commits are captured",
    );
    let size = gauges(&mut registry, "database_size_bytes", "Size of the database");
    let lag = gauges(
        &mut registry,
        "lag_seconds",
        "Age of the oldest commit that is not stored",
    );
    let backlog = gauges(
        &mut registry,
        "backlog_bytes",
        "Bytes captured and not stored",
    );
    let ok = gauges(
        &mut registry,
        "target_healthy",
        "1 when the last request succeeded",
    );
    let sync = gauges(
        &mut registry,
        "last_sync_timestamp_seconds",
        "When the store last acknowledged anything of this database",
    );
    let snapshot = gauges(
        &mut registry,
        "last_snapshot_timestamp_seconds",
        "When the newest snapshot was stored",
    );
    let checkpoints = counters(
        &mut registry,
        "blocking_checkpoints",
        "Times since the start that the application's writers waited for a checkpoint of ours, the \
         last resort against a log that grows without end",
    );
    let uploads = counters(&mut registry, "uploads", "Objects stored since the start");
    let bytes = counters(
        &mut registry,
        "uploaded_bytes",
        "Bytes stored since the start",
    );
    let errors = counters(
        &mut registry,
        "target_errors",
        "Failed attempts since the start",
    );
    let requests = counters(
        &mut registry,
        "store_requests",
        "Requests sent to the store since the start, each attempt counted",
    );
    for database in databases {
        let status = database.status();
        let labels: Labels = vec![("database", status.path.clone())];
        set(
            &healthy,
            &labels,
            if status.state.is_healthy() { 1.0 } else { 0.0 },
        );
        set(&size, &labels, status.size_bytes as f64);
        let blocking = database.blocking_checkpoints();
        checkpoints.get_or_create(&labels).inc_by(blocking);
        for target in &status.targets {
            let labels = with_target(&labels, &target.name);
            let healthy = target.state == protocol::status::TargetState::Ok;
            set(&lag, &labels, target.lag_ms as f64 / 1000.0);
            set(&backlog, &labels, target.backlog_bytes as f64);
            set(&ok, &labels, if healthy { 1.0 } else { 0.0 });
            if let Some(time) = target.last_sync {
                set(&sync, &labels, time.as_millisecond() as f64 / 1000.0);
            }
            if let Some(time) = target.last_snapshot {
                set(&snapshot, &labels, time.as_millisecond() as f64 / 1000.0);
            }
        }
        for (name, report) in database.counters() {
            let labels = with_target(&labels, &name);
            uploads.get_or_create(&labels).inc_by(report.uploads);
            bytes.get_or_create(&labels).inc_by(report.uploaded_bytes);
            errors.get_or_create(&labels).inc_by(report.errors);
        }
        for (target, sent) in database.requests() {
            for (kind, count) in sent.by_kind() {
                let mut labels = with_target(&labels, target);
                labels.push(("kind", kind.to_owned()));
                requests.get_or_create(&labels).inc_by(count);
            }
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes everything");
    text
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

fn set(gauges: &Gauges, labels: &Labels, value: f64) {
    gauges.get_or_create(labels).set(value);
}

fn with_target(labels: &Labels, target: &str) -> Labels {
    let mut labels = labels.clone();
    labels.push(("target", target.to_owned()));
    labels
}
