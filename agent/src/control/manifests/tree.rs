//! A document as a tree of values, within bounds, and the line that a field stands on.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::super::field::Segment;

/// Reads a document into a tree that costs no more than its budget, which is in bytes of text and in values.
///
/// The YAML library bounds how often aliases are followed, not how much they repeat: 16 MiB of aliases to one long
/// list are terabytes. What `kubectl` refuses (duplicate keys) is refused here too, and `<<` merges as it does there.
pub(super) struct Tree<'a> {
    budget: &'a Cell<usize>,
}

/// Goes to a field and fails there, so that the deserializer's error tells its line.
#[derive(Clone, Copy)]
pub(super) struct Locate<'a> {
    path: &'a [Segment],
    /// Whether it came to the field, or to what it is missing from: it may fail before.
    found: &'a Cell<bool>,
}

/// A budget that a text without aliases cannot exceed: a value takes a byte at least, and so does each byte of it.
pub(super) fn budget(text: &str) -> Cell<usize> {
    const ALIASES: usize = 1 << 20;
    Cell::new(2 * text.len() + ALIASES)
}

impl<'a> Tree<'a> {
    pub(super) fn new(budget: &'a Cell<usize>) -> Self {
        Self { budget }
    }

    fn spend<E: Error>(&self, bytes: usize) -> Result<(), E> {
        let rest = self.budget.get().checked_sub(bytes + 1);
        self.budget.set(rest.ok_or_else(|| E::custom("the document's aliases expand to too much"))?);
        Ok(())
    }

    fn again(&self) -> Self {
        Self { budget: self.budget }
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has too")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.spend(0)?;
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.spend(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.again())? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut map = Map::new();
        // As text whatever it looks like, as Kubernetes has it: `8080:` is the key "8080".
        while let Some(key) = entries.next_key::<String>()? {
            self.spend(key.len())?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands here twice")));
            }
            let value = entries.next_value_seed(self.again())?;
            map.insert(key, value);
        }
        merge(&mut map);
        Ok(map.into())
    }
}

/// Carries out YAML's `<<`: the keys of the mapping, or mappings, that it names are added where there are none.
fn merge(map: &mut Map<String, Value>) {
    let sources = match map.get("<<") {
        Some(Value::Object(_)) => map.remove("<<").into_iter().collect(),
        Some(Value::Array(items)) if items.iter().all(Value::is_object) => match map.remove("<<") {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => return,
    };
    for source in sources {
        let Value::Object(source) = source else { continue };
        for (key, value) in source {
            map.entry(key).or_insert(value);
        }
    }
}

impl<'a> Locate<'a> {
    pub(super) fn new(path: &'a [Segment], found: &'a Cell<bool>) -> Self {
        Self { path, found }
    }

    fn here<E: Error>(self) -> E {
        self.found.set(true);
        E::custom("here")
    }
}

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing: the field is here")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Err(self.here())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Err(self.here())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Err(self.here())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Err(self.here())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Err(self.here())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Err(self.here())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.path.split_first() else { return Err(self.here()) };
        for _ in 0..*wanted {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Self { path: rest, ..self })?;
        Err(self.here())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.path.split_first() else { return Err(self.here()) };
        while let Some(key) = entries.next_key::<String>()? {
            if key == *wanted {
                return entries.next_value_seed(Self { path: rest, ..self });
            }
            entries.next_value::<IgnoredAny>()?;
        }
        // The field is missing, and this is what it is missing from.
        Err(self.here())
    }
}
