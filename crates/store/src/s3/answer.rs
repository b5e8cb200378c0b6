//! Interprets the answers of S3 stores.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::target::clean;
use crate::{BoxError, StoreError};

/// Limit on a store's message in our errors, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// The meaning of an error answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Missing,
    NoBucket,
    Condition,
    Denied,
    Throttled,
    Unwell,
    Full,
    Other,
}

/// Returns the meaning of an error answer. An object counts as missing only if the store itself
/// says so; the 404 of a proxy is not enough.
fn meaning(operation: &str, status: u16, code: Option<&str>) -> Meaning {
    match code.unwrap_or_default() {
        "NoSuchBucket" => return Meaning::NoBucket,
        // As an answer to a list, this code makes no sense.
        "NoSuchKey" if operation != "list" => return Meaning::Missing,
        "PreconditionFailed" => return Meaning::Condition,
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "TooManyRequestsException"
        | "RequestThrottled"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "SlowDownRead"
        | "SlowDownWrite" => {
            return Meaning::Throttled;
        }
        // `NoSuchUpload`: the upload was lost, or an attempt whose answer was lost has completed
        // it. Repeat the whole put. Of two concurrent requests for one object a store may decide
        // neither, which says nothing about the condition. Clock differences resolve themselves, or
        // a person corrects them.
        "NoSuchUpload"
        | "RequestTimeout"
        | "InternalError"
        | "ServiceUnavailable"
        | "IncompleteBody"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "RequestTimeTooSkewed"
        | "RequestExpired" => return Meaning::Unwell,
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" | "StorageFull" => {
            return Meaning::Full;
        }
        code if is_authentication(code) => return Meaning::Denied,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => return Meaning::Denied,
        _ => {}
    }
    match status {
        401 | 403 => Meaning::Denied,
        404 if operation == "head" => Meaning::Missing,
        412 => Meaning::Condition,
        408 | 409 | 500 | 502 | 503 | 504 => Meaning::Unwell,
        429 => Meaning::Throttled,
        507 => Meaning::Full,
        _ => Meaning::Other,
    }
}

/// Returns whether the same request may soon get another answer.
pub(super) fn may_pass(status: u16, body: &str) -> bool {
    let code = body.split_once("<Code>");
    let code = code.and_then(|(_, rest)| Some(rest.split_once("</Code>")?.0));
    // A lost upload stays lost.
    code != Some("NoSuchUpload")
        && matches!(
            meaning("", status, code),
            Meaning::Throttled | Meaning::Unwell
        )
}

/// Returns whether the keys themselves were refused, rather than one of their permissions.
pub(super) fn is_authentication(code: &str) -> bool {
    matches!(
        code,
        "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "InvalidClientTokenId"
    )
}

/// Returns the code of a refusal: the part of [`StoreError::Denied`]'s `code` before the colon.
pub(super) fn refusal_code(code: &str) -> &str {
    code.split(':').next().unwrap_or_default()
}

/// A call, for error messages.
pub(super) struct Call<'a> {
    pub(super) operation: &'a str,
    pub(super) bucket: &'a str,
    pub(super) prefix: &'a str,
    pub(super) key: &'a str,
}

