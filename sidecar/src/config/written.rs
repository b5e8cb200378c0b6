//! The values of a YAML file in their original spelling.
//!
//! `1.10`, `0x1F` or `005e123` is a number in YAML, and one number has many spellings. Where a text
//! is expected, such as a path or a key, only the spelling of the file is right, and Litestream
//! uses it. So the file is read twice: for the types of its values, and for their spelling.

use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_yaml::Value;

/// Key that merges other mappings into one.
const MERGE: &str = "<<";

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    /// A number, a boolean or null, in its original spelling.
    Plain(String),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<(String, Node)>),
}

/// Reads a file.
///
/// # Errors
///
/// It is not YAML, or has a tag of its own.
pub(super) fn read(text: &str) -> Result<Node, serde_yaml::Error> {
    let kind: Kind = serde_yaml::from_str(text)?;
    let deserializer = serde_yaml::Deserializer::from_str(text);
    Shape(&kind).deserialize(deserializer)
}

impl Node {
    /// Wraps the value of a variable, which may be a number or a boolean.
    pub(super) fn of_variable(text: String) -> Node {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-');
        let value = text
            .chars()
            .all(is_plain)
            .then(|| serde_yaml::from_str(&text));
        match value {
            Some(Ok(Value::Number(_) | Value::Bool(_))) => Node::Plain(text),
            _ => Node::Text(text),
        }
    }

    /// Returns YAML with the same meaning and the same spelling.
    pub(super) fn to_yaml(&self) -> String {
        let mut yaml = String::new();
        self.write(&mut yaml);
        yaml
    }

    fn write(&self, yaml: &mut String) {
        match self {
            Node::Plain(text) => yaml.push_str(text),
            Node::Text(text) => quote(text, yaml),
            Node::List(items) => {
                yaml.push('[');
                for (index, item) in items.iter().enumerate() {
                    yaml.push_str(if index == 0 { "" } else { ", " });
                    item.write(yaml);
                }
                yaml.push(']');
            }
            Node::Map(entries) => {
                yaml.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    yaml.push_str(if index == 0 { "" } else { ", " });
                    quote(key, yaml);
                    yaml.push_str(": ");
                    value.write(yaml);
                }
                yaml.push('}');
            }
        }
    }
}

fn quote(text: &str, yaml: &mut String) {
    yaml.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => yaml.extend(['\\', c]),
            // Characters that a YAML file must escape.
            c if c.is_control() || matches!(c, '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                write!(yaml, "\\u{:04x}", u32::from(c)).expect("a string takes all");
            }
            c => yaml.push(c),
        }
    }
    yaml.push('"');
}

/// The YAML type of a value.
enum Kind {
    Null,
    /// A number or a boolean.
    Plain,
    Text(String),
    List(Vec<Kind>),
    Map(Vec<(Kind, Kind)>),
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(AnyKind)
    }
}

struct AnyKind;

impl<'de> Visitor<'de> for AnyKind {
    type Value = Kind;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Kind, E> {
        Ok(Kind::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Plain)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Kind, E> {
        Ok(Kind::Plain)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Kind, E> {
        Ok(Kind::Plain)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<Kind, E> {
        Ok(Kind::Plain)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<Kind, E> {
        Ok(Kind::Plain)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Plain)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Kind, E> {
        Ok(Kind::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Kind, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Kind::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Kind, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Kind::Map(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Kind, A::Error> {
        let (tag, _) = tagged.variant::<String>()?;
        let message = format!("the tag !{tag} is not honoured: quote the value instead");
        Err(A::Error::custom(message))
    }
}

/// Reads a value of known type, with the spelling of its scalars.
struct Shape<'a>(&'a Kind);

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        match self.0 {
            Kind::Null => {
                deserializer.deserialize_ignored_any(IgnoredAny)?;
                Ok(Node::Plain("null".to_owned()))
            }
            Kind::Plain => deserializer.deserialize_str(Spelled).map(Node::Plain),
            Kind::Text(text) => {
                deserializer.deserialize_ignored_any(IgnoredAny)?;
                Ok(Node::Text(text.clone()))
            }
            Kind::List(items) => deserializer.deserialize_seq(List(items)),
            Kind::Map(entries) => deserializer.deserialize_map(Map(entries)),
        }
    }
}

struct Spelled;

impl Visitor<'_> for Spelled {
    type Value = String;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a scalar")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

struct List<'a>(&'a [Kind]);

impl<'de> Visitor<'de> for List<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        for shape in self.0 {
            let item = list.next_element_seed(Shape(shape))?;
            items.push(item.ok_or_else(|| A::Error::custom("a list is shorter than it was"))?);
        }
        // The end of the list must be consumed.
        list.next_element::<IgnoredAny>()?;
        Ok(Node::List(items))
    }
}

struct Map<'a>(&'a [(Kind, Kind)]);

