//! The required behaviour of every store, as tests: run [`run`] on each.
//!
//! The functions panic when a store differs, and name the expected behaviour.

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;

use crate::object::{Body, Layout, PutMeta, PutMode, SharedStore};
use crate::{BoxError, StoreError, StoreErrorKind};

/// Number of objects for a list of several pages; S3 returns 1,000 in one page.
const MANY: usize = 1_100;
/// Number of concurrent puts that create them.
const PUTS_AT_ONCE: usize = 16;
/// Needs three parts on S3.
const BIG_BYTES: usize = 20 << 20;

/// Checks a store. `empty` makes an empty store each time it is called.
pub async fn run(empty: impl AsyncFn() -> SharedStore) {
    an_empty_store_lists_as_empty(&empty().await).await;
    what_was_put_comes_back(&empty().await).await;
    ranges_are_clipped_to_the_object(&empty().await).await;
    an_overwrite_replaces_all(&empty().await).await;
    a_second_create_changes_nothing(&empty().await).await;
    a_match_needs_the_version_that_is_there(&empty().await).await;
    lists_are_sorted_and_cut_by_prefix_and_start(&empty().await).await;
    directories_are_told_without_what_is_in_them(&empty().await).await;
    long_lists_are_complete(&empty().await).await;
    deletes_forgive_what_is_missing(&empty().await).await;
    odd_keys_are_kept_as_they_are(&empty().await).await;
    keys_that_cannot_be_kept_are_refused(&empty().await).await;
    big_objects_arrive_whole(&empty().await).await;
    big_creates_keep_what_is_there(&empty().await).await;
    streams_arrive_whole_or_not_at_all(&empty().await).await;
    one_of_many_creators_wins(&empty().await).await;
    one_of_many_swappers_wins(&empty().await).await;
    timestamps_are_kept(&empty().await).await;
}

async fn an_empty_store_lists_as_empty(store: &SharedStore) {
    for prefix in ["", "0000/", "nothing"] {
        assert_eq!(
            keys(store, prefix, None).await,
            [""; 0],
            "prefix {prefix:?}"
        );
    }
    let kind = |error: StoreError| error.kind();
    assert_eq!(
        store.get("a/b", None).await.map_err(kind),
        Err(StoreErrorKind::Missing)
    );
    assert_eq!(
        store.get("a/b", Some(0..0)).await.map_err(kind),
        Err(StoreErrorKind::Missing)
    );
    assert_eq!(
        store.get("a/b", Some(0..9)).await.map_err(kind),
        Err(StoreErrorKind::Missing)
    );
    assert_eq!(
        store.head("a/b").await.map_err(kind),
        Err(StoreErrorKind::Missing)
    );
}

async fn what_was_put_comes_back(store: &SharedStore) {
    for content in ["", "x", "some content"] {
        put(store, "dir/object", content, PutMode::Overwrite)
            .await
            .expect("put");
        assert_eq!(text(store, "dir/object").await, content);
        let info = store.head("dir/object").await.expect("head");
        assert_eq!(
            (info.key.as_str(), info.size),
            ("dir/object", content.len() as u64)
        );
        assert!(info.version.is_some(), "a version for a compare-and-swap");
        let listed = store.list("", None).await.expect("list");
        assert_eq!((listed.len(), listed[0].size), (1, content.len() as u64));
        assert_eq!(listed[0].version, info.version, "list and head agree");
    }
}

async fn ranges_are_clipped_to_the_object(store: &SharedStore) {
    put(store, "object", "0123456789", PutMode::Overwrite)
        .await
        .expect("put");
    put(store, "empty", "", PutMode::Overwrite)
        .await
        .expect("put");
    for (range, expected) in [
        (0..0, ""),
        (0..1, "0"),
        (0..10, "0123456789"),
        (0..11, "0123456789"),
        (3..7, "3456"),
        (9..10, "9"),
        (5..1_000, "56789"),
        (5..5, ""),
        (10..20, ""),
        (50..60, ""),
    ] {
        let found = store
            .get("object", Some(range.clone()))
            .await
            .expect("ranged get");
        assert_eq!(found, expected, "range {range:?}");
    }
    let found = store
        .get("empty", Some(0..10))
        .await
        .expect("range of an empty object");
    assert_eq!(found, "");
}

