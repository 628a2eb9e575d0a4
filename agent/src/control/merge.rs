//! What all sources say together: the one index, and all that is wrong.
//!
//! An object that both the API server and the manifests have is the API server's; the other comes into force when that
//! one goes. A list of the API server replaces what is in force in one step, when it is complete: until then a pod that
//! is gone and one that has its address now would stand beside each other.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{
    Index, Invalid, Key, Kind, Problem, Severity,
    batch::{Batch, FileChange, Item, Standing, WatchEvent},
};
use crate::mesh::Snapshot;

/// What is in force, by source. Pure and synchronous.
#[derive(Debug)]
pub(super) struct Merged {
    index: Index,
    files: HashMap<Key, Standing>,
    file_problems: Vec<Problem>,
    listings: BTreeMap<Kind, Listing>,
    /// What is wrong with objects of the API server.
    faults: BTreeMap<Key, Vec<Problem>>,
    changed: bool,
    /// Whether what is wrong changed.
    problems_changed: bool,
}

/// What the API server has of a kind.
#[derive(Debug, Default)]
struct Listing {
    /// The objects that are in force. The index is the only store of what they say.
    keys: HashSet<Key>,
    /// Whether there was a list of all of them.
    complete: bool,
    relist: Relist,
}

/// A list that is under way.
#[derive(Debug, Default)]
struct Relist {
    seen: HashSet<Key>,
    /// What differs from what is in force.
    differing: Vec<Item>,
}

impl Merged {
    /// Makes an index without objects, which is complete when each of `kinds` has been listed.
    pub(super) fn new(root_namespace: &str, kinds: &[Kind]) -> Self {
        Self {
            index: Index::new(root_namespace),
            files: HashMap::new(),
            file_problems: Vec::new(),
            listings: kinds.iter().map(|kind| (*kind, Listing::default())).collect(),
            faults: BTreeMap::new(),
            changed: false,
            problems_changed: false,
        }
    }

    /// Whether everything has been listed once.
    pub(super) fn is_complete(&self) -> bool {
        self.listings.values().all(|listing| listing.complete)
    }

    /// Returns whether the mesh changed since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Returns whether what is wrong changed since this was asked last.
    pub(super) fn take_problems_changed(&mut self) -> bool {
        std::mem::take(&mut self.problems_changed)
    }

    pub(super) fn snapshot(&mut self) -> Snapshot {
        self.index.snapshot()
    }

    /// Takes what a source says.
    pub(super) fn take(&mut self, batch: Batch) {
        match batch {
            Batch::Files { changes, problems } => {
                for change in changes {
                    match change {
                        FileChange::Apply(standing) => self.apply_file(standing),
                        FileChange::Delete(key) => self.delete_file(&key),
                    }
                }
                self.file_problems = problems;
                self.problems_changed = true;
            }
            Batch::Watch(event) => self.watched(event),
        }
    }

