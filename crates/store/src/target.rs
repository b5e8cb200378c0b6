//! Parses replica URLs in Litestream's format into targets.

mod provider;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{Credentials, Encryption, key};

/// Part sizes that S3 and our memory allow, in bytes.
const PART_BYTES: RangeInclusive<u64> = 5 << 20..=512 << 20;
/// Allowed number of parts in flight at once.
const PARTS_IN_FLIGHT: RangeInclusive<usize> = 1..=64;
/// Limit on the prefix, in bytes: S3 allows keys of 1,024, and our own part needs some of them.
const MAX_PREFIX_BYTES: usize = 900;
/// Storage classes whose objects need a restore request hours before they can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// The destination of backups.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each replica of a configuration, while it is read"
)]
pub enum Target {
    /// A directory.
    File {
        /// Absolute path.
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
    /// Start of every key, byte for byte, before the slash that follows it. With an empty prefix
    /// every key starts with a slash. At most 900 bytes.
    pub prefix: String,
    /// Default: `AWS_REGION`, `AWS_DEFAULT_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// Scheme, host and port of the store; default: AWS.
    pub endpoint: Option<String>,
    /// Whether the bucket is in the path instead of the host; default: with an endpoint only.
    pub force_path_style: Option<bool>,
    /// Credentials for signatures.
    pub credentials: Credentials,
    /// PEM file with the only certificate authorities to trust; default: those of the system.
    pub ca_file: Option<PathBuf>,
    /// Storage class of every object; default: the bucket's.
    pub storage_class: Option<String>,
    /// Encryption of objects; default: the bucket's setting.
    pub encryption: Option<Encryption>,
    /// Larger objects are stored in parts of this size, in bytes, 5 MiB to 512 MiB; default 5 MiB.
    pub part_bytes: Option<u64>,
    /// Number of parts in memory and in flight at once, 1 to 64; default 3.
    pub parts_in_flight: Option<usize>,
}

/// Why a text is not a replica URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// The text is not a URL.
    #[error("{url:?} is not a URL: {reason}; write file:///DIRECTORY or s3://BUCKET/PREFIX")]
    Invalid {
        /// The text.
        url: String,
        /// The fault of the text.
        reason: String,
    },
    /// A known kind of store that is not supported.
    #[error("{scheme}:// targets are not served yet; s3:// and file:// are")]
    Unsupported {
        /// The scheme.
        scheme: String,
    },
    /// An unknown kind of store.
    #[error("unknown scheme {scheme:?}; s3:// and file:// are served")]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
    /// A file URL with a host, or without a directory.
    #[error("file URL {url:?} must be file:///DIRECTORY")]
    FilePath {
        /// The URL.
        url: String,
    },
    /// Invalid bucket name.
    #[error("bucket name {bucket:?} is not valid: {reason}")]
    Bucket {
        /// The name.
        bucket: String,
        /// The fault of the name.
        reason: &'static str,
    },
    /// Unsupported query key.
    #[error("unknown query key {key:?} in a {scheme}:// URL{}", hint(.suggestion))]
    UnknownKey {
        /// The key.
        key: String,
        /// The scheme.
        scheme: String,
        /// The key that may have been meant, or an alternative.
        suggestion: Option<&'static str>,
    },
    /// A part of a target with an invalid value.
    #[error("{key} is {value:?}, expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// The allowed values.
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
    /// Parses a replica URL.
    ///
    /// `file:///DIRECTORY`, or `s3://BUCKET/PREFIX` with the query keys `endpoint`, `region`,
    /// `forcePathStyle` (or `force-path-style`), `ca-file`, `storageClass`, `partSize`,
    /// `concurrency` and `sseKmsKeyId`. The prefix of an S3 URL is that of Litestream: dots, double
    /// slashes and slashes at its ends are resolved. Without any slash after the bucket, the prefix
    /// is `.`. The bucket may precede the host of its provider:
    /// `s3://BUCKET.s3.eu-west-1.amazonaws.com/PREFIX`. Keys of Litestream whose behaviour we
    /// always have are accepted with the value for it: `signPayload=true`, `requireContentMD5=…`,
    /// `skipVerify=false`.
    ///
    /// # Errors
    /// [`UrlError`], also for an unsupported key.
    pub fn from_url(text: &str) -> Result<Self, UrlError> {
        let invalid = |reason: String| UrlError::Invalid {
            url: without_user(text),
            reason,
        };
        if text.contains(|c: char| c.is_control()) {
            return Err(invalid("it holds a control character".to_owned()));
        }
        let url = Url::parse(text).map_err(|error| invalid(error.to_string()))?;
        match url.scheme() {
            "file" => file(&url),
            "s3" => s3(&url, path_of(text)),
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
    let path = PathBuf::from(clean(&decode(url.path())?));
    if url.host_str().is_some_and(|host| !host.is_empty()) || path == Path::new("/") {
        return Err(UrlError::FilePath {
            url: url.to_string(),
        });
    }
    Ok(Target::File { path })
}

/// `path` is the path as written: the URL's own path no longer shows `..` next to a double slash.
fn s3(url: &Url, path: &str) -> Result<Target, UrlError> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::CredentialsInUrl);
    }
    let host = provider::read(url.host_str().unwrap_or_default(), url.port())?;
    let prefix = clean(&decode(path)?);
    let mut target = S3Target {
        bucket: host.bucket,
        prefix: prefix.strip_prefix('/').unwrap_or(&prefix).to_owned(),
        ..S3Target::default()
    };
    for (key, value) in url.query_pairs() {
        s3_key(&mut target, &key, &value)?;
    }
    target.region = target.region.or(host.region);
    if target.endpoint.is_none() {
        target.endpoint = host.endpoint;
        target.force_path_style = target.force_path_style.or(host.force_path_style);
    }
    target.check()?;
    Ok(Target::S3(target))
}

