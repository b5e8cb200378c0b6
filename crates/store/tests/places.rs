//! Keys of objects in a bucket, and temporary errors of a store.

use store::testing::{ExactServer, Refusal, Weed};
use store::{
    Body, Credentials, PutMeta, PutMode, S3Store, S3Target, Store, StoreError, StoreErrorKind,
};

const KEY: &str = "0000/0000000000000001-0000000000000001.ltx";

fn store(server: &ExactServer, prefix: &str) -> S3Store {
    S3Store::new(&S3Target {
        bucket: "bucket".to_owned(),
        prefix: prefix.to_owned(),
        endpoint: Some(server.endpoint()),
        credentials: Credentials::fixed("key", "secret"),
        ..S3Target::default()
    })
    .expect("a valid target")
}

async fn create(store: &S3Store, key: &str) -> Result<(), StoreError> {
    let body = Body::from(&b"content"[..]);
    let meta = PutMeta::default();
    store.put(key, body, PutMode::Create, &meta).await
}

#[tokio::test]
async fn keys_are_written_and_found_byte_for_byte_below_every_path() {
    for prefix in [
        "db", "", ".", "/", "/db", "db/", "//db//", "a//b", "./db", "a/./b", "a/../b", "../db",
        " db ", "a%20b", "a+b", "\u{e4}",
    ] {
        let server = ExactServer::start();
        let store = store(&server, prefix);
        assert!(store.list("", None).await.unwrap().is_empty(), "{prefix:?}");
        create(&store, KEY).await.unwrap();
        create(&store, "lock.json").await.unwrap();
        let keys = [KEY, "lock.json"].map(|key| format!("{prefix}/{key}"));
        assert_eq!(server.keys("bucket"), keys, "{prefix:?}");
        for below in ["", "0000/"] {
            assert_eq!(store.list(below, None).await.unwrap()[0].key, KEY);
        }
        assert_eq!(store.head(KEY).await.unwrap().size, 7);
        let part = store.get(KEY, Some(2..4)).await.unwrap();
        assert_eq!(part, &b"nt"[..]);
        let again = create(&store, KEY).await.unwrap_err();
        assert_eq!(again.kind(), StoreErrorKind::Exists);
        store.delete(&[KEY.to_owned()]).await.unwrap();
        assert_eq!(server.keys("bucket"), keys[1..], "{prefix:?}");
    }
}

#[tokio::test]
async fn directories_lie_below_the_cleaned_path_as_litestream_joins_them() {
    for (prefix, directory) in [
        ("db", "db/"),
        ("", ""),
        (".", ""),
        ("/", "/"),
        ("/db", "/db/"),
        ("db/", "db/"),
        ("a//b", "a/b/"),
        ("./db", "db/"),
        ("../a", "../a/"),
    ] {
        let server = ExactServer::start();
        let below = format!("{directory}one.db");
        create(&store(&server, &below), KEY).await.unwrap();
        let found = store(&server, prefix).directories("").await.unwrap();
        assert!(
            found.contains(&"one.db".to_owned()),
            "{prefix:?}: {found:?}"
        );
        let levels = store(&server, prefix).directories("one.db").await.unwrap();
        assert_eq!(levels, ["0000"], "{prefix:?}");
    }
}

#[tokio::test]
async fn a_path_that_the_store_takes_for_another_one_is_refused_and_leaves_nothing() {
    let weed = Weed::shared();
    weed.create_bucket("other-names").await;
    let at = |prefix| {
        let target = weed.target("other-names", prefix, Credentials::Static(weed.admin()));
        S3Store::new(&target).unwrap()
    };
    for prefix in ["db/", "//db//", "a//db", "./db", "."] {
        let error = create(&at(prefix), "lock.json").await.unwrap_err();
        let message = error.to_string();
        assert!(message.contains("write "), "{prefix:?}: {message}");
        assert!(
            at("").list("", None).await.unwrap().is_empty(),
            "{prefix:?}"
        );
    }
    // Objects that already exist there do not appear as absent.
    create(&at("db"), KEY).await.unwrap();
    create(&at("a/db"), KEY).await.unwrap();
    for prefix in ["db/", "a//db"] {
        let refused = at(prefix).list("", None).await.unwrap_err();
        assert_eq!(
            refused.kind(),
            StoreErrorKind::InvalidKey,
            "{prefix:?}: {refused}"
        );
    }
    // This store drops a leading slash everywhere.
    assert_eq!(at("/db").list("", None).await.unwrap().len(), 1);
    create(&at("/db"), "lock.json").await.unwrap();
}

#[tokio::test]
async fn a_near_miss_is_the_same_path_with_other_slashes() {
    let server = ExactServer::start();
    create(&store(&server, "db"), KEY).await.unwrap();
    let near = store(&server, "/db/").near_misses();
    let mut found = Vec::new();
    for near in near {
        if !near.list("", None).await.unwrap().is_empty() {
            found.push(near.describe());
        }
    }
    assert_eq!(found, ["s3://bucket/db"]);
}

#[tokio::test]
async fn an_answer_that_may_pass_is_asked_for_again() {
    for (method, status, code) in [
        ("PUT", 409, "ConditionalRequestConflict"),
        ("PUT", 409, "OperationAborted"),
        ("PUT", 429, ""),
        ("PUT", 403, "RequestTimeTooSkewed"),
        ("GET", 429, ""),
        ("GET", 403, "RequestTimeTooSkewed"),
        ("HEAD", 429, ""),
    ] {
        let server = ExactServer::start();
        let store = store(&server, "db");
        let refuse = |times| {
            server.refuse(Refusal {
                method,
                part: "0000",
                status,
                code,
                times,
            });
        };
        refuse(2);
        create(&store, KEY).await.unwrap();
        store.list("0000/", None).await.unwrap();
        store.get(KEY, None).await.unwrap();
        store.head(KEY).await.unwrap();
        // A permanent error is reported in the store's own words, and says nothing about the
        // object.
        refuse(usize::MAX);
        let error = match method {
            "PUT" => create(&store, KEY).await.unwrap_err(),
            "GET" => store.get(KEY, None).await.unwrap_err(),
            _ => store.head(KEY).await.unwrap_err(),
        };
        assert!(error.is_retryable(), "{method} {status} {code}: {error}");
        let words = if code.is_empty() { "429" } else { code };
        assert!(error.to_string().contains(words), "{error}");
    }
}
