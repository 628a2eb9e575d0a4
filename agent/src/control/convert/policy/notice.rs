//! What people are told about a policy: that it could not be read, or does something else than they may think.

use std::fmt;

use super::super::{FieldPath, Invalid, Key};

/// Something that people must know about a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyNotice {
    /// The policy.
    pub key: Key,
    /// The field.
    pub path: FieldPath,
    /// What is the matter, and what it means for connections.
    pub message: String,
    /// How bad it is.
    pub severity: Severity,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// The policy could not be read, and fails closed.
    Error,
    /// It is in force, and may mean something else than its author thinks.
    Warning,
}

/// The notices about one object.
#[derive(Debug)]
pub(super) struct Notices<'a> {
    key: &'a Key,
    notices: Vec<PolicyNotice>,
    /// Warnings that were left out.
    more: usize,
}

impl<'a> Notices<'a> {
    pub(super) fn of(key: &'a Key) -> Self {
        Self { key, notices: Vec::new(), more: 0 }
    }

    /// Notes why the object could not be read, and what it counts as for whom.
    pub(super) fn errors(&mut self, faults: Vec<Invalid>, effect: &str, is_scope_readable: bool) {
        let scope = match is_scope_readable {
            true => "for the pods that it is for",
            false => "for its whole namespace (in the root namespace, for the mesh)",
        };
        for Invalid { path, message } in faults {
            let message = format!("{message}; until it is mended, {effect} {scope}");
            self.push(path, message, Severity::Error);
        }
    }

    /// Notes something. What is beyond a modest number is only counted: a list may hold 100,000 values of one kind.
    pub(super) fn warn(&mut self, path: FieldPath, message: impl Into<String>) {
        if self.notices.len() < SHOWN {
            self.push(path, message.into(), Severity::Warning);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn finish(mut self) -> Vec<PolicyNotice> {
        if self.more > 0 {
            let message = format!("{} more warnings about this policy are not shown", self.more);
            self.push(FieldPath::of(&["spec"]), message, Severity::Warning);
        }
        self.notices
    }

    fn push(&mut self, path: FieldPath, message: String, severity: Severity) {
        self.notices.push(PolicyNotice { key: self.key.clone(), path, message, severity });
    }
}

impl Severity {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

impl fmt::Display for PolicyNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, path, message, severity: _ } = self;
        write!(f, "{key}: {path}: {message}")
    }
}

/// Warnings about one object.
const SHOWN: usize = 16;
