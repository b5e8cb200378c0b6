//! Rules for a SqliteBackup that a schema cannot express.

use std::collections::BTreeMap;

use crate::SqliteBackup;
use crate::backup::{DatabaseSpec, DeletionPolicy, SqliteBackupSpec, UpdatePolicy};
use crate::proof::{CHECKS_CHARACTERS, CheckSpec};
use crate::selector::PodSelector;

/// Reason for which a spec is not put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The object bypassed the schema: it was stored before a rule existed, or with rules disabled.
    #[error("{field} {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// The violated rule.
        problem: &'static str,
    },
    /// This version does not support the field yet.
    #[error("{field} is not supported by this version; remove it, or choose {instead}")]
    NotServed {
        /// Path of the field.
        field: String,
        /// A supported alternative.
        instead: &'static str,
    },
}

/// Checks rules that the schema of an older version may lack, and rejects unsupported features.
///
/// # Errors
/// The first field that violates a rule.
pub fn validate(spec: &SqliteBackupSpec) -> Result<(), Refusal> {
    selector(&spec.selector)?;
    databases(spec)?;
    targets(spec)?;
    checks(spec)?;
    not_served(spec)
}

/// Whether the API server accepts this selector for a webhook entry.
pub fn is_valid_selector(pods: &PodSelector) -> bool {
    selector(pods).is_ok()
}

fn selector(selector: &PodSelector) -> Result<(), Refusal> {
    let invalid = |field: &str, problem| Refusal::Invalid {
        field: format!("spec.selector{field}"),
        problem,
    };
    if selector.is_empty() {
        return Err(invalid("", "must not be empty"));
    }
    let keys =
        (selector.match_labels.keys()).chain(selector.match_expressions.iter().map(|e| &e.key));
    if !keys.into_iter().all(|k| is_label_key(k)) {
        return Err(invalid("", "has a key that is not a label key"));
    }
    let values = (selector.match_labels.values())
        .chain(selector.match_expressions.iter().flat_map(|e| &e.values));
    if !values.into_iter().all(|v| is_label_value(v)) {
        return Err(invalid("", "has a value that is not a label value"));
    }
    use crate::selector::LabelOperator::{DoesNotExist, Exists, In, NotIn};
    let complete = selector.match_expressions.iter().all(|e| match e.operator {
        In | NotIn => !e.values.is_empty(),
        Exists | DoesNotExist => e.values.is_empty(),
    });
    if !complete {
        return Err(invalid(
            ".matchExpressions",
            "needs values for In and NotIn, and none for Exists and DoesNotExist",
        ));
    }
    Ok(())
}

fn databases(spec: &SqliteBackupSpec) -> Result<(), Refusal> {
    let invalid = |problem| Refusal::Invalid {
        field: "spec.databases".into(),
        problem,
    };
    if spec.databases.is_empty() {
        return Err(invalid("must not be empty"));
    }
    for database in &spec.databases {
        let path = &database.path;
        let plain = path.starts_with('/') && !path.ends_with('/') && !path.contains("//");
        if !plain
            || path.split('/').any(|s| s == ".." || s == ".")
            || path.contains(['$', '?', '[', ']'])
        {
            return Err(invalid("has a path that is not an absolute path of a file"));
        }
    }
    Ok(())
}

fn targets(spec: &SqliteBackupSpec) -> Result<(), Refusal> {
    if spec.targets.is_empty() {
        return Err(Refusal::Invalid {
            field: "spec.targets".into(),
            problem: "must not be empty",
        });
    }
    for target in &spec.targets {
        let field = |part: &str| format!("spec.targets[{}]{part}", target.name);
        let Some(place) = target.place() else {
            return Err(Refusal::Invalid {
                field: field(""),
                problem: "must have one of s3 and file",
            });
        };
        if place.prefix().contains('$') {
            return Err(Refusal::Invalid {
                field: field(&format!(".{}.prefix", place.field())),
                problem: "must not contain $",
            });
        }
        let several =
            spec.databases.len() > 1 || spec.databases.iter().any(DatabaseSpec::is_pattern);
        if several && !place.prefix().contains("{database}") {
            return Err(Refusal::Invalid {
                field: field(&format!(".{}.prefix", place.field())),
                problem: "must contain {database}, because there are several databases",
            });
        }
    }
    Ok(())
}

