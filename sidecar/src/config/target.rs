//! One replica of the configuration file, as a target.

use std::path::PathBuf;

use protocol::config::Replica;
use store::{Credentials, S3Target, Target};

use super::ConfigError;

/// The name of a replica that has none of its own.
pub(super) fn kind_of(target: &Target) -> &'static str {
    match target {
        Target::File { .. } => "file",
        _ => "s3",
    }
}

/// Where a target is, whoever asks: two with one place would write over each other.
pub(super) fn place(target: &Target) -> String {
    match target {
        Target::S3(s3) => {
            let endpoint = s3.endpoint.as_deref().unwrap_or_default();
            format!(
                "s3 {} {}/{}",
                endpoint.trim_end_matches('/'),
                s3.bucket,
                s3.prefix
            )
        }
        other => format!("{other:?}"),
    }
}

/// The same target, deeper. `key` is its place in the file.
///
/// # Errors
///
/// A kind of target that has no places.
pub(super) fn below(target: Target, place: &str, key: &str) -> Result<Target, ConfigError> {
    match target {
        Target::File { path } => Ok(Target::File {
            path: path.join(place),
        }),
        Target::S3(s3) => {
            let parts = [s3.prefix.as_str(), place];
            let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            Ok(Target::S3(S3Target {
                prefix: parts.join("/"),
                ..s3
            }))
        }
        _ => Err(ConfigError::Value {
            key: key.to_owned(),
            message: "it does not go with a pattern".to_owned(),
        }),
    }
}

/// Makes the target of a replica. `key` is its place in the file.
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
            prefix: replica
                .path
                .clone()
                .unwrap_or_default()
                .trim_matches('/')
                .to_owned(),
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
        s3.endpoint = replica.endpoint.clone().or(s3.endpoint.take());
        s3.force_path_style = replica.force_path_style.or(s3.force_path_style);
        s3.ca_file = replica.ca_file.clone().or(s3.ca_file.take());
        match (
            &replica.access_key_id,
            &replica.secret_access_key,
            &replica.credentials_dir,
        ) {
            (None, None, None) => {}
            (None, None, Some(directory)) => {
                s3.credentials = Credentials::Directory(directory.clone());
            }
            (Some(id), Some(secret), None) => s3.credentials = Credentials::fixed(id, secret),
            _ => {
                let message = "give both parts of a key, or credentials-dir, not a mix".to_owned();
                return Err(value("access-key-id", message));
            }
        }
    }
    Ok(target)
}
