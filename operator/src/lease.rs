//! Leader election: the leader writes, and every replica serves the webhook.
//!
//! A Lease names its holder. Clocks of different machines are never compared: a replica regards the
//! lease as expired when it has observed no renewal for [`DURATION`], by its own monotonic clock. A
//! paused leader stops after [`GIVE_UP`] by its own clock, before another replica may take over.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Error};
use logging::chain;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};

/// Time without a renewal after which another replica may take the lease.
pub const DURATION: Duration = Duration::from_secs(12);

/// Time between two reads of the Lease, and between two renewals.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// Time without a successful renewal after which a leader stops. Shorter than [`DURATION`], so that
/// two replicas never lead at once.
pub const GIVE_UP: Duration = Duration::from_secs(8);

/// Time limit of one read and one write of the Lease.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Observed state of the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The holder; empty after a release.
    pub holder: String,
    /// `metadata.resourceVersion`, which changes with every renewal.
    pub version: String,
}

/// Next action on the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create it with this replica as holder.
    Create,
    /// Write this replica as holder: a renewal or a takeover.
    Write,
    /// Do nothing: another replica holds it.
    Wait,
}

/// Election state of one replica. Times are durations since any fixed start.
#[derive(Debug, Default)]
pub struct Candidate {
    name: String,
    seen: Option<(Seen, Duration)>,
    renewed: Option<Duration>,
}

impl Candidate {
    /// Creates a candidate with a unique name.
    pub fn new(name: impl Into<String>) -> Self {
        Candidate {
            name: name.into(),
            ..Candidate::default()
        }
    }

    /// Decides after a read. `lease` is `None` when the Lease does not exist.
    pub fn handle_look(&mut self, lease: Option<Seen>, now: Duration) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            return Step::Create;
        };
        let unchanged = self.seen.as_ref().filter(|(seen, _)| *seen == lease);
        let since = unchanged.map_or(now, |(_, since)| *since);
        let free = lease.holder.is_empty() || now.saturating_sub(since) >= DURATION;
        let ours = lease.holder == self.name;
        self.seen = Some((lease, since));
        if ours || free {
            Step::Write
        } else {
            Step::Wait
        }
    }

    /// Records a successful write. The renewal counts from `started`, the time of sending.
    pub fn handle_written(&mut self, started: Duration) {
        self.renewed = Some(started);
    }

    /// Records that another replica wrote first.
    pub fn handle_lost(&mut self) {
        self.renewed = None;
    }

    /// Whether this replica leads at `now`.
    pub fn leads(&self, now: Duration) -> bool {
        self.renewed
            .is_some_and(|at| now.saturating_sub(at) < GIVE_UP)
    }
}

/// Takes part in the election until `shutdown`, then releases the lease if this replica holds it.
///
/// `leader` is true while this replica leads; it starts as false.
pub async fn run(
    leases: Api<Lease>,
    lease_name: String,
    name: String,
    leader: watch::Sender<bool>,
    mut shutdown: watch::Receiver<bool>,
) {
    let start = Instant::now();
    let mut candidate = Candidate::new(name.clone());
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = shutdown.wait_for(|down| *down) => break,
        }
        let look = attempt(&leases, &lease_name, &name, &mut candidate, start);
        match timeout(REQUEST_TIMEOUT, look).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %chain(&error), "lease not read or not renewed")
            }
            Err(_) => tracing::warn!("lease not renewed: no answer in time"),
        }
        let leads = candidate.leads(start.elapsed());
        let changed = leader.send_if_modified(|held| std::mem::replace(held, leads) != leads);
        if changed {
            tracing::info!(leads, "leadership changed");
        }
    }
    leader.send_replace(false);
    if candidate.leads(start.elapsed()) {
        let released = timeout(REQUEST_TIMEOUT, release(&leases, &lease_name, &name)).await;
        if !matches!(released, Ok(Ok(()))) {
            tracing::warn!("lease not released; it expires after 12 s");
        }
    }
}

