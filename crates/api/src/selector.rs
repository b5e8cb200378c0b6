//! Selection of the Pods that a SqliteBackup protects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::rule;

/// Pattern of a label value.
pub(crate) const VALUE_PATTERN: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";

/// Labels of the Pods to protect. Both parts must match, and at least one is required.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
        "must not be empty: it would select every Pod of the namespace",
    ),
    rule(
        "!has(self.matchLabels) || self.matchLabels.all(k, k.size() <= 317 && k.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$'))",
        "matchLabels has a key that is not a label key",
    ),
]))]
pub struct PodSelector {
    /// Labels and values that a Pod must have. At most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "crate::schema::labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements on the labels of a Pod; all must match. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelRequirement>,
}

/// One requirement on the labels of a Pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
        "In and NotIn need values; Exists and DoesNotExist take none",
    ),
]))]
pub struct LabelRequirement {
    /// The label key.
    #[schemars(
        length(min = 1, max = 317),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
        )
    )]
    pub key: String,
    /// Comparison: `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: LabelOperator,
    /// Values for `In` and `NotIn`. At most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63), regex(pattern = VALUE_PATTERN)))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LabelOperator {
    /// The label exists with one of the values.
    In,
    /// The label does not exist, or has none of the values.
    NotIn,
    /// The label exists.
    Exists,
    /// The label does not exist.
    DoesNotExist,
}

impl LabelOperator {
    /// The name as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            LabelOperator::In => "In",
            LabelOperator::NotIn => "NotIn",
            LabelOperator::Exists => "Exists",
            LabelOperator::DoesNotExist => "DoesNotExist",
        }
    }
}

impl LabelRequirement {
    fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            LabelOperator::In => value.is_some_and(|v| self.values.contains(v)),
            LabelOperator::NotIn => !value.is_some_and(|v| self.values.contains(v)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    }
}

impl PodSelector {
    /// Whether nothing is required. Such a selector is refused, and [`PodSelector::matches`] is
    /// false.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether a Pod with these labels is selected, by the rules of the API server.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.is_empty()
            && self
                .match_labels
                .iter()
                .all(|(k, v)| labels.get(k) == Some(v))
            && self.match_expressions.iter().all(|e| e.matches(labels))
    }

    /// The same selector as the type of the Kubernetes API.
    pub fn to_label_selector(&self) -> LabelSelector {
        let expressions = self
            .match_expressions
            .iter()
            .map(|e| LabelSelectorRequirement {
                key: e.key.clone(),
                operator: e.operator.as_str().to_owned(),
                values: (!e.values.is_empty()).then(|| e.values.clone()),
            });
        LabelSelector {
            match_labels: (!self.match_labels.is_empty()).then(|| self.match_labels.clone()),
            match_expressions: (!self.match_expressions.is_empty()).then(|| expressions.collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect()
    }

    fn requirement(key: &str, operator: LabelOperator, values: &[&str]) -> PodSelector {
        PodSelector {
            match_expressions: vec![LabelRequirement {
                key: key.into(),
                operator,
                values: values.iter().map(|v| v.to_string()).collect(),
            }],
            ..PodSelector::default()
        }
    }

    #[test]
    fn a_missing_label_satisfies_not_in_and_nothing_else() {
        let none = labels(&[]);
        assert!(requirement("a", LabelOperator::NotIn, &["x"]).matches(&none));
        assert!(requirement("a", LabelOperator::DoesNotExist, &[]).matches(&none));
        assert!(!requirement("a", LabelOperator::In, &["x"]).matches(&none));
        assert!(!requirement("a", LabelOperator::Exists, &[]).matches(&none));
    }

    #[test]
    fn every_part_of_a_selector_must_hold() {
        let mut selector = requirement("tier", LabelOperator::In, &["db", "cache"]);
        selector.match_labels = labels(&[("app", "orders")]);
        assert!(selector.matches(&labels(&[("app", "orders"), ("tier", "db")])));
        assert!(!selector.matches(&labels(&[("app", "orders"), ("tier", "web")])));
        assert!(!selector.matches(&labels(&[("tier", "db")])));
    }

    #[test]
    fn an_empty_selector_selects_nothing() {
        assert!(!PodSelector::default().matches(&labels(&[("app", "orders")])));
    }
}
