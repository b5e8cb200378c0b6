//! `cargo xtask tidy`: the boundaries and habits of STYLE.md that a compiler does not check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;
use xtask::process::{cargo, output};
use xtask::workspace;

/// The crates of ours that each crate may use, tests aside.
const EDGES: &[(&str, &[&str])] = &[
    ("sqlite-format", &[]),
    ("ltx", &["sqlite-format"]),
    ("store", &[]),
    ("protocol", &[]),
    ("logging", &[]),
    ("engine", &["ltx", "protocol", "sqlite-format", "store"]),
    ("api", &["protocol"]),
    ("operator", &["api", "logging", "protocol"]),
    (
        "sidecar",
        &["engine", "logging", "ltx", "protocol", "store"],
    ),
    ("xtask", &[]),
    ("e2e", &["xtask"]),
    ("demo-app", &[]),
];

/// The folders (and single files) of the engine, from the ground up, and those that each may use.
const ENGINE_FOLDERS: &[(&str, &[&str])] = &[
    ("env", &[]),
    ("pages", &["env"]),
    ("source", &["env", "pages"]),
    ("replica", &["env"]),
    ("spool", &["env", "pages", "source"]),
    (
        "replication",
        &["env", "pages", "source", "replica", "spool"],
    ),
    ("restore", &["env", "pages", "source", "replica"]),
    (
        "startup",
        &["env", "replica", "spool", "replication", "restore"],
    ),
    ("verify", &["env", "source", "replica", "restore"]),
];

/// Folders of pure code, and words that they must not contain.
const PURE: &[&str] = &[
    "crates/sqlite-format/src",
    "crates/ltx/src",
    "crates/protocol/src",
    "crates/api/src",
];
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "tokio::",
    "SystemTime::now",
    "Instant::now",
    "Timestamp::now",
];

/// Forbidden dependencies: a second TLS stack, a second build system.
const BANNED: &[&str] = &["aws-lc-sys", "openssl-sys"];

/// Words that do not belong in the project, split so that this file does not contain them.
const FOREIGN: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// The page whose tables name the tests that prove each row.
const ACCEPTANCE: &str = "docs/acceptance.md";

/// Longest source file, in lines.
const LONGEST_FILE: usize = 1000;

/// Runs all checks and reports every violation.
pub(crate) fn run() -> Result<()> {
    let mut complaints = Vec::new();
    check_edges(&mut complaints)?;
    check_dependencies(&mut complaints)?;
    let mut tests = BTreeSet::new();
    for file in tracked_files()? {
        let path = workspace::root().join(&file);
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        check_file(&file, &text, &mut complaints);
        if file.ends_with(".rs") {
            tests.extend(tests_in(&text));
        }
    }
    let page = fs::read_to_string(workspace::root().join(ACCEPTANCE))?;
    check_acceptance(&page, &tests, &mut complaints);
    for complaint in &complaints {
        eprintln!("tidy: {complaint}");
    }
    if !complaints.is_empty() {
        bail!("{} complaints", complaints.len());
    }
    Ok(())
}

fn check_edges(complaints: &mut Vec<String>) -> Result<()> {
    let text = output(cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))?;
    let metadata: Value = serde_json::from_str(&text)?;
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(edges) = allowed.get(name) else {
            complaints.push(format!(
                "{name} has no line in xtask's table of crate edges"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let other = dependency["name"].as_str().unwrap_or_default();
            let ours = !dependency["path"].is_null() && dependency["kind"] != "dev";
            if ours && !edges.contains(&other) {
                complaints.push(format!("{name} must not use {other}"));
            }
        }
    }
    Ok(())
}

fn check_dependencies(complaints: &mut Vec<String>) -> Result<()> {
    let lock = fs::read_to_string(workspace::root().join("Cargo.lock"))?;
    for name in BANNED {
        if lock.contains(&format!("name = \"{name}\"")) {
            complaints.push(format!("Cargo.lock has {name}: see deny.toml"));
        }
    }
    Ok(())
}

fn tracked_files() -> Result<Vec<String>> {
    let text = output(
        Command::new("git")
            .args(["ls-files"])
            .current_dir(workspace::root()),
    )?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The names of all tests of a source file.
fn tests_in(text: &str) -> Vec<String> {
    let (mut tests, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim_start) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let Some((_, rest)) = line.split_once("fn ") else {
            continue;
        };
        if is_test && let Some((name, _)) = rest.split_once('(') {
            tests.push(name.to_owned());
        }
        is_test = false;
    }
    tests
}

/// Every row names a test, and each test that a row names exists.
fn check_acceptance(page: &str, tests: &BTreeSet<String>, complaints: &mut Vec<String>) {
    for (index, line) in page.lines().enumerate() {
        let mut complain =
            |what: &str| complaints.push(format!("{ACCEPTANCE}:{}: {what}", index + 1));
        let cells: Vec<&str> = line.split('|').collect();
        let [_, _, proofs, _] = cells[..] else {
            continue;
        };
        if proofs.contains("---") || proofs.trim() == "proven by" {
            continue;
        }
        let names: Vec<&str> = proofs.split('`').skip(1).step_by(2).collect();
        if names.is_empty() {
            complain("no test proves it");
        }
        for name in names.iter().filter(|name| !tests.contains(**name)) {
            complain(&format!("there is no test {name}"));
        }
    }
}