/// Returns the path of a URL as written, with its leading slash.
fn path_of(text: &str) -> &str {
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let text = text.split(['?', '#']).next().unwrap_or_default();
    text.find('/').map_or("", |at| &text[at..])
}

impl S3Target {
    /// Sets the endpoint. A missing scheme is completed as in Litestream.
    ///
    /// # Errors
    /// [`UrlError::Value`] when it is not scheme, host and port.
    pub fn set_endpoint(&mut self, text: &str) -> Result<(), UrlError> {
        self.endpoint = Some(endpoint(text)?);
        Ok(())
    }

    /// Returns the target of a database below this one, joined as in Litestream: the path is
    /// cleaned first.
    #[must_use]
    pub fn below(self, place: &str) -> Self {
        Self {
            prefix: key::directory(&self.prefix) + place,
            ..self
        }
    }

    /// Checks everything that needs no request to the store.
    pub(crate) fn check(&self) -> Result<(), UrlError> {
        check_bucket(&self.bucket)?;
        self.check_prefix()?;
        self.check_values()
    }

    /// Checks that every store can keep and list the keys below the prefix.
    ///
    /// # Errors
    /// [`UrlError::Value`] with the fault of the prefix.
    pub fn check_prefix(&self) -> Result<(), UrlError> {
        let path = |expected| UrlError::Value {
            key: "path".to_owned(),
            value: self.prefix.clone(),
            expected,
        };
        if self.prefix.len() > MAX_PREFIX_BYTES {
            return Err(path("at most 900 bytes"));
        }
        if self.prefix.contains(key::is_unlistable) {
            return Err(path(
                "no control character, which no list of a store can show",
            ));
        }
        Ok(())
    }

