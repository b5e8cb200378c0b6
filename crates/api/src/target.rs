//! Targets: the stores that receive backups.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{known_placeholders, relative_prefix, rule};

/// Default prefix of a target. It keeps namespaces, backups, members and databases apart.
pub const DEFAULT_PREFIX: &str = "{namespace}/{backup}/{member}/{database}";

fn default_prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}

/// A store that receives backups. Exactly one of `s3`, `gcs`, `azure`, `sftp` and `file` is
/// required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "[has(self.s3), has(self.gcs), has(self.azure), has(self.sftp), has(self.file)].exists_one(x, x)",
        "exactly one of s3, gcs, azure, sftp and file must be given",
    ),
    rule(
        "has(self.s3) == has(oldSelf.s3) && has(self.gcs) == has(oldSelf.gcs) && has(self.azure) == has(oldSelf.azure) && has(self.sftp) == has(oldSelf.sftp) && has(self.file) == has(oldSelf.file)",
        "the kind of a target cannot change; add a target with another name instead",
    ),
]))]
pub struct Target {
    /// Unique name of the target in status, metrics and logs: 1 to 40 lowercase letters, digits and
    /// dashes.
    #[schemars(
        length(min = 1, max = 40),
        regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Amazon S3, or an S3-compatible server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
    /// Google Cloud Storage. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gcs: Option<Gcs>,
    /// Azure Blob Storage. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure: Option<Azure>,
    /// A directory on an SFTP server. Not supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sftp: Option<Sftp>,
    /// A directory on a PersistentVolumeClaim of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
    /// Credentials for the store. Default: workload identity, from the Pod's service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

/// Amazon S3, or an S3-compatible server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.bucket == oldSelf.bucket && self.prefix == oldSelf.prefix && has(self.endpoint) == has(oldSelf.endpoint) && (!has(self.endpoint) || self.endpoint == oldSelf.endpoint)",
        "bucket, prefix and endpoint of a target cannot change; add a target with another name instead",
    ),
]))]
pub struct S3 {
    /// Name of an existing bucket.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub bucket: String,
    /// Prefix of the keys, up to 512 characters, with the placeholders `{namespace}`, `{backup}`,
    /// `{member}` and `{database}`. `{member}` is the Pod's name for a StatefulSet, else the
    /// SqliteBackup's name. `{database}` is the path of the database without its first slash.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 512))]
    #[schemars(extend("x-kubernetes-validations" = [
        relative_prefix(),
        known_placeholders(),
    ]))]
    pub prefix: String,
    /// Region of the bucket. Default: the region of the environment, else `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[a-z0-9-]+$"))]
    pub region: Option<String>,
    /// URL of an S3-compatible server, such as `https://minio.example.com:9000`. Default: Amazon
    /// S3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^$]*$"))]
    #[schemars(extend("x-kubernetes-validations" = [
        rule(
            "isURL(self) && url(self).getScheme() in ['http', 'https']",
            "endpoint must be an http or https URL",
        ),
    ]))]
    pub endpoint: Option<String>,
    /// Whether the bucket is part of the URL's path instead of its host name. Default: `true` when
    /// `endpoint` is set, else `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force_path_style: Option<bool>,
}

/// Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.bucket == oldSelf.bucket && self.prefix == oldSelf.prefix",
        "bucket and prefix of a target cannot change; add a target with another name instead",
    ),
]))]
pub struct Gcs {
    /// Name of the bucket.
    #[schemars(
        length(min = 3, max = 255),
        regex(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub bucket: String,
    /// Prefix of the object names, with the placeholders of `s3.prefix`.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^$]*$"))]
    pub prefix: String,
}

/// Azure Blob Storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.account == oldSelf.account && self.container == oldSelf.container && self.prefix == oldSelf.prefix",
        "account, container and prefix of a target cannot change; add a target with another name instead",
    ),
]))]
pub struct Azure {
    /// Name of the storage account.
    #[schemars(length(min = 3, max = 24), regex(pattern = "^[a-z0-9]+$"))]
    pub account: String,
    /// Name of the container.
    #[schemars(length(min = 3, max = 63), regex(pattern = "^[a-z0-9$-]+$"))]
    pub container: String,
    /// Prefix of the blob names, with the placeholders of `s3.prefix`.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^$]*$"))]
    pub prefix: String,
}

