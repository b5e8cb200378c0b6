//! Conditions of one object. The transition time changes with the status only.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Limit of the API server on the message of a condition, in characters.
const MESSAGE_MAX: usize = 32_768;

/// Status of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The operator could not find out.
    Unknown,
    /// The condition does not hold.
    False,
}

impl ConditionStatus {
    fn as_str(self) -> &'static str {
        match self {
            ConditionStatus::True => "True",
            ConditionStatus::Unknown => "Unknown",
            ConditionStatus::False => "False",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(value: bool) -> ConditionStatus {
        if value {
            ConditionStatus::True
        } else {
            ConditionStatus::False
        }
    }
}

/// New conditions of one object, built from the previous ones.
#[derive(Debug)]
pub struct Conditions {
    old: Vec<Condition>,
    new: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl Conditions {
    /// Starts from the conditions in the object's present status.
    pub fn new(old: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Conditions {
            old: old.to_vec(),
            new: Vec::new(),
            generation,
            // Times in conditions are stored in whole seconds: a fraction would never compare as
            // equal.
            now: whole_second(now),
        }
    }

    /// Sets one condition. `message` is for people and has no figures that change all the time.
    pub fn set(
        &mut self,
        type_: &str,
        status: impl Into<ConditionStatus>,
        reason: &str,
        message: impl Into<String>,
    ) {
        let status = status.into().as_str();
        let old = self.old(type_);
        let since = old
            .filter(|c| c.status == status)
            .map(|c| c.last_transition_time.clone());
        let message: String = message.into().chars().take(MESSAGE_MAX).collect();
        let condition = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since.unwrap_or(Time(self.now)),
            observed_generation: self.generation,
        };
        self.new.retain(|c| c.type_ != type_);
        self.new.push(condition);
    }

    /// Keeps a condition from the previous status. False when there was none.
    pub fn keep(&mut self, type_: &str) -> bool {
        let Some(mut old) = self.old(type_).cloned() else {
            return false;
        };
        old.observed_generation = self.generation;
        self.new.retain(|c| c.type_ != type_);
        self.new.push(old);
        true
    }

    /// Whether a condition was set to False.
    pub fn is_false(&self, type_: &str) -> bool {
        self.new
            .iter()
            .any(|c| c.type_ == type_ && c.status == "False")
    }

    /// The condition in the previous status.
    pub fn old(&self, type_: &str) -> Option<&Condition> {
        self.old.iter().find(|c| c.type_ == type_)
    }

    /// The conditions in the order in which they were set.
    pub fn finish(self) -> Vec<Condition> {
        self.new
    }
}

/// A time in whole seconds, as the API server stores it.
pub fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut first = Conditions::new(&[], Some(1), at(100));
        first.set("Ready", true, "Accepted", "");
        let first = first.finish();

        let mut same = Conditions::new(&first, Some(2), at(200));
        same.set("Ready", true, "Other", "new message");
        let same = same.finish();
        assert_eq!(same[0].last_transition_time, Time(at(100)));
        assert_eq!(same[0].observed_generation, Some(2));

        let mut other = Conditions::new(&same, Some(2), at(300));
        other.set("Ready", ConditionStatus::Unknown, "Gone", "");
        assert_eq!(other.finish()[0].last_transition_time, Time(at(300)));
    }
}
