//! A JSON document that records its changes as a JSON Patch.

use json_patch::jsonptr::PointerBuf;
use json_patch::{
    AddOperation, MoveOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation,
};
use serde_json::Value;

use super::pod::text;

/// A document and its changes so far. A call that changes nothing records nothing, so the patch is
/// minimal, and empty for a document in the desired state.
#[derive(Debug)]
pub(super) struct Editor {
    document: Value,
    operations: Vec<PatchOperation>,
}

/// Path of a value: member names and array indexes.
pub(super) type Path<'a> = &'a [&'a str];

impl Editor {
    pub(super) fn new(document: Value) -> Self {
        Editor {
            document,
            operations: Vec::new(),
        }
    }

    pub(super) fn document(&self) -> &Value {
        &self.document
    }

    pub(super) fn finish(self) -> Patch {
        Patch(self.operations)
    }

    /// The value at a path.
    pub(super) fn at(&self, path: Path<'_>) -> Option<&Value> {
        path.iter()
            .try_fold(&self.document, |value, step| match value {
                Value::Array(items) => items.get(step.parse::<usize>().ok()?),
                _ => value.get(step),
            })
    }

    /// Sets a member of an object that exists.
    pub(super) fn set(&mut self, path: Path<'_>, value: Value) {
        let there = self.at(path);
        if there == Some(&value) {
            return;
        }
        let exists = there.is_some();
        let (parent, key) = split(path);
        if let Some(Value::Object(members)) = self.at_mut(parent) {
            members.insert(key.to_owned(), value.clone());
            let path = pointer(path);
            self.operations.push(if exists {
                PatchOperation::Replace(ReplaceOperation { path, value })
            } else {
                PatchOperation::Add(AddOperation { path, value })
            });
        }
    }

    /// Ensures that a member exists and is not null, which Kubernetes reads as absent.
    pub(super) fn ensure(&mut self, path: Path<'_>, empty: Value) {
        if self.at(path).is_none_or(Value::is_null) {
            self.set(path, empty);
        }
    }

    /// Inserts into an array that exists; an index at its end appends.
    pub(super) fn insert(&mut self, path: Path<'_>, index: usize, value: Value) {
        if let Some(Value::Array(items)) = self.at_mut(path) {
            items.insert(index, value.clone());
            let path = pointer(path).with_trailing_token(index.to_string());
            self.operations
                .push(PatchOperation::Add(AddOperation { path, value }));
        }
    }

    /// Appends to an array that exists.
    pub(super) fn push(&mut self, path: Path<'_>, value: Value) {
        if let Some(Value::Array(items)) = self.at_mut(path) {
            items.push(value.clone());
            let path = pointer(path).with_trailing_token("-");
            self.operations
                .push(PatchOperation::Add(AddOperation { path, value }));
        }
    }

    /// Removes a member or an element, if it exists.
    pub(super) fn remove(&mut self, path: Path<'_>) {
        let (parent, key) = split(path);
        let removed = match self.at_mut(parent) {
            Some(Value::Object(members)) => members.remove(key).is_some(),
            _ => false,
        };
        if removed {
            self.operations
                .push(PatchOperation::Remove(RemoveOperation {
                    path: pointer(path),
                }));
        }
    }

    /// Moves an element of an array forward, to a lower index.
    pub(super) fn pull(&mut self, path: Path<'_>, from: usize, to: usize) {
        if let Some(Value::Array(items)) = self.at_mut(path) {
            items[to..=from].rotate_right(1);
            let array = pointer(path);
            self.operations.push(PatchOperation::Move(MoveOperation {
                from: array.with_trailing_token(from.to_string()),
                path: array.with_trailing_token(to.to_string()),
            }));
        }
    }

    /// Ensures that an array holds an element, identified by its member `key`. Creates a missing
    /// array.
    pub(super) fn upsert(&mut self, array: Path<'_>, key: &str, element: &Value) {
        self.ensure(array, Value::Array(Vec::new()));
        let wanted = text(element, key);
        let found = self
            .at(array)
            .and_then(Value::as_array)
            .and_then(|items| items.iter().position(|item| text(item, key) == wanted));
        let Some(index) = found else {
            return self.push(array, element.clone());
        };
        let index = index.to_string();
        let mut path = array.to_vec();
        path.push(&index);
        for (member, value) in element.as_object().into_iter().flatten() {
            let mut path = path.clone();
            path.push(member);
            if !self.at(&path).is_some_and(|there| contains(there, value)) {
                self.set(&path, value.clone());
            }
        }
    }

    fn at_mut(&mut self, path: Path<'_>) -> Option<&mut Value> {
        path.iter()
            .try_fold(&mut self.document, |value, step| match value {
                Value::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
                _ => value.get_mut(step),
            })
    }
}

/// Whether a value holds the desired one. Additional members, such as defaults, are ignored.
fn contains(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| there.get(key).is_some_and(|there| contains(there, wanted))),
        _ => there == wanted,
    }
}

fn split<'a>(path: Path<'a>) -> (Path<'a>, &'a str) {
    match path.split_last() {
        Some((key, parent)) => (parent, key),
        None => (&[], ""),
    }
}

fn pointer(path: Path<'_>) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_recorded_patch_makes_the_same_document() {
        let before = json!({"a": {"x~/y": 1}, "list": [{"name": "p"}, {"name": "q", "own": 1}]});
        let mut editor = Editor::new(before.clone());
        editor.set(&["a", "x~/y"], json!(2));
        editor.ensure(&["b"], json!({}));
        editor.set(&["b", "c"], json!("d"));
        editor.upsert(&["list"], "name", &json!({"name": "q", "value": 3}));
        editor.upsert(&["list"], "name", &json!({"name": "r"}));
        editor.pull(&["list"], 2, 0);
        editor.insert(&["list"], 1, json!({"name": "s"}));
        editor.remove(&["a", "x~/y"]);
        let after = editor.document().clone();
        let mut patched = before;
        json_patch::patch(&mut patched, &editor.finish()).unwrap();
        assert_eq!(patched, after);
        let order: Vec<_> = after["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| &i["name"])
            .collect();
        assert_eq!(order, ["r", "s", "p", "q"]);
        assert_eq!(after["list"][3], json!({"name": "q", "own": 1, "value": 3}));
    }

    #[test]
    fn defaults_that_the_api_server_added_are_no_difference() {
        let there = json!({"list": [{"name": "p", "from": {"field": "x", "version": "v1"}}]});
        let mut editor = Editor::new(there);
        editor.upsert(
            &["list"],
            "name",
            &json!({"name": "p", "from": {"field": "x"}}),
        );
        assert!(editor.finish().0.is_empty());
    }

    #[test]
    fn what_is_as_wanted_is_not_recorded() {
        let mut editor = Editor::new(json!({"a": 1, "list": [{"name": "p", "more": 2}]}));
        editor.set(&["a"], json!(1));
        editor.ensure(&["list"], json!([]));
        editor.upsert(&["list"], "name", &json!({"name": "p"}));
        editor.remove(&["b"]);
        assert!(editor.finish().0.is_empty());
    }
}
