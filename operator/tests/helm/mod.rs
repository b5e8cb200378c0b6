//! The chart, rendered by the real helm.
//!
//! `HELM_BIN` is the command line of helm, such as `helm` or `/path/to/cluster helm`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Returns the root folder of the project.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the folder of the chart.
pub fn chart() -> PathBuf {
    root().join("charts/sqlite-backup-operator")
}

/// Runs helm with its own configuration directories.
pub fn helm(arguments: &[&str]) -> Output {
    let command_line = std::env::var("HELM_BIN").expect("HELM_BIN is set: run `cargo xtask test`");
    let mut words = command_line.split_whitespace();
    let home = tempfile::tempdir().unwrap();
    Command::new(words.next().expect("HELM_BIN names a program"))
        .args(words)
        .args(arguments)
        .env("HELM_CACHE_HOME", home.path().join("cache"))
        .env("HELM_CONFIG_HOME", home.path().join("config"))
        .env("HELM_DATA_HOME", home.path().join("data"))
        .output()
        .expect("HELM_BIN runs")
}

/// Renders the chart with these values; `Err` holds helm's message.
pub fn render(values: &[&str]) -> Result<Vec<Value>, String> {
    let chart = chart();
    let mut arguments = vec![
        "template",
        "release",
        chart.to_str().unwrap(),
        "--namespace",
        "ns",
    ];
    for value in values {
        arguments.extend(["--set", value]);
    }
    let output = helm(&arguments);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    // A YAML value rejects duplicate keys; a JSON value would keep the last one.
    let objects = serde_yaml::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .map(|object: serde_yaml::Value| serde_json::to_value(object).unwrap())
        .filter(|object| !object.is_null());
    Ok(objects.collect())
}

/// Renders the chart with these values.
pub fn rendered(values: &[&str]) -> Vec<Value> {
    render(values).unwrap_or_else(|error| panic!("{values:?}: {error}"))
}

/// The objects of one kind.
pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects
        .iter()
        .filter(|object| object["kind"] == kind)
        .collect()
}
