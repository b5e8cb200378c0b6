//! The part of an API server that the loops use, on 127.0.0.1.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Method, Uri};
use axum::response::{IntoResponse, Response};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// Longest wait for an expected event. A pass takes far less; reaching it fails a test.
const PATIENCE: Duration = Duration::from_secs(5);

/// Waits for an expected event.
pub async fn within<F: Future>(wait: F) -> F::Output {
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("it happens in time")
}

/// Answers lists from memory, keeps watches open and silent, and shows every write to the test.
pub struct ApiServer {
    pub client: Client,
    shared: Arc<Shared>,
    writes: mpsc::UnboundedReceiver<Write>,
}

struct Shared {
    lists: Mutex<BTreeMap<String, Vec<Value>>>,
    shown: mpsc::UnboundedSender<Write>,
    answering: watch::Sender<bool>,
}

/// A write that has arrived.
pub struct Write {
    pub path: String,
    pub body: Value,
    over: mpsc::Receiver<()>,
}

impl Write {
    /// Waits until the write was answered, or its connection was closed before.
    pub async fn over(&mut self) {
        let nothing = self.over.recv().await;
        assert!(nothing.is_none(), "nothing is ever sent");
    }
}

impl ApiServer {
    pub async fn start() -> ApiServer {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shown, writes) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            lists: Mutex::default(),
            shown,
            answering: watch::Sender::new(true),
        });
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = Config::new(format!("http://{address}").parse().unwrap());
        ApiServer {
            client: Client::try_from(config).unwrap(),
            shared,
            writes,
        }
    }

    /// Sets the items of one list; any other list is empty.
    pub fn list(&self, path: &str, items: Vec<Value>) {
        let mut lists = self.shared.lists.lock().unwrap();
        lists.insert(path.to_owned(), items);
    }

    /// Sets whether writes are answered from now on, including those that have already arrived.
    pub fn answer_writes(&self, answering: bool) {
        self.shared.answering.send_replace(answering);
    }

    /// Returns the number of writes that have arrived and were not taken with
    /// [`ApiServer::next_write`].
    pub fn writes_waiting(&self) -> usize {
        self.writes.len()
    }

    /// Returns the next write that arrives.
    pub async fn next_write(&mut self) -> Write {
        within(self.writes.recv()).await.expect("the server runs")
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    if method == Method::GET {
        if uri.query().is_some_and(|query| query.contains("watch=")) {
            let silent = futures::stream::pending::<Result<Bytes, std::io::Error>>();
            return Body::from_stream(silent).into_response();
        }
        let items = shared.lists.lock().unwrap().get(uri.path()).cloned();
        let list = json!({
            "kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"},
            "items": items.unwrap_or_default(),
        });
        return axum::Json(list).into_response();
    }
    // Dropped with this request: after its answer, or when its connection is closed.
    let (_going, over) = mpsc::channel(1);
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let write = Write {
        path: uri.path().to_owned(),
        body: body.clone(),
        over,
    };
    // The receiver is gone when the test has ended.
    let _ = shared.shown.send(write);
    let mut answering = shared.answering.subscribe();
    let _ = answering.wait_for(|answers| *answers).await;
    axum::Json(body).into_response()
}
