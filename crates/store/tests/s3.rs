//! Behaviour that only a server can show: refusals, outages, rotation.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::join_all;
use store::testing::{Cut, Proxy, Weed};
use store::{
    Body, Credentials, CredentialsState, CustomerKey, Encryption, Keys, PutMeta, PutMode, Requests,
    S3Store, S3Target, Store, StoreError, StoreErrorKind, fingerprint,
};

fn keys(access: &str, secret: &str) -> Keys {
    Keys {
        access_key_id: access.to_owned(),
        secret_access_key: secret.to_owned(),
        session_token: None,
    }
}

async fn put(store: &S3Store, key: &str, mode: PutMode) -> Result<(), StoreError> {
    store
        .put(key, Body::from(&b"content"[..]), mode, &PutMeta::default())
        .await
}

/// Returns the kinds of the errors of all calls, delete last.
async fn all_kinds(store: &S3Store) -> [Option<StoreErrorKind>; 6] {
    let big = Body::from(vec![0; 9 << 20]);
    [
        put(store, "a", PutMode::Overwrite).await.err(),
        store
            .put("a", big, PutMode::Create, &PutMeta::default())
            .await
            .err(),
        store.get("a", None).await.err(),
        store.head("a").await.err(),
        store.list("", None).await.err(),
        store.delete(&["a".to_owned()]).await.err(),
    ]
    .map(|error| error.map(|error| error.kind()))
}

/// Replaces the content of a directory at once, as the kubelet does.
fn project(directory: &Path, version: &str, keys: &Keys) -> io::Result<()> {
    let data = directory.join(format!("..{version}"));
    fs::create_dir(&data)?;
    fs::write(data.join("AWS_ACCESS_KEY_ID"), &keys.access_key_id)?;
    fs::write(data.join("AWS_SECRET_ACCESS_KEY"), &keys.secret_access_key)?;
    let temporary = directory.join("..data_tmp");
    symlink(format!("..{version}"), &temporary)?;
    fs::rename(temporary, directory.join("..data"))
}

#[tokio::test]
async fn wrong_keys_are_denied_for_every_call() {
    let weed = Weed::shared();
    weed.create_bucket("wrong-keys").await;
    let wrong = [
        keys("nobody", "secret"),
        keys(&weed.admin().access_key_id, "wrong-secret"),
    ];
    for wrong in wrong {
        let target = weed.target("wrong-keys", "db", Credentials::Static(wrong.clone()));
        let store = S3Store::new(&target).unwrap();
        assert_eq!(all_kinds(&store).await, [Some(StoreErrorKind::Denied); 6]);
        let status = store.credentials_status().unwrap();
        assert_eq!(status.state, CredentialsState::Denied);
        assert_eq!(status.fingerprint, Some(fingerprint(&wrong)));
        let message = store.list("", None).await.unwrap_err().to_string();
        assert!(message.contains("s3://wrong-keys/db"), "{message}");
        assert!(
            !message.contains("secret") && !message.contains("nobody"),
            "{message}"
        );
    }
}

#[tokio::test]
async fn a_revoked_key_is_denied_in_the_middle_of_a_run() {
    let weed = Weed::shared();
    weed.create_bucket("revoked").await;
    weed.add_identity(
        "revoked",
        "revoked-key",
        "secret",
        &["Read", "Write", "List"],
    )
    .await;
    let credentials = Credentials::fixed("revoked-key", "secret");
    let store = S3Store::new(&weed.target("revoked", "db", credentials)).unwrap();
    put(&store, "a", PutMode::Create).await.unwrap();
    assert_eq!(
        store.credentials_status().unwrap().state,
        CredentialsState::Valid
    );
    weed.remove_identity("revoked", "revoked-key").await;
    assert_eq!(all_kinds(&store).await, [Some(StoreErrorKind::Denied); 6]);
    assert_eq!(
        store.credentials_status().unwrap().state,
        CredentialsState::Denied
    );
}

