//! What was found, and where.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{
    super::{FieldPath, Key, Objects, Place, Problem, Severity},
    Code,
};
use crate::mesh::{PolicyKind, PolicyName};

/// Something that is odd in the objects of some files.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What kind of thing it is.
    #[serde(serialize_with = "code")]
    pub code: Code,
    /// How bad it is.
    #[serde(serialize_with = "severity")]
    pub severity: Severity,
    /// The object, as `Kind namespace/name`; none where it is about no single one.
    pub object: Option<String>,
    /// The file; none where it is about no single one.
    pub file: Option<PathBuf>,
    /// The line, counted from 1.
    pub line: Option<usize>,
    /// The path of the field in the object; empty where it is about the whole.
    pub field: String,
    /// What is the matter, and what it means for connections.
    pub message: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// Collects what is found in some objects.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    /// None: the objects are in no files.
    objects: Option<&'a Objects>,
    found: Vec<Finding>,
}

impl<'a> Findings<'a> {
    pub(super) fn of(objects: &'a Objects) -> Self {
        Self { objects: Some(objects), found: Vec::new() }
    }

    /// Collects what is found in objects that are in no files.
    pub(super) fn of_no_files() -> Self {
        Self { objects: None, found: Vec::new() }
    }

    /// Notes something about a field of an object.
    pub(super) fn add(&mut self, code: Code, key: &Key, field: &FieldPath, message: impl Into<String>) {
        match self.objects.map(|objects| objects.place(key)) {
            Some(Some(place)) => self.add_at(code, (key, place), field, message),
            Some(None) => {}
            None => self.found.push(Finding {
                object: Some(key.to_string()),
                field: field.to_string(),
                ..Finding::of(code, message.into())
            }),
        }
    }

    /// Notes something about a field of a policy.
    pub(super) fn policy(
        &mut self,
        code: Code,
        name: &PolicyName,
        field: &FieldPath,
        message: impl Into<String>,
    ) {
        self.add(code, &key(name), field, message);
    }

    pub(super) fn add_at(
        &mut self,
        code: Code,
        (key, place): (&Key, &Place),
        field: &FieldPath,
        message: impl Into<String>,
    ) {
        self.found.push(Finding {
            object: Some(key.to_string()),
            file: Some(place.source().path().to_owned()),
            line: Some(place.line(field)),
            field: field.to_string(),
            ..Finding::of(code, message.into())
        });
    }

    /// Notes an object that could not be read.
    pub(super) fn problem(&mut self, code: Code, key: &Key, problem: &Problem) {
        let Problem { file, line, message, policy: _ } = problem;
        self.found.push(Finding {
            object: Some(key.to_string()),
            file: file.clone(),
            line: *line,
            ..Finding::of(code, message.clone())
        });
    }

    /// Notes something about all of the files.
    pub(super) fn general(&mut self, code: Code, message: impl Into<String>) {
        self.found.push(Finding::of(code, message.into()));
    }

    /// Returns them by file and line.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        self.found.sort_by(|one, other| {
            let place = |finding: &Finding| (finding.file.clone(), finding.line, finding.code);
            place(one).cmp(&place(other))
        });
        self.found
    }
}

impl Finding {
    fn of(code: Code, message: String) -> Self {
        let (severity, remedy) = (code.severity(), code.remedy());
        let (object, file, line, field) = (None, None, None, String::new());
        Self { code, severity, object, file, line, field, message, remedy }
    }
}

/// The key of a policy.
pub(super) fn key(name: &PolicyName) -> Key {
    let kind = match name.kind {
        PolicyKind::AuthorizationPolicy => super::super::Kind::AuthorizationPolicy,
        PolicyKind::PeerAuthentication => super::super::Kind::PeerAuthentication,
    };
    Key { kind, namespace: name.namespace.to_string(), name: name.name.to_string() }
}

fn code<S: Serializer>(code: &Code, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(code.as_str())
}

fn severity<S: Serializer>(severity: &Severity, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(severity.as_str())
}