impl Call<'_> {
    /// Converts a failed call into an error. A failed condition gives [`StoreError::Conflict`]; the
    /// caller that set the condition can be more precise.
    pub(super) fn failure<E>(&self, error: SdkError<E, HttpResponse>) -> StoreError
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let what = what(self.operation, self.bucket, self.prefix, self.key);
        match &error {
            SdkError::ServiceError(answer) => {
                let (status, code) = (answer.raw().status().as_u16(), answer.err().code());
                let meaning = meaning(self.operation, status, code);
                self.refused(meaning, what, said(status, code, answer.err().message()))
            }
            SdkError::TimeoutError(_) => {
                let source = error.into_source().ok();
                StoreError::Unreachable {
                    what,
                    code: "no answer in time".to_owned(),
                    source,
                }
            }
            SdkError::DispatchFailure(_) => match error.into_source() {
                Ok(source) => not_sent(what, source),
                Err(error) => unreachable!("a failed dispatch has a source: {error}"),
            },
            SdkError::ResponseError(_) => {
                let source = error.into_source().ok();
                StoreError::Corrupt {
                    what,
                    code: "not readable".to_owned(),
                    source,
                }
            }
            _ => {
                let source = error.into_source().ok();
                StoreError::Other {
                    what,
                    code: "cannot make the request".to_owned(),
                    source,
                }
            }
        }
    }

    fn refused(&self, meaning: Meaning, what: String, code: String) -> StoreError {
        let (key, source) = (self.key.to_owned(), None);
        match meaning {
            Meaning::Missing => StoreError::Missing { key },
            Meaning::NoBucket => StoreError::NoBucket {
                bucket: self.bucket.to_owned(),
            },
            Meaning::Condition => StoreError::Conflict { key },
            Meaning::Denied => StoreError::Denied { what, code, source },
            Meaning::Throttled => StoreError::Throttled { what, code, source },
            Meaning::Unwell => StoreError::Unreachable { what, code, source },
            Meaning::Full => StoreError::NoSpace { what, code, source },
            Meaning::Other => StoreError::Other { what, code, source },
        }
    }
}

/// Returns the call in the form for people: `put s3://bucket/prefix/key`.
pub(super) fn what(operation: &str, bucket: &str, prefix: &str, key: &str) -> String {
    let location = location(bucket, prefix);
    match key {
        "" => format!("{operation} {location}"),
        key if location.contains(' ') => format!("{operation} {key} in {location}"),
        key => format!("{operation} {}/{key}", location.trim_end_matches('/')),
    }
}

/// Returns the address of the store: `s3://bucket/prefix` if this URL leads there, else bucket and
/// path.
pub(super) fn location(bucket: &str, prefix: &str) -> String {
    let cleaned = clean(&format!("/{prefix}"));
    match prefix {
        "." => format!("s3://{bucket}"),
        prefix if cleaned.strip_prefix('/') == Some(prefix) => format!("s3://{bucket}/{prefix}"),
        prefix => format!("bucket {bucket} path {prefix:?}"),
    }
}

fn said(status: u16, code: Option<&str>, message: Option<&str>) -> String {
    let code = match (code, status) {
        (Some(code), _) => code.to_owned(),
        // The answer to a HEAD has no error code.
        (None, 401 | 403) => format!("HTTP {status}: check the keys and what they may do"),
        (None, _) => format!("HTTP {status}"),
    };
    match message.filter(|message| !message.is_empty()) {
        Some(message) => {
            format!(
                "{code}: {}",
                message.chars().take(MAX_MESSAGE_CHARS).collect::<String>()
            )
        }
        None => code,
    }
}

/// Handles a request that was never sent, because credentials or a connection were missing.
fn not_sent(what: String, source: BoxError) -> StoreError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
    let mut deepest = String::new();
    while let Some(error) = cause {
        if let Some(credentials) = error.downcast_ref::<CredentialsError>() {
            return no_credentials(what, credentials, None);
        }
        deepest = error.to_string();
        cause = error.source();
    }
    StoreError::Unreachable {
        what,
        code: deepest,
        source: Some(source),
    }
}