#[tokio::test]
async fn a_right_that_is_lacking_does_not_make_the_keys_bad() {
    let weed = Weed::shared();
    weed.create_bucket("read-only").await;
    weed.add_identity(
        "reader",
        "reader-key",
        "secret",
        &["Read:read-only", "List:read-only"],
    )
    .await;
    let credentials = Credentials::fixed("reader-key", "secret");
    let store = S3Store::new(&weed.target("read-only", "db", credentials)).unwrap();
    assert!(store.list("", None).await.unwrap().is_empty());
    let refused = put(&store, "a", PutMode::Overwrite).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Denied);
    assert_eq!(
        store.credentials_status().unwrap().state,
        CredentialsState::Valid
    );
}

#[tokio::test]
async fn a_missing_bucket_is_not_an_empty_one() {
    let weed = Weed::shared();
    // This server creates a missing bucket with the first put, or refuses users without the
    // permission. It reports success for a delete in a missing bucket.
    weed.add_identity("user", "user-key", "secret", &["Read", "Write", "List"])
        .await;
    let credentials = Credentials::fixed("user-key", "secret");
    let store = S3Store::new(&weed.target("never-made", "db", credentials)).unwrap();
    let kinds = all_kinds(&store).await;
    assert_eq!(kinds[0], Some(StoreErrorKind::Denied));
    assert_eq!(kinds[1..5], [Some(StoreErrorKind::NoBucket); 4]);
}

