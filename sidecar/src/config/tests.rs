//! Valid configuration files and their settings, invalid ones and their errors.

use std::path::Path;

use super::text::parse;
use super::*;

fn parse_text(text: &str) -> Result<Config, String> {
    let variable = |name: &str| (name == "MEMBER").then(|| "orders-0".to_owned());
    parse(text, Path::new("test.yml"), &variable).map_err(|error| error.to_string())
}

fn settings_of(config: &Config) -> Result<Settings, ConfigError> {
    settings(config, &Found::new(), "me", &mut Opener::new())
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
    let error = parse_text("dbs: [{path: '/data/secret${MEMBER'}]").unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("dbs[0].path") && !message.contains("secret"),
        "{message}"
    );
    let error = parse_text("dbs: [{path: '/data/${NOPE}'}]").unwrap_err();
    assert_eq!(
        error,
        "dbs[0].path: the environment variable NOPE is not set"
    );
    // Variables can also stand for values that are not text.
    let switch = |name: &str| Some(if name == "ON" { "true" } else { "7s" }.to_owned());
    let text = "sync-interval: ${SPAN}\nforce-path-style: ${ON}\nregion: 'true'\n";
    let config = parse(text, Path::new("t"), &switch).unwrap();
    assert_eq!(config.sync_interval.unwrap().as_millis(), 7000);
    assert_eq!(
        (config.force_path_style, config.region),
        (Some(true), Some("true".into()))
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
    assert!(error.contains("line 3"), "{error}");
    let error = parse_text("mcp-addr: ':3001'\n").unwrap_err();
    assert!(error.contains("\"mcp-addr\""), "{error}");
    // An expanded value has no line, but its key is known.
    let error = parse_text("dbs:\n- replica: {sync-interval: '${MEMBER}'}\n").unwrap_err();
    let expected = "dbs[0].replica.sync-interval: \"orders-0\" is not a duration";
    assert!(
        error.contains(expected) && !error.contains("line"),
        "{error}"
    );
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
            "dbs: [{path: /a, replica: {url: 'file:///b'}}, {path: /c, replica: {url: 'file:///b'}}]",
            "dbs[1].replicas[0]",
        ),
        (
            "dbs: [{path: /a, replicas: [{name: x, url: 's3://shop/c'}, {name: y, type: s3, bucket: shop, path: /c/}]}]",
            "dbs[0].replicas[1]",
        ),
        (
            "dbs: [{path: /a, replica: {url: 'file:///b'}}, {path: /a, replica: {url: 'file:///c'}}]",
            "dbs[1].path",
        ),
        (
            "dbs: [{path: /a, replicas: [{url: 'file:///b'}, {url: 'file:///c'}]}]",
            "dbs[0].replicas[1].name",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', bucket: other}}]",
            "dbs[0].replicas[0].bucket",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', path: other}}]",
            "dbs[0].replicas[0].path",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', type: file}}]",
            "dbs[0].replicas[0].type",
        ),
        (
            "dbs: [{path: /a, replica: {path: /b, storage-class: STANDARD_IA}}]",
            "dbs[0].replicas[0].storage-class",
        ),
        (
            "dbs: [{path: /a, replica: {type: s3, bucket: shop, endpoint: 'ftp://host'}}]",
            "dbs[0].replicas[0].endpoint",
        ),
        (
            "{access-key-id: id, dbs: [{path: /a, replica: {url: 's3://shop/c'}}]}",
            "dbs[0].replicas[0].access-key-id",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', sse-customer-key: c2hvcnQ=}}]",
            "dbs[0].replicas[0].sse-customer-key",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', sse-customer-key-path: /no/such}}]",
            "dbs[0].replicas[0].sse-customer-key-path",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', sse-customer-algorithm: AES256}}]",
            "dbs[0].replicas[0].sse-customer-algorithm",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', sse-kms-key-id: a, sse-customer-key: b}}]",
            "dbs[0].replicas[0].sse-kms-key-id",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', sse-customer-key: a, sse-customer-key-path: /b}}]",
            "dbs[0].replicas[0].sse-customer-key",
        ),
        (
            "dbs: [{path: /a, replica: {url: 's3://shop/c', sse-customer-key: a, sse-customer-algorithm: DES}}]",
            "dbs[0].replicas[0].sse-customer-algorithm",
        ),
        (
            "dbs: [{path: '~/a.db', replica: {url: 's3://shop/c'}}]",
            "dbs[0].path",
        ),
        (
            "dbs: [{path: 'sqlite:///a.db', replica: {url: 's3://shop/c'}}]",
            "dbs[0].path",
        ),
        ("{heartbeat-interval: 59s}", "heartbeat-interval"),
        ("{heartbeat-url: 'monitor.example.com'}", "heartbeat-url"),
        (
            "{heartbeat-url: 'ftp://monitor.example.com'}",
            "heartbeat-url",
        ),
        (
            "dbs: [{path: /a.db, meta-dir: /m, replica: {url: 's3://shop/c'}}]",
            "dbs[0].meta-dir",
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
        source: false,
    };
    assert_eq!(log_settings(&config).unwrap(), expected);
    let config = parse_text("logging: {level: loud}").unwrap();
    let error = log_settings(&config).unwrap_err().to_string();
    assert!(error.starts_with("logging.level: \"loud\""), "{error}");
}

