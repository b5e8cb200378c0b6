//! The webhook entries: one for each SqliteBackup, so that only selected Pods depend on us.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::SqliteBackup;
use api::names::{self, INJECT_LABEL, WEBHOOK_CONFIGURATION};
use api::validate::is_valid_selector;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference,
    WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::api::ObjectMeta;

use super::{Change, Plan, key};

/// Path on which the webhook is served.
pub const PATH: &str = "/mutate";

/// A namespace with more SqliteBackups than this shares one entry, which lets Pods pass when we are
/// down: each entry costs 2 KB of an object that may have about 1.5 MB.
pub const ENTRIES_PER_NAMESPACE: usize = 20;

/// How long an API server waits for us, in seconds.
const TIMEOUT_SECONDS: i32 = 5;

/// Label that every namespace has.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Where API servers reach us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: i32,
    },
    /// An URL such as `https://127.0.0.1:9443`, for an operator outside its cluster.
    Url(String),
}

/// Plans the webhook configuration. Before certificates are loaded there is nothing to say, and one
/// that does not exist is not made: it goes with the installation.
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

/// Wraps entries into the object that we fill. Its labels and annotations belong to helm, which
/// made it and removes it: with one of them ours, neither an upgrade nor an uninstall would work.
pub fn configuration(webhooks: Vec<MutatingWebhook>) -> MutatingWebhookConfiguration {
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            name: Some(WEBHOOK_CONFIGURATION.to_owned()),
            ..ObjectMeta::default()
        },
        webhooks: Some(webhooks),
    }
}

/// Builds the entries of every SqliteBackup that is neither suspended nor being deleted, ordered
/// by name. Every field is written out, so that what the API server returns compares as equal.
///
/// A SqliteBackup that is refused has its entry all the same: its Pods are refused with the reason,
/// rather than created without a backup.
pub fn entries<'a>(
    backups: impl Iterator<Item = &'a SqliteBackup>,
    ca_pem: &str,
    endpoint: &Endpoint,
) -> Vec<MutatingWebhook> {
    let mut by_namespace: BTreeMap<String, Vec<&SqliteBackup>> = BTreeMap::new();
    for backup in backups {
        let active = !backup.spec.suspend && backup.metadata.deletion_timestamp.is_none();
        // One selector that the API server refuses would take every other entry with it.
        if active && is_valid_selector(&backup.spec.selector) {
            by_namespace.entry(key(backup).0).or_default().push(backup);
        }
    }
    let mut entries = Vec::new();
    for (namespace, backups) in by_namespace {
        if backups.len() > ENTRIES_PER_NAMESPACE {
            let name = format!("{namespace}.{}", api::GROUP);
            let selector = with_opt_out(LabelSelector::default());
            entries.push(entry(
                name, &namespace, selector, "Ignore", ca_pem, endpoint,
            ));
            continue;
        }
        for backup in backups {
            let name = names::webhook(&namespace, &key(backup).1);
            let selector = with_opt_out(backup.spec.selector.to_label_selector());
            entries.push(entry(name, &namespace, selector, "Fail", ca_pem, endpoint));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
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

fn entry(
    name: String,
    namespace: &str,
    object_selector: LabelSelector,
    failure_policy: &str,
    ca_pem: &str,
    endpoint: &Endpoint,
) -> MutatingWebhook {
    let namespaces = BTreeMap::from([(NAMESPACE_LABEL.to_owned(), namespace.to_owned())]);
    MutatingWebhook {
        name,
        admission_review_versions: vec!["v1".to_owned()],
        client_config: client_config(ca_pem, endpoint),
        failure_policy: Some(failure_policy.to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(LabelSelector {
            match_labels: Some(namespaces),
            match_expressions: None,
        }),
        object_selector: Some(object_selector),
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
        match_conditions: None,
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
