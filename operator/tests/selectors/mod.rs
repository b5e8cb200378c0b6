//! Random selectors and labels from so few words that they often match, also as key, operator and
//! value of one requirement.

use std::collections::BTreeMap;

use api::PodSelector;
use api::selector::{LabelOperator, LabelRequirement};
use proptest::prelude::*;
use proptest::sample::select;

const KEYS: [&str; 4] = ["app", "In", "Exists", "example.com/app"];
const VALUES: [&str; 5] = ["", "app", "In", "Exists", "b.C_d-1"];

/// A selector that the schema accepts.
pub fn selector() -> impl Strategy<Value = PodSelector> {
    let expressions = prop::collection::vec(requirement(), 0..3);
    (labels(), expressions)
        .prop_map(|(match_labels, match_expressions)| PodSelector {
            match_labels,
            match_expressions,
        })
        .prop_filter("it must not be empty", |selector| !selector.is_empty())
}

/// Labels of a Pod.
pub fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let pair = (select(&KEYS[..]), select(&VALUES[..]));
    prop::collection::vec(pair, 0..4).prop_map(|pairs| {
        let owned = pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        owned.collect()
    })
}

fn requirement() -> impl Strategy<Value = LabelRequirement> {
    use LabelOperator::{DoesNotExist, Exists, In, NotIn};
    let operators = select(vec![In, NotIn, Exists, DoesNotExist]);
    let values = prop::collection::vec(select(&VALUES[..]), 1..4);
    (select(&KEYS[..]), operators, values).prop_map(|(key, operator, values)| {
        let values = match operator {
            In | NotIn => values.into_iter().map(str::to_owned).collect(),
            Exists | DoesNotExist => Vec::new(),
        };
        LabelRequirement {
            key: key.to_owned(),
            operator,
            values,
        }
    })
}