#[test]
fn a_pattern_matches_databases_and_nothing_beside_them() {
    let pattern = |yaml: &str| {
        let config = parse_text(&format!("dbs: [{{{yaml}}}]")).unwrap();
        pattern::patterns(&config).unwrap().remove(&0).unwrap()
    };
    for (yaml, inside, outside) in [
        (
            "path: '/data/*.db'",
            &["/data/a.db"][..],
            &[
                "/data/x/a.db",
                "/data/a.db-wal",
                "/data/.a.db",
                "/other/a.db",
            ][..],
        ),
        (
            "path: '/data/**/*.db', exclude: ['tmp*', '/data/old/*']",
            &["/data/a.db", "/data/x/y/a.db"],
            &["/data/tmp.db", "/data/old/a.db", "/data/x/.hidden/a.db"],
        ),
        (
            "dir: '/data/[1]', pattern: '*.sqlite', recursive: true, watch: true",
            &["/data/[1]/a.sqlite", "/data/[1]/x/a.sqlite"],
            &["/data/1/a.sqlite", "/data/[1]/a.db"],
        ),
        ("dir: /data/", &["/data/a.db"], &["/data/x/a.db", "/data/a"]),
        (
            "path: '/data/*'",
            &["/data/a"],
            &[
                "/data/a-wal",
                "/data/a-shm",
                "/data/a-journal",
                "/data/.a.restore.tmp",
            ],
        ),
        (
            "path: '/data/*/app.db'",
            &["/data/7/app.db"],
            &["/data/app.db"],
        ),
    ] {
        let pattern = pattern(yaml);
        for path in inside {
            assert!(pattern.matches(Path::new(path)), "{yaml}: {path}");
        }
        for path in outside {
            assert!(!pattern.matches(Path::new(path)), "{yaml}: {path}");
        }
    }
    for (yaml, expected) in [
        ("path: '/data/[a.db'", "dbs[0].path"),
        ("path: '/data/*.db', meta-path: /m", "dbs[0].meta-path"),
        ("dir: /data, path: /data/a.db", "dbs[0].dir"),
        ("dir: /data, watch: false", "dbs[0].watch"),
        ("path: /a.db, exclude: [b]", "dbs[0].exclude"),
        (
            "path: '/*.db', restore-if-db-not-exists: true",
            "dbs[0].restore-if-db-not-exists",
        ),
        ("path: '/data/*.db'", "dbs[0].replicas"),
    ] {
        let config = parse_text(&format!("dbs: [{{{yaml}}}]")).unwrap();
        let error = settings_of(&config).err().unwrap().to_string();
        assert!(error.starts_with(expected), "{yaml}: {error}");
    }
}

