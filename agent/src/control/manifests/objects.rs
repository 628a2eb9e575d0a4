//! The objects of some files, read once, as an agent would read them.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;

use super::{
    super::{
        FieldPath, Index, Key, Kind, PolicyNotice, Problem, Record, Settings, Severity, convert::Content,
    },
    document::{Fault, Reader},
    source::Source,
};
use crate::mesh::{PeerAuthentication, Snapshot};

/// Objects that make up a mesh, and where each stands.
#[derive(Debug)]
pub struct Objects {
    settings: Settings,
    /// Where two say something about one object the later counts, as with `kubectl apply -f`.
    objects: BTreeMap<Key, Entry>,
    /// Those that do not count.
    replaced: Vec<(Key, Place)>,
    /// Objects that are not valid, and so left out.
    invalid: Vec<(Key, Problem)>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    place: Place,
}

/// Where an object stands.
#[derive(Clone, Debug)]
pub struct Place {
    source: Arc<Source>,
    document: usize,
    path: FieldPath,
}

impl Objects {
    /// Makes a mesh without objects.
    pub fn new(settings: Settings) -> Self {
        Self { settings, objects: BTreeMap::new(), replaced: Vec::new(), invalid: Vec::new() }
    }

    /// Adds the objects of a file.
    ///
    /// # Errors
    /// Where it is not well formed, or an object has no kind or no name.
    pub fn read(&mut self, source: &Arc<Source>) -> Result<(), Problem> {
        for (document, value) in source.documents()?.into_iter().enumerate() {
            self.insert(source, document, value, &FieldPath::default())?;
        }
        Ok(())
    }

    /// Adds an object, or those of a list, that stands at `path` in a document.
    ///
    /// # Errors
    /// Where an object has no kind or no name.
    pub fn insert(
        &mut self,
        source: &Arc<Source>,
        document: usize,
        value: Value,
        path: &FieldPath,
    ) -> Result<(), Problem> {
        let Some(text) = source.document(document) else { return Ok(()) };
        let mut reader = Reader::new(&self.settings);
        text.read(value, path, &mut reader).map_err(|fault| source.fault(fault))?;
        for (record, path) in reader.records {
            let place = Place { source: Arc::clone(source), document, path };
            let key = record.key().clone();
            if let Some(earlier) = self.objects.insert(key.clone(), Entry { record, place }) {
                self.replaced.push((key, earlier.place));
            }
        }
        let invalid = reader.invalid.into_iter();
        self.invalid.extend(invalid.map(|(key, Fault { line, message })| {
            (key, source.problem(Some(line), format!("{message}; it is left out")))
        }));
        Ok(())
    }

    /// Returns how the objects are read.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Builds the mesh that they make up.
    pub fn snapshot(&self) -> Snapshot {
        self.index().snapshot()
    }

    /// Builds the mesh, in which a namespace without an object counts as one whose label enrols its pods.
    pub fn snapshot_enrolling_by_default(&self) -> Snapshot {
        let mut index = self.index();
        for namespace in self.objects.keys().filter(|key| key.kind == Kind::Pod).map(|key| &key.namespace) {
            let key = Key { kind: Kind::Namespace, namespace: String::new(), name: namespace.clone() };
            if !self.objects.contains_key(&key) {
                index.apply(&Record::enrolled_namespace(key));
            }
        }
        index.snapshot()
    }

    fn index(&self) -> Index {
        let mut index = Index::new(&self.settings.root_namespace);
        for entry in self.objects.values() {
            index.apply(&entry.record);
        }
        index
    }

    /// Returns what every object is called, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.objects.keys()
    }

    /// Returns where an object stands.
    pub fn place(&self, key: &Key) -> Option<&Place> {
        self.objects.get(key).map(|entry| &entry.place)
    }

    /// Returns the PeerAuthentications, also those that another is older than.
    pub(in crate::control) fn authentications(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.objects.values().filter_map(|entry| match &entry.record.content {
            Content::PeerAuthentication(policy) => Some(policy),
            _ => None,
        })
    }

    /// Returns what people must know about the policies.
    pub fn notices(&self) -> impl Iterator<Item = (&PolicyNotice, &Place)> {
        let entries = self.objects.values();
        entries.flat_map(|entry| entry.record.notices().iter().map(|notice| (notice, &entry.place)))
    }

    /// Returns the objects that do not count, as another of the same name comes later.
    pub fn replaced(&self) -> &[(Key, Place)] {
        &self.replaced
    }

    /// Returns the objects that are not valid, and so left out.
    pub fn invalid(&self) -> &[(Key, Problem)] {
        &self.invalid
    }

    /// Returns what could not be read, and what that means: each object that is left out, and each policy that fails
    /// closed.
    pub fn problems(&self) -> Vec<Problem> {
        let unread = self.notices().filter(|(notice, _)| notice.severity == Severity::Error);
        let unread = unread.map(|(notice, place)| place.problem(&notice.path, notice.to_string()));
        self.invalid.iter().map(|(_, problem)| problem.clone()).chain(unread).collect()
    }
}

impl Place {
    /// Returns the file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the line of one of its fields, counted from 1, or of what it is missing from.
    pub fn line(&self, field: &FieldPath) -> usize {
        self.source.line(self.document, &field.under(&self.path))
    }

    /// Says what is wrong with one of its fields.
    pub fn problem(&self, field: &FieldPath, message: String) -> Problem {
        self.source.problem(Some(self.line(field)), message)
    }
}