fn no_credentials(what: String, error: &CredentialsError, source: Option<BoxError>) -> StoreError {
    let mut code = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        // The provider chain lists on further lines what each provider lacked.
        let first_line = cause.to_string();
        let first_line = first_line.lines().next().unwrap_or_default();
        code = format!("{code}: {}", first_line.trim_end_matches(" Attempted:"));
    }
    match error {
        CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
            StoreError::CredentialsMissing {
                what: format!(
                    "{what}: {code}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
                     credentials-dir"
                ),
                source,
            }
        }
        CredentialsError::ProviderTimedOut(_) => StoreError::Unreachable { what, code, source },
        _ => StoreError::Denied { what, code, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_of_the_store_makes_an_object_missing() {
        assert_eq!(meaning("get", 404, Some("NoSuchKey")), Meaning::Missing);
        assert_eq!(meaning("get", 404, None), Meaning::Other);
        assert_eq!(meaning("list", 404, Some("NotFound")), Meaning::Other);
        assert_eq!(meaning("get", 404, Some("NoSuchBucket")), Meaning::NoBucket);
        assert_eq!(meaning("list", 404, Some("NoSuchKey")), Meaning::Other);
        // HEAD has no body; the caller follows it with a list.
        assert_eq!(meaning("head", 404, None), Meaning::Missing);
    }

    #[test]
    fn answers_of_known_stores_are_told_apart() {
        for (status, code, expected) in [
            (403, Some("AccessDenied"), Meaning::Denied),
            (403, None, Meaning::Denied),
            (401, None, Meaning::Denied),
            (400, Some("ExpiredToken"), Meaning::Denied),
            (400, Some("InvalidToken"), Meaning::Denied),
            (412, Some("PreconditionFailed"), Meaning::Condition),
            (409, Some("ConditionalRequestConflict"), Meaning::Unwell),
            (409, Some("OperationAborted"), Meaning::Unwell),
            (409, None, Meaning::Unwell),
            (403, Some("RequestTimeTooSkewed"), Meaning::Unwell),
            (400, Some("TooManyRequestsException"), Meaning::Throttled),
            (412, None, Meaning::Condition),
            (503, Some("SlowDown"), Meaning::Throttled),
            (429, None, Meaning::Throttled),
            (503, None, Meaning::Unwell),
            (500, Some("InternalError"), Meaning::Unwell),
            (400, Some("RequestTimeout"), Meaning::Unwell),
            (404, Some("NoSuchUpload"), Meaning::Unwell),
            (507, Some("XMinioStorageFull"), Meaning::Full),
            (301, Some("PermanentRedirect"), Meaning::Other),
            (400, Some("EntityTooLarge"), Meaning::Other),
        ] {
            assert_eq!(meaning("put", status, code), expected, "{status} {code:?}");
        }
    }

    #[test]
    fn only_answers_that_may_change_are_asked_for_again() {
        let body = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
        for (status, code) in [
            (409, "ConditionalRequestConflict"),
            (409, "OperationAborted"),
            (403, "RequestTimeTooSkewed"),
            (429, "TooManyRequests"),
        ] {
            assert!(may_pass(status, &body(code)), "{code}");
        }
        assert!(may_pass(429, ""));
        for (status, code) in [
            (404, "NoSuchUpload"),
            (412, "PreconditionFailed"),
            (403, "AccessDenied"),
            (404, "NoSuchKey"),
            (200, ""),
        ] {
            assert!(!may_pass(status, &body(code)), "{code}");
        }
    }

    #[test]
    fn what_a_store_says_is_passed_on_but_not_without_end() {
        assert_eq!(said(503, None, None), "HTTP 503");
        let long = said(403, Some("AccessDenied"), Some(&"x".repeat(10_000)));
        assert!(long.starts_with("AccessDenied: x") && long.len() < 400);
        assert_eq!(refusal_code(&long), "AccessDenied");
    }

    #[test]
    fn a_place_is_told_by_its_url_or_by_its_parts_where_no_url_leads_there() {
        for (prefix, told) in [
            (".", "put s3://bucket/x"),
            ("", "put s3://bucket/x"),
            ("a/b", "put s3://bucket/a/b/x"),
            ("/a", "put x in bucket bucket path \"/a\""),
            ("a/", "put x in bucket bucket path \"a/\""),
        ] {
            assert_eq!(what("put", "bucket", prefix, "x"), told);
        }
        assert_eq!(location("bucket", "."), "s3://bucket");
        assert_eq!(location("bucket", ""), "s3://bucket/");
    }
}
