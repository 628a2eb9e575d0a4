//! A file that is read once, for the command line.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    super::{FieldPath, Problem},
    directory::{format, read_bounded, text},
    document::{Document, Fault, Format, documents},
    items::Items,
};

/// The text of a file, with the lines that its fields stand on.
pub struct Source {
    path: PathBuf,
    text: String,
    format: Format,
    documents: Vec<Span>,
}

/// Where a document is in its file.
struct Span {
    text: Range<usize>,
    /// The lines before it.
    offset: usize,
    items: Arc<Items>,
}

impl Source {
    /// Reads a file. One that does not end in `.json` is YAML.
    ///
    /// # Errors
    /// Where it cannot be read, or is no text.
    pub fn read(path: PathBuf) -> Result<Arc<Self>, Problem> {
        let problem = |line, message| Problem { file: Some(path.clone()), line, message, policy: None };
        let bytes = read_bounded(&path).map_err(|error| problem(None, format!("cannot be read: {error}")))?;
        let text = text(&bytes).map_err(|Fault { line, message }| problem(Some(line), message))?.to_owned();
        Ok(Self::new(path, text))
    }

    /// Returns whether a file is called as one of objects is.
    pub fn is_named_as_one(path: &Path) -> bool {
        path.file_name().and_then(format).is_some()
    }

    /// Takes a file's text as read.
    pub fn new(path: PathBuf, text: String) -> Arc<Self> {
        let format = path.file_name().and_then(format).unwrap_or(Format::Yaml);
        let begin = text.as_ptr().addr();
        let span = |document: &Document<'_>| {
            let start = document.text.as_ptr().addr() - begin;
            let text = start..start + document.text.len();
            Span { text, offset: document.offset, items: Arc::clone(&document.items) }
        };
        let documents = documents(&text, format).iter().map(span).collect();
        Arc::new(Self { path, text, format, documents })
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what its documents say, in their order. Empty ones are left out.
    ///
    /// # Errors
    /// Where one is not well formed.
    pub fn documents(&self) -> Result<Vec<Value>, Problem> {
        let documents = (0..self.documents.len()).filter_map(|index| self.document(index));
        documents.map(|document| document.parse().map_err(|fault| self.fault(fault))).collect()
    }

    /// Returns the line of a field of a document, counted from 1, or of what it is missing from.
    pub fn line(&self, document: usize, field: &FieldPath) -> usize {
        self.document(document).map_or(1, |document| document.line(field))
    }

    /// Says what is wrong in the file.
    pub fn problem(&self, line: Option<usize>, message: String) -> Problem {
        Problem { file: Some(self.path.clone()), line, message, policy: None }
    }

    pub(super) fn fault(&self, Fault { line, message }: Fault) -> Problem {
        self.problem(Some(line), message)
    }

    pub(super) fn document(&self, index: usize) -> Option<Document<'_>> {
        let Span { text, offset, items } = self.documents.get(index)?;
        let (text, items) = (self.text.get(text.clone())?, Arc::clone(items));
        Some(Document { text, offset: *offset, format: self.format, items })
    }
}

/// Without the text, which may be long.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}
