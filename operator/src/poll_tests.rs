//! Polls of sidecars with any kind of answer.

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn sidecars() -> Sidecars {
    Sidecars::new(protocol::names::STATUS_PORT)
}

/// A sidecar that answers one request with these bytes.
async fn sidecar(answer: Vec<u8>) -> Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/status", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _read = stream.read(&mut request).await.unwrap();
        // The client closes the connection when the answer is too long.
        let _written = stream.write_all(&answer).await;
    });
    uri.parse().unwrap()
}

fn json_of(count: usize) -> String {
    let database = json!({"path": "/data/app.db", "state": "Idle", "targets": []});
    let status = json!({
        "version": 1, "program": "1", "backup": "shop/orders", "configHash": "",
        "started": "2026-11-20T08:00:00Z", "now": "2026-11-20T12:00:00Z",
        "databases": vec![database; count],
    });
    status.to_string()
}

fn with_length(length: usize, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes()
}

fn in_one_chunk(body: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes()
}

async fn error(answer: Vec<u8>) -> PollError {
    let uri = sidecar(answer).await;
    sidecars().fetch(uri).await.unwrap_err()
}

#[tokio::test]
async fn an_answer_counts_with_a_length_and_without() {
    let (few, many) = (json_of(1), json_of(SMALL_BYTES / 40));
    for (answer, count) in [
        (with_length(few.len(), &few), 1),
        (in_one_chunk(&few), 1),
        (with_length(many.len(), &many), SMALL_BYTES / 40),
        (in_one_chunk(&many), SMALL_BYTES / 40),
    ] {
        let sidecars = sidecars();
        let received = sidecars.fetch(sidecar(answer).await).await.unwrap();
        assert_eq!(received.answer.count, count);
        assert_eq!(
            sidecars.large.available_permits(),
            LARGE_BYTES,
            "all is given back"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read() {
    let told = error(with_length(ANSWER_BYTES + 1, "")).await;
    assert!(matches!(told, PollError::TooLong), "{told}");
    let untold = error(in_one_chunk(&" ".repeat(ANSWER_BYTES + 1))).await;
    assert!(matches!(untold, PollError::TooLong), "{untold}");
}

#[tokio::test]
async fn other_answers_are_errors_of_their_own() {
    let refused = error(b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec()).await;
    assert!(matches!(refused, PollError::Status(StatusCode::NOT_FOUND)));
    let nonsense = error(with_length(2, "no")).await;
    assert!(matches!(nonsense, PollError::Json(_)), "{nonsense}");
    let broken = error(with_length(100, "{")).await;
    assert!(matches!(broken, PollError::Body(_)), "{broken}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let nobody = sidecars().fetch(uri.parse().unwrap()).await.unwrap_err();
    assert!(matches!(nobody, PollError::Connect(_)), "{nobody}");
}

#[tokio::test]
async fn long_answers_wait_for_each_other_and_short_ones_do_not() {
    let sidecars = sidecars();
    let others = u32::try_from(LARGE_BYTES).unwrap();
    let others = sidecars.large.acquire_many(others).await.unwrap();
    let few = json_of(1);
    let few = sidecar(with_length(few.len(), &few)).await;
    assert!(sidecars.fetch(few).await.is_ok());
    let many = json_of(SMALL_BYTES / 40);
    let uri = sidecar(with_length(many.len(), &many)).await;
    let mut long = Box::pin(sidecars.fetch(uri));
    let soon = Duration::from_millis(200);
    assert!(timeout(soon, &mut long).await.is_err(), "it waits");
    drop(others);
    assert!(long.await.is_ok());
}

fn received(version: u32, backup: &str) -> Received {
    Received {
        version,
        backup: backup.to_owned(),
        answer: Answer::default(),
    }
}

#[test]
fn an_answer_is_of_a_near_version_and_about_this_pod() {
    let pod = PodFacts {
        namespace: "shop".into(),
        backup: Some("orders".into()),
        ..PodFacts::default()
    };
    for version in [0, STATUS_VERSION, STATUS_VERSION + VERSION_SKEW] {
        assert!(check(received(version, "shop/orders"), &pod).is_ok());
    }
    let far = check(
        received(STATUS_VERSION + VERSION_SKEW + 1, "shop/orders"),
        &pod,
    );
    assert!(matches!(far, Err(PollError::Version(_))));
    for backup in ["shop/cart", "cart/orders", ""] {
        let other = check(received(STATUS_VERSION, backup), &pod);
        assert!(matches!(other, Err(PollError::Other(_))), "{backup}");
    }
}

#[test]
fn a_failed_look_keeps_the_last_answer_and_quotes_little() {
    let at = Timestamp::UNIX_EPOCH;
    let first = report(None, Ok(Answer::default()), at);
    assert_eq!((first.failures, first.answer.is_ok()), (0, true));
    let long = PollError::Other("x".repeat(1 << 20));
    let second = report(Some(&first), Err(said(long)), at);
    assert_eq!(
        (second.failures, &second.last_answer),
        (1, &first.last_answer)
    );
    assert_eq!(
        second.answer.unwrap_err().chars().count(),
        answer::TEXT_MAX + 1
    );

    let mut wrong: Value = serde_json::from_str(&json_of(1)).unwrap();
    wrong["databases"][0]["state"] = json!("x".repeat(1 << 20));
    let error = answer::read(wrong.to_string().as_bytes()).unwrap_err();
    let third = report(Some(&first), Err(said(error.into())), at);
    assert_eq!(
        third.answer.unwrap_err().chars().count(),
        answer::TEXT_MAX + 1
    );
}
