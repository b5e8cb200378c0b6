//! Rotation of certificates, such that every served certificate is verifiable.
//!
//! An authority is replaced in two phases. First the new one is published beside the current one,
//! and none of its certificates is served. Once every entry of the webhook configuration has held
//! both for [`PROPAGATION`], a certificate of the new authority is served. The old authority stays
//! published for [`SETTLE`], until every replica has loaded the new certificate. A certificate of
//! an authority that is published already can change at any time.

use std::time::Duration;

use jiff::Timestamp;

use super::Bundle;
use super::mint::{Authority, CertError, Leaf, Validity};

/// Time in which API servers must observe a change of the webhook configuration.
pub const PROPAGATION: Duration = Duration::from_secs(60);

/// Time in which every replica must load the Secret, which it reads every 30 s.
pub const SETTLE: Duration = Duration::from_secs(3600);

/// State in the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// The current authority, which signed the served certificate.
    pub current: Authority,
    /// The next authority: published, and none of its certificates is served yet.
    pub next: Option<Authority>,
    /// The previous authority, published until every replica serves a certificate of `current`. Its
    /// key was deleted.
    pub old: Option<Anchor>,
    /// The served certificate.
    pub leaf: Leaf,
}

/// A trusted certificate whose key was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// Validity.
    pub validity: Validity,
}

impl State {
    /// CA bundle for the webhook configuration in this state.
    pub fn bundle(&self) -> Bundle {
        let next = self.next.iter().map(|a| a.cert_pem.as_str());
        let old = self.old.iter().map(|a| a.cert_pem.as_str());
        let ca_pem = std::iter::once(self.current.cert_pem.as_str())
            .chain(next)
            .chain(old);
        Bundle {
            ca_pem: ca_pem.collect(),
        }
    }
}

/// Whether the webhook configuration holds the bundle of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// An entry does not hold it, or the configuration was not observed yet.
    NotYet,
    /// Every entry has held it since this time.
    Since(Timestamp),
}

/// Inputs of the decision besides the state.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// DNS names and IP addresses of the webhook.
    pub names: &'a [String],
    /// Whether the webhook configuration holds the bundle of the state.
    pub published: Published,
    /// Whether the Secret was emptied while the operator runs, which asks for new keys.
    pub forced: bool,
}

/// The next step of the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Do nothing before this time.
    Wait(Timestamp),
    /// Create everything: no usable state exists, so no served certificate must stay verifiable.
    Bootstrap,
    /// Issue another certificate by the current authority.
    IssueLeaf,
    /// Phase 1: publish a new authority.
    AddAuthority,
    /// Phase 2: serve a certificate of the new authority.
    SwitchAuthority,
    /// Done: stop publishing the old authority.
    DropOld,
}

/// Decides the next step. Safe to repeat: after each step the next call decides from the new state.
pub fn decide(now: Timestamp, state: Option<&State>, facts: &Facts<'_>) -> Action {
    let Some(state) = state else {
        return Action::Bootstrap;
    };
    let next = state.next.as_ref().filter(|next| next.validity.holds(now));
    if !state.current.validity.holds(now) {
        // The served certificate is not verifiable any more, so waiting would protect nothing.
        return if next.is_some() {
            Action::SwitchAuthority
        } else {
            Action::Bootstrap
        };
    }
    if leaf_due(now, state, facts.names) {
        return Action::IssueLeaf;
    }
    if next.is_some() {
        return match facts.published {
            Published::Since(since) if now >= since + PROPAGATION => Action::SwitchAuthority,
            Published::Since(since) => Action::Wait(since + PROPAGATION),
            Published::NotYet => Action::Wait(now + PROPAGATION),
        };
    }
    if let Some(old) = &state.old {
        let settled = state.leaf.validity.made() + SETTLE;
        let drop = now >= settled || !old.validity.holds(now);
        return if drop {
            Action::DropOld
        } else {
            Action::Wait(settled)
        };
    }
    let renewal = state.current.validity.renewal();
    if facts.forced || now >= renewal {
        return Action::AddAuthority;
    }
    Action::Wait(renewal.min(state.leaf.validity.renewal()))
}

fn leaf_due(now: Timestamp, state: &State, names: &[String]) -> bool {
    let validity = &state.leaf.validity;
    // The same authority cannot issue a certificate that ends later than itself.
    let last = validity.not_after >= state.current.validity.not_after;
    state.leaf.names != names || !validity.holds(now) || (now >= validity.renewal() && !last)
}

/// Executes a step. `state` may be `None` for [`Action::Bootstrap`] only.
///
/// # Errors
/// When keys or certificates cannot be created; the state is unchanged then.
pub fn advance(
    action: Action,
    state: Option<&State>,
    names: &[String],
    now: Timestamp,
) -> Result<Option<State>, CertError> {
    let (action, state) = match (action, state) {
        (Action::Wait(_), _) => return Ok(None),
        (Action::Bootstrap, _) | (_, None) => return bootstrap(names, now).map(Some),
        (action, Some(state)) => (action, state.clone()),
    };
    let state = match action {
        Action::Wait(_) | Action::Bootstrap => state,
        Action::IssueLeaf => State {
            leaf: state.current.issue(names, now)?,
            ..state
        },
        Action::AddAuthority => State {
            next: Some(Authority::mint(now)?),
            ..state
        },
        Action::DropOld => State { old: None, ..state },
        Action::SwitchAuthority => match state.next {
            None => state,
            Some(next) => State {
                leaf: next.issue(names, now)?,
                old: Some(Anchor {
                    cert_pem: state.current.cert_pem,
                    validity: state.current.validity,
                }),
                current: next,
                next: None,
            },
        },
    };
    Ok(Some(state))
}

fn bootstrap(names: &[String], now: Timestamp) -> Result<State, CertError> {
    let current = Authority::mint(now)?;
    let leaf = current.issue(names, now)?;
    Ok(State {
        current,
        next: None,
        old: None,
        leaf,
    })
}
