//! Label selectors as a CEL expression, for a webhook entry that several SqliteBackups share.
//!
//! The selectors are data, and one rule evaluates them:
//!
//! ```text
//! [has(object.metadata.labels) ? object.metadata.labels : {}].exists(l, [
//!   [['app', 'In', '=orders'], ['tier', 'NotIn', '=test', '=old']],
//!   [['db', 'Exists'], ['paused', 'DoesNotExist']]
//! ].exists(s, s.all(r,
//!   (r[0] in l && (size(r) == 2 || '=' + l[r[0]] in r)) == (r[1] in ['In', 'Exists']))))
//! ```
//!
//! The API server compiles the expression after every change of the configuration, while a Pod
//! waits. 1,000 conditions joined by `||` took 3 s, with quadratic growth; as data they take 45 ms.
//! An empty list would be quadratic again, because its type must be inferred, so there is none.
//! Each value has a `=` before it, so that it never equals the key or the operator in the same
//! list.

use api::selector::{LabelOperator, PodSelector};

/// Limit on an expression, in bytes. API servers accept 100,000 characters and a cost of 1,000,000.
/// Half of that length stays far below that cost, and holds any selector that the schema accepts.
pub const EXPRESSION_BYTES: usize = 50_000;

const HEAD: &str = "[has(object.metadata.labels) ? object.metadata.labels : {}].exists(l, [";
const TAIL: &str = "].exists(s, s.all(r, \
                    (r[0] in l && (size(r) == 2 || '=' + l[r[0]] in r)) == (r[1] in ['In', 'Exists']))))";
const BETWEEN: &str = ", ";

/// Builds the fewest expressions that hold these selectors. Each is true for a Pod that one of its
/// selectors selects, false for every other Pod, and never an error.
///
/// Precondition: each selector is valid ([`api::validate::is_valid_selector`]) and [`fits`].
pub fn expressions<'a>(selectors: impl IntoIterator<Item = &'a PodSelector>) -> Vec<String> {
    let room = EXPRESSION_BYTES - HEAD.len() - TAIL.len();
    let mut lists: Vec<String> = Vec::new();
    for item in selectors.into_iter().map(data) {
        match lists.last_mut() {
            Some(list) if list.len() + BETWEEN.len() + item.len() <= room => {
                list.push_str(BETWEEN);
                list.push_str(&item);
            }
            _ => lists.push(item),
        }
    }
    let expressions = lists.iter().map(|list| format!("{HEAD}{list}{TAIL}"));
    expressions.collect()
}

/// Whether an expression can hold this selector.
pub fn fits(selector: &PodSelector) -> bool {
    HEAD.len() + data(selector).len() + TAIL.len() <= EXPRESSION_BYTES
}

/// Formats a selector as a list of requirements, each a list of key, operator and values.
fn data(selector: &PodSelector) -> String {
    let labels = selector
        .match_labels
        .iter()
        .map(|(key, value)| requirement(key, LabelOperator::In, std::slice::from_ref(value)));
    let expressions = selector
        .match_expressions
        .iter()
        .map(|e| requirement(&e.key, e.operator, &e.values));
    let all: Vec<String> = labels.chain(expressions).collect();
    format!("[{}]", all.join(BETWEEN))
}

fn requirement(key: &str, operator: LabelOperator, values: &[String]) -> String {
    let mut words = vec![quoted(key), quoted(operator.as_str())];
    words.extend(values.iter().map(|value| quoted(&format!("={value}"))));
    format!("[{}]", words.join(BETWEEN))
}

/// Formats a string literal. Valid keys and values need no escapes, and invalid ones must not
/// become code.
fn quoted(text: &str) -> String {
    let mut literal = String::from("'");
    for character in text.chars() {
        match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '-' | '_' | '.' | '/' | '=' => {
                literal.push(character);
            }
            other => literal.push_str(&format!("\\U{:08X}", u32::from(other))),
        }
    }
    literal.push('\'');
    literal
}

#[cfg(test)]
mod tests {
    use api::selector::LabelRequirement;

    use super::*;

    fn with(operator: LabelOperator, values: &[&str]) -> PodSelector {
        PodSelector {
            match_expressions: vec![LabelRequirement {
                key: "tier".to_owned(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
            ..PodSelector::default()
        }
    }

    fn labelled(pairs: &[(&str, &str)]) -> PodSelector {
        PodSelector {
            match_labels: pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..PodSelector::default()
        }
    }

    #[test]
    fn each_operator_has_its_requirement() {
        use LabelOperator::{DoesNotExist, Exists, In, NotIn};
        let mut both = with(Exists, &[]);
        both.match_labels = labelled(&[("b", "2"), ("a", "")]).match_labels;
        for (selector, expected) in [
            (labelled(&[("app", "orders")]), "[['app', 'In', '=orders']]"),
            (with(In, &["a", "b"]), "[['tier', 'In', '=a', '=b']]"),
            (with(NotIn, &["a"]), "[['tier', 'NotIn', '=a']]"),
            (with(DoesNotExist, &[]), "[['tier', 'DoesNotExist']]"),
            (
                both,
                "[['a', 'In', '='], ['b', 'In', '=2'], ['tier', 'Exists']]",
            ),
        ] {
            assert_eq!(data(&selector), expected);
        }
    }

    #[test]
    fn nothing_ends_a_string_but_its_quote() {
        for (text, expected) in [
            ("example.com/a_b-C.9", "'example.com/a_b-C.9'"),
            ("'", r"'\U00000027'"),
            (r"\", r"'\U0000005C'"),
            ("a\nb", r"'a\U0000000Ab'"),
            ("\u{1F600}", r"'\U0001F600'"),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn an_expression_is_filled_up_before_the_next_one_begins() {
        let selectors: Vec<_> = (0..5000)
            .map(|index| labelled(&[("app", &format!("{index:04}"))]))
            .collect();
        let all = expressions(&selectors);
        let item = data(&selectors[0]).len() + BETWEEN.len();
        let held: Vec<usize> = all.iter().map(|e| e.matches("'app'").count()).collect();
        assert_eq!(held.iter().sum::<usize>(), selectors.len());
        for expression in &all {
            assert!(expression.len() <= EXPRESSION_BYTES);
        }
        for expression in &all[..all.len() - 1] {
            assert!(expression.len() + item > EXPRESSION_BYTES);
        }
        assert_eq!(expressions(&[]), Vec::<String>::new());
    }

    #[test]
    fn the_largest_selector_of_the_schema_fits() {
        let key = |index: usize| format!("{}/{index:063}", "p".repeat(253));
        let mut largest = PodSelector::default();
        for index in 0..16 {
            largest.match_labels.insert(key(index), "v".repeat(63));
            largest.match_expressions.push(LabelRequirement {
                key: key(16 + index),
                operator: LabelOperator::NotIn,
                values: vec!["v".repeat(63); 32],
            });
        }
        assert!(fits(&largest));
        largest
            .match_expressions
            .extend(largest.match_expressions.clone());
        assert!(!fits(&largest));
    }
}