#[test]
fn each_database_of_a_pattern_has_its_place_and_is_taken_once() {
    let text = "dbs:\n- {path: '/data/**/*.db', replica: {url: 'file:///backups/all'}}\n\
                - {path: /data/b.db, replica: {url: 'file:///backups/alone'}}\n\
                - {path: '/data/*', replica: {url: 'file:///backups/late'}}\n";
    let config = parse_text(text).unwrap();
    let set = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
    let found: Found = [
        (0, set(&["/data/x/a.db", "/data/b.db"])),
        (2, set(&["/data/b.db", "/data/c"])),
    ]
    .into();
    let settings = settings(&config, &found, "me", &mut Opener::new()).unwrap();
    let places: Vec<_> = settings
        .databases
        .iter()
        .map(|database| {
            let store = &database.settings.targets[0].store;
            (database.settings.path.to_str().unwrap(), store.describe())
        })
        .collect();
    let expected = [
        ("/data/b.db", "file:///backups/alone"),
        ("/data/x/a.db", "file:///backups/all/x/a.db"),
        ("/data/c", "file:///backups/late/c"),
    ];
    assert_eq!(places, expected.map(|(path, url)| (path, url.to_owned())));
}

#[test]
fn what_litestream_says_of_keeping_is_ours_under_another_name() {
    let kept = |yaml: &str| {
        let text = format!("{yaml}\ndbs: [{{path: /a, replica: {{url: 'file:///b'}}}}]\n");
        let settings = settings_of(&parse_text(&text).unwrap()).unwrap();
        let target = settings.databases[0].settings.targets[0].clone();
        (target.retention.exact, target.retention.window)
    };
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    for (yaml, exact, window) in [
        ("", hours(24), hours(168)),
        ("l0-retention: 1h", hours(1), hours(168)),
        ("l0-retention: 0", Duration::MAX, hours(168)),
        (
            "l0-retention: 1h\nretention: {exact: 2h}",
            hours(2),
            hours(168),
        ),
        ("snapshot: {retention: 72h}", hours(24), hours(72)),
        (
            "snapshot: {retention: 72h}\nretention: {window: 96h}",
            hours(24),
            hours(96),
        ),
    ] {
        assert_eq!(kept(yaml), (exact, window), "{yaml}");
    }
}

#[test]
fn a_database_may_have_full_copies_of_its_own_and_one_of_a_pattern_its_state() {
    let text = "snapshot: {interval: 24h, retention: 72h}\nregion: eu-west-1\ndbs:\n\
                - {path: /data/a.db, replica: {url: 's3://shop/a'}}\n\
                - {path: /data/b.db, snapshot: {interval: 1h}, replica: {url: 's3://shop/b'}}\n\
                - {dir: /data/all, pattern: '*.db', recursive: true, meta-dir: /state, \
                   snapshot: {retention: 1h}, replica: {url: 's3://shop/all'}}\n";
    let config = parse_text(text).unwrap();
    let found: Found = [(2, [PathBuf::from("/data/all/x/c.db")].into())].into();
    let settings = settings(&config, &found, "me", &mut Opener::new()).unwrap();
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let copies: Vec<_> = (settings.databases.iter())
        .map(|database| {
            let settings = &database.settings;
            (
                settings.snapshot_interval,
                settings.targets[0].retention.window,
            )
        })
        .collect();
    let expected = [
        (hours(24), hours(72)),
        (hours(1), hours(72)),
        (hours(24), hours(1)),
    ];
    assert_eq!(copies, expected);
    let state = &settings.databases[2].settings.state;
    assert_eq!(state, Path::new("/state/x/c.db-sqlite-backup"));
}

