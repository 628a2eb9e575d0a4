//! Container images out of programs that are on this machine, without a container engine: a layer of files, its
//! configuration, and an archive that containerd, podman and docker read.
//!
//! An image holds the programs that it is given, the libraries that these load, and nothing else: as "distroless" images
//! do. The same files make the same image, byte for byte: nothing of it is a time or a user of this machine.
//!
//! ```text
//! programs ──► files (libraries) ──► layer (a tar) ──► configuration, manifest, index ──► archive (a tar)
//! ```

mod archive;
mod layer;
mod libraries;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

pub use self::archive::{Written, architecture};
use self::layer::Entry;

/// Whether a program of this machine runs where there are no libraries.
///
/// # Errors
/// Where it cannot be told, or the program does not even run here.
pub fn is_static(program: &Path) -> Result<bool> {
    Ok(libraries::of(program)?.is_empty())
}

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Image {
    reference: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    labels: BTreeMap<String, String>,
}

impl Image {
    /// An image with nothing in it; `reference` is the name by which pods ask for it, with a tag.
    pub fn new(reference: &str) -> Self {
        Self {
            reference: reference.to_owned(),
            entries: BTreeMap::new(),
            entrypoint: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    /// The name by which pods ask for it.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Adds a program of this machine at `path`, and the libraries that it loads where it looks for them.
    ///
    /// # Errors
    /// Where the program or one of its libraries is not there.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<&mut Self> {
        for library in libraries::of(source)? {
            let content = fs::read(&library).with_context(|| format!("reading {}", library.display()))?;
            self.add(&library, Entry::File { mode: 0o755, content });
        }
        let content = fs::read(source).with_context(|| format!("reading {}", source.display()))?;
        self.add(Path::new(path), Entry::File { mode: 0o755, content });
        Ok(self)
    }

    /// Adds programs of this machine by their names, into `/usr/bin`.
    ///
    /// # Errors
    /// Where one of them is not installed.
    pub fn programs(&mut self, names: &[&str]) -> Result<&mut Self> {
        for name in names {
            let source = libraries::find(name)?;
            self.program(&format!("/usr/bin/{name}"), &source)?;
        }
        Ok(self)
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.add(Path::new(path), Entry::File { mode, content: content.into() });
        self
    }

    /// Adds a folder of this machine with all that is in it, at the same path.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn folder(&mut self, source: &Path) -> Result<&mut Self> {
        for entry in fs::read_dir(source).with_context(|| format!("reading {}", source.display()))? {
            let path = entry.with_context(|| format!("reading {}", source.display()))?.path();
            if path.is_dir() {
                self.folder(&path)?;
            } else {
                let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                self.add(&path, Entry::File { mode: 0o644, content });
            }
        }
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.add(Path::new(path), Entry::Link { target: target.into() });
        self
    }

    /// Adds an empty folder, with permissions as `chmod` takes them.
    pub fn empty_folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.add(Path::new(path), Entry::Folder { mode });
        self
    }

    /// What a container runs where its pod does not say.
    pub fn entrypoint(&mut self, words: &[&str]) -> &mut Self {
        self.entrypoint = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Adds a label (OCI image-spec, annotations.md).
    pub fn label(&mut self, key: &str, value: &str) -> &mut Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Writes the archive, and says what is in it.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<Written> {
        archive::write(self, path).with_context(|| format!("writing the image {}", path.display()))
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        for parent in path.ancestors().skip(1) {
            if parent.parent().is_some() {
                self.entries.entry(parent.to_owned()).or_insert(Entry::Folder { mode: 0o755 });
            }
        }
        self.entries.insert(path.to_owned(), entry);
    }
}
