//! What the sources tell the owner of the index.

use std::{path::PathBuf, sync::Arc};

use super::{Invalid, Key, Kind, Problem, Record};

/// Something new of a source.
#[derive(Debug)]
pub(super) enum Batch {
    /// What changed in the manifests, and all that is wrong with them now.
    Files { changes: Vec<FileChange>, problems: Vec<Problem> },
    /// What a watch of the API server says.
    Watch(WatchEvent),
}

/// A change of the manifests.
#[derive(Debug)]
pub(super) enum FileChange {
    Apply(Standing),
    Delete(Key),
}

/// An object of the manifests, and where it stands.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) record: Arc<Record>,
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

/// What the watch of a kind says: a list of all objects first, then each change; after a gap all objects again.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// A list of all objects begins; what an earlier one has said so far is void.
    Begin(Kind),
    Listed(Item),
    /// The list is complete: what it did not name is no more.
    Done(Kind),
    Applied(Item),
    Deleted(Key),
    /// The API server does not know the kind.
    Absent(Kind),
}

/// An object of the API server, as far as it could be converted.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) key: Key,
    pub(super) record: Result<Record, Invalid>,
}
