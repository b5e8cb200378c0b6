//! Keys of `litestream.yml` whose values ask for a behaviour that we do not have.
//!
//! A key is accepted when our behaviour matches its value anyway. Otherwise it is refused, with an
//! alternative. `docs/from-litestream.md` lists all of them in a table, which a test checks.

use std::time::Duration;

use protocol::config::{Database, Replica};

use super::ConfigError;

/// Longest time until a commit is detected.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// Pause between searches for expired files.
const EXPIRED_WITHIN: Duration = Duration::from_secs(600);

const VERIFY: &str = "run `sqlite-backup verify` on a schedule instead: it restores and proves";
const AZURE: &str = "targets in Azure are not served yet";
const SFTP: &str = "targets over SFTP are not served yet";
const WEBDAV: &str = "targets over WebDAV are not served";
const NATS: &str = "targets in NATS are not served";
const SNAPSHOT: &str = "write it as snapshot: {interval: …}, at the top or in the database";

/// Keys that are never honoured: the reason, and an alternative.
const REFUSED: [(&str, &str); 37] = [
    ("mcp-addr", "there is no MCP server; remove it"),
    (
        "socket",
        "there is no control socket: /status answers, SIGHUP reads the file again; remove it",
    ),
    (
        "l0-retention-check-interval",
        "retention runs every 10 minutes while a database changes; remove it",
    ),
    (
        "shutdown-sync-interval",
        "the last upload is tried again every 500ms; remove it",
    ),
    (
        "max-sync-wal-bytes",
        "one file holds what was committed within sync-interval, in bounded memory; remove it",
    ),
    ("validation", VERIFY),
    ("validation-interval", VERIFY),
    ("verify-compaction", VERIFY),
    ("snapshot-interval", SNAPSHOT),
    (
        "retention",
        "write it at the top, as retention: {window: …}",
    ),
    (
        "retention-check-interval",
        "retention runs every 10 minutes while a database changes; remove it",
    ),
    (
        "age",
        "let the store encrypt instead, with sse-kms-key-id or sse-customer-key-path",
    ),
    ("account-name", AZURE),
    ("account-key", AZURE),
    ("sas-token", AZURE),
    ("host", SFTP),
    ("user", SFTP),
    ("password", SFTP),
    ("key-path", SFTP),
    ("host-key", SFTP),
    ("concurrent-writes", SFTP),
    ("webdav-url", WEBDAV),
    ("webdav-username", WEBDAV),
    ("webdav-password", WEBDAV),
    ("jwt", NATS),
    ("seed", NATS),
    ("creds", NATS),
    ("nkey", NATS),
    ("username", NATS),
    ("token", NATS),
    ("tls", NATS),
    ("root-cas", NATS),
    ("client-cert", NATS),
    ("client-key", NATS),
    ("max-reconnects", NATS),
    ("reconnect-wait", NATS),
    ("timeout", NATS),
];

/// Returns the reason for not honouring a key, and an alternative; `None` for a key that Litestream
/// does not have.
pub(super) fn refused(key: &str) -> Option<&'static str> {
    let found = REFUSED.iter().find(|(refused, _)| *refused == key);
    found.map(|(_, reason)| *reason)
}

/// Refuses values of a database that ask for another behaviour.
///
/// # Errors
///
/// See [`ConfigError`]; each names the key.
pub(super) fn check_database(database: &Database, key: &str) -> Result<(), ConfigError> {
    let wrong = |name: &str, message: &str| ConfigError::Value {
        key: format!("{key}.{name}"),
        message: message.to_owned(),
    };
    let sooner = |span: &protocol::Span| span.0 < NOTICED_WITHIN;
    if database.monitor_interval.as_ref().is_some_and(sooner) {
        let message = "commits are noticed at once as a rule, and after 1s at the latest, which \
                       cannot be less; remove it";
        return Err(wrong("monitor-interval", message));
    }
    Ok(())
}

/// Refuses values of a replica that ask for another behaviour.
///
/// # Errors
///
/// See [`ConfigError`]; each names the key.
pub(super) fn check_replica(replica: &Replica, key: &str) -> Result<(), ConfigError> {
    let sooner = |span: &protocol::Span| span.0 < EXPIRED_WITHIN;
    if replica
        .retention_check_interval
        .as_ref()
        .is_some_and(sooner)
    {
        return Err(ConfigError::Value {
            key: format!("{key}.retention-check-interval"),
            message: "expired files are searched for every 10m, which cannot be less; remove it"
                .to_owned(),
        });
    }
    for (name, value, refused, message) in [
        (
            "sign-payload",
            replica.sign_payload,
            false,
            "payloads are always signed; remove it",
        ),
        (
            "skip-verify",
            replica.skip_verify,
            true,
            "certificates are always verified; give the authority to trust with ca-file",
        ),
        (
            "auto-recover",
            replica.auto_recover,
            false,
            "local state always heals, and loses nothing by it; remove it",
        ),
    ] {
        if value == Some(refused) {
            return Err(ConfigError::Value {
                key: format!("{key}.{name}"),
                message: message.to_owned(),
            });
        }
    }
    Ok(())
}
