//! A list of which a copy is cheap, in parts: one for each namespace.

use std::{fmt, ops::Index, sync::Arc};

/// Workloads or services, in the order of their namespaces and names. Snapshots share the parts that did not change.
pub struct List<T> {
    parts: Vec<Arc<[Arc<T>]>>,
    len: usize,
}

impl<T> List<T> {
    /// Returns them one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> + Clone {
        self.parts.iter().flat_map(|part| part.iter())
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T> FromIterator<Arc<[Arc<T>]>> for List<T> {
    fn from_iter<I: IntoIterator<Item = Arc<[Arc<T>]>>>(parts: I) -> Self {
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let len = parts.iter().map(|part| part.len()).sum();
        Self { parts, len }
    }
}

impl<T> From<Vec<Arc<T>>> for List<T> {
    fn from(all: Vec<Arc<T>>) -> Self {
        std::iter::once(all.into()).collect()
    }
}

impl<'a, T> IntoIterator for &'a List<T> {
    type Item = &'a Arc<T>;
    type IntoIter = Box<dyn Iterator<Item = &'a Arc<T>> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl<T> Index<usize> for List<T> {
    type Output = Arc<T>;

    fn index(&self, at: usize) -> &Arc<T> {
        self.iter().nth(at).expect("an index within the list")
    }
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0 }
    }
}

impl<T: fmt::Debug> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
