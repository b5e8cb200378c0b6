//! Counters of the webhook.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Outcome of a review.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum ReviewOutcome {
    /// The Pod got the containers, or a repair.
    Patched,
    /// The Pod had everything already.
    Already,
    /// No SqliteBackup selects the Pod.
    NotSelected,
    /// The Pod was selected and refused.
    Refused,
    /// The request was not a valid review.
    Malformed,
}

/// Labels of the counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: ReviewOutcome,
    /// Kind of the refusal, see [`crate::inject::Problem::kind`]; empty otherwise.
    reason: &'static str,
}

/// Metrics of the webhook. Clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    reviews: Family<Labels, Counter>,
    seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        // From 50 microseconds to 0.8 s.
        let seconds = Histogram::new(exponential_buckets(0.000_05, 2.0, 15));
        Metrics {
            reviews: Family::default(),
            seconds,
        }
    }
}

impl Metrics {
    /// Registers the metrics:
    /// `sqlite_backup_webhook_reviews_total{outcome,reason}` and
    /// `sqlite_backup_webhook_review_duration_seconds`. The registry has no prefix of its own.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "sqlite_backup_webhook_reviews",
            "Pods reviewed at admission, by what became of them",
            self.reviews.clone(),
        );
        registry.register(
            "sqlite_backup_webhook_review_duration_seconds",
            "Time to answer a review, without reading and sending it",
            self.seconds.clone(),
        );
    }

    pub(super) fn record(&self, outcome: ReviewOutcome, reason: &'static str, took: Duration) {
        self.reviews
            .get_or_create(&Labels { outcome, reason })
            .inc();
        self.seconds.observe(took.as_secs_f64());
    }
}