    fn check_values(&self) -> Result<(), UrlError> {
        let wrong = |key: &str, value: String, expected| {
            let key = key.to_owned();
            Err(UrlError::Value {
                key,
                value,
                expected,
            })
        };
        if let Some(class) = &self.storage_class
            && ARCHIVES.contains(&class.as_str())
        {
            let expected = "a class whose objects can be read at once, such as STANDARD_IA";
            return wrong("storage-class", class.clone(), expected);
        }
        if let Some(bytes) = self.part_bytes
            && !PART_BYTES.contains(&bytes)
        {
            let expected = "5 MiB to 512 MiB";
            return wrong("part-size", format!("{bytes} bytes"), expected);
        }
        if let Some(parts) = self.parts_in_flight
            && !PARTS_IN_FLIGHT.contains(&parts)
        {
            return wrong("concurrency", parts.to_string(), "1 to 64");
        }
        if let Some(endpoint) = self.endpoint.as_deref().filter(|it| is_in_the_clear(it))
            && matches!(self.encryption, Some(Encryption::Customer(_)))
        {
            let expected = "https:// with a customer key, which each request carries";
            return wrong("endpoint", endpoint.to_owned(), expected);
        }
        Ok(())
    }
}

/// Returns whether requests to an endpoint cross a network in plain text.
fn is_in_the_clear(endpoint: &str) -> bool {
    let is_private = |url: &Url| url.host_str().is_some_and(is_local);
    Url::parse(endpoint).is_ok_and(|url| url.scheme() == "http" && !is_private(&url))
}

fn s3_key(target: &mut S3Target, key: &str, value: &str) -> Result<(), UrlError> {
    match key {
        "endpoint" => target.set_endpoint(value)?,
        "region" => target.region = Some(value.to_owned()).filter(|region| !region.is_empty()),
        "forcePathStyle" | "force-path-style" => {
            target.force_path_style = Some(boolean(key, value)?);
        }
        "caFile" | "ca-file" => target.ca_file = Some(PathBuf::from(value)),
        "storageClass" | "storage-class" => target.storage_class = Some(value.to_owned()),
        "partSize" | "part-size" => target.part_bytes = Some(number(key, value)?),
        "concurrency" => target.parts_in_flight = Some(number(key, value)?),
        "sseKmsKeyId" | "sse-kms-key-id" => {
            target.encryption = Some(Encryption::Kms(value.to_owned()));
        }
        "sseCustomerKey" | "sse-customer-key" => return Err(UrlError::CredentialsInUrl),
        // The payload is always signed, and no request needs an MD5.
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
        _ => Some(
            "endpoint, region, forcePathStyle, ca-file, storageClass, partSize, concurrency and \
             sseKmsKeyId are served",
        ),
    }
}

/// Returns an endpoint with a scheme, completed as in Litestream: http for this machine and private
/// networks, https for all others.
fn endpoint(value: &str) -> Result<String, UrlError> {
    let invalid = || UrlError::Value {
        key: "endpoint".to_owned(),
        value: without_user(value),
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

/// Returns a text without the part before an @, which may be a password.
fn without_user(text: &str) -> String {
    let Some((before, after)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    let scheme = before.split_once("://").map(|(scheme, _)| scheme);
    scheme.map_or_else(
        || format!("…@{after}"),
        |scheme| format!("{scheme}://…@{after}"),
    )
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

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, UrlError> {
    value.parse().map_err(|_| UrlError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        expected: "a number",
    })
}

/// Checks a bucket name loosely: old buckets and other stores allow more than AWS does now.
fn check_bucket(bucket: &str) -> Result<(), UrlError> {
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

/// Resolves `.`, `..` and slashes as Go's `path.Clean` does. An empty path becomes `.`, an absolute
/// path stays absolute, and `..` at the start of a relative path stays.
pub(crate) fn clean(path: &str) -> String {
    let is_rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match (part, parts.last()) {
            ("" | ".", _) => {}
            ("..", None) if is_rooted => {}
            ("..", None | Some(&"..")) => parts.push(part),
            ("..", Some(_)) => drop(parts.pop()),
            (part, _) => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (is_rooted, joined.as_str()) {
        (true, _) => format!("/{joined}"),
        (false, "") => ".".to_owned(),
        (false, _) => joined,
    }
}
