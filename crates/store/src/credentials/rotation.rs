//! Decides when to use new keys: a state machine without a clock or a client.
//!
//! The driver reports the content of the directory and the answers of the store, and carries out
//! each [`Step`]. New keys replace the keys in use only when the store accepts them, or when it
//! refuses the keys in use as well.

use super::{CredentialsState, CredentialsStatus, Keys, fingerprint};

/// The driver's next action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Keep,
    /// Test these keys on the store, then call [`Rotation::handle_probe`].
    Probe(Keys),
}

/// The store's answer to new keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    /// The store accepted them.
    Accepted,
    /// The store refused them.
    Denied,
    /// The store gave no answer.
    Unknown,
}

/// The keys in use, and their state.
#[derive(Debug)]
pub(crate) struct Rotation {
    source: String,
    active: Option<Keys>,
    state: CredentialsState,
    denied: bool,
    changed_at_ms: i64,
}

impl Rotation {
    /// Begins with the given keys, if any; `source` is a description for people.
    pub(crate) fn new(source: String, active: Option<Keys>, now_ms: i64) -> Self {
        let state = if active.is_some() {
            CredentialsState::Valid
        } else {
            CredentialsState::Missing
        };
        Self {
            source,
            active,
            state,
            denied: false,
            changed_at_ms: now_ms,
        }
    }

    /// Returns the keys that sign requests.
    pub(crate) fn active(&self) -> Option<&Keys> {
        self.active.as_ref()
    }

    /// Returns the state for logs and statuses.
    pub(crate) fn status(&self) -> CredentialsStatus {
        CredentialsStatus {
            source: self.source.clone(),
            fingerprint: self.active.as_ref().map(fingerprint),
            state: self.state,
            changed_at_ms: self.changed_at_ms,
        }
    }

    /// Handles the content of the directory: keys, or `None` when one is missing.
    pub(crate) fn handle_read(&mut self, read: Option<Keys>, now_ms: i64) -> Step {
        let Some(found) = read else {
            self.enter(CredentialsState::Missing, now_ms);
            return Step::Keep;
        };
        match &self.active {
            Some(active) if *active == found => {
                let state = if self.denied {
                    CredentialsState::Denied
                } else {
                    CredentialsState::Valid
                };
                self.enter(state, now_ms);
                Step::Keep
            }
            Some(_) => Step::Probe(found),
            // No keys can be lost: the first call shows whether the new ones are valid.
            None => {
                self.adopt(found, now_ms);
                Step::Keep
            }
        }
    }

    /// Handles the store's answer to the keys of [`Step::Probe`].
    pub(crate) fn handle_probe(&mut self, keys: Keys, probe: Probe, now_ms: i64) {
        match probe {
            Probe::Accepted => self.adopt(keys, now_ms),
            Probe::Denied if self.denied => {
                self.active = Some(keys);
                self.changed_at_ms = now_ms;
                self.enter(CredentialsState::Denied, now_ms);
            }
            Probe::Denied | Probe::Unknown => {
                self.enter(CredentialsState::RotationPending, now_ms);
            }
        }
    }

    /// Handles a refused call that was signed with `keys`. Keys that have been replaced meanwhile
    /// say nothing about the keys in use.
    pub(crate) fn handle_denied(&mut self, keys: Option<&Keys>, now_ms: i64) {
        if self.active.as_ref() == keys {
            self.denied = true;
            self.enter(CredentialsState::Denied, now_ms);
        }
    }

    /// Handles an accepted call that was signed with `keys`.
    pub(crate) fn handle_accepted(&mut self, keys: Option<&Keys>, now_ms: i64) {
        if self.active.as_ref() == keys {
            self.denied = false;
            if self.state == CredentialsState::Denied {
                self.enter(CredentialsState::Valid, now_ms);
            }
        }
    }

    fn adopt(&mut self, keys: Keys, now_ms: i64) {
        self.active = Some(keys);
        self.denied = false;
        self.state = CredentialsState::Valid;
        self.changed_at_ms = now_ms;
    }

