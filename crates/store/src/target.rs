//! Replica URLs, as Litestream writes them, to targets.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::Url;

use crate::{Credentials, Encryption};

/// Part sizes that S3 and our memory allow, in bytes.
const PART_BYTES: RangeInclusive<u64> = 5 << 20..=512 << 20;
/// Parts that may be on their way at once.
const PARTS_IN_FLIGHT: RangeInclusive<usize> = 1..=64;
/// Classes whose objects have to be asked for hours before they can be read.
const ARCHIVES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// Where backups go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each replica of a configuration, while it is read"
)]
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
    /// Storage class of every object; default: the bucket's.
    pub storage_class: Option<String>,
    /// How objects are encrypted; default: as the bucket is set.
    pub encryption: Option<Encryption>,
    /// Larger objects are stored in parts of this size, in bytes, 5 MiB to 512 MiB; default 5 MiB.
    pub part_bytes: Option<u64>,
    /// How many parts are in memory and on their way at once, 1 to 64; default 3.
    pub parts_in_flight: Option<usize>,
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
    /// A part of a target whose value makes no sense.
    #[error("{key} is {value:?}, expected {expected}")]
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
    /// `forcePathStyle` (or `force-path-style`), `ca-file`, `storageClass`, `partSize`,
    /// `concurrency` and `sseKmsKeyId`. Keys of Litestream that we obey anyway are accepted with
    /// the value that says so: `signPayload=true`, `requireContentMD5=…`, `skipVerify=false`.
    ///
    /// # Errors
    /// [`UrlError`]; a key that we do not honour is one.
    pub fn from_url(text: &str) -> Result<Self, UrlError> {
        let url = Url::parse(text).map_err(|error| UrlError::Invalid {
            url: without_user(text),
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
    let prefix = clean(&decode(url.path())?);
    let mut target = S3Target {
        bucket,
        prefix,
        ..S3Target::default()
    };
    for (key, value) in url.query_pairs() {
        s3_key(&mut target, &key, &value)?;
    }
    target.check()?;
    Ok(Target::S3(target))
}

impl S3Target {
    /// Sets the endpoint, which gets the scheme that Litestream gives it where it has none.
    ///
    /// # Errors
    /// [`UrlError::Value`] when it is not scheme, host and port.
    pub fn set_endpoint(&mut self, text: &str) -> Result<(), UrlError> {
        self.endpoint = Some(endpoint(text)?);
        Ok(())
    }

    /// Checks what no store needs to be asked for.
    pub(crate) fn check(&self) -> Result<(), UrlError> {
        check_bucket(&self.bucket)?;
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

/// Whether others may listen to what an endpoint is sent.
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
        _ => Some(
            "endpoint, region, forcePathStyle, ca-file, storageClass, partSize, concurrency and \
             sseKmsKeyId are served",
        ),
    }
}

/// Returns an endpoint with a scheme, as Litestream completes it: http for this machine and
/// private networks, https for the rest.
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

/// A text without what stands before an @, which may be a password.
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

/// Checks a bucket's name loosely: old buckets and other stores allow more than AWS does now.
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
    use crate::CustomerKey;

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
        assert!(message("s3://bucket?Endpoint=x").contains("did you mean endpoint"));
        assert!(message("s3://bucket?skipVerify=true").contains("ca-file"));
        assert!(message("s3://bucket?signPayload=false").contains("always signed"));
        assert!(message("s3://bucket?forcePathStyle=maybe").contains("maybe"));
        assert!(message("s3://bucket?sseCustomerKeyPath=/k").contains("sseCustomerKeyPath"));
        assert!(message("file:///a?x=1").contains("\"x\""));
    }

    #[test]
    fn how_objects_are_kept_is_read_in_both_spellings_and_has_limits() {
        for url in [
            "s3://bucket?storageClass=STANDARD_IA&partSize=16777216&concurrency=5&sseKmsKeyId=alias/a",
            "s3://bucket?storage-class=STANDARD_IA&part-size=16777216&concurrency=5&sse-kms-key-id=alias/a",
        ] {
            let target = s3_target(url);
            assert_eq!(target.storage_class.as_deref(), Some("STANDARD_IA"));
            assert_eq!(
                (target.part_bytes, target.parts_in_flight),
                (Some(16 << 20), Some(5))
            );
            assert_eq!(
                target.encryption,
                Some(Encryption::Kms("alias/a".to_owned()))
            );
        }
        for (query, words) in [
            ("storageClass=GLACIER", "STANDARD_IA"),
            ("storageClass=DEEP_ARCHIVE", "STANDARD_IA"),
            ("partSize=1048576", "5 MiB to 512 MiB"),
            ("partSize=5MB", "a number"),
            ("concurrency=0", "1 to 64"),
            ("concurrency=100", "1 to 64"),
            ("sseCustomerKey=c2VjcmV0", "do not belong in the URL"),
        ] {
            let error = Target::from_url(&format!("s3://bucket?{query}")).unwrap_err();
            assert!(error.to_string().contains(words), "{query}: {error}");
        }
    }

    #[test]
    fn a_customer_key_goes_to_no_endpoint_in_the_clear() {
        let key = CustomerKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        for (endpoint, is_fine) in [
            (None, true),
            (Some("https://s3.example.com"), true),
            (Some("http://127.0.0.1:9000"), true),
            (Some("http://s3.example.com"), false),
        ] {
            let target = S3Target {
                bucket: "bucket".to_owned(),
                endpoint: endpoint.map(str::to_owned),
                encryption: key.clone().map(Encryption::Customer),
                ..S3Target::default()
            };
            assert_eq!(target.check().is_ok(), is_fine, "{endpoint:?}");
        }
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

    #[test]
    fn errors_show_no_password() {
        for url in [
            "s3://key:pass word@[bucket/app",
            "s3://b/p?endpoint=http://key:pass@host:1",
        ] {
            let message = Target::from_url(url).unwrap_err().to_string();
            assert!(
                !message.contains("pass") && !message.contains("key:"),
                "{message}"
            );
        }
    }
}