/// A directory on an SFTP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.host == oldSelf.host && self.prefix == oldSelf.prefix",
        "host and prefix of a target cannot change; add a target with another name instead",
    ),
]))]
pub struct Sftp {
    /// Host name or IP address of the server.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[^$/]*$"))]
    pub host: String,
    /// TCP port. Default: 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// User name for the login.
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[^$]*$"))]
    pub user: String,
    /// Path below the login directory, with the placeholders of `s3.prefix`.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 512), regex(pattern = "^[^$]*$"))]
    pub prefix: String,
}

/// A directory on a PersistentVolumeClaim. Every selected Pod and every restore test mounts the
/// claim: its access mode must allow that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "self.claimName == oldSelf.claimName && self.prefix == oldSelf.prefix",
        "claimName and prefix of a target cannot change; add a target with another name instead",
    ),
]))]
pub struct FileTarget {
    /// Name of a PersistentVolumeClaim in this namespace.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub claim_name: String,
    /// Directory in the volume, with the placeholders of `s3.prefix`.
    #[serde(default = "default_prefix")]
    #[schemars(length(min = 1, max = 512))]
    #[schemars(extend("x-kubernetes-validations" = [
        relative_prefix(),
        known_placeholders(),
    ]))]
    pub prefix: String,
}

/// Credentials for a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// Secret with the credentials, in this namespace. The keys for `s3` are `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY` and optionally `AWS_SESSION_TOKEN`. The sidecar mounts the Secret
    /// and takes over changes without a restart; the operator never reads it.
    pub secret_ref: SecretRef,
}

/// Reference to a Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
}

/// Reference to one key of a Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Key inside the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[-._A-Za-z0-9]+$"))]
    pub key: String,
}

/// The store of a [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// S3.
    S3(&'a S3),
    /// Google Cloud Storage.
    Gcs(&'a Gcs),
    /// Azure Blob Storage.
    Azure(&'a Azure),
    /// SFTP.
    Sftp(&'a Sftp),
    /// A directory on a volume.
    File(&'a FileTarget),
}

impl Place<'_> {
    /// The field of the spec that names this kind of store.
    pub fn field(&self) -> &'static str {
        match self {
            Place::S3(_) => "s3",
            Place::Gcs(_) => "gcs",
            Place::Azure(_) => "azure",
            Place::Sftp(_) => "sftp",
            Place::File(_) => "file",
        }
    }

    /// The prefix with its placeholders.
    pub fn prefix(&self) -> &str {
        match self {
            Place::S3(place) => &place.prefix,
            Place::Gcs(place) => &place.prefix,
            Place::Azure(place) => &place.prefix,
            Place::Sftp(place) => &place.prefix,
            Place::File(place) => &place.prefix,
        }
    }
}

impl Target {
    /// The store, or `None` for an object that bypassed the schema and names none.
    pub fn place(&self) -> Option<Place<'_>> {
        self.s3
            .as_ref()
            .map(Place::S3)
            .or(self.file.as_ref().map(Place::File))
            .or(self.gcs.as_ref().map(Place::Gcs))
            .or(self.azure.as_ref().map(Place::Azure))
            .or(self.sftp.as_ref().map(Place::Sftp))
    }

    /// Whether the credentials are those of the Pod's service account.
    pub fn uses_workload_identity(&self) -> bool {
        self.credentials.is_none() && self.file.is_none()
    }

    /// Name of the Secret with the credentials, if the target has one.
    pub fn secret(&self) -> Option<&str> {
        self.credentials
            .as_ref()
            .map(|c| c.secret_ref.name.as_str())
    }
}
