//! Webhook entries. Only selected Pods depend on the operator.
//!
//! Each SqliteBackup has its own entry, with its selector and its name, which refusals show. When
//! there are too many, the SqliteBackups of a namespace share entries with their selectors in an
//! expression ([`matching`]). Shared entries select the same Pods and fail in the same way.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::SqliteBackup;
use api::names::{self, INJECT_LABEL, WEBHOOK_CONFIGURATION};
use api::validate::is_valid_selector;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations,
    ServiceReference, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::ObjectMeta;
use serde::Serialize;

use super::{Change, Plan, key, matching};

/// Path on which the webhook is served.
pub const PATH: &str = "/mutate";

/// Limit on SqliteBackups of one namespace with their own entries. More of them share entries.
pub const ENTRIES_PER_NAMESPACE: usize = 20;

/// Limit on all entries, in bytes of JSON. Beyond it, every namespace shares its entries. API
/// servers refuse an object of more than 1.5 MiB in their encoding, which was never larger than
/// JSON. An entry has 1.6 KB, or 2.4 KB while an authority is replaced.
pub const CONFIGURATION_BYTES: usize = 1_400_000;

/// Size of the constant part of an entry without its endpoint, in bytes of JSON.
const OTHER_FIELDS_BYTES: usize = 370;

/// Time limit of the API server for one review, in seconds.
const TIMEOUT_SECONDS: i32 = 5;

/// Label that every namespace has.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Address of the webhook for API servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Service.
    Service {
        /// Namespace of the Service.
        namespace: String,
        /// Name of the Service.
        name: String,
        /// Port of the Service.
        port: i32,
    },
    /// A URL such as `https://127.0.0.1:9443`, for an operator outside its cluster.
    Url(String),
}

/// Plans the webhook configuration. The plan is empty before certificates are loaded, and when the
/// object does not exist: the installation creates and removes it.
pub fn plan(
    backups: &[Arc<SqliteBackup>],
    held: Option<&[MutatingWebhook]>,
    ca_pem: Option<&str>,
    endpoint: &Endpoint,
) -> Plan {
    let mut plan = Plan::default();
    if let (Some(ca_pem), Some(held)) = (ca_pem, held) {
        let wanted = entries(backups.iter().map(|b| &**b), ca_pem, endpoint);
        if held != wanted {
            plan.changes
                .push(Change::Webhooks(Box::new(configuration(wanted))));
        }
    }
    plan
}

/// Wraps entries into the webhook configuration. Its labels and annotations belong to Helm: if the
/// operator owned one of them, neither an upgrade nor an uninstall would work.
pub fn configuration(webhooks: Vec<MutatingWebhook>) -> MutatingWebhookConfiguration {
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            name: Some(WEBHOOK_CONFIGURATION.to_owned()),
            ..ObjectMeta::default()
        },
        webhooks: Some(webhooks),
    }
}

