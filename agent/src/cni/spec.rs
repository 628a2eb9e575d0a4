//! What the CNI specification says of versions and errors.

use serde::Serialize;

/// The versions that the plugin speaks. All of them have the same ADD result as far as it reads one.
pub(super) const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What is answered in where the runtime names no version.
pub(super) const NEWEST: &str = "1.1.0";

/// Error codes (specification 1.1, "Error").
pub mod code {
    /// The configuration's version is not supported.
    pub const VERSION: u32 = 1;
    /// A variable of the environment is missing or cannot be used.
    pub const ENVIRONMENT: u32 = 4;
    /// Something could not be read.
    pub const IO: u32 = 5;
    /// The configuration cannot be read.
    pub const DECODE: u32 = 6;
    /// The configuration makes no sense.
    pub const CONFIGURATION: u32 = 7;
    /// It may work later: the runtime is to try again.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: ADD could not be served.
    pub const NOT_AVAILABLE: u32 = 50;
}

/// An error as the runtime reads it from the standard output.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{msg}")]
pub struct Failure {
    /// The version of the answer.
    #[serde(rename = "cniVersion")]
    pub version: String,
    /// See [`code`].
    pub code: u32,
    /// What is the matter, in one line.
    pub msg: String,
    /// What to do about it; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl Failure {
    pub(super) fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { version: NEWEST.to_owned(), code, msg: msg.into(), details: String::new() }
    }

    #[must_use]
    pub(super) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// Returns the same in the version that the configuration is of.
    #[must_use]
    pub(super) fn in_version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }
}
