//! What is told about an object, once, when its state changes.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;

use api::names::{condition, reason};

/// One Event.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The object that it is about.
    pub about: ObjectReference,
    /// False: something that a person should look at.
    pub normal: bool,
    /// One word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What we were doing: a condition type, or `RestoreTest`.
    pub action: &'static str,
}

/// Longest note of an Event, in characters.
const NOTE_MAX: usize = 1000;

impl Notice {
    /// A notice about an object of ours.
    pub fn new<K: Resource<DynamicType = ()>>(
        about: &K,
        normal: bool,
        action: &'static str,
        reason: &str,
        message: &str,
    ) -> Notice {
        Notice {
            about: about.object_ref(&()),
            normal,
            reason: reason.to_owned(),
            message: message.chars().take(NOTE_MAX).collect(),
            action,
        }
    }
}

/// Conditions whose changes are told. Those of restore tests are told by the run itself.
const TOLD: [&str; 6] = [
    condition::READY,
    condition::INJECTED,
    condition::REPLICATING,
    condition::CREDENTIALS_VALID,
    condition::WRITER_CONFLICT,
    condition::RESTORED_CLEANLY,
];

/// The changes from `old` to `new` that are worth an Event.
///
/// Bad news are told whenever they are new, good news when they end something else. Of what is
/// unknown only a sidecar that fell silent is news: starting up and having no Pods are not.
pub fn changes<K: Resource<DynamicType = ()>>(
    about: &K,
    old: &[Condition],
    new: &[Condition],
) -> Vec<Notice> {
    let mut notices = Vec::new();
    for action in TOLD {
        let find = |list: &[Condition]| list.iter().find(|c| c.type_ == action).cloned();
        let Some(now) = find(new) else { continue };
        let before = find(old);
        let is_good = now.status == good(action);
        let told = if is_good {
            before.is_some_and(|before| before.status != now.status)
        } else {
            let is_news = now.status != "Unknown" || now.reason == reason::SIDECAR_UNREACHABLE;
            let same =
                |before: &Condition| before.status == now.status && before.reason == now.reason;
            is_news && !before.as_ref().is_some_and(same)
        };
        if told {
            notices.push(Notice::new(
                about,
                is_good,
                action,
                &now.reason,
                &now.message,
            ));
        }
    }
    notices
}

/// The status of a condition with which all is well.
fn good(type_: &str) -> &'static str {
    if type_ == condition::WRITER_CONFLICT {
        "False"
    } else {
        "True"
    }
}
