//! Values of an object that has no type of its own, each with its path.

use serde_json::{Map, Value};

use super::super::{FieldPath, Invalid};

/// A value in an object. A field that is `null` is as good as absent.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    value: &'a Value,
    pub(super) path: FieldPath,
}

impl<'a> Node<'a> {
    /// Starts at an object's root.
    pub(super) fn root(value: &'a Value) -> Self {
        Self { value, path: FieldPath::default() }
    }

    /// Returns the fields of a mapping that are there.
    pub(super) fn fields(&self) -> Result<impl Iterator<Item = (&'a str, Self)>, Invalid> {
        let path = self.path.clone();
        let fields = self
            .map()?
            .iter()
            .map(move |(name, value)| (name.as_str(), Self { value, path: path.clone().key(name.clone()) }));
        Ok(fields.filter(|(_, field)| !field.value.is_null()))
    }

    /// Returns a field of a mapping, where it is there.
    pub(super) fn field(&self, name: &'static str) -> Result<Option<Self>, Invalid> {
        let field = self.map()?.get(name).map(|value| Self { value, path: self.path.clone().key(name) });
        Ok(field.filter(|field| !field.value.is_null()))
    }

    /// Fails where a mapping has another field than these.
    pub(super) fn only(&self, names: &[&str]) -> Result<(), Invalid> {
        match self.map()?.keys().find(|name| !names.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let known = names.join(", ");
                let path = self.path.clone().key(name.clone());
                Err(path.invalid(format!("this field is not known; there are {known}")))
            }
        }
    }

    /// Returns the elements of a list.
    pub(super) fn elements(&self) -> Result<impl Iterator<Item = Self>, Invalid> {
        let elements = self.list()?.iter().enumerate();
        Ok(elements.map(|(at, value)| Self { value, path: self.path.clone().index(at) }))
    }

    /// Returns a list of texts, of which none is empty.
    pub(super) fn texts(&self) -> Result<Vec<&'a str>, Invalid> {
        let text = |(at, value): (usize, &'a Value)| match value {
            Value::String(text) if !text.is_empty() => Ok(text.as_str()),
            Value::String(_) => Err(self.at(at).invalid("an empty string matches nothing: leave it out")),
            Value::Number(number) => {
                Err(self.at(at).invalid(format!("{number} is a number: write \"{number}\", in quotes")))
            }
            other => Err(self.at(at).invalid(format!("must be a string, and is {}", kind(other)))),
        };
        self.list()?.iter().enumerate().map(text).collect()
    }

    /// Returns a text.
    pub(super) fn text(&self) -> Result<&'a str, Invalid> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    /// Returns the path of an element.
    pub(super) fn at(&self, index: usize) -> FieldPath {
        self.path.clone().index(index)
    }

    /// Returns the value itself.
    pub(super) fn value(&self) -> &'a Value {
        self.value
    }

    /// Returns a mapping, with what is `null` in it.
    pub(super) fn map(&self) -> Result<&'a Map<String, Value>, Invalid> {
        self.value.as_object().ok_or_else(|| self.wrong("a mapping"))
    }

    /// Returns whether it is a list without elements, which is as good as absent: protobuf cannot tell the two apart.
    pub(super) fn is_empty_list(&self) -> bool {
        self.value.as_array().is_some_and(Vec::is_empty)
    }

    fn list(&self) -> Result<&'a [Value], Invalid> {
        self.value.as_array().map(Vec::as_slice).ok_or_else(|| self.wrong("a list"))
    }

    fn wrong(&self, wanted: &str) -> Invalid {
        self.path.clone().invalid(format!("must be {wanted}, and is {}", kind(self.value)))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
