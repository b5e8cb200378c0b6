//! Requests on the wire, byte for byte, as other stores and Litestream expect them.

use store::{
    Body, Credentials, CustomerKey, Encryption, PutMeta, PutMode, S3Store, S3Target, Store,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Returns the head of the one request that `call` sends, in lower case except for its first line.
async fn request_of(prefix: &str, call: impl AsyncFnOnce(S3Store)) -> (String, Vec<String>) {
    let target = S3Target {
        prefix: prefix.to_owned(),
        ..S3Target::default()
    };
    request_to(target, call).await
}

/// As [`request_of`], for a target with more settings.
async fn request_to(target: S3Target, call: impl AsyncFnOnce(S3Store)) -> (String, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bind a free port");
    let address = listener.local_addr().expect("a bound socket has one");
    let store = S3Store::new(&S3Target {
        bucket: "bucket".to_owned(),
        endpoint: Some(format!("http://{address}")),
        credentials: Credentials::fixed("key", "secret"),
        ..target
    })
    .expect("a valid target");
    let serve = async {
        let (mut client, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.expect("a whole head"));
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        client.write_all(answer).await.expect("an answer");
        String::from_utf8(head).expect("text")
    };
    let (head, ()) = futures::join!(serve, call(store));
    let mut lines = head.trim_end().split("\r\n").map(str::to_owned);
    let first = lines.next().expect("a first line");
    (first, lines.map(|line| line.to_lowercase()).collect())
}

#[tokio::test]
async fn a_put_is_plain_signed_and_carries_the_time_as_litestream_does() {
    let (first, headers) = request_of("a/db", async |store| {
        let meta = PutMeta {
            timestamp_ms: Some(1_700_000_000_120),
        };
        let body = Body::from(&b"content"[..]);
        store
            .put("0000/x y.ltx", body, PutMode::Create, &meta)
            .await
            .unwrap();
    })
    .await;
    assert_eq!(
        first,
        "PUT /bucket/a/db/0000/x%20y.ltx?x-id=PutObject HTTP/1.1"
    );
    let header = |name: &str| {
        let values = headers
            .iter()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(header("content-length"), ["7"]);
    assert_eq!(header("if-none-match"), ["*"]);
    assert_eq!(
        header("x-amz-meta-litestream-timestamp"),
        ["2023-11-14t22:13:20.12z"]
    );
    // SHA-256 of the body, so that the store detects changed bytes.
    let hash = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    assert_eq!(header("x-amz-content-sha256"), [hash]);
    for refused in [
        "x-amz-checksum",
        "x-amz-trailer",
        "aws-chunked",
        "transfer-encoding",
    ] {
        assert!(
            headers.iter().all(|line| !line.contains(refused)),
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn an_empty_prefix_gives_keys_that_begin_with_a_slash() {
    let (first, _) = request_of("", async |store| {
        let body = Body::from(&b"x"[..]);
        store
            .put("0000/x", body, PutMode::Overwrite, &PutMeta::default())
            .await
            .unwrap();
    })
    .await;
    assert_eq!(first, "PUT /bucket//0000/x?x-id=PutObject HTTP/1.1");
}

#[tokio::test]
async fn what_litestream_0_3_stored_below_an_empty_prefix_has_no_slash_before_it() {
    let (first, _) = request_of("", async |store| {
        // The answer is not one to a list.
        let _refused = store.list("generations/", None).await;
    })
    .await;
    assert!(first.contains("prefix=generations%2F"), "{first}");
}

#[tokio::test]
async fn deletes_are_single_so_that_no_store_misses_a_checksum() {
    let (first, headers) = request_of("db", async |store| {
        store.delete(&["0000/x".to_owned()]).await.unwrap();
    })
    .await;
    assert_eq!(first, "DELETE /bucket/db/0000/x?x-id=DeleteObject HTTP/1.1");
    assert!(
        headers.iter().all(|line| !line.contains("checksum")),
        "{headers:?}"
    );
}

async fn put_of(target: S3Target) -> Vec<String> {
    let put = async |store: S3Store| {
        let body = Body::from(&b"x"[..]);
        let meta = PutMeta::default();
        store
            .put("x", body, PutMode::Overwrite, &meta)
            .await
            .expect("put");
    };
    request_to(target, put).await.1
}

#[tokio::test]
async fn class_and_encryption_go_with_every_object_when_the_target_says_so() {
    let plain = put_of(S3Target::default()).await;
    for header in ["x-amz-storage-class", "x-amz-server-side-encryption"] {
        assert!(
            plain.iter().all(|line| !line.starts_with(header)),
            "{plain:?}"
        );
    }
    let kept = put_of(S3Target {
        storage_class: Some("STANDARD_IA".to_owned()),
        encryption: Some(Encryption::Kms("alias/backups".to_owned())),
        ..S3Target::default()
    })
    .await;
    for line in [
        "x-amz-storage-class: standard_ia",
        "x-amz-server-side-encryption: aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id: alias/backups",
    ] {
        assert!(kept.iter().any(|found| found == line), "{kept:?}");
    }
}

#[tokio::test]
async fn a_customer_key_goes_with_each_request_about_bytes_and_with_no_other() {
    let target = || S3Target {
        encryption: CustomerKey::from_base64("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
            .map(Encryption::Customer),
        ..S3Target::default()
    };
    let carries = |headers: &[String]| {
        let about = |line: &&String| line.starts_with("x-amz-server-side-encryption-customer-");
        headers.iter().filter(about).count()
    };
    assert_eq!(carries(&put_of(target()).await), 3);
    // Missing parts of the answers do not matter here.
    let (_, head) = request_to(target(), async |store| drop(store.head("x").await)).await;
    assert_eq!(carries(&head), 3);
    let (_, get) = request_to(target(), async |store| drop(store.get("x", None).await)).await;
    assert_eq!(carries(&get), 3);
    let (_, list) = request_to(target(), async |store| drop(store.list("x", None).await)).await;
    assert_eq!(carries(&list), 0);
    let key = ["x".to_owned()];
    let (_, delete) = request_to(target(), async |store| drop(store.delete(&key).await)).await;
    assert_eq!(carries(&delete), 0);
}
