//! Drafts of Events: one for each relevant change of an object's state.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;

use api::names::{condition, reason};

/// Draft of one Event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventDraft {
    /// The object of the Event.
    pub about: ObjectReference,
    /// True for an Event of type Normal, false for a Warning, which needs a person.
    pub normal: bool,
    /// Reason in one word.
    pub reason: String,
    /// Message for people, up to 1000 characters.
    pub message: String,
    /// Action of the Event: a condition type, or `RestoreTest`.
    pub action: &'static str,
}

/// Limit on the note of an Event, in characters.
const NOTE_MAX: usize = 1000;

impl EventDraft {
    /// Creates a draft about an object of `sqlite-backup.dev`.
    pub fn new<K: Resource<DynamicType = ()>>(
        about: &K,
        normal: bool,
        action: &'static str,
        reason: &str,
        message: &str,
    ) -> EventDraft {
        EventDraft {
            about: about.object_ref(&()),
            normal,
            reason: reason.to_owned(),
            message: message.chars().take(NOTE_MAX).collect(),
            action,
        }
    }
}

/// Conditions whose changes cause Events. Runs of restore tests cause Events of their own.
const REPORTED: [&str; 6] = [
    condition::READY,
    condition::INJECTED,
    condition::REPLICATING,
    condition::CREDENTIALS_VALID,
    condition::WRITER_CONFLICT,
    condition::RESTORED_CLEANLY,
];

/// Drafts Events for the changes from `old` to `new`.
///
/// A new bad state causes a Warning, and a return to the good state a Normal Event. Of the Unknown
/// reasons only `SidecarUnreachable` causes an Event: `Starting` and `NoPods` are ordinary.
pub fn changes<K: Resource<DynamicType = ()>>(
    about: &K,
    old: &[Condition],
    new: &[Condition],
) -> Vec<EventDraft> {
    let mut drafts = Vec::new();
    for action in REPORTED {
        let find = |list: &[Condition]| list.iter().find(|c| c.type_ == action).cloned();
        let Some(now) = find(new) else { continue };
        let before = find(old);
        let is_good = now.status == good(action);
        let is_reported = if is_good {
            before.is_some_and(|before| before.status != now.status)
        } else {
            let is_relevant = now.status != "Unknown" || now.reason == reason::SIDECAR_UNREACHABLE;
            let same =
                |before: &Condition| before.status == now.status && before.reason == now.reason;
            is_relevant && !before.as_ref().is_some_and(same)
        };
        if is_reported {
            drafts.push(EventDraft::new(
                about,
                is_good,
                action,
                &now.reason,
                &now.message,
            ));
        }
    }
    drafts
}

/// The status of a condition in the good state.
fn good(type_: &str) -> &'static str {
    if type_ == condition::WRITER_CONFLICT {
        "False"
    } else {
        "True"
    }
}
