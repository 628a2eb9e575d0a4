//! A layer: a tar of files, in the order of their paths, of nobody in particular and of no time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// What is at a path.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    File { mode: u32, content: Vec<u8> },
    Folder { mode: u32 },
    Link { target: PathBuf },
}

/// Writes the layer.
pub(super) fn write(entries: &BTreeMap<PathBuf, Entry>) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (path, entry) in entries {
        let name = path.strip_prefix("/").unwrap_or(path);
        append(&mut tar, name, entry).with_context(|| format!("adding {}", path.display()))?;
    }
    tar.into_inner().context("ending the layer")
}

fn append(tar: &mut Builder<Vec<u8>>, name: &Path, entry: &Entry) -> std::io::Result<()> {
    match entry {
        Entry::File { mode, content } => {
            tar.append_data(&mut header(EntryType::Regular, *mode, content.len()), name, content.as_slice())
        }
        Entry::Folder { mode } => {
            tar.append_data(&mut header(EntryType::Directory, *mode, 0), name, std::io::empty())
        }
        Entry::Link { target } => tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), name, target),
    }
}

/// A header with root as the owner and 1970 as the time: what differs between machines is not in it.
pub(super) fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}