async fn attempt(
    leases: &Api<Lease>,
    lease_name: &str,
    name: &str,
    candidate: &mut Candidate,
    start: Instant,
) -> Result<(), Error> {
    let held = leases.get_opt(lease_name).await?;
    let seen = held.as_ref().map(seen);
    let sent = start.elapsed();
    let written = match candidate.handle_look(seen, sent) {
        Step::Wait => {
            candidate.handle_lost();
            return Ok(());
        }
        Step::Create => {
            leases
                .create(&PostParams::default(), &lease(lease_name, name, None))
                .await
        }
        Step::Write => {
            let next = lease(lease_name, name, held);
            leases
                .replace(lease_name, &PostParams::default(), &next)
                .await
        }
    };
    match written {
        Ok(_) => {
            candidate.handle_written(sent);
            Ok(())
        }
        Err(Error::Api(status)) if status.code == 409 => {
            candidate.handle_lost();
            Ok(())
        }
        Err(error) => Err(error),
    }
}

async fn release(leases: &Api<Lease>, lease_name: &str, name: &str) -> Result<(), Error> {
    let mut held = leases.get(lease_name).await?;
    let spec = held.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() == Some(name) {
        spec.holder_identity = Some(String::new());
        leases
            .replace(lease_name, &PostParams::default(), &held)
            .await?;
    }
    Ok(())
}

fn seen(lease: &Lease) -> Seen {
    let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone());
    Seen {
        holder: holder.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// Builds the Lease with this replica as holder. An existing Lease keeps its resource version, so
/// the write fails when another replica wrote first.
fn lease(lease_name: &str, name: &str, held: Option<Lease>) -> Lease {
    let now = MicroTime(Timestamp::now());
    let old = held.unwrap_or_default();
    let spec = old.spec.unwrap_or_default();
    let ours = spec.holder_identity.as_deref() == Some(name);
    let transitions = spec.lease_transitions.unwrap_or(0);
    Lease {
        metadata: ObjectMeta {
            name: Some(lease_name.to_owned()),
            ..old.metadata
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: spec.acquire_time.filter(|_| ours).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(holder: &str, version: u32) -> Option<Seen> {
        Some(Seen {
            holder: holder.into(),
            version: version.to_string(),
        })
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_missing_or_released_lease_is_taken_at_once() {
        let mut a = Candidate::new("a");
        assert_eq!(a.handle_look(None, secs(0)), Step::Create);
        assert_eq!(a.handle_look(held("", 1), secs(0)), Step::Write);
    }

    #[test]
    fn a_lease_that_is_renewed_is_never_taken() {
        let mut b = Candidate::new("b");
        for tick in 0..100 {
            assert_eq!(
                b.handle_look(held("a", tick), secs(u64::from(tick) * 11)),
                Step::Wait
            );
        }
    }

    #[test]
    fn a_silent_holder_loses_the_lease_after_its_whole_duration_by_our_clock() {
        let mut b = Candidate::new("b");
        assert_eq!(b.handle_look(held("a", 1), secs(100)), Step::Wait);
        assert_eq!(b.handle_look(held("a", 1), secs(111)), Step::Wait);
        assert_eq!(b.handle_look(held("a", 1), secs(112)), Step::Write);
    }

    #[test]
    fn a_leader_that_cannot_renew_steps_down_before_another_may_lead() {
        let mut a = Candidate::new("a");
        a.handle_look(None, secs(0));
        a.handle_written(secs(0));
        assert!(a.leads(secs(7)));
        assert!(!a.leads(GIVE_UP));
        assert!(GIVE_UP + REQUEST_TIMEOUT < DURATION);
    }

    #[test]
    fn losing_a_write_ends_leadership() {
        let mut a = Candidate::new("a");
        a.handle_written(secs(0));
        a.handle_lost();
        assert!(!a.leads(secs(1)));
    }
}
