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
    /// What it is about.
    pub topic: Topic,
}

/// How bad it is, from the least.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// The policy is in force, and may mean something else than its author thinks.
    Warning,
    /// It could not be read, and fails closed.
    Error,
}

/// What a notice is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Topic {
    /// The object could not be read.
    Unparsable,
    /// A field of a source or operation, or a key, that is not known.
    UnknownField,
    /// Something that cannot be seen of a TCP connection.
    Unseen,
    /// A field outside of `spec`.
    StrayField,
    /// The action AUDIT.
    Audit,
    /// The action CUSTOM.
    Custom,
    /// `targetRefs`.
    TargetRefs,
    /// A block with bits after its prefix.
    HostBits,
    /// A principal with `spiffe://`.
    SpiffeScheme,
    /// The dry-run annotation with another word than `true` or `false`.
    DryRunValue,
    /// The dry-run annotation on a PeerAuthentication.
    DryRunPeerAuthentication,
}

/// The notices about one object.
#[derive(Debug)]
pub(super) struct Notices<'a> {
    key: &'a Key,
    notices: Vec<PolicyNotice>,
    /// Warnings that were left out, and what the last of them is about.
    more: Option<(usize, Topic)>,
}

impl<'a> Notices<'a> {
    pub(super) fn of(key: &'a Key) -> Self {
        Self { key, notices: Vec::new(), more: None }
    }

    /// Notes why the object could not be read, and what it counts as for whom.
    pub(super) fn errors(&mut self, faults: Vec<Invalid>, effect: &str, is_scope_readable: bool) {
        let scope = match is_scope_readable {
            true => "for the pods that it is for",
            false => "for its whole namespace (in the root namespace, for the mesh)",
        };
        for Invalid { path, message } in faults {
            let message = format!("{message}; until it is mended, {effect} {scope}");
            self.push(path, message, (Severity::Error, Topic::Unparsable));
        }
    }

    /// Notes something. What is beyond a modest number is only counted: a list may hold 100,000 values of one kind.
    pub(super) fn warn(&mut self, topic: Topic, path: FieldPath, message: impl Into<String>) {
        if self.notices.len() < SHOWN {
            self.push(path, message.into(), (Severity::Warning, topic));
        } else {
            self.more = Some((self.more.map_or(1, |(more, _)| more + 1), topic));
        }
    }

    pub(super) fn finish(mut self) -> Vec<PolicyNotice> {
        if let Some((more, topic)) = self.more {
            let message = format!("{more} more warnings about this policy are not shown");
            self.push(FieldPath::of(&["spec"]), message, (Severity::Warning, topic));
        }
        self.notices
    }

    fn push(&mut self, path: FieldPath, message: String, (severity, topic): (Severity, Topic)) {
        self.notices.push(PolicyNotice { key: self.key.clone(), path, message, severity, topic });
    }
}

impl Severity {
    /// Returns its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for PolicyNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, path, message, severity: _, topic: _ } = self;
        write!(f, "{key}: {path}: {message}")
    }
}

/// Warnings about one object.
const SHOWN: usize = 16;
