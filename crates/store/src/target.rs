//! Replica URLs, as Litestream writes them, to targets.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::Credentials;

/// Where backups go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// A directory.
    File {
        /// Absolute.
        path: PathBuf,
    },
    /// A bucket.
    S3(S3Target),
}

/// A prefix in a bucket of an S3 store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct S3Target {
    /// The bucket's name.
    pub bucket: String,
    /// What every key starts with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Scheme, host and port of the store; default: AWS.
    pub endpoint: Option<String>,
    /// The bucket is part of the path, not of the host; default: with an endpoint only.
    pub force_path_style: Option<bool>,
    /// What to sign with.
    pub credentials: Credentials,
    /// PEM file with the only authorities to trust; default: those of the system.
    pub ca_file: Option<PathBuf>,
}

/// Why a text is not the URL of a replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not a URL at all.
    #[error("{url:?} is not a URL: {reason}; write file:///DIRECTORY or s3://BUCKET/PREFIX")]
    Invalid {
        /// The text.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A kind of store that we know and do not serve.
    #[error("{scheme}:// targets are not served yet; s3:// and file:// are")]
    Unsupported {
        /// The scheme.
        scheme: String,
    },
    /// A kind of store that we do not know.
    #[error("unknown scheme {scheme:?}; s3:// and file:// are served")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// A file URL names a machine, or no directory.
    #[error("file URL {url:?} must be file:///DIRECTORY")]
    FilePath {
        /// The URL.
        url: String,
    },
    /// Not the name of a bucket.
    #[error("bucket name {bucket:?} is not valid: {reason}")]
    Bucket {
        /// The name.
        bucket: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A query key that we do not honour.
    #[error("unknown query key {key:?} in a {scheme}:// URL{}", hint(.suggestion))]
    UnknownKey {
        /// The key.
        key: String,
        /// The scheme.
        scheme: String,
        /// What may have been meant, or what to do instead.
        suggestion: Option<&'static str>,
    },
    /// A query key whose value makes no sense.
    #[error("query key {key:?} has the value {value:?}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Credentials in the URL, where logs and process lists show them.
    #[error("credentials do not belong in the URL; use the environment or a Secret")]
    CredentialsInUrl,
}

fn hint(text: &Option<&'static str>) -> String {
    text.map(|text| format!("; {text}")).unwrap_or_default()
}

impl Target {
    /// Reads a replica URL.
    ///
    /// `file:///DIRECTORY`, or `s3://BUCKET/PREFIX` with the query keys `endpoint`, `region`,
    /// `forcePathStyle` (or `force-path-style`) and `ca-file`. Keys of Litestream that we obey
    /// anyway are accepted with the value that says so: `signPayload=true`,
    /// `requireContentMD5=…`, `skipVerify=false`.
    ///
    /// # Errors
    /// [`UrlError`]; a key that we do not honour is one.
    pub fn from_url(text: &str) -> Result<Self, UrlError> {
        let url = Url::parse(text).map_err(|error| UrlError::Invalid {
            url: text.to_owned(),
            reason: error.to_string(),
        })?;
        match url.scheme() {
            "file" => file(&url),
            "s3" => s3(&url),
            scheme @ ("gs" | "abs" | "azblob" | "sftp" | "oss" | "nats" | "webdav" | "webdavs") => {
                Err(UrlError::Unsupported {
                    scheme: scheme.to_owned(),
                })
            }
            scheme => Err(UrlError::UnknownScheme {
                scheme: scheme.to_owned(),
            }),
        }
    }
}

fn file(url: &Url) -> Result<Target, UrlError> {
    if let Some((key, _)) = url.query_pairs().next() {
        return Err(UrlError::UnknownKey {
            key: key.into_owned(),
            scheme: "file".to_owned(),
            suggestion: None,
        });
    }
    let path = Path::new("/").join(clean(&decode(url.path())?));
    if url.host_str().is_some_and(|host| !host.is_empty()) || path == Path::new("/") {
        return Err(UrlError::FilePath {
            url: url.to_string(),
        });
    }
    Ok(Target::File { path })
}

fn s3(url: &Url) -> Result<Target, UrlError> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::CredentialsInUrl);
    }
    let bucket = url.host_str().unwrap_or_default().to_owned();
    check_bucket(&bucket)?;
    let prefix = clean(&decode(url.path())?);
    let mut target = S3Target {
        bucket,
        prefix,
        ..S3Target::default()
    };
    for (key, value) in url.query_pairs() {
        s3_key(&mut target, &key, &value)?;
    }
    Ok(Target::S3(target))
}