#[test]
fn links_that_lead_in_circles_are_not_followed_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let base = directory.path();
    std::fs::create_dir_all(base.join("sub/deep")).unwrap();
    std::fs::create_dir(base.join("elsewhere")).unwrap();
    for name in ["a.db", "sub/deep/b.db", "elsewhere/c.db"] {
        std::fs::write(base.join(name), "x").unwrap();
    }
    for (to, name) in [
        (".", "loop"),
        ("..", "sub/up"),
        ("../..", "sub/deep/top"),
        ("../elsewhere", "sub/link"),
        ("itself", "itself"),
        ("a.db/below", "below-a-file.db"),
        (&"a".repeat(300), "too-long.db"),
    ] {
        std::os::unix::fs::symlink(to, base.join(name)).unwrap();
    }
    let text = format!("path: '{}/**/*.db'", base.display());
    let database = serde_yaml::from_str(&text).unwrap();
    let pattern = pattern::Pattern::of(&database, "dbs[0]").unwrap().unwrap();
    let found = pattern.files().unwrap();
    let found = found.iter().map(|path| path.strip_prefix(base).unwrap());
    let expected = ["a.db", "elsewhere/c.db", "sub/deep/b.db", "sub/link/c.db"];
    assert!(found.eq(expected.map(Path::new)));
    // Each has two paths to the next: 2^20 in all.
    for depth in 0..20 {
        let here = base.join(format!("maze/{depth}"));
        std::fs::create_dir_all(&here).unwrap();
        for way in ["left", "right"] {
            let next = base.join(format!("maze/{}", depth + 1));
            std::os::unix::fs::symlink(next, here.join(way)).unwrap();
        }
    }
    std::fs::create_dir(base.join("maze/20")).unwrap();
    let error = pattern.files().unwrap_err().to_string();
    assert!(error.contains("more than 100000 directories"), "{error}");
}

#[test]
fn what_litestream_0_3_says_of_a_replica_holds_for_that_target() {
    let text = "retention: {window: 48h}\ndbs:\n- path: /data/a.db\n  replicas:\n\
                \x20 - {name: a, url: 'file:///a', retention: 30d, snapshot-interval: 12h}\n\
                \x20 - {name: b, url: 'file:///b', retention-check-interval: 1h, snapshot-interval: 6h}\n";
    let settings = settings_of(&parse_text(text).unwrap()).unwrap();
    let database = &settings.databases[0].settings;
    let windows = database.targets.iter().map(|it| it.retention.window);
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!(windows.collect::<Vec<_>>(), [hours(720), hours(48)]);
    assert_eq!(database.snapshot_interval, hours(6));
    let often = "dbs: [{path: /a, replica: {url: 'file:///a', retention-check-interval: 1m}}]";
    let error = settings_of(&parse_text(often).unwrap()).err().unwrap();
    assert!(error.to_string().contains("retention-check-interval"));
}