fn check_file(file: &str, text: &str, complaints: &mut Vec<String>) {
    let generated = file.ends_with(".lock") || file.ends_with(".sum") || file.contains("golden");
    if generated {
        return;
    }
    let mut complain = |line: usize, what: &str| complaints.push(format!("{file}:{line}: {what}"));
    if !text.is_empty() && !text.ends_with('\n') {
        complain(text.lines().count(), "the last line does not end");
    }
    let rust = file.ends_with(".rs");
    if rust && text.lines().count() > LONGEST_FILE {
        complain(LONGEST_FILE, "the file is too long: split it by idea");
    }
    let pure = PURE
        .iter()
        .any(|folder| Path::new(file).starts_with(folder));
    let reads_environment = file.starts_with("sidecar/src") || file.starts_with("operator/src");
    let mut in_tests = ["/tests/", "/benches/", "tests.rs"]
        .iter()
        .any(|part| file.contains(part));
    if let Some(path) = file.strip_prefix("crates/engine/src/") {
        check_engine_folder(path, text, &mut complain);
    }
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        in_tests |= line.contains("#[cfg(test)]");
        if line.ends_with([' ', '\t']) && !file.ends_with(".md") {
            complain(line_number, "trailing white space");
        }
        if let Some(word) = FOREIGN.iter().find(|word| line.contains(**word)) {
            complain(line_number, &format!("{word} is a path of one machine"));
        }
        if !rust || file.starts_with("xtask/src/commands/tidy") {
            continue;
        }
        for word in ["TODO", "FIXME", "todo!(", "unimplemented!(", "#[ignore"] {
            if line.contains(word) {
                complain(
                    line_number,
                    &format!("{word}: finish it, or say it in the docs"),
                );
            }
        }
        if in_tests && line.contains("thread::sleep(") && !line.contains("// bounded:") {
            complain(
                line_number,
                "a test that sleeps: wait for what it waits for",
            );
        }
        if pure && !in_tests && IMPURE.iter().any(|word| line.contains(word)) {
            complain(line_number, "pure code does no I/O and has no clock");
        }
        let reads = line.contains("env::var") || line.contains("env::vars");
        if reads_environment && !in_tests && reads && !file.ends_with("/args.rs") {
            complain(line_number, "only args.rs reads the environment");
        }
    }
}

/// A folder of the engine uses only folders below it. Tests may use all.
fn check_engine_folder(path: &str, text: &str, complain: &mut impl FnMut(usize, &str)) {
    if path.ends_with("tests.rs") || path == "lib.rs" {
        return;
    }
    let name = path.split(['/', '.']).next().unwrap_or_default();
    let Some((_, allowed)) = ENGINE_FOLDERS.iter().find(|(folder, _)| *folder == name) else {
        complain(
            1,
            "the folder has no line in xtask's table of engine folders",
        );
        return;
    };
    for (index, line) in text.lines().enumerate() {
        if line == "mod tests {" {
            return;
        }
        for path in line.split("crate::").skip(1) {
            let other = path
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next();
            let other = other.unwrap_or_default();
            let is_folder = ENGINE_FOLDERS.iter().any(|(folder, _)| *folder == other);
            if is_folder && other != name && !allowed.contains(&other) {
                complain(
                    index + 1,
                    &format!("engine folder {name} must not use {other}"),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(file: &str, text: &str) -> usize {
        let mut complaints = Vec::new();
        check_file(file, text, &mut complaints);
        complaints.len()
    }

    #[test]
    fn a_row_of_the_acceptance_page_names_tests_that_exist() {
        let source = "#[test]\nfn one() {}\nfn three() {}\n  #[tokio::test]\n  async fn two() {\n";
        let tests = tests_in(source).into_iter().collect();
        let complaints = |page: &str| {
            let mut complaints = Vec::new();
            check_acceptance(page, &tests, &mut complaints);
            complaints.len()
        };
        let head = "words `three`\n| a | proven by |\n| --- | --- |\n";
        assert_eq!(complaints(&format!("{head}| a | `one`, `two` |\n")), 0);
        assert_eq!(complaints(&format!("{head}| a | `one`, `three` |\n")), 1);
        assert_eq!(complaints(&format!("{head}| a | |\n| b | none |\n")), 2);
    }

    #[test]
    fn each_habit_is_noticed_where_it_counts() {
        assert_eq!(complaints("crates/ltx/src/a.rs", "use std::fs;\n"), 1);
        assert_eq!(
            complaints("crates/engine/src/env/a.rs", "use std::fs;\n"),
            0
        );
        let up = "use crate::source::scan;\n";
        assert_eq!(complaints("crates/engine/src/spool/a.rs", up), 0);
        assert_eq!(complaints("crates/engine/src/pages/a.rs", up), 1);
        let test = format!("mod tests {{\n{up}");
        assert_eq!(complaints("crates/engine/src/pages/a.rs", &test), 0);
        assert_eq!(complaints("sidecar/src/a.rs", "std::env::var(\"A\")\n"), 1);
        assert_eq!(
            complaints("sidecar/src/args.rs", "std::env::var(\"A\")\n"),
            0
        );
        assert_eq!(complaints("a.rs", "// TODO\n"), 1);
        assert_eq!(complaints("a.rs", "x \n"), 1);
        assert_eq!(complaints("a.rs", "x"), 1);
        assert_eq!(complaints("a/tests/b.rs", "std::thread::sleep(d);\n"), 1);
        assert_eq!(complaints("README.md", &format!("{}x\n", FOREIGN[0])), 1);
    }
}