fn checks(spec: &SqliteBackupSpec) -> Result<(), Refusal> {
    let checks = &spec.restore_test.checks;
    if checks.iter().map(CheckSpec::characters).sum::<usize>() > CHECKS_CHARACTERS {
        return Err(Refusal::Invalid {
            field: "spec.restoreTest.checks".into(),
            problem: "has more than 16384 characters of query, equals and database",
        });
    }
    Ok(())
}

fn not_served(spec: &SqliteBackupSpec) -> Result<(), Refusal> {
    let refuse = |field: String, instead| Err(Refusal::NotServed { field, instead });
    for target in &spec.targets {
        if target.s3.is_none() && target.file.is_none() {
            let kind = target.place().map_or("", |p| p.field());
            return refuse(
                format!("spec.targets[{}].{kind}", target.name),
                "s3 or file",
            );
        }
    }
    if spec.encryption.is_some() {
        return refuse("spec.encryption".into(), "encryption by the bucket");
    }
    if spec.restore_test.expect_databases.is_some() {
        return refuse("spec.restoreTest.expectDatabases".into(), "checks");
    }
    if spec.sidecar.update_policy != UpdatePolicy::OnNextPodStart {
        return refuse("spec.sidecar.updatePolicy".into(), "OnNextPodStart");
    }
    if spec.deletion_policy != DeletionPolicy::Retain {
        return refuse("spec.deletionPolicy".into(), "Retain");
    }
    Ok(())
}

/// Whether text is a label key: an optional DNS prefix, and a name of at most 63 characters.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let dns = |p: &str| {
        p.len() <= 253
            && p.split('.').all(|label| {
                let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                !label.is_empty()
                    && label.chars().all(inner)
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
    };
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(dns)
}

/// Whether text is a label value: empty, or up to 63 characters with a letter or digit at both
/// ends.
fn is_label_value(value: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && edge(value.chars().next())
        && edge(value.chars().last())
        && value
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The destinations of a SqliteBackup, with `{namespace}` and `{backup}` replaced. Two objects with
/// an equal destination would overwrite each other.
///
/// `{member}` and `{database}` stay: they differ between Pods, never between SqliteBackups.
pub fn destinations(backup: &SqliteBackup) -> Vec<String> {
    use crate::target::Place;
    let namespace = backup.metadata.namespace.as_deref().unwrap_or_default();
    let name = backup.metadata.name.as_deref().unwrap_or_default();
    let values = BTreeMap::from([("{namespace}", namespace), ("{backup}", name)]);
    let expand = |prefix: &str| {
        values
            .iter()
            .fold(prefix.to_owned(), |text, (k, v)| text.replace(k, v))
    };
    let place = |place: Place<'_>| {
        let prefix = expand(place.prefix());
        match place {
            Place::S3(s3) => {
                let endpoint = s3.endpoint.as_deref().unwrap_or("aws");
                format!("s3 {endpoint} {}/{prefix}", s3.bucket)
            }
            Place::File(file) => format!("file {namespace}/{}/{prefix}", file.claim_name),
            Place::Gcs(gcs) => format!("gcs {}/{prefix}", gcs.bucket),
            Place::Azure(azure) => format!("azure {}/{}/{prefix}", azure.account, azure.container),
            Place::Sftp(sftp) => format!("sftp {}/{prefix}", sftp.host),
        }
    };
    backup
        .spec
        .targets
        .iter()
        .filter_map(|t| t.place())
        .map(place)
        .collect()
}