async fn an_overwrite_replaces_all(store: &SharedStore) {
    put(store, "object", "long content", PutMode::Overwrite)
        .await
        .expect("put");
    let before = store.head("object").await.expect("head");
    put(store, "object", "short", PutMode::Overwrite)
        .await
        .expect("overwrite");
    assert_eq!(text(store, "object").await, "short");
    assert_ne!(
        store.head("object").await.expect("head").version,
        before.version
    );
}

async fn a_second_create_changes_nothing(store: &SharedStore) {
    put(store, "object", "first", PutMode::Create)
        .await
        .expect("create");
    let before = store.head("object").await.expect("head");
    let second = put(store, "object", "second", PutMode::Create).await;
    assert!(matches!(second, Err(StoreError::Exists { key }) if key == "object"));
    assert_eq!(text(store, "object").await, "first");
    assert_eq!(store.head("object").await.expect("head"), before);
    store.delete(&["object".to_owned()]).await.expect("delete");
    put(store, "object", "third", PutMode::Create)
        .await
        .expect("create after a delete");
    assert_eq!(text(store, "object").await, "third");
}

async fn a_match_needs_the_version_that_is_there(store: &SharedStore) {
    put(store, "object", "first", PutMode::Create)
        .await
        .expect("create");
    let first = version(store, "object").await;
    put(store, "object", "second", PutMode::Match(first.clone()))
        .await
        .expect("match");
    let again = put(store, "object", "third", PutMode::Match(first.clone())).await;
    assert!(matches!(again, Err(StoreError::Conflict { key }) if key == "object"));
    assert_eq!(text(store, "object").await, "second");
    store.delete(&["object".to_owned()]).await.expect("delete");
    let gone = put(store, "object", "fourth", PutMode::Match(first)).await;
    assert!(matches!(gone, Err(StoreError::Conflict { .. })), "{gone:?}");
    assert_eq!(keys(store, "", None).await, [""; 0]);
}

async fn lists_are_sorted_and_cut_by_prefix_and_start(store: &SharedStore) {
    let all = [
        "0000/1",
        "0000/2",
        "0000/3",
        "00001/1",
        "0001/1",
        "lock.json",
        "z",
    ];
    for key in all.iter().rev() {
        put(store, key, "x", PutMode::Overwrite).await.expect("put");
    }
    assert_eq!(keys(store, "", None).await, all);
    assert_eq!(keys(store, "0000", None).await, all[..4]);
    assert_eq!(keys(store, "0000/", None).await, all[..3]);
    assert_eq!(keys(store, "0000/", Some("0000/1")).await, all[1..3]);
    assert_eq!(keys(store, "0000/", Some("0000/0")).await, all[..3]);
    assert_eq!(keys(store, "0000/", Some("0000/15")).await, all[1..3]);
    assert_eq!(keys(store, "0000/", Some("0000/3")).await, [""; 0]);
    assert_eq!(keys(store, "", Some("0001")).await, all[4..]);
    assert_eq!(keys(store, "lock", None).await, ["lock.json"]);
    assert_eq!(keys(store, "lock.json", None).await, ["lock.json"]);
    assert_eq!(keys(store, "0000/1x", None).await, [""; 0]);
    assert_eq!(keys(store, "ltx/", None).await, [""; 0]);
}

async fn directories_are_told_without_what_is_in_them(store: &SharedStore) {
    assert_eq!(directories(store, "").await, [""; 0]);
    assert_eq!(directories(store, "a").await, [""; 0]);
    for key in ["a/x/1", "a/x/2/3", "a/x-/1", "a/y", "ab/1", "top"] {
        put(store, key, "", PutMode::Create).await.expect("put");
    }
    assert_eq!(directories(store, "").await, ["a", "ab"]);
    assert_eq!(directories(store, "a").await, ["x", "x-"]);
    assert_eq!(directories(store, "a/x").await, ["2"]);
    assert_eq!(directories(store, "a/y").await, [""; 0]);
    let kind = |error: StoreError| error.kind();
    assert_eq!(
        store.directories("..").await.map_err(kind),
        Err(StoreErrorKind::InvalidKey)
    );
}

async fn directories(store: &SharedStore, below: &str) -> Vec<String> {
    store.directories(below).await.expect("list directories")
}

