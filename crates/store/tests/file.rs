//! Behaviour that only a directory can show.

use std::fs;
use std::os::unix::fs::MetadataExt;

use futures::future::join_all;
use store::{Body, FileStore, Layout, PutMeta, PutMode, Store, StoreErrorKind};

async fn put(store: &FileStore, key: &str, mode: PutMode) -> Result<(), StoreErrorKind> {
    let put = store.put(key, Body::from(&b"content"[..]), mode, &PutMeta::default());
    put.await.map_err(|error| error.kind())
}

#[tokio::test]
async fn files_lie_where_litestream_looks_for_them_with_its_times() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::new(directory.path().join("replica"));
    assert_eq!(store.layout(), Layout::Tree);
    let meta = PutMeta {
        timestamp_ms: Some(1_700_000_000_123),
    };
    let key = "ltx/0/0000000000000001-0000000000000001.ltx";
    store
        .put(key, Body::from(&b"content"[..]), PutMode::Create, &meta)
        .await
        .unwrap();
    let path = directory.path().join("replica").join(key);
    assert_eq!(fs::read(&path).unwrap(), b"content");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_700_000_000, 123_000_000)
    );
    let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(names, 1, "no temporary file stays");
}

#[tokio::test]
async fn what_a_dead_writer_left_behind_is_not_an_object() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::new(directory.path());
    put(&store, "ltx/0/a.ltx", PutMode::Create).await.unwrap();
    for name in [".b.ltx.1-0.tmp", "c.ltx.tmp"] {
        fs::write(directory.path().join("ltx/0").join(name), "half").unwrap();
    }
    let listed = store.list("", None).await.unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|info| info.key.as_str())
            .collect::<Vec<_>>(),
        ["ltx/0/a.ltx"]
    );
}

#[tokio::test]
async fn a_file_in_the_way_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let in_the_way = directory.path().join("replica");
    fs::write(&in_the_way, "a file").unwrap();
    let store = FileStore::new(&in_the_way);
    let errors = [
        store.list("", None).await.unwrap_err(),
        store.get("ltx/0/a", None).await.unwrap_err(),
        store.head("a").await.unwrap_err(),
        store
            .put(
                "ltx/0/a",
                Body::from(&b"x"[..]),
                PutMode::Create,
                &PutMeta::default(),
            )
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), StoreErrorKind::Other);
        assert!(
            error.to_string().contains("is a file, not a directory"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_place_that_refuses_writes_is_denied_not_missing() {
    // Even root cannot create files here.
    let store = FileStore::new("/proc/self/fdinfo");
    let refused = put(&store, "x", PutMode::Overwrite).await;
    assert!(refused.is_err_and(|kind| kind != StoreErrorKind::Missing));
}

#[tokio::test]
async fn a_directory_is_not_an_object() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::new(directory.path());
    put(&store, "ltx/0/a.ltx", PutMode::Create).await.unwrap();
    for key in ["ltx", "ltx/0"] {
        assert_eq!(
            store.head(key).await.unwrap_err().kind(),
            StoreErrorKind::Missing
        );
        assert_eq!(
            store.get(key, None).await.unwrap_err().kind(),
            StoreErrorKind::Missing
        );
        assert!(put(&store, key, PutMode::Overwrite).await.is_err());
    }
}

#[tokio::test]
async fn one_of_two_processes_wins_a_swap() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..50 {
        // Two stores, as in two processes.
        let stores = [
            FileStore::new(directory.path()),
            FileStore::new(directory.path()),
        ];
        let key = format!("lease-{round}");
        put(&stores[0], &key, PutMode::Create).await.unwrap();
        let version = stores[0].head(&key).await.unwrap().version.unwrap();
        let swaps = stores
            .iter()
            .map(|store| put(store, &key, PutMode::Match(version.clone())));
        let results = join_all(swaps).await;
        let mut kinds: Vec<_> = results.into_iter().collect();
        kinds.sort_unstable();
        assert_eq!(kinds, [Ok(()), Err(StoreErrorKind::Conflict)]);
    }
}

#[tokio::test]
async fn keys_that_name_the_lock_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::new(directory.path());
    let refused = put(&store, ".store-lock", PutMode::Overwrite).await;
    assert_eq!(refused, Err(StoreErrorKind::InvalidKey));
}

#[tokio::test]
async fn directories_that_cannot_be_looked_at_are_an_error_and_foreign_names_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let store = FileStore::new(directory.path());
    for name in ["a", "b.tmp", "c\\d"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
    }
    std::os::unix::fs::symlink("nothing", directory.path().join("dangling")).unwrap();
    assert_eq!(store.directories("").await.unwrap(), ["a"]);
    // A link to itself: the system reports an error, not absence.
    std::os::unix::fs::symlink("circle", directory.path().join("circle")).unwrap();
    let message = store.directories("").await.unwrap_err().to_string();
    assert!(message.contains("circle"), "{message}");
}