    fn enter(&mut self, state: CredentialsState, now_ms: i64) {
        if self.state != state {
            self.state = state;
            self.changed_at_ms = now_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(name: &str) -> Keys {
        let name = name.to_owned();
        Keys {
            access_key_id: name.clone(),
            secret_access_key: name,
            session_token: None,
        }
    }

    fn with_old_keys() -> Rotation {
        Rotation::new("test".to_owned(), Some(keys("old")), 1)
    }

    fn active(rotation: &Rotation) -> &str {
        &rotation.active().unwrap().access_key_id
    }

    #[test]
    fn new_keys_are_used_once_the_store_accepts_them() {
        let mut rotation = with_old_keys();
        assert_eq!(
            rotation.handle_read(Some(keys("new")), 2),
            Step::Probe(keys("new"))
        );
        assert_eq!(active(&rotation), "old");
        rotation.handle_probe(keys("new"), Probe::Accepted, 3);
        assert_eq!(active(&rotation), "new");
        let status = rotation.status();
        assert_eq!(
            (status.state, status.changed_at_ms),
            (CredentialsState::Valid, 3)
        );
        assert_eq!(status.fingerprint, Some(fingerprint(&keys("new"))));
    }

    #[test]
    fn keys_that_the_store_refuses_do_not_replace_keys_that_work() {
        let mut rotation = with_old_keys();
        for probe in [Probe::Denied, Probe::Unknown] {
            rotation.handle_probe(keys("new"), probe, 2);
            assert_eq!(active(&rotation), "old");
            assert_eq!(rotation.status().state, CredentialsState::RotationPending);
        }
        // The next read probes them again; removing them makes the state valid again.
        assert_eq!(
            rotation.handle_read(Some(keys("new")), 5),
            Step::Probe(keys("new"))
        );
        assert_eq!(rotation.handle_read(Some(keys("old")), 6), Step::Keep);
        assert_eq!(rotation.status().state, CredentialsState::Valid);
    }

    #[test]
    fn refused_keys_give_way_to_newer_ones_that_are_refused_as_well() {
        let mut rotation = with_old_keys();
        rotation.handle_denied(Some(&keys("old")), 2);
        rotation.handle_probe(keys("new"), Probe::Denied, 3);
        assert_eq!(active(&rotation), "new");
        assert_eq!(rotation.status().state, CredentialsState::Denied);
        rotation.handle_accepted(Some(&keys("new")), 4);
        assert_eq!(rotation.status().state, CredentialsState::Valid);
    }

    #[test]
    fn an_answer_to_replaced_keys_says_nothing_about_the_new_ones() {
        let mut rotation = with_old_keys();
        rotation.handle_probe(keys("new"), Probe::Accepted, 2);
        rotation.handle_denied(Some(&keys("old")), 3);
        assert_eq!(rotation.status().state, CredentialsState::Valid);
    }

    #[test]
    fn keys_whose_files_go_missing_stay_in_use_and_are_reported() {
        let mut rotation = with_old_keys();
        assert_eq!(rotation.handle_read(None, 2), Step::Keep);
        assert_eq!(active(&rotation), "old");
        assert_eq!(rotation.status().state, CredentialsState::Missing);
        rotation.handle_read(Some(keys("old")), 3);
        assert_eq!(rotation.status().state, CredentialsState::Valid);
    }

    #[test]
    fn the_first_keys_that_appear_are_used_at_once() {
        let mut rotation = Rotation::new("test".to_owned(), None, 1);
        assert_eq!(rotation.status().state, CredentialsState::Missing);
        assert_eq!(rotation.handle_read(Some(keys("first")), 2), Step::Keep);
        assert_eq!(active(&rotation), "first");
    }

    #[test]
    fn times_of_change_move_only_with_the_state() {
        let mut rotation = with_old_keys();
        rotation.handle_read(Some(keys("old")), 7);
        rotation.handle_accepted(Some(&keys("old")), 8);
        assert_eq!(rotation.status().changed_at_ms, 1);
    }
}