async fn long_lists_are_complete(store: &SharedStore) {
    let all: Vec<String> = (0..MANY).map(|n| format!("0000/{n:016x}.ltx")).collect();
    for some in all.chunks(PUTS_AT_ONCE) {
        let puts = some
            .iter()
            .map(|key| put(store, key, "x", PutMode::Overwrite));
        join_all(puts)
            .await
            .into_iter()
            .collect::<Result<Vec<()>, _>>()
            .expect("puts");
    }
    put(store, "0001/x", "x", PutMode::Overwrite)
        .await
        .expect("put");
    assert_eq!(keys(store, "0000/", None).await, all);
    assert_eq!(keys(store, "0000/", Some(&all[49])).await, all[50..]);
    store.delete(&all[..MANY - 1]).await.expect("delete many");
    assert_eq!(keys(store, "0000/", None).await, all[MANY - 1..]);
}

async fn deletes_forgive_what_is_missing(store: &SharedStore) {
    store.delete(&[]).await.expect("delete nothing");
    store
        .delete(&["never/was".to_owned()])
        .await
        .expect("delete in an empty store");
    for key in ["a", "b", "c"] {
        put(store, key, key, PutMode::Overwrite).await.expect("put");
    }
    let some = ["a", "never/was", "c", "b/under"].map(str::to_owned);
    store.delete(&some).await.expect("delete");
    assert_eq!(keys(store, "", None).await, ["b"]);
}

async fn odd_keys_are_kept_as_they_are(store: &SharedStore) {
    let mut all = [
        "a b/c d",
        "plus+plus",
        "per%20cent",
        "and&equals=",
        "quo\"te's",
        "semi;colon,",
        "ünï/çødé",
        "日本語",
        "#hash?mark",
        "..dots",
        "tilde~",
        "(x)[y]{z}",
        "<tag>",
        "*star*",
        "$HOME",
        "a:b@c!",
    ];
    all.sort_unstable();
    for key in all {
        put(store, key, key, PutMode::Create).await.expect("create");
    }
    assert_eq!(keys(store, "", None).await, all);
    for key in all {
        assert_eq!(text(store, key).await, key);
        assert_eq!(store.head(key).await.expect("head").key, key);
        assert_eq!(keys(store, key, None).await, [key]);
    }
    assert_eq!(keys(store, "", Some(all[3])).await, all[4..]);
    store.delete(&all.map(str::to_owned)).await.expect("delete");
    assert_eq!(keys(store, "", None).await, [""; 0]);
}

async fn keys_that_cannot_be_kept_are_refused(store: &SharedStore) {
    for key in [
        "", "/a", "a/", "a//b", "..", "../a", "a/./b", "nul\0", "a\\b", "a.tmp",
    ] {
        let refused = |error: StoreError| error.kind();
        let kind = Some(StoreErrorKind::InvalidKey);
        assert_eq!(
            put(store, key, "x", PutMode::Overwrite)
                .await
                .map_err(refused)
                .err(),
            kind
        );
        assert_eq!(store.get(key, None).await.map_err(refused).err(), kind);
        assert_eq!(store.head(key).await.map_err(refused).err(), kind);
        assert_eq!(
            store.delete(&[key.to_owned()]).await.map_err(refused).err(),
            kind
        );
    }
    let listed = store.list("../", None).await.map_err(|error| error.kind());
    assert_eq!(listed, Err(StoreErrorKind::InvalidKey));
}