#[tokio::test]
async fn metadata_and_keys_are_those_of_litestream() {
    let weed = Weed::shared();
    weed.create_bucket("layout").await;
    let target = |prefix| weed.target("layout", prefix, Credentials::Static(weed.admin()));
    let store = S3Store::new(&target("a/db")).unwrap();
    put(&store, "0000/x.ltx", PutMode::Create).await.unwrap();
    assert_eq!(store.describe(), "s3://layout/a/db");
    let above = S3Store::new(&target("a")).unwrap();
    assert_eq!(above.list("", None).await.unwrap()[0].key, "db/0000/x.ltx");
    // A sibling with the same start of its name is not part of the prefix.
    let sibling = S3Store::new(&target("a/d")).unwrap();
    assert!(sibling.list("", None).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_empty_prefix_lists_what_it_holds_where_leading_slashes_are_dropped() {
    let weed = Weed::shared();
    weed.create_bucket("empty-prefix").await;
    let target = weed.target("empty-prefix", "", Credentials::Static(weed.admin()));
    let store = S3Store::new(&target).unwrap();
    assert!(store.list("", None).await.unwrap().is_empty());
    let all = ["0000/1", "0000/2", "0001/1"];
    for key in all {
        put(&store, key, PutMode::Create).await.unwrap();
    }
    let keys = async |prefix, after| {
        let found = store.list(prefix, after).await.unwrap();
        found.into_iter().map(|info| info.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("", None).await, all);
    assert_eq!(keys("", Some("0000/1")).await, all[1..]);
    assert_eq!(keys("0000/", None).await, all[..2]);
    assert_eq!(keys("0000/", Some("0000/1")).await, all[1..2]);
    assert!(keys("0002/", None).await.is_empty());
}

#[tokio::test]
async fn a_closed_port_is_unreachable_at_once() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let store = S3Store::new(&local(&format!("http://127.0.0.1:{port}"))).unwrap();
    assert_eq!(
        all_kinds(&store).await,
        [Some(StoreErrorKind::Unreachable); 6]
    );
    let message = store.list("", None).await.unwrap_err().to_string();
    assert!(message.to_lowercase().contains("refused"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answers_is_unreachable_in_bounded_time() {
    let proxy = Proxy::start(String::new(), Cut::Silence, u64::MAX).await;
    let store = S3Store::new(&local(&proxy.endpoint())).unwrap();
    let start = tokio::time::Instant::now();
    assert_eq!(
        store.list("", None).await.unwrap_err().kind(),
        StoreErrorKind::Unreachable
    );
    assert!(start.elapsed().as_secs() < 90, "{:?}", start.elapsed());
}

#[tokio::test]
async fn answers_of_something_else_are_never_missing_or_empty() {
    let answers = [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n<html></html>\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nwelcome!\n",
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
    ];
    for answer in answers {
        let proxy = Proxy::start(String::new(), Cut::Instead(answer), u64::MAX).await;
        let store = S3Store::new(&local(&proxy.endpoint())).unwrap();
        let listed = store.list("", None).await;
        assert!(listed.is_err(), "{answer:?} gave {listed:?}");
        for kind in [
            listed.unwrap_err().kind(),
            store
                .head("a")
                .await
                .map_or_else(|error| error.kind(), |_| StoreErrorKind::Other),
            store
                .get("a", Some(0..4))
                .await
                .map_or_else(|error| error.kind(), |_| StoreErrorKind::Other),
        ] {
            assert_ne!(kind, StoreErrorKind::Missing, "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_or_stands_still_is_asked_for_again_and_never_returned_short() {
    let weed = Weed::shared();
    weed.create_bucket("cut").await;
    let credentials = || Credentials::Static(weed.admin());
    let content = Bytes::from(vec![7; 3 << 20]);
    let direct = S3Store::new(&weed.target("cut", "db", credentials())).unwrap();
    let body = Body::Bytes(content.clone());
    direct
        .put("a", body, PutMode::Create, &PutMeta::default())
        .await
        .unwrap();

    let through = async |cut, times| {
        let proxy = Proxy::start(weed.address(), cut, times).await;
        let mut target = weed.target("cut", "db", credentials());
        target.endpoint = Some(proxy.endpoint());
        let found = S3Store::new(&target).unwrap().get("a", None).await;
        (found, proxy.connections())
    };
    for cut in [Cut::After(1 << 20), Cut::Stall(1 << 20)] {
        let (found, connections) = through(cut, 1).await;
        assert!(found.unwrap() == content, "{cut:?}");
        assert_eq!(connections, 2, "{cut:?}");
    }
    let (found, _) = through(Cut::After(1 << 20), u64::MAX).await;
    let error = found.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unreachable);
    assert!(error.to_string().contains("broke off"), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_a_create_then_finds_its_own_object() {
    let weed = Weed::shared();
    weed.create_bucket("lost").await;
    let mut target = weed.target("lost", "db", Credentials::Static(weed.admin()));
    let direct = S3Store::new(&target).unwrap();
    for (key, mode) in [("a", PutMode::Overwrite), ("b", PutMode::Create)] {
        let proxy = Proxy::start(weed.address(), Cut::After(0), 1).await;
        target.endpoint = Some(proxy.endpoint());
        let store = S3Store::new(&target).unwrap();
        let result = put(&store, key, mode.clone())
            .await
            .map_err(|error| error.kind());
        let expected = if mode == PutMode::Create {
            Err(StoreErrorKind::Exists)
        } else {
            Ok(())
        };
        assert_eq!((result, proxy.connections()), (expected, 2));
        assert_eq!(direct.get(key, None).await.unwrap(), "content");
    }
}

#[tokio::test]
async fn objects_are_kept_in_a_class_in_parts_and_with_a_key_of_ours() {
    let weed = Weed::shared();
    weed.create_bucket("kept").await;
    let plain = weed.target("kept", "db", Credentials::Static(weed.admin()));
    let key = CustomerKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let kept = S3Target {
        storage_class: Some("STANDARD_IA".to_owned()),
        encryption: key.map(Encryption::Customer),
        part_bytes: Some(5 << 20),
        parts_in_flight: Some(1),
        ..plain.clone()
    };
    let store = S3Store::new(&kept).unwrap();
    let meta = PutMeta {
        timestamp_ms: Some(1_700_000_000_120),
    };
    for (name, bytes, requests) in [("small", 10, 1), ("big", 11 << 20, 5)] {
        let content = Bytes::from_iter((0..bytes).map(|n: u32| (n / 7) as u8));
        let before = store.requests().unwrap().put;
        let body = Body::Bytes(content.clone());
        store.put(name, body, PutMode::Create, &meta).await.unwrap();
        assert_eq!(store.requests().unwrap().put - before, requests, "{name}");
        assert!(store.get(name, None).await.unwrap() == content);
        let end = u64::from(bytes);
        let range = end - 9..end - 2;
        let tail = store.get(name, Some(range.clone())).await.unwrap();
        assert!(tail == content[range.start as usize..range.end as usize]);
        let info = store.head(name).await.unwrap();
        assert_eq!((info.size, info.modified_ms), (end, 1_700_000_000_120));
        let version = PutMode::Match(info.version.unwrap());
        put(&store, name, version.clone()).await.unwrap();
        let late = put(&store, name, version).await.unwrap_err();
        assert_eq!(late.kind(), StoreErrorKind::Conflict);
    }
    // Without the key every read fails, and the failure does not appear as absence.
    let stranger = S3Store::new(&plain).unwrap();
    let refused = stranger.get("small", None).await.unwrap_err();
    assert!(!matches!(
        refused.kind(),
        StoreErrorKind::Missing | StoreErrorKind::Denied
    ));
    assert_eq!(stranger.list("", None).await.unwrap().len(), 2);
}

#[tokio::test]
async fn every_attempt_is_counted_by_kind() {
    let weed = Weed::shared();
    weed.create_bucket("counted").await;
    let mut target = weed.target("counted", "db", Credentials::Static(weed.admin()));
    let direct = S3Store::new(&target).unwrap();
    assert_eq!(direct.requests(), Some(Requests::default()));
    // Checks for an existing object, which ends in a list; begins, sends two parts, completes.
    let big = Body::from(vec![0; 9 << 20]);
    direct
        .put("big", big, PutMode::Create, &PutMeta::default())
        .await
        .unwrap();
    direct.get("big", Some(0..10)).await.unwrap();
    direct.list("", None).await.unwrap();
    direct.directories("").await.unwrap();
    direct
        .delete(&["big".to_owned(), "gone".to_owned()])
        .await
        .unwrap();
    let expected = Requests {
        put: 4,
        get: 1,
        head: 1,
        list: 3,
        delete: 2,
    };
    assert_eq!(direct.requests(), Some(expected));
    // The answer to the first attempt is lost.
    let proxy = Proxy::start(weed.address(), Cut::After(0), 1).await;
    target.endpoint = Some(proxy.endpoint());
    let store = S3Store::new(&target).unwrap();
    put(&store, "a", PutMode::Overwrite).await.unwrap();
    let expected = Requests {
        put: 2,
        ..Requests::default()
    };
    assert_eq!(store.requests(), Some(expected));
}

#[tokio::test]
async fn a_missing_secret_is_not_the_default_chain() {
    let directory = tempfile::tempdir().unwrap();
    let mut target = local("http://127.0.0.1:1");
    target.credentials = Credentials::Directory(directory.path().join("not-mounted"));
    let store = S3Store::new(&target).unwrap();
    assert_eq!(
        all_kinds(&store).await,
        [Some(StoreErrorKind::CredentialsMissing); 6]
    );
    let status = store.credentials_status().unwrap();
    assert_eq!(
        (status.state, status.fingerprint),
        (CredentialsState::Missing, None)
    );
}

#[tokio::test]
async fn a_policy_that_refuses_to_delete_some_objects_is_a_denial_and_the_others_can_go() {
    let weed = Weed::shared();
    weed.create_bucket("locked").await;
    let rights = ["Read", "Write", "List"];
    weed.add_identity("locked", "locked-key", "secret", &rights)
        .await;
    weed.refuse_deletes("locked", "db/old/").await;
    let credentials = Credentials::fixed("locked-key", "secret");
    let store = S3Store::new(&weed.target("locked", "db", credentials)).unwrap();
    let names = ["old/1", "new/1", "old/2", "new/2"].map(str::to_owned);
    for name in &names {
        put(&store, name, PutMode::Create).await.unwrap();
    }
    let refused = store.delete(&names).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Denied, "{refused}");
    assert!(refused.to_string().contains("delete s3://locked/db/old/"));
    for name in &names {
        let deleted = store.delete(std::slice::from_ref(name)).await;
        assert_eq!(deleted.is_ok(), name.starts_with("new/"), "{name}");
    }
    let left = store.list("", None).await.unwrap();
    let left: Vec<_> = left.iter().map(|info| info.key.as_str()).collect();
    assert_eq!(left, ["old/1", "old/2"]);
    // The keys themselves are valid.
    let status = store.credentials_status().unwrap();
    assert_eq!(status.state, CredentialsState::Valid);
}

#[tokio::test]
async fn in_a_bucket_with_object_lock_a_deletion_hides_an_object_and_its_name_is_free() {
    let weed = Weed::shared();
    weed.create_locked_bucket("worm").await;
    let store =
        S3Store::new(&weed.target("worm", "db", Credentials::Static(weed.admin()))).unwrap();
    put(&store, "a", PutMode::Create).await.unwrap();
    put(&store, "b", PutMode::Create).await.unwrap();
    let names = ["a", "b"].map(str::to_owned);
    store.delete(&names[..1]).await.unwrap();
    let left = store.list("", None).await.unwrap();
    let left: Vec<_> = left.iter().map(|info| info.key.as_str()).collect();
    assert_eq!(left, ["b"]);
    let gone = store.head("a").await.unwrap_err();
    assert_eq!(gone.kind(), StoreErrorKind::Missing);
    put(&store, "a", PutMode::Create).await.unwrap();
}

#[tokio::test]
async fn keys_rotate_under_load_without_a_failed_put() {
    let weed = Weed::shared();
    weed.create_bucket("rotation").await;
    let rights = ["Read", "Write", "List"];
    weed.add_identity("rotation-1", "rotation-key-1", "secret-1", &rights)
        .await;
    weed.add_identity("rotation-2", "rotation-key-2", "secret-2", &rights)
        .await;
    weed.add_identity("rotation-3", "rotation-key-3", "secret-3", &rights)
        .await;
    let [first, second, third] =
        [1, 2, 3].map(|n| keys(&format!("rotation-key-{n}"), &format!("secret-{n}")));

    let directory = tempfile::tempdir().unwrap();
    project(directory.path(), "1", &first).unwrap();
    let credentials = Credentials::Directory(directory.path().to_owned());
    let store = S3Store::new(&weed.target("rotation", "db", credentials)).unwrap();
    let (stop, puts) = (AtomicBool::new(false), AtomicU64::new(0));
    let load = async |worker: u64| {
        let mut number = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            put(&store, &format!("{worker}/{number}"), PutMode::Create)
                .await
                .unwrap();
            puts.fetch_add(1, Ordering::Relaxed);
            number += 1;
        }
        number
    };
    let uses = async |keys: &Keys, state| loop {
        let status = store.credentials_status().unwrap();
        if (status.fingerprint, status.state) == (Some(fingerprint(keys)), state) {
            return;
        }
        tokio::task::yield_now().await;
    };
    let some_puts = async || {
        let enough = puts.load(Ordering::Relaxed) + 50;
        while puts.load(Ordering::Relaxed) < enough {
            tokio::task::yield_now().await;
        }
    };
    let rotate = async {
        some_puts().await;
        // Keys that the store does not know yet are reported, and the old ones stay.
        project(directory.path(), "2", &keys("unknown-key", "secret")).unwrap();
        uses(&first, CredentialsState::RotationPending).await;
        some_puts().await;
        // New keys appear, then the old ones are removed.
        project(directory.path(), "3", &second).unwrap();
        uses(&second, CredentialsState::Valid).await;
        weed.remove_identity("rotation-1", "rotation-key-1").await;
        some_puts().await;
        // The old keys are removed before the new ones have been read.
        project(directory.path(), "4", &third).unwrap();
        weed.remove_identity("rotation-2", "rotation-key-2").await;
        some_puts().await;
        uses(&third, CredentialsState::Valid).await;
        stop.store(true, Ordering::Relaxed);
    };
    let workers = join_all((0..4).map(load));
    let (done, ()) = futures::join!(workers, rotate);
    assert_eq!(
        store.list("", None).await.unwrap().len() as u64,
        done.iter().sum::<u64>()
    );
}

#[tokio::test]
async fn a_certificate_file_without_certificates_is_refused_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut target = local("https://127.0.0.1:1");
    target.ca_file = Some(file.path().to_owned());
    let error = S3Store::new(&target).err().unwrap();
    assert!(error.to_string().contains("no certificate"), "{error}");
}

fn local(endpoint: &str) -> S3Target {
    S3Target {
        bucket: "bucket".to_owned(),
        endpoint: Some(endpoint.to_owned()),
        credentials: Credentials::fixed("key", "secret"),
        ..S3Target::default()
    }
}
