//! Where in an object something is wrong, and what.

use std::{borrow::Cow, fmt};

/// The path of a field in a Kubernetes object, such as `status.podIPs[0].ip`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FieldPath(Vec<Segment>);

/// One step into an object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Segment {
    Key(Cow<'static, str>),
    Index(usize),
}

/// Why an object is not used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Invalid {
    /// The field that is wrong.
    pub path: FieldPath,
    /// What is wrong with it.
    pub message: String,
}

impl FieldPath {
    /// Steps through the fields in order.
    pub fn of(keys: &[&'static str]) -> Self {
        Self(keys.iter().map(|key| Segment::Key(Cow::Borrowed(key))).collect())
    }

    /// Steps into a field.
    pub fn key(mut self, key: impl Into<Cow<'static, str>>) -> Self {
        self.0.push(Segment::Key(key.into()));
        self
    }

    /// Steps into an element of a list.
    pub fn index(mut self, index: usize) -> Self {
        self.0.push(Segment::Index(index));
        self
    }

    /// Puts the steps to the object itself, such as those through a `List`, before those inside it.
    pub fn under(&self, object: &Self) -> Self {
        Self(object.0.iter().chain(&self.0).cloned().collect())
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// Says what is wrong with the field.
    pub fn invalid(self, message: impl Into<String>) -> Invalid {
        Invalid { path: self, message: message.into() }
    }
}

impl From<&serde_path_to_error::Path> for FieldPath {
    fn from(path: &serde_path_to_error::Path) -> Self {
        use serde_path_to_error::Segment as Step;
        let steps = path.iter().filter_map(|step| match step {
            Step::Seq { index } => Some(Segment::Index(*index)),
            Step::Map { key } => Some(Segment::Key(Cow::Owned(key.clone()))),
            Step::Enum { .. } | Step::Unknown => None,
        });
        Self(steps.collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, segment) in self.0.iter().enumerate() {
            match segment {
                // Keys of labels and annotations hold dots of their own; unknown ones may hold what would break a line.
                Segment::Key(key) if key.contains('.') => write!(f, "[{}]", key.escape_debug())?,
                Segment::Key(key) if depth == 0 => write!(f, "{}", key.escape_debug())?,
                Segment::Key(key) => write!(f, ".{}", key.escape_debug())?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
