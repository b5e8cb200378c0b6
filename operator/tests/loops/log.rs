//! Log lines name the current object, and the complete cause of an error.

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};

use kube::{Client, Config};
use logging::{Format, Settings};
use operator::apply::Applier;
use operator::event_writer::event_queue;
use operator::observe::Observer;
use operator::plan::{Change, Plan};
use serde_json::{Value, json};
use tracing::level_filters::LevelFilter;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn keys(line: &Value) -> Vec<&str> {
    let line = line.as_object().unwrap();
    line.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_failed_write_names_its_object_and_the_whole_cause() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let lines = Lines::default();
    let settings = Settings {
        level: LevelFilter::INFO,
        format: Format::Json,
        source: false,
    };
    let writer = lines.clone();
    let log = logging::dispatch(settings, false, move || writer.clone());
    let _log = tracing::dispatcher::set_default(&log);
    let nowhere = Config::new("http://127.0.0.1:1".parse().unwrap());
    let client = Client::try_from(nowhere).unwrap();
    let observer = Observer::new(client.clone());
    let (events, _writer) = event_queue(client.clone(), "replica-0".to_owned());
    let key = ("shop".to_owned(), "orders".to_owned());
    let plan = Plan {
        changes: vec![Change::BackupStatus(key, Box::default())],
        ..Plan::default()
    };
    let outcome = Applier::new(client, observer, events).apply(plan).await;
    assert_eq!(outcome.failed, 1);

    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    // The client logs its own line about the request.
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ours = lines.find(|line| line["message"] == "write failed; it is tried again");
    let line = ours.expect("the failure is logged");
    let expected = ["error", "level", "message", "spans", "target", "timestamp"];
    assert_eq!(keys(&line), expected);
    let span = json!(
        {"name": "object", "kind": "SqliteBackup", "namespace": "shop", "object": "orders"}
    );
    assert_eq!(line["spans"], json!([span]));
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("Connection refused"), "{error}");
}

#[test]
fn an_operator_that_cannot_start_says_why_in_a_line_of_json() {
    let program = Command::new(env!("CARGO_BIN_EXE_sqlite-backup-operator"))
        .args(["--sidecar-image=i", "--replica=r", "--tls-secret=s"])
        .env_clear()
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .output()
        .unwrap();
    assert!(!program.status.success());
    let text = String::from_utf8(program.stderr).unwrap();
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(
        keys(&line),
        ["error", "level", "message", "target", "timestamp"]
    );
    assert_eq!(line["level"], "ERROR");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("/nonexistent/kubeconfig"), "{error}");
}