fn s3_key(target: &mut S3Target, key: &str, value: &str) -> Result<(), UrlError> {
    match key {
        "endpoint" => target.endpoint = Some(endpoint(value)?),
        "region" => target.region = Some(value.to_owned()).filter(|region| !region.is_empty()),
        "forcePathStyle" | "force-path-style" => {
            target.force_path_style = Some(boolean(key, value)?);
        }
        "caFile" | "ca-file" => target.ca_file = Some(PathBuf::from(value)),
        // We always sign the payload, and never send a batch that needs an MD5.
        "signPayload" | "sign-payload" if boolean(key, value)? => {}
        "requireContentMD5" | "require-content-md5" => drop(boolean(key, value)?),
        "skipVerify" | "skip-verify" if !boolean(key, value)? => {}
        _ => {
            return Err(UrlError::UnknownKey {
                key: key.to_owned(),
                scheme: "s3".to_owned(),
                suggestion: key_suggestion(key),
            });
        }
    }
    Ok(())
}

fn key_suggestion(key: &str) -> Option<&'static str> {
    match key.to_ascii_lowercase().replace(['-', '_'], "").as_str() {
        "endpoint" | "endpointurl" => Some("did you mean endpoint"),
        "region" => Some("did you mean region"),
        "forcepathstyle" | "pathstyle" => Some("did you mean forcePathStyle"),
        "skipverify" => Some("give the authority to trust with ca-file instead"),
        "signpayload" => Some("payloads are always signed"),
        "concurrency" | "partsize" => Some("uploads are sized automatically"),
        _ => Some("endpoint, region, forcePathStyle and ca-file are served"),
    }
}

/// Returns an endpoint with a scheme, as Litestream completes it: http for this machine and
/// private networks, https for the rest.
fn endpoint(value: &str) -> Result<String, UrlError> {
    let invalid = || UrlError::Value {
        key: "endpoint".to_owned(),
        value: value.to_owned(),
        expected: "scheme, host and port, as https://s3.example.com:9000",
    };
    let text = if value.contains("://") {
        value.to_owned()
    } else {
        let host = value.rsplit_once(':').map_or(value, |(host, _)| host);
        format!(
            "{}://{value}",
            if is_local(host) { "http" } else { "https" }
        )
    };
    let url = Url::parse(&text).map_err(|_| invalid())?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !plain {
        return Err(invalid());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn is_local(host: &str) -> bool {
    let private = |address: std::net::Ipv4Addr| address.is_private() || address.is_loopback();
    host == "localhost"
        || host.ends_with(".localhost")
        || host.ends_with(".local")
        || host.parse().is_ok_and(private)
}

fn boolean(key: &str, value: &str) -> Result<bool, UrlError> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" | "yes" => Ok(true),
        "false" | "0" | "f" | "no" => Ok(false),
        _ => Err(UrlError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            expected: "true or false",
        }),
    }
}

/// Checks a bucket's name loosely: old buckets and other stores allow more than AWS does now.
pub(crate) fn check_bucket(bucket: &str) -> Result<(), UrlError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let reason = if bucket.is_empty() {
        "it is empty"
    } else if !(3..=255).contains(&bucket.len()) {
        "it must have 3 to 255 characters"
    } else if !bucket.chars().all(allowed) {
        "only letters, digits, dots, dashes and underscores are allowed"
    } else if bucket.starts_with(['.', '-']) || bucket.contains("..") {
        "dots and dashes must be inside, and dots apart"
    } else {
        return Ok(());
    };
    Err(UrlError::Bucket {
        bucket: bucket.to_owned(),
        reason,
    })
}

fn decode(path: &str) -> Result<String, UrlError> {
    let decoded = percent_decode_str(path).decode_utf8();
    decoded
        .map(String::from)
        .map_err(|error| UrlError::Invalid {
            url: path.to_owned(),
            reason: error.to_string(),
        })
}

