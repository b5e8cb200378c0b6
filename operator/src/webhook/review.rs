//! Answers an AdmissionReview: bytes in, bytes out.

use std::sync::Arc;

use api::SqliteBackup;
use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

use super::metrics::ReviewOutcome;
use crate::inject::{self, Outcome, Refusal, Settings};

/// The only supported version of `AdmissionReview`.
const API_VERSION: &str = "admission.k8s.io/v1";

/// The status code of a refusal, which `kubectl` shows as "Forbidden".
const FORBIDDEN: u16 = 403;

/// Reason for which a request is not a valid review. The API server shows it to the creator of the
/// Pod, because the entries have `failurePolicy: Fail`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReviewError {
    /// The body is not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// The body is not an AdmissionReview of the supported version.
    #[error("expected kind AdmissionReview of {API_VERSION}, got kind {kind:?} of {api_version:?}")]
    NotAReview {
        /// `kind` as sent.
        kind: String,
        /// `apiVersion` as sent.
        api_version: String,
    },
    /// A required field is missing.
    #[error("{field} is missing")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// The review is not about the creation of a Pod.
    #[error("only CREATE of pods is reviewed, not {operation} of {resource}")]
    NotAPod {
        /// `request.operation`.
        operation: String,
        /// `request.resource.resource`.
        resource: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The AdmissionReview as JSON.
    pub body: Vec<u8>,
    /// Outcome for the Pod.
    pub outcome: ReviewOutcome,
    /// Kind of a refusal; empty otherwise.
    pub reason: &'static str,
    /// For the log: the reason of a refusal.
    pub refusal: Option<Refusal>,
    /// Namespace and name of the Pod. A Pod whose name the API server will generate has the prefix
    /// of its name.
    pub pod: (String, String),
}

/// Answers a review. `backups` gives the SqliteBackups of a namespace.
///
/// # Errors
/// When the request is not a valid review; the HTTP status is 400 then.
pub fn answer(
    body: &[u8],
    backups: &dyn Fn(&str) -> Vec<Arc<SqliteBackup>>,
    settings: &Settings,
) -> Result<Answer, ReviewError> {
    let review: Value = serde_json::from_slice(body)?;
    let question = Question::read(&review)?;
    let verdict = judge(&question, &backups(question.namespace), settings);
    Ok(question.answer(verdict))
}

/// The relevant fields of a request.
struct Question<'a> {
    uid: &'a str,
    namespace: &'a str,
    pod: &'a Value,
}

impl<'a> Question<'a> {
    fn read(review: &'a Value) -> Result<Self, ReviewError> {
        let text = |path: &str| review.pointer(path).and_then(Value::as_str);
        let owned = |path: &str| text(path).unwrap_or_default().to_owned();
        if text("/kind") != Some("AdmissionReview") || text("/apiVersion") != Some(API_VERSION) {
            let (kind, api_version) = (owned("/kind"), owned("/apiVersion"));
            return Err(ReviewError::NotAReview { kind, api_version });
        }
        let required = |path, field| text(path).ok_or(ReviewError::Missing { field });
        let uid = required("/request/uid", "request.uid")?;
        let namespace = required("/request/namespace", "request.namespace")?;
        let (operation, resource) = (
            owned("/request/operation"),
            owned("/request/resource/resource"),
        );
        let sub_resource = text("/request/subResource").is_some_and(|name| !name.is_empty());
        if operation != "CREATE" || resource != "pods" || sub_resource {
            return Err(ReviewError::NotAPod {
                operation,
                resource,
            });
        }
        let pod = review
            .pointer("/request/object")
            .filter(|object| object.is_object())
            .ok_or(ReviewError::Missing {
                field: "request.object",
            })?;
        Ok(Question {
            uid,
            namespace,
            pod,
        })
    }

    fn pod_name(&self) -> &str {
        let text = |path: &str| self.pod.pointer(path).and_then(Value::as_str);
        let name = text("/metadata/name").filter(|name| !name.is_empty());
        name.or_else(|| text("/metadata/generateName"))
            .unwrap_or_default()
    }

    fn answer(&self, verdict: Result<(Outcome, Option<String>), Refusal>) -> Answer {
        let mut response = Map::new();
        response.insert("uid".to_owned(), json!(self.uid));
        response.insert("allowed".to_owned(), json!(verdict.is_ok()));
        let (outcome, reason, refusal) = match verdict {
            Ok((Outcome::Patch(patch), backup)) => {
                // ByteString is base64 in JSON, which is what the API server expects.
                let patch = ByteString(json!(patch).to_string().into_bytes());
                response.insert("patchType".to_owned(), json!("JSONPatch"));
                response.insert("patch".to_owned(), json!(patch));
                response.insert(
                    "auditAnnotations".to_owned(),
                    json!({"injected-by": backup}),
                );
                (ReviewOutcome::Patched, "", None)
            }
            Ok((Outcome::Already, _)) => (ReviewOutcome::Already, "", None),
            Ok((Outcome::NotSelected, _)) => (ReviewOutcome::NotSelected, "", None),
            Err(refusal) => {
                let message = refusal.to_string();
                let status = json!({"code": FORBIDDEN, "reason": "Forbidden", "message": message});
                response.insert("status".to_owned(), status);
                (
                    ReviewOutcome::Refused,
                    refusal.problem.kind(),
                    Some(refusal),
                )
            }
        };
        let review =
            json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response});
        Answer {
            body: review.to_string().into_bytes(),
            outcome,
            reason,
            refusal,
            pod: (self.namespace.to_owned(), self.pod_name().to_owned()),
        }
    }
}

/// The outcome, with the SqliteBackup as `namespace/name` when one serves the Pod.
fn judge(
    question: &Question<'_>,
    backups: &[Arc<SqliteBackup>],
    settings: &Settings,
) -> Result<(Outcome, Option<String>), Refusal> {
    let selected: Vec<&SqliteBackup> = backups
        .iter()
        .map(Arc::as_ref)
        .filter(|b| inject::selects(question.pod, b))
        .collect();
    if let Some(refusal) = inject::several_select(&selected) {
        return Err(refusal);
    }
    match selected.first() {
        None => Ok((Outcome::NotSelected, None)),
        Some(backup) => {
            let name = backup.metadata.name.as_deref().unwrap_or_default();
            let served_by = format!("{}/{name}", question.namespace);
            Ok((
                inject::inject(question.pod, backup, settings)?,
                Some(served_by),
            ))
        }
    }
}