    fn watched(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Begin(kind) => self.listing(kind).relist = Relist::default(),
            WatchEvent::Listed(item) => self.listed(item),
            WatchEvent::Done(kind) => self.replace(kind),
            WatchEvent::Applied(item) => self.apply(item),
            WatchEvent::Deleted(key) => self.delete(&key),
            WatchEvent::Absent(kind) => {
                let listing = self.listing(kind);
                listing.complete = true;
                listing.relist = Relist::default();
            }
        }
    }

    fn listed(&mut self, item: Item) {
        let listing = self.listings.entry(item.key.kind).or_default();
        listing.relist.seen.insert(item.key.clone());
        if !listing.complete {
            // Nobody has seen anything of it yet.
            self.apply(item);
        } else if !self.holds(&item) {
            self.listing(item.key.kind).relist.differing.push(item);
        }
    }

    /// Puts a complete list in the place of what was in force.
    fn replace(&mut self, kind: Kind) {
        let listing = self.listing(kind);
        let Relist { seen, differing } = std::mem::take(&mut listing.relist);
        listing.complete = true;
        let gone: Vec<_> = listing.keys.difference(&seen).cloned().collect();
        gone.iter().for_each(|key| self.delete(key));
        let before = self.faults.len();
        self.faults.retain(|key, _| key.kind != kind || seen.contains(key));
        self.problems_changed |= self.faults.len() != before;
        differing.into_iter().for_each(|item| self.apply(item));
    }

    /// Whether an object is in force as it is. Of policies, which are few, that is not asked.
    fn holds(&self, item: &Item) -> bool {
        let known = self.listings.get(&item.key.kind).is_some_and(|listing| listing.keys.contains(&item.key));
        let is_valid = !self.faults.contains_key(&item.key);
        known && is_valid && item.record.as_ref().is_ok_and(|record| self.index.holds(record))
    }

    fn apply(&mut self, Item { key, record }: Item) {
        match record {
            Ok(record) => {
                let notices = record.notices().iter();
                let faults =
                    notices.map(|notice| fault(notice.to_string(), Some((key.kind, notice.severity))));
                self.note(&key, faults.collect());
                self.changed |= self.index.apply(&record);
                self.listing(key.kind).keys.insert(key);
            }
            Err(invalid) => {
                let stays = self.listing(key.kind).keys.contains(&key);
                self.note(&key, vec![invalid_object(&key, &invalid, stays)]);
            }
        }
    }

    fn delete(&mut self, key: &Key) {
        self.note(key, Vec::new());
        if !self.listing(key.kind).keys.remove(key) {
            return;
        }
        self.changed |= match self.files.get(key) {
            Some(standing) => self.index.apply(&standing.record),
            None => self.index.delete(key),
        };
    }

    fn note(&mut self, key: &Key, faults: Vec<Problem>) {
        let known = self.faults.get(key).map_or(&[][..], Vec::as_slice);
        if known == faults {
            return;
        }
        self.problems_changed = true;
        match faults.is_empty() {
            true => drop(self.faults.remove(key)),
            false => drop(self.faults.insert(key.clone(), faults)),
        }
    }

    fn apply_file(&mut self, standing: Standing) {
        let key = standing.record.key().clone();
        if !self.is_listed(&key) {
            self.changed |= self.index.apply(&standing.record);
        }
        self.files.insert(key, standing);
    }

    fn delete_file(&mut self, key: &Key) {
        self.files.remove(key);
        if !self.is_listed(key) {
            self.changed |= self.index.delete(key);
        }
    }

    fn is_listed(&self, key: &Key) -> bool {
        self.listings.get(&key.kind).is_some_and(|listing| listing.keys.contains(key))
    }

    fn listing(&mut self, kind: Kind) -> &mut Listing {
        self.listings.entry(kind).or_default()
    }

    /// Everything that is wrong at the moment.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let doublets = self.files.iter().filter(|(key, _)| self.is_listed(key));
        let mut doublets: Vec<_> = doublets.map(|(key, standing)| doublet(key, standing)).collect();
        doublets.sort_unstable_by(|one, other| (&one.file, one.line).cmp(&(&other.file, other.line)));
        let faults = self.faults.values().flatten();
        let more = faults.clone().count().saturating_sub(FAULTS);
        let more = (more > 0).then(|| fault(format!("{more} more problems are not shown"), None));
        let files = self.file_problems.iter().cloned();
        files.chain(doublets).chain(faults.take(FAULTS).cloned()).chain(more).collect()
    }
}

fn invalid_object(key: &Key, invalid: &Invalid, stays: bool) -> Problem {
    let instead = if stays { "it stays as it was" } else { "it is left out" };
    let message = format!("{key}: {invalid}; {instead}");
    let is_policy = matches!(key.kind, Kind::PeerAuthentication | Kind::AuthorizationPolicy);
    fault(message, is_policy.then_some((key.kind, Severity::Error)))
}

fn doublet(key: &Key, standing: &Standing) -> Problem {
    let message = format!("{key} is in the API server too: that one counts");
    Problem { file: Some(standing.file.clone()), line: Some(standing.line), message, policy: None }
}

fn fault(message: String, policy: Option<(Kind, Severity)>) -> Problem {
    Problem { file: None, line: None, message, policy }
}

/// How many problems of objects of the API server are shown: whoever may write objects may write many.
const FAULTS: usize = 512;

#[cfg(test)]
mod tests;