/// Resolves `.`, `..` and double slashes as Go's `path.Clean` does, and drops slashes at the ends.
pub(crate) fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3_target(url: &str) -> S3Target {
        match Target::from_url(url).unwrap() {
            Target::S3(target) => target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn urls_of_litestream_give_the_same_prefix() {
        for (url, prefix) in [
            ("s3://bucket", ""),
            ("s3://bucket/", ""),
            ("s3://bucket/db", "db"),
            ("s3://bucket//a//b/./c/../d/", "a/b/d"),
            ("s3://bucket/a%20b/c+d", "a b/c+d"),
        ] {
            assert_eq!(s3_target(url).prefix, prefix, "{url}");
        }
        assert_eq!(s3_target("s3://My.Old_Bucket/db").bucket, "My.Old_Bucket");
    }

    #[test]
    fn query_keys_of_litestream_are_read_in_both_spellings() {
        let target = s3_target(
            "s3://bucket/db?endpoint=http%3A%2F%2F127.0.0.1:9000/&region=eu-west-1&forcePathStyle=false",
        );
        assert_eq!(target.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
        assert_eq!(target.region.as_deref(), Some("eu-west-1"));
        assert_eq!(target.force_path_style, Some(false));
        assert_eq!(
            s3_target("s3://bucket?force-path-style=1").force_path_style,
            Some(true)
        );
        s3_target("s3://bucket?signPayload=true&requireContentMD5=false&skipVerify=false");
    }

    #[test]
    fn an_endpoint_without_a_scheme_gets_the_one_litestream_gives_it() {
        for (given, full) in [
            ("localhost:9000", "http://localhost:9000"),
            ("10.1.2.3:9000", "http://10.1.2.3:9000"),
            ("s3.example.com", "https://s3.example.com"),
            ("minio.example.com:9000", "https://minio.example.com:9000"),
        ] {
            let target = s3_target(&format!("s3://bucket?endpoint={given}"));
            assert_eq!(target.endpoint.as_deref(), Some(full));
        }
        for bad in ["ftp://host", "http://", "http://u:p@host"] {
            let url = format!("s3://bucket?endpoint={bad}");
            assert!(
                matches!(Target::from_url(&url), Err(UrlError::Value { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_key_that_is_not_honoured_is_an_error_that_names_it() {
        let message = |url| Target::from_url(url).unwrap_err().to_string();
        assert!(message("s3://bucket?storageClass=GLACIER").contains("storageClass"));
        assert!(message("s3://bucket?Endpoint=x").contains("did you mean endpoint"));
        assert!(message("s3://bucket?skipVerify=true").contains("ca-file"));
        assert!(message("s3://bucket?signPayload=false").contains("always signed"));
        assert!(message("s3://bucket?forcePathStyle=maybe").contains("maybe"));
        assert!(message("file:///a?x=1").contains("\"x\""));
    }

    #[test]
    fn stores_that_are_not_served_yet_are_told_from_unknown_ones() {
        for url in [
            "gs://b/p",
            "abs://account@container/p",
            "azblob://c/p",
            "sftp://u@h/d",
        ] {
            assert!(
                matches!(Target::from_url(url), Err(UrlError::Unsupported { .. })),
                "{url}"
            );
        }
        assert!(matches!(
            Target::from_url("ftp://h/d"),
            Err(UrlError::UnknownScheme { .. })
        ));
        assert!(matches!(
            Target::from_url("/data/x.db"),
            Err(UrlError::Invalid { .. })
        ));
    }

    #[test]
    fn bad_bucket_names_and_credentials_in_urls_are_refused() {
        for url in ["s3:///db", "s3://ab/db", "s3://-abc", "s3://a..b"] {
            assert!(
                matches!(Target::from_url(url), Err(UrlError::Bucket { .. })),
                "{url}"
            );
        }
        let refused = Target::from_url("s3://key:secret@bucket/db");
        assert_eq!(refused, Err(UrlError::CredentialsInUrl));
    }

    #[test]
    fn file_urls_name_a_directory_of_this_machine() {
        let target = Target::from_url("file:///backups/a%20b/../c").unwrap();
        assert_eq!(
            target,
            Target::File {
                path: "/backups/c".into()
            }
        );
        for url in ["file://host/dir", "file:///"] {
            assert!(
                matches!(Target::from_url(url), Err(UrlError::FilePath { .. })),
                "{url}"
            );
        }
    }
}