/// Builds the entries of every SqliteBackup that is neither suspended nor being deleted, ordered by
/// name. Every field is explicit, so that the answer of the API server compares as equal.
///
/// A refused SqliteBackup also has an entry: its Pods are refused with the reason, rather than
/// created without a backup.
pub fn entries<'a>(
    backups: impl Iterator<Item = &'a SqliteBackup>,
    ca_pem: &str,
    endpoint: &Endpoint,
) -> Vec<MutatingWebhook> {
    let mut by_namespace: BTreeMap<String, Vec<&SqliteBackup>> = BTreeMap::new();
    for backup in backups {
        let active = !backup.spec.suspend && backup.metadata.deletion_timestamp.is_none();
        // The API server would reject all entries because of one invalid selector.
        if active && is_valid_selector(&backup.spec.selector) {
            by_namespace.entry(key(backup).0).or_default().push(backup);
        }
    }
    for backups in by_namespace.values_mut() {
        backups.sort_by_key(|backup| backup.metadata.name.as_deref());
    }
    let client = client_config(ca_pem, endpoint);
    let build = |own_at_most| {
        let mut entries = Vec::new();
        for (namespace, backups) in &by_namespace {
            entries.extend(entries_of(namespace, backups, own_at_most, &client));
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    };
    let entries = build(ENTRIES_PER_NAMESPACE);
    if size_bytes(&entries, &client) <= CONFIGURATION_BYTES {
        return entries;
    }
    build(1)
}

/// The entries of one namespace: one for each SqliteBackup, or shared ones when there are many.
fn entries_of(
    namespace: &str,
    backups: &[&SqliteBackup],
    own_at_most: usize,
    client: &WebhookClientConfig,
) -> Vec<MutatingWebhook> {
    let crowded = backups.len() > own_at_most;
    // The schema limits selectors to a length that fits into an expression.
    let (shared, own): (Vec<&SqliteBackup>, Vec<&SqliteBackup>) = backups
        .iter()
        .partition(|backup| crowded && matching::fits(&backup.spec.selector));
    let mut entries = Vec::new();
    for backup in own {
        let name = names::webhook(namespace, &key(backup).1);
        let selector = backup.spec.selector.to_label_selector();
        entries.push(entry(name, namespace, selector, None, client));
    }
    let expressions = matching::expressions(shared.iter().map(|backup| &backup.spec.selector));
    for (index, expression) in expressions.into_iter().enumerate() {
        let name = shared_name(namespace, index);
        let all = LabelSelector::default();
        entries.push(entry(name, namespace, all, Some(expression), client));
    }
    entries
}

/// The name of a shared entry. The API server shows it when it refuses a Pod while the webhook is
/// down.
fn shared_name(namespace: &str, index: usize) -> String {
    match index {
        0 => format!("sqlitebackups.{namespace}.{}", api::GROUP),
        _ => format!("sqlitebackups-{}.{namespace}.{}", index + 1, api::GROUP),
    }
}

/// Upper estimate of the size of entries, in bytes of JSON.
fn size_bytes(entries: &[MutatingWebhook], client: &WebhookClientConfig) -> usize {
    // Constant in each entry, and most of its size.
    let client_bytes = json_bytes(client);
    let of_entry = |entry: &MutatingWebhook| {
        let own = (&entry.name, &entry.namespace_selector);
        let matched = (&entry.object_selector, &entry.match_conditions);
        client_bytes + json_bytes(&(own, matched)) + OTHER_FIELDS_BYTES
    };
    entries.iter().map(of_entry).sum()
}

fn json_bytes(part: &impl Serialize) -> usize {
    let json = serde_json::to_vec(part).expect("plain data");
    json.len()
}

fn with_opt_out(mut selector: LabelSelector) -> LabelSelector {
    selector
        .match_expressions
        .get_or_insert_default()
        .push(LabelSelectorRequirement {
            key: INJECT_LABEL.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(vec!["false".to_owned()]),
        });
    selector
}

/// An entry for the Pods of a namespace that `selector` and the expression, if there is one, match.
fn entry(
    name: String,
    namespace: &str,
    selector: LabelSelector,
    expression: Option<String>,
    client: &WebhookClientConfig,
) -> MutatingWebhook {
    let namespaces = BTreeMap::from([(NAMESPACE_LABEL.to_owned(), namespace.to_owned())]);
    MutatingWebhook {
        name,
        admission_review_versions: vec!["v1".to_owned()],
        client_config: client.clone(),
        // A selected Pod must not be created without a review.
        failure_policy: Some("Fail".to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(LabelSelector {
            match_labels: Some(namespaces),
            match_expressions: None,
        }),
        object_selector: Some(with_opt_out(selector)),
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec![String::new()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec!["CREATE".to_owned()]),
            resources: Some(vec!["pods".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        side_effects: "None".to_owned(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        match_conditions: expression.map(|expression| {
            vec![MatchCondition {
                name: "selected".to_owned(),
                expression,
            }]
        }),
    }
}

fn client_config(ca_pem: &str, endpoint: &Endpoint) -> WebhookClientConfig {
    let (service, url) = match endpoint {
        Endpoint::Url(url) => (None, Some(format!("{}{PATH}", url.trim_end_matches('/')))),
        Endpoint::Service {
            namespace,
            name,
            port,
        } => {
            let service = ServiceReference {
                name: name.clone(),
                namespace: namespace.clone(),
                path: Some(PATH.to_owned()),
                port: Some(*port),
            };
            (Some(service), None)
        }
    };
    WebhookClientConfig {
        ca_bundle: Some(ByteString(ca_pem.as_bytes().to_vec())),
        service,
        url,
    }
}
