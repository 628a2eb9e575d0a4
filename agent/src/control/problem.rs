//! What people are told about the objects of the mesh.

use std::{fmt, path::PathBuf};

use super::{Kind, Severity};

/// Something wrong in the objects of the mesh, or something that people must know about a policy in them. It stays listed until it is
/// put right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The file, or the directory itself; none where it is about an object in the API server.
    pub file: Option<PathBuf>,
    /// The line, counted from 1, where one can be told.
    pub line: Option<usize>,
    /// What is wrong, and what is in force instead.
    pub message: String,
    /// Where it is about what a policy says: the policy's kind, and how bad it is.
    pub policy: Option<(Kind, Severity)>,
}

impl Problem {
    /// Returns whether something could not be read. What else there is are warnings about policies.
    pub fn is_fault(&self) -> bool {
        self.policy.is_none_or(|(_, severity)| severity == Severity::Error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("API server")?,
        }
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.message)
    }
}
