//! When and how certificates change, so that no served one is ever unverifiable.
//!
//! An authority is replaced in two phases. First the new one is published beside the current one
//! and nothing signed by it is served. Only when every entry of the webhook configuration carries
//! both, and API servers had [`PROPAGATION`] to notice, a certificate of the new one is served.
//! The old one stays published for [`SETTLE`], until every replica has surely loaded the new
//! certificate. A certificate of an authority that is published already can change at any time.

use std::time::Duration;

use jiff::Timestamp;

use super::Bundle;
use super::mint::{Authority, CertError, Leaf, Validity};

/// API servers read webhook configurations by a watch; they are given this long to see a change.
pub const PROPAGATION: Duration = Duration::from_secs(60);

/// Replicas load the Secret every half minute; they are given this long.
pub const SETTLE: Duration = Duration::from_secs(3600);

/// Everything that the Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Signs, and has signed the served certificate.
    pub current: Authority,
    /// Published, but nothing signed by it is served yet.
    pub next: Option<Authority>,
    /// Published until every replica serves a certificate of `current`. Its key is gone.
    pub old: Option<Anchor>,
    /// The served certificate.
    pub leaf: Leaf,
}

/// A trusted certificate whose key we no longer have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// When it holds.
    pub validity: Validity,
}

impl State {
    /// What webhook configurations must trust in this state.
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

/// Whether the webhook configuration carries the bundle of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// Some entry does not carry it, or nobody has looked.
    NotYet,
    /// Every entry has carried it since then.
    Since(Timestamp),
}

/// What the decision rests on, besides the state.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// DNS names under which API servers call us.
    pub names: &'a [String],
    /// Whether the webhook configuration carries the state's bundle.
    pub published: Published,
    /// The Secret was emptied while we run: somebody wants new keys.
    pub forced: bool,
}

/// The next step of the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing before that time, as far as the state tells.
    Wait(Timestamp),
    /// Begin anew: nothing usable is there, so there is nothing to keep verifiable.
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

/// Decides the next step. Safe to repeat; each step changes what the next call sees.
pub fn decide(now: Timestamp, state: Option<&State>, facts: &Facts<'_>) -> Action {
    let Some(state) = state else {
        return Action::Bootstrap;
    };
    let next = state.next.as_ref().filter(|next| next.validity.holds(now));
    if !state.current.validity.holds(now) {
        // Nothing that is served verifies any more, so waiting protects nobody.
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
    // A certificate cut short by its authority cannot be bettered by the same authority.
    let last = validity.not_after >= state.current.validity.not_after;
    state.leaf.names != names || !validity.holds(now) || (now >= validity.renewal() && !last)
}

/// Carries a step out. `None` is only right before [`Action::Bootstrap`].
///
/// # Errors
/// When keys or certificates cannot be made; nothing has changed then.
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