async fn big_objects_arrive_whole(store: &SharedStore) {
    let content = big_content(1);
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    // The file is longer than the object: `len` counts.
    std::fs::write(file.path(), [&content[..], b"not this"].concat()).expect("write");
    let body = Body::File {
        path: file.path().to_owned(),
        len: content.len() as u64,
    };
    let meta = PutMeta {
        timestamp_ms: Some(1_700_000_000_250),
    };
    store
        .put("0009/big", body, PutMode::Create, &meta)
        .await
        .expect("put a file");
    let info = store.head("0009/big").await.expect("head");
    assert_eq!(
        (info.size, info.modified_ms),
        (content.len() as u64, 1_700_000_000_250)
    );
    assert!(
        store.get("0009/big", None).await.expect("get") == content,
        "other content"
    );
    let middle = (8 << 20) - 10..(8 << 20) + 10_u64;
    let found = store
        .get("0009/big", Some(middle.clone()))
        .await
        .expect("ranged get");
    assert_eq!(found, content[middle.start as usize..middle.end as usize]);

    let other = big_content(2);
    let replaced = store
        .head("0009/big")
        .await
        .expect("head")
        .version
        .expect("version");
    let mode = PutMode::Match(replaced.clone());
    store
        .put("0009/big", other.clone().into(), mode, &meta)
        .await
        .expect("big match");
    assert!(
        store.get("0009/big", None).await.expect("get") == other,
        "other content"
    );
    let stale = PutMode::Match(replaced);
    let stale = store
        .put("0009/big", content.clone().into(), stale, &meta)
        .await;
    assert!(
        matches!(stale, Err(StoreError::Conflict { .. })),
        "{stale:?}"
    );

    let missing = Body::File {
        path: file.path().with_extension("gone"),
        len: 1,
    };
    let missing = store
        .put("0009/x", missing, PutMode::Overwrite, &meta)
        .await;
    assert!(missing.is_err_and(|error| error.kind() != StoreErrorKind::Missing));
    let short = Body::File {
        path: file.path().to_owned(),
        len: 2 * content.len() as u64,
    };
    assert!(
        store
            .put("0009/x", short, PutMode::Overwrite, &meta)
            .await
            .is_err()
    );
    assert_eq!(keys(store, "", None).await, ["0009/big"]);
}

async fn big_creates_keep_what_is_there(store: &SharedStore) {
    let contents = [big_content(1), big_content(2), big_content(3)];
    let creates = contents.iter().map(|content| async move {
        let body = Body::Bytes(content.clone());
        store
            .put("big", body, PutMode::Create, &PutMeta::default())
            .await
    });
    let results = join_all(creates).await;
    let found = store.get("big", None).await.expect("get");
    let stored = contents.iter().position(|content| *content == found);
    let stored = stored.expect("the content of one of them");
    assert!(results[stored].is_ok(), "{results:?}");
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.kind(), StoreErrorKind::Exists);
    }
    // SeaweedFS checks the condition before it joins the parts, so two concurrent creates can win.
    if store.layout() == Layout::Tree {
        assert_eq!(only_winner(&results, StoreErrorKind::Exists), stored);
    }
    let late = store
        .put(
            "big",
            big_content(4).into(),
            PutMode::Create,
            &PutMeta::default(),
        )
        .await;
    assert!(matches!(late, Err(StoreError::Exists { .. })), "{late:?}");
}

async fn streams_arrive_whole_or_not_at_all(store: &SharedStore) {
    let pieces = |sizes: &[usize]| -> Vec<Result<Bytes, BoxError>> {
        let piece = |(number, size): (usize, &usize)| Ok(vec![number as u8; *size].into());
        sizes.iter().enumerate().map(piece).collect()
    };
    let part = crate::PART_BYTES as usize;
    for (name, sizes) in [
        ("empty", &[][..]),
        ("small", &[3, 0, 5]),
        ("one part", &[part]),
        ("one part and a byte", &[part - 1, 2]),
        ("many parts", &[part / 3; 11]),
        ("large pieces", &[part * 2 + 7, 1]),
    ] {
        let expected: Vec<u8> = pieces(sizes)
            .into_iter()
            .flat_map(|piece| piece.expect("a piece"))
            .collect();
        let meta = PutMeta {
            timestamp_ms: Some(1_700_000_000_123),
        };
        // The stream must not be polled again after its end.
        let pieces_left = pieces(sizes).into_iter();
        let stream = futures::stream::unfold(pieces_left, |mut left| async {
            let piece = left.next()?;
            Some((piece, left))
        });
        let stream = stream.boxed();
        let size = expected.len() as u64;
        let stored = store.put_stream("stream", stream, size, PutMode::Create, &meta);
        assert_eq!(stored.await.expect(name), size, "{name}");
        let found = store.get("stream", None).await.expect(name);
        assert!(found == expected, "{name}");
        let head = store.head("stream").await.expect(name);
        assert_eq!(head.modified_ms, 1_700_000_000_123, "{name}");
        let again = futures::stream::iter(pieces(&[part * 2])).boxed();
        let again = store.put_stream("stream", again, part as u64, PutMode::Create, &meta);
        let again = again.await.map_err(|error| error.kind());
        assert_eq!(again, Err(StoreErrorKind::Exists), "{name}");
        let mut cut = pieces(&[part, part, part]);
        cut.push(Err("the source failed".into()));
        let cut = futures::stream::iter(cut).boxed();
        let cut = store.put_stream("stream", cut, size, PutMode::Overwrite, &meta);
        let error = cut.await.expect_err("the stream failed");
        assert_eq!(error.kind(), StoreErrorKind::Other, "{name}: {error}");
        let found = store.get("stream", None).await.expect(name);
        assert!(found == expected, "{name}, after a stream that failed");
        store.delete(&["stream".to_owned()]).await.expect("delete");
    }
}