impl<'de> Visitor<'de> for Map<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut compacted = Vec::new();
        for (name, kind) in self.0 {
            let changed = || A::Error::custom("a mapping is shorter than it was");
            let name = map.next_key_seed(Shape(name))?.ok_or_else(changed)?;
            let value = map.next_value_seed(Shape(kind))?;
            let name = match name {
                Node::Plain(name) | Node::Text(name) => name,
                Node::List(_) | Node::Map(_) => return Err(A::Error::custom("a key is a text")),
            };
            match (name.as_str(), value) {
                (MERGE, Node::List(items)) => compacted.extend(items),
                (MERGE, value) => compacted.push(value),
                (_, value) => entries.push((name, value)),
            }
        }
        // The end of the mapping must be consumed.
        map.next_key::<IgnoredAny>()?;
        for other in compacted {
            let Node::Map(other) = other else {
                return Err(A::Error::custom("<< takes a mapping, or a list of them"));
            };
            for (name, value) in other {
                if entries.iter().all(|(known, _)| *known != name) {
                    entries.push((name, value));
                }
            }
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_stay_as_they_were_written() {
        for spelled in [
            "1.10",
            "2026.10",
            "0x1F",
            "005e123",
            "0o17",
            "017",
            ".5",
            "+1",
            "-0",
            "1e3",
            ".inf",
            "true",
            "18446744073709551616",
        ] {
            let text = format!("a: {spelled}\nb: [{spelled}, x]\nc: '{spelled}'\n");
            let read = super::read(&text).unwrap();
            let Node::Map(entries) = &read else {
                panic!("{read:?}")
            };
            let plain = match &entries[0].1 {
                Node::Plain(text) | Node::Text(text) => text,
                other => panic!("{other:?}"),
            };
            assert_eq!(plain, spelled);
            assert_eq!(entries[2].1, Node::Text(spelled.to_owned()));
            let again = super::read(&read.to_yaml()).unwrap();
            assert_eq!(again, read);
        }
    }

    #[test]
    fn texts_of_every_kind_come_back() {
        for text in [
            "",
            "null",
            "~",
            "a: b #c",
            "\"\\",
            "\t\n\r\u{7f}\u{85}\u{feff}",
            "\u{1f980}'",
        ] {
            let yaml = Node::Text(text.to_owned()).to_yaml();
            assert_eq!(serde_yaml::from_str::<Value>(&yaml).unwrap(), text);
        }
    }

    #[test]
    fn aliases_and_merge_keys_are_what_they_stand_for() {
        let text = "a: &x {k: 1.10, l: m}\nb: *x\nc: {<<: *x, l: n}\n";
        let expected = r#"{"a": {"k": 1.10, "l": "m"}, "b": {"k": 1.10, "l": "m"}, "c": {"l": "n", "k": 1.10}}"#;
        assert_eq!(read(text).unwrap().to_yaml(), expected);
    }

    #[test]
    fn a_tag_of_its_own_is_refused_with_the_way_out() {
        let error = read("a: !secret 1\n").unwrap_err().to_string();
        assert!(
            error.contains("!secret") && error.contains("quote"),
            "{error}"
        );
        assert_eq!(read("!!float 1.10").unwrap(), Node::Plain("1.10".into()));
    }
}