#[test]
fn a_number_where_a_text_is_expected_is_the_text_that_was_written() {
    for spelled in [
        "1.10",
        "2026.10",
        "0x1F",
        "005e123",
        "true",
        "12345678901234567890123",
    ] {
        let text = format!(
            "access-key-id: {spelled}\nsecret-access-key: {spelled}\nregion: {spelled}\nbucket: {spelled}\n\
             dbs:\n- path: {spelled}\n  exclude: [{spelled}]\n  replica: {{type: s3, path: {spelled}, name: {spelled}, concurrency: 0x5, force-path-style: true}}\n"
        );
        let config = parse_text(&text).unwrap();
        let of_all = [
            &config.access_key_id,
            &config.secret_access_key,
            &config.region,
            &config.bucket,
        ];
        assert!(
            of_all.iter().all(|it| it.as_deref() == Some(spelled)),
            "{config:?}"
        );
        let database = &config.dbs[0];
        assert_eq!(database.path, Path::new(spelled));
        assert_eq!(database.exclude, [spelled]);
        let replica = database.replica.as_ref().unwrap();
        assert_eq!(replica.path.as_deref(), Some(spelled));
        assert_eq!(replica.name.as_deref(), Some(spelled));
        assert_eq!(
            (replica.concurrency, replica.force_path_style),
            (Some(5), Some(true))
        );
        // The same value from a variable.
        let variable = |_: &str| Some(spelled.to_owned());
        let of_variable = text.replace(&format!(" {spelled}"), " $X");
        let of_variable = of_variable.replace(&format!("[{spelled}"), "[$X");
        let again = parse(&of_variable, Path::new("test.yml"), &variable).unwrap();
        assert_eq!(again.dbs[0].path, Path::new(spelled));
        assert_eq!(again.access_key_id.as_deref(), Some(spelled));
    }
    let nothing =
        parse_text("dbs: [{path: /a, replica: {type: s3, path: ~, bucket: null}}]").unwrap();
    let replica = nothing.dbs[0].replica.as_ref().unwrap();
    assert_eq!((&replica.path, &replica.bucket), (&None, &None));
    let error = parse_text("dbs: [{path: !secret 1.10}]").unwrap_err();
    assert!(
        error.contains("dbs[0].path") && error.contains("quote"),
        "{error}"
    );
}

#[test]
fn paths_in_a_bucket_are_those_of_litestream() {
    let place = |replica: &str| {
        let config = parse_text(&format!("dbs: [{{path: /a, replica: {replica}}}]")).unwrap();
        let replica = config.dbs[0].replica.clone().unwrap();
        match target::target(&replica, "r").unwrap() {
            Target::S3(s3) => (s3.prefix.clone(), s3.below("x/y.db").prefix),
            other => panic!("{other:?}"),
        }
    };
    for (path, own, below) in [
        ("db", "db", "db/x/y.db"),
        ("/db", "/db", "/db/x/y.db"),
        ("db/", "db/", "db/x/y.db"),
        ("//db//", "//db//", "/db/x/y.db"),
        ("a//b", "a//b", "a/b/x/y.db"),
        ("./db", "./db", "db/x/y.db"),
        ("../a", "../a", "../a/x/y.db"),
        ("''", "", "x/y.db"),
    ] {
        let given = place(&format!("{{type: s3, bucket: bkt, path: {path}}}"));
        assert_eq!(given, (own.to_owned(), below.to_owned()), "{path}");
    }
    for (url, own, below) in [
        ("s3://bkt", ".", "x/y.db"),
        ("s3://bkt/", "", "x/y.db"),
        ("s3://bkt//db/", "db", "db/x/y.db"),
    ] {
        let given = place(&format!("{{url: '{url}'}}"));
        assert_eq!(given, (own.to_owned(), below.to_owned()), "{url}");
    }
}

#[test]
fn a_published_configuration_with_the_provider_in_the_host_is_understood() {
    let text = include_str!("../../tests/examples/r2-host.yml");
    let variable = |name: &str| Some(format!("/{}", name.to_lowercase()));
    let config = parse(text, Path::new("r2-host.yml"), &variable).unwrap();
    let replica = config.dbs[0].replicas[0].or_defaults(&config);
    let Target::S3(s3) = target::target(&replica, "r").unwrap() else {
        panic!("not a bucket")
    };
    assert_eq!(
        (s3.bucket.as_str(), s3.prefix.as_str()),
        ("app-backups", "db")
    );
    assert_eq!(s3.region.as_deref(), Some("auto"));
    let endpoint = "https://0123456789abcdef.r2.cloudflarestorage.com";
    assert_eq!(s3.endpoint.as_deref(), Some(endpoint));
    assert_eq!(s3.credentials, store::Credentials::fixed("/key", "/secret"));
    settings_of(&config).unwrap();
}