async fn one_of_many_creators_wins(store: &SharedStore) {
    for round in 0..10 {
        let key = format!("lease/{round}");
        let contents: Vec<String> = (0..8).map(|n| format!("creator {n}")).collect();
        let creates = contents
            .iter()
            .map(|content| put(store, &key, content, PutMode::Create));
        let results = join_all(creates).await;
        let winner = only_winner(&results, StoreErrorKind::Exists);
        assert_eq!(text(store, &key).await, contents[winner]);
    }
}

async fn one_of_many_swappers_wins(store: &SharedStore) {
    put(store, "lease", "start", PutMode::Create)
        .await
        .expect("create");
    for _ in 0..10 {
        let version = version(store, "lease").await;
        let before = text(store, "lease").await;
        let contents: Vec<String> = (0..8).map(|n| format!("{before}{n}")).collect();
        let swaps = contents
            .iter()
            .map(|content| put(store, "lease", content, PutMode::Match(version.clone())));
        let results = join_all(swaps).await;
        let winner = only_winner(&results, StoreErrorKind::Conflict);
        assert_eq!(text(store, "lease").await, contents[winner]);
    }
}

async fn timestamps_are_kept(store: &SharedStore) {
    for timestamp_ms in [0, 1_700_000_000_000, 1_700_000_000_007, 1_700_000_000_120] {
        let meta = PutMeta {
            timestamp_ms: Some(timestamp_ms),
        };
        let body = Body::from(&b"x"[..]);
        store
            .put("object", body, PutMode::Overwrite, &meta)
            .await
            .expect("put");
        assert_eq!(
            store.head("object").await.expect("head").modified_ms,
            timestamp_ms
        );
        let listed = store.list("", None).await.expect("list");
        if store.capabilities().list_timestamps {
            assert_eq!(listed[0].modified_ms, timestamp_ms);
        }
    }
}

async fn put(
    store: &SharedStore,
    key: &str,
    content: &str,
    mode: PutMode,
) -> Result<(), StoreError> {
    let body = Body::from(content.as_bytes().to_vec());
    store.put(key, body, mode, &PutMeta::default()).await
}

async fn text(store: &SharedStore, key: &str) -> String {
    let bytes = store.get(key, None).await.expect("get");
    String::from_utf8(bytes.to_vec()).expect("text")
}

async fn keys(store: &SharedStore, prefix: &str, start_after: Option<&str>) -> Vec<String> {
    let found = store.list(prefix, start_after).await.expect("list");
    found.into_iter().map(|info| info.key).collect()
}

async fn version(store: &SharedStore, key: &str) -> String {
    store
        .head(key)
        .await
        .expect("head")
        .version
        .expect("a version")
}

/// Returns the index of the attempt that succeeded, and checks the errors of the others.
fn only_winner(results: &[Result<(), StoreError>], lost: StoreErrorKind) -> usize {
    let winners: Vec<usize> = (0..results.len()).filter(|n| results[*n].is_ok()).collect();
    assert_eq!(winners.len(), 1, "exactly one wins: {results:?}");
    let losers = results.iter().filter_map(|result| result.as_ref().err());
    assert!(
        losers.map(StoreError::kind).all(|kind| kind == lost),
        "{results:?}"
    );
    winners[0]
}

/// Returns bytes that differ for each seed and that reveal a misplaced part.
fn big_content(seed: u64) -> Bytes {
    let words = (0..BIG_BYTES as u64 / 8).map(|n| n.wrapping_mul(2 * seed + 1).to_le_bytes());
    let mut content: Vec<u8> = words.flatten().collect();
    content.extend_from_slice(b"tail");
    content.into()
}
