//! Converts one replica of the configuration file into a target.

use std::path::{Path, PathBuf};

use protocol::config::Replica;
use store::{Credentials, CustomerKey, Encryption, S3Target, Target};

use super::ConfigError;

/// Keys that apply to replicas of every type.
const COMMON: [&str; 10] = [
    "name",
    "type",
    "url",
    "path",
    "sync-interval",
    "max-sync-ltx-files",
    "auto-recover",
    "retention",
    "retention-check-interval",
    "snapshot-interval",
];

/// Returns the default name of a replica: its type.
pub(super) fn kind_of(target: &Target) -> &'static str {
    match target {
        Target::File { .. } => "file",
        _ => "s3",
    }
}

/// Returns the destination of a target, independent of its credentials. Two databases with the same
/// destination would overwrite each other.
pub(super) fn place(target: &Target) -> String {
    match target {
        // Some stores do not distinguish paths that differ only in slashes and dots.
        Target::S3(s3) => {
            let endpoint = s3.endpoint.as_deref().unwrap_or_default();
            let path = s3.prefix.split('/').filter(|it| !matches!(*it, "" | "."));
            let path: Vec<_> = path.collect();
            format!(
                "s3 {} {}/{}",
                endpoint.trim_end_matches('/'),
                s3.bucket,
                path.join("/")
            )
        }
        Target::File { path } => format!("file {}", path.display()),
        other => format!("{other:?}"),
    }
}

/// Returns the same target with `place` appended to its path. `key` is its position in the file.
///
/// # Errors
///
/// A kind of target without paths.
pub(super) fn below(target: Target, place: &str, key: &str) -> Result<Target, ConfigError> {
    match target {
        Target::File { path } => Ok(Target::File {
            path: path.join(place),
        }),
        Target::S3(s3) => Ok(Target::S3(s3.below(place))),
        _ => Err(ConfigError::Value {
            key: key.to_owned(),
            message: "it does not go with a pattern".to_owned(),
        }),
    }
}

/// Checks that the keys of a replica fit together. `key` is its position in the file.
///
/// # Errors
///
/// See [`ConfigError`]; each names the key.
pub(super) fn check_own(replica: &Replica, key: &str) -> Result<(), ConfigError> {
    let wrong = |name: &str, message: &str| ConfigError::Value {
        key: format!("{key}.{name}"),
        message: message.to_owned(),
    };
    let scheme = replica
        .url
        .as_deref()
        .and_then(|url| url.split("://").next());
    if scheme.is_some() {
        let parts = [("path", &replica.path), ("bucket", &replica.bucket)];
        if let Some((name, _)) = parts.into_iter().find(|(_, given)| given.is_some()) {
            return Err(wrong(name, "the url says it; give one of them"));
        }
        if replica.kind.is_some() && replica.kind.as_deref() != scheme {
            return Err(wrong(
                "type",
                "the url is of another type; remove one of them",
            ));
        }
    }
    if scheme.or(replica.kind.as_deref()).unwrap_or("file") == "file" {
        let given = serde_yaml::to_value(replica).unwrap_or_default();
        let names = given.as_mapping().into_iter().flat_map(|it| it.keys());
        let mut names = names.filter_map(|name| name.as_str());
        if let Some(name) = names.find(|name| !COMMON.contains(name)) {
            return Err(wrong(name, "it goes with type s3, not with a directory"));
        }
    }
    Ok(())
}

