//! Names that the injected containers and the operator share.

/// Version of [`crate::status::SidecarStatus`]. Fields are only ever added, so a reader accepts its
/// own version and two around it.
pub const STATUS_VERSION: u32 = 1;

/// TCP port on which the sidecar serves `/status`, `/metrics` and `/healthz`.
pub const STATUS_PORT: u16 = 9347;

/// Environment variable with the member that this process serves.
pub const MEMBER_ENV: &str = "SQLITE_BACKUP_MEMBER";

/// Environment variable with the size limit of the volume for local state, such as `5Gi`.
pub const STATE_LIMIT_ENV: &str = "SQLITE_BACKUP_STATE_LIMIT";

/// Environment variable with the value `true` when local state is beside each database, and not in
/// [`STATE_DIR`].
pub const STATE_BESIDE_ENV: &str = "SQLITE_BACKUP_STATE_BESIDE_DATABASES";

/// Environment variable with the identity that this Pod writes into leases: its namespaced name.
pub const HOLDER_ENV: &str = "SQLITE_BACKUP_HOLDER";

/// Environment variable that carries a [`crate::verify::VerifyRequest`] as JSON.
pub const VERIFY_REQUEST_ENV: &str = "SQLITE_BACKUP_VERIFY_REQUEST";

/// Directory in which the configuration is mounted.
pub const CONFIG_DIR: &str = "/etc/sqlite-backup";

/// The configuration file.
pub const CONFIG_FILE: &str = "/etc/sqlite-backup/config.yml";

/// Directory with one subdirectory of credentials for each target, named like the target.
pub const CREDENTIALS_DIR: &str = "/var/run/sqlite-backup/credentials";

/// Directory of our local state in a Pod, on a volume of its own.
pub const STATE_DIR: &str = "/var/lib/sqlite-backup";

/// Directory in which restore tests build databases.
pub const SCRATCH_DIR: &str = "/scratch";

/// File whose content the kubelet shows as a container's termination message, at most 4096 bytes.
pub const TERMINATION_MESSAGE_FILE: &str = "/dev/termination-log";

/// Longest termination message that the kubelet keeps of one container, in bytes.
pub const TERMINATION_MESSAGE_BYTES: usize = 4096;
