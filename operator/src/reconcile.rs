//! The loops: observe, plan, apply, wait.
//!
//! Webhook entries have their own loop, so that a Pod that is created right after its SqliteBackup
//! does not wait for other writes.

use std::sync::Arc;
use std::time::Duration;

use api::names::WEBHOOK_CONFIGURATION;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::apply::Applier;
use crate::certs::Bundle;
use crate::metrics::Figures;
use crate::observe::Observer;
use crate::plan::webhook::Endpoint;
use crate::plan::{self, Settings};

/// Minimum time between two passes. Changes in between are handled together.
const PAUSE: Duration = Duration::from_millis(50);

/// Maximum time between two passes, for changes without a watch, such as a deleted ConfigMap.
const PASS_AT_LEAST: Duration = Duration::from_secs(30);

/// Time to the next pass after a failed write. It doubles with each failure in a row.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The main loop: observe, plan, apply.
#[derive(Debug)]
pub struct Reconciler {
    /// Source of the observed state.
    pub observer: Arc<Observer>,
    /// Executor of the plans.
    pub applier: Arc<Applier>,
    /// Settings from the command line.
    pub settings: Settings,
    /// Metrics of the loop.
    pub figures: Figures,
    /// True while this replica leads.
    pub leader: watch::Receiver<bool>,
}

impl Reconciler {
    /// Runs until `shutdown`. Writes only while this replica leads and after every list is
    /// complete.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut failures = 0u32;
        let mut led = false;
        let mut changes = self.observer.changes();
        loop {
            let leads = *self.leader.borrow_and_update();
            if leads && !led {
                self.observer.forget();
            }
            led = leads;
            let mut wait = PASS_AT_LEAST;
            if leads && self.observer.is_ready() {
                let Some(pass) = while_leading(&self.leader, self.pass()).await else {
                    continue;
                };
                failures = if pass.failed { failures + 1 } else { 0 };
                wait = wait.min(pass.wait);
                if pass.failed {
                    wait = wait.min(retry(failures));
                }
            }
            let changed = async {
                sleep(PAUSE).await;
                // After a failure, a change must not trigger the next attempt at once.
                if failures > 0 {
                    sleep(retry(failures).saturating_sub(PAUSE)).await;
                }
                let _ = changes.changed().await;
            };
            tokio::select! {
                () = changed => {}
                () = sleep(wait.max(PAUSE)) => {}
                _ = self.leader.changed() => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
        }
    }

    async fn pass(&self) -> Pass {
        let now = Timestamp::now();
        self.observer.watch_pods();
        let cluster = self.observer.cluster_state(now);
        let started = std::time::Instant::now();
        let plan = plan::plan(&cluster, &self.settings);
        drop(cluster);
        let wait = plan.wake.map_or(PASS_AT_LEAST, |at| {
            // Slightly later, so that the time has passed in the next pass.
            Duration::try_from(at.duration_since(now)).unwrap_or_default() + PAUSE
        });
        let outcome = self.applier.apply(plan).await;
        self.figures.pass(started.elapsed(), outcome);
        Pass {
            failed: outcome.failed > 0,
            wait,
        }
    }
}

/// The loop that writes the webhook entries.
#[derive(Debug)]
pub struct WebhookKeeper {
    /// Source of the observed state.
    pub observer: Arc<Observer>,
    /// Executor of the plans.
    pub applier: Arc<Applier>,
    /// Address of the webhook for API servers.
    pub endpoint: Endpoint,
    /// The bundle that entries must trust.
    pub bundle: watch::Receiver<Option<Bundle>>,
    /// True while this replica leads.
    pub leader: watch::Receiver<bool>,
}

impl WebhookKeeper {
    /// Runs until `shutdown`. Writes only while this replica leads and after every list is
    /// complete.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut changes = self.observer.changes();
        let mut failures = 0u32;
        let mut missing = false;
        loop {
            changes.mark_unchanged();
            let leads = *self.leader.borrow_and_update();
            if leads && self.observer.is_ready() {
                let entries = self.observer.webhook_entries();
                if entries.is_none() && !missing {
                    tracing::error!(
                        object = WEBHOOK_CONFIGURATION,
                        "the webhook configuration does not exist: new Pods get no sidecars"
                    );
                }
                missing = entries.is_none();
                let bundle = self.bundle.borrow_and_update().clone();
                let plan = plan::webhook::plan(
                    &self.observer.backups(),
                    entries.as_deref(),
                    bundle.as_ref().map(|b| b.ca_pem.as_str()),
                    &self.endpoint,
                );
                let write = self.applier.apply(plan);
                let Some(outcome) = while_leading(&self.leader, write).await else {
                    continue;
                };
                failures = if outcome.failed > 0 { failures + 1 } else { 0 };
            }
            // After a failure wait for the retry: it covers changes in between.
            let calm = failures == 0;
            tokio::select! {
                _ = changes.changed(), if calm => {}
                _ = self.bundle.changed(), if calm => {}
                () = sleep(retry(failures)), if !calm => {}
                _ = self.leader.changed() => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
        }
    }
}

/// Runs `work` while this replica leads. `None`: leadership ended first, and `work` was dropped
/// together with its request, because another leader may write by then.
async fn while_leading<F: Future>(leader: &watch::Receiver<bool>, work: F) -> Option<F::Output> {
    let mut leader = leader.clone();
    tokio::select! {
        output = work => Some(output),
        _ = leader.wait_for(|leads| !*leads) => None,
    }
}

/// Result of one pass.
struct Pass {
    failed: bool,
    wait: Duration,
}

fn retry(failures: u32) -> Duration {
    RETRY_FIRST
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(RETRY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tried_again_ever_more_slowly() {
        let waits: Vec<u64> = (1..8).map(|n| retry(n).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
