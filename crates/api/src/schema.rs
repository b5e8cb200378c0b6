//! Schema pieces that the derive macros cannot express.

use kube::core::Rule;
use schemars::{Schema, SchemaGenerator, json_schema};

/// A CEL rule, and the message when it is violated.
pub(crate) fn rule(expression: &str, message: &str) -> Rule {
    Rule::new(expression).message(message)
}

/// A prefix is a relative path. Its characters have the same meaning for every store, in URLs and
/// in the configuration file, where `$` would be expanded.
pub(crate) fn relative_prefix() -> Rule {
    Rule::new(
        "self.matches('^[A-Za-z0-9_.{}=+@-]+(/[A-Za-z0-9_.{}=+@-]+)*$') \
         && !self.matches('(^|/)[.][.]?(/|$)')",
    )
    .message(
        "must be a relative path of letters, digits and _ . = + @ -, \
         without empty or dot segments",
    )
}

/// Rejects unknown placeholders, which would become part of the key.
pub(crate) fn known_placeholders() -> Rule {
    Rule::new(
        "!self.replace('{namespace}', '').replace('{backup}', '')\
         .replace('{member}', '').replace('{database}', '').matches('[{}]')",
    )
    .message("may only contain the placeholders {namespace}, {backup}, {member} and {database}")
}

/// A duration field between two bounds, both included and both written as durations.
pub(crate) fn between(least: &str, most: &str) -> Rule {
    Rule::new(format!(
        "self >= duration('{least}') && self <= duration('{most}')"
    ))
    .message(format!("must be from {least} to {most}").as_str())
}

/// A duration such as `30s`, `1h30m` or `7d`; in rules the API server treats it as a duration.
pub fn span(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "duration", "maxLength": 64})
}

/// Like [`span`], for an optional field.
pub fn optional_span(generator: &mut SchemaGenerator) -> Schema {
    span(generator)
}

/// A Kubernetes quantity such as `50m` or `64Mi`, by resource name.
pub fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "pattern": r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$",
        },
    })
}

/// The conditions of an object, one of each type.
pub fn conditions(generator: &mut SchemaGenerator) -> Schema {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    let item = generator.subschema_for::<Condition>();
    json_schema!({
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

/// Label values by label key; both sides are checked by rules on the selector.
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": crate::selector::VALUE_PATTERN,
        },
    })
}
