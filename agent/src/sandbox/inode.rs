//! What tells one network namespace from another in the file system.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

/// What a network namespace is known by: device and inode of nsfs (namespaces(7)), whichever file or descriptor leads to it.
/// As long as the namespace lives no other has the same.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    /// Returns that of an open namespace.
    ///
    /// # Errors
    /// Where the kernel refuses to tell.
    pub fn of(netns: &File) -> io::Result<Self> {
        netns.metadata().map(|metadata| Self::from(&metadata))
    }

    /// Returns that of the namespace which a path leads to now.
    ///
    /// # Errors
    /// Where it leads nowhere.
    pub fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Inode {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), number: metadata.ino() }
    }
}