/// Creates the target of a replica. `key` is its position in the file.
///
/// # Errors
///
/// See [`ConfigError`]; each names the key.
pub(super) fn target(replica: &Replica, key: &str) -> Result<Target, ConfigError> {
    let value = |name: &str, message: String| ConfigError::Value {
        key: format!("{key}.{name}"),
        message,
    };
    let mut target = match (&replica.url, replica.kind.as_deref()) {
        (Some(url), _) => Target::from_url(url).map_err(|source| ConfigError::Url {
            key: format!("{key}.url"),
            source,
        })?,
        (None, Some("s3")) => Target::S3(S3Target {
            bucket: replica
                .bucket
                .clone()
                .ok_or_else(|| value("bucket", "type s3 needs a bucket".to_owned()))?,
            // Byte for byte: Litestream cleans only the path of a URL.
            prefix: replica.path.clone().unwrap_or_default(),
            ..S3Target::default()
        }),
        (None, Some("file")) | (None, None) => {
            let path = replica
                .path
                .clone()
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            let message = "give a url, or an absolute directory".to_owned();
            Target::File {
                path: path.ok_or_else(|| value("path", message))?,
            }
        }
        (None, Some(kind)) => {
            return Err(value(
                "type",
                format!("{kind:?} is not served yet; s3 and file are"),
            ));
        }
    };
    if let Target::S3(s3) = &mut target {
        s3.region = replica.region.clone().or(s3.region.take());
        if let Some(endpoint) = &replica.endpoint {
            s3.set_endpoint(endpoint)
                .map_err(|error| value("endpoint", error.to_string()))?;
        }
        s3.force_path_style = replica.force_path_style.or(s3.force_path_style);
        s3.ca_file = replica.ca_file.clone().or(s3.ca_file.take());
        s3.storage_class = replica.storage_class.clone().or(s3.storage_class.take());
        s3.part_bytes = replica.part_size.map(|size| size.0).or(s3.part_bytes);
        s3.parts_in_flight = replica.concurrency.or(s3.parts_in_flight);
        s3.encryption = encryption(replica, key)?.or(s3.encryption.take());
        s3.credentials = credentials(replica, key)?;
        s3.check_prefix()
            .map_err(|error| value("path", error.to_string()))?;
    }
    Ok(target)
}

fn credentials(replica: &Replica, key: &str) -> Result<Credentials, ConfigError> {
    match (
        &replica.access_key_id,
        &replica.secret_access_key,
        &replica.credentials_dir,
    ) {
        (None, None, None) => Ok(Credentials::Default),
        (None, None, Some(directory)) => Ok(Credentials::Directory(directory.clone())),
        (Some(id), Some(secret), None) => Ok(Credentials::fixed(id, secret)),
        _ => Err(ConfigError::Value {
            key: format!("{key}.access-key-id"),
            message: "give both parts of a key, or credentials-dir, not a mix".to_owned(),
        }),
    }
}

fn encryption(replica: &Replica, key: &str) -> Result<Option<Encryption>, ConfigError> {
    let wrong = |name: &str, message: &str| ConfigError::Value {
        key: format!("{key}.{name}"),
        message: message.to_owned(),
    };
    let customer_key = match (&replica.sse_customer_key, &replica.sse_customer_key_path) {
        (None, None) => None,
        (Some(text), None) => Some(("sse-customer-key", text.clone())),
        (None, Some(path)) => Some(("sse-customer-key-path", read_key(path, key)?)),
        (Some(_), Some(_)) => {
            let message = "give the key, or its path, not both";
            return Err(wrong("sse-customer-key", message));
        }
    };
    match (customer_key, &replica.sse_kms_key_id) {
        (Some(_), Some(_)) => {
            let message = "objects are encrypted with one key: give this one, or a customer key";
            Err(wrong("sse-kms-key-id", message))
        }
        (None, kms) => match replica.sse_customer_algorithm {
            None => Ok(kms.clone().map(Encryption::Kms)),
            Some(_) => Err(wrong(
                "sse-customer-algorithm",
                "it goes with a customer key",
            )),
        },
        (Some((name, text)), None) => {
            if let Some(other) = &replica.sse_customer_algorithm
                && other != "AES256"
            {
                return Err(wrong("sse-customer-algorithm", "AES256 is the only one"));
            }
            let customer_key = CustomerKey::from_base64(&text);
            let message = "it has to be the base64 of 32 bytes";
            let customer_key = customer_key.ok_or_else(|| wrong(name, message))?;
            Ok(Some(Encryption::Customer(customer_key)))
        }
    }
}

fn read_key(path: &Path, key: &str) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError::Value {
        key: format!("{key}.sse-customer-key-path"),
        message: format!("read {}: {error}", path.display()),
    })
}
