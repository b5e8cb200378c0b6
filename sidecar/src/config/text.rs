//! Parses the text of a configuration file: keys, suggestions, variables.

use std::path::Path;

use protocol::config::Config;

use super::written::{self, Node};
use super::{ConfigError, litestream};

/// Reads a configuration file. `variable` looks up the environment.
///
/// # Errors
///
/// See [`ConfigError`]; each names the key.
pub fn read(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, path, variable)
}

/// Parses the text of a configuration file.
///
/// Variables are expanded in values after parsing, so that a value cannot add YAML. Numbers and
/// booleans keep their spelling, which becomes their text where a text is expected.
///
/// # Errors
///
/// See [`ConfigError`].
pub fn parse(
    text: &str,
    path: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let wrong = |error: serde_yaml::Error| ConfigError::Parse {
        path: path.to_owned(),
        message: with_suggestion(&error.to_string()),
    };
    let mut value = written::read(text).map_err(wrong)?;
    expand(&mut value, "", variable)?;
    // For a text value, error messages name the key.
    serde_yaml::from_str(&value.to_yaml()).map_err(|error| {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        // An error in the unexpanded file has a line number.
        let as_it_is = serde_yaml::from_str::<Config>(text).err();
        let as_it_is = as_it_is.map(|error| error.to_string());
        let is_same = |it: &String| it.starts_with(message);
        let said = as_it_is.filter(is_same);
        ConfigError::Parse {
            path: path.to_owned(),
            message: with_suggestion(&said.unwrap_or_else(|| message.to_owned())),
        }
    })
}

/// Explains why a key is unknown, or suggests a similar key, instead of serde's list of all keys.
fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(unknown)) = (message.contains("unknown field"), quoted.next()) else {
        return message.to_owned();
    };
    let place = message.rfind(" at line ").map_or("", |at| &message[at..]);
    if let Some(reason) = litestream::refused(unknown) {
        return format!("key {unknown:?} is not honoured: {reason}{place}");
    }
    let close = quoted.min_by_key(|known| distance(unknown, known));
    match close.filter(|known| distance(unknown, known) <= known.len() / 2) {
        Some(known) => format!("unknown key {unknown:?}, did you mean {known:?}?{place}"),
        None => format!("unknown key {unknown:?}: this program does not honour it{place}"),
    }
}

/// Returns the Levenshtein distance of two short words.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let substituted = corner + usize::from(a != *b);
            corner = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(corner + 1);
        }
    }
    row[other.len()]
}

fn expand(
    value: &mut Node,
    key: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<(), ConfigError> {
    match value {
        Node::Text(text) => {
            let expanded = expand_text(text, key, variable)?;
            if expanded != *text {
                *value = Node::of_variable(expanded);
            }
        }
        Node::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(item, &format!("{key}[{index}]"), variable)?;
            }
        }
        Node::Map(entries) => {
            for (name, item) in entries {
                let dot = if key.is_empty() { "" } else { "." };
                expand(item, &format!("{key}{dot}{name}"), variable)?;
            }
        }
        Node::Plain(_) => {}
    }
    Ok(())
}

/// Replaces `${NAME}` and `$NAME`; `$$` is a dollar sign.
fn expand_text(
    text: &str,
    key: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ConfigError> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (name, after) = if let Some(braced) = rest.strip_prefix('{') {
            let Some((name, after)) = braced.split_once('}') else {
                // Leave out the value: it may hold a secret.
                return Err(ConfigError::Value {
                    key: key.to_owned(),
                    message: "it has ${ without }".to_owned(),
                });
            };
            (name, after)
        } else {
            let end = rest
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            rest.split_at(end)
        };
        if name.is_empty() {
            expanded.push('$');
            rest = rest.strip_prefix('$').unwrap_or(rest);
            continue;
        }
        let value = variable(name).ok_or_else(|| ConfigError::Variable {
            key: key.to_owned(),
            name: name.to_owned(),
        })?;
        expanded.push_str(&value);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}
