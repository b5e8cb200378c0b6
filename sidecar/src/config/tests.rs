//! What configuration files mean, and what is wrong with others.

use std::path::Path;

use super::text::parse;
use super::*;

fn parse_text(text: &str) -> Result<Config, String> {
    let variable = |name: &str| (name == "MEMBER").then(|| "orders-0".to_owned());
    parse(text, Path::new("test.yml"), &variable).map_err(|error| error.to_string())
}

fn settings_of(config: &Config) -> Result<Settings, ConfigError> {
    settings(config, "me", &mut Opener::new())
}

#[test]
fn a_litestream_file_is_understood() {
    let text = "addr: ':9090'\nsnapshot: {interval: 12h, retention: 72h}\n\
                dbs:\n- path: /data/a.db\n  replicas:\n  - {type: s3, bucket: shop, path: a, sync-interval: 5s}\n\
                - path: /data/b.db\n  replica: {url: 'file:///backups/b'}\n";
    let config = parse_text(text).unwrap();
    let settings = settings_of(&config).unwrap();
    assert_eq!(settings.addr.as_deref(), Some("0.0.0.0:9090"));
    assert_eq!(
        settings.databases[0].settings.sync_interval,
        Duration::from_secs(5)
    );
    assert_eq!(
        settings.databases[1].settings.targets[0].store.describe(),
        "file:///backups/b"
    );
    assert_eq!(
        settings.databases[1].settings.snapshot_interval,
        Duration::from_secs(12 * 3600)
    );
    assert_eq!(
        settings.databases[0].settings.state,
        Path::new("/data/.a.db-sqlite-backup")
    );
}

#[test]
fn variables_are_expanded_in_values_and_cannot_add_yaml() {
    let config = parse_text("dbs: [{path: '/data/${MEMBER}/$MEMBER$$'}]").unwrap();
    assert_eq!(config.dbs[0].path, Path::new("/data/orders-0/orders-0$"));
    let error = parse_text("dbs: [{path: '/data/${NOPE}'}]").unwrap_err();
    assert_eq!(
        error,
        "dbs[0].path: the environment variable NOPE is not set"
    );
    let hostile = |_: &str| Some("x'}]\naddr: evil".to_owned());
    let config = parse("dbs: [{path: '$A'}]", Path::new("t"), &hostile).unwrap();
    assert_eq!((config.addr, config.dbs.len()), (None, 1));
}

#[test]
fn an_unknown_key_is_named_with_what_was_probably_meant() {
    let error = parse_text("dbs:\n- path: /a\n  replcas: []\n").unwrap_err();
    assert!(
        error.contains("unknown key \"replcas\", did you mean \"replicas\"?"),
        "{error}"
    );
    let error = parse_text("mcp-addr: ':3001'\n").unwrap_err();
    assert!(error.contains("\"mcp-addr\""), "{error}");
}

#[test]
fn values_that_cannot_work_are_errors_that_name_the_key() {
    for (text, expected) in [
        ("dbs: [{path: /a}]", "dbs[0].replicas"),
        (
            "dbs: [{path: '', replica: {url: 'file:///b'}}]",
            "dbs[0].path",
        ),
        (
            "dbs: [{path: /a, replica: {url: 'gs://b/c'}}]",
            "dbs[0].replicas[0].url",
        ),
        (
            "dbs: [{path: /a, replica: {type: s3}}]",
            "dbs[0].replicas[0].bucket",
        ),
        (
            "dbs: [{path: /a, replica: {type: sftp}}]",
            "dbs[0].replicas[0].type",
        ),
        (
            "dbs: [{path: /a, replica: {path: b}}]",
            "dbs[0].replicas[0].path",
        ),
        (
            "dbs: [{path: '/a/*.db', replica: {url: 'file:///b'}}]",
            "dbs[0].path",
        ),
        (
            "dbs: [{path: /a, replica: {url: 'file:///b'}}, {path: /a, replica: {url: 'file:///c'}}]",
            "dbs[1].path",
        ),
        (
            "dbs: [{path: /a, replicas: [{url: 'file:///b'}, {url: 'file:///c'}]}]",
            "dbs[0].replicas[1].name",
        ),
    ] {
        let config = parse_text(text).unwrap();
        let Err(error) = settings_of(&config) else {
            panic!("{text} was accepted")
        };
        assert!(error.to_string().starts_with(expected), "{text}: {error}");
    }
}

#[test]
fn what_the_log_looks_like_can_be_configured() {
    let config = parse_text("logging: {level: debug, type: json}").unwrap();
    let expected = LogSettings {
        level: Some(tracing::Level::DEBUG),
        format: Some(LogFormat::Json),
    };
    assert_eq!(log_settings(&config).unwrap(), expected);
    let config = parse_text("logging: {level: loud}").unwrap();
    let error = log_settings(&config).unwrap_err().to_string();
    assert!(error.starts_with("logging.level: \"loud\""), "{error}");
}
