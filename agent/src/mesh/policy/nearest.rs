//! Of the ALLOW policies that refused a connection by not matching, the one that came nearest: what its author most
//! likely has to mend.

use std::sync::Arc;

use super::{
    Action, AuthorizationPolicy, Clause, Entry, Field, Mismatch, Rule, Rules, Test, truth::Truth, view::View,
    words::entry_path,
};

/// Returns where the policy that needs the fewest changes first failed; of equal ones, the first. None of them matches.
pub(super) fn nearest(policies: &[Arc<AuthorizationPolicy>], view: &View<'_>) -> Option<Mismatch> {
    let misses = policies.iter().flat_map(|policy| policy.misses(view).map(move |miss| (policy, miss)));
    let (policy, miss) = misses.min_by_key(|(_, miss)| miss.distance)?;
    let (field, why) = miss.place.describe(view);
    Some(Mismatch { policy: policy.name.clone(), field, why })
}

/// How far a policy, or one rule of it, is from matching.
struct Miss<'a> {
    /// The fields that would have to be changed.
    distance: usize,
    place: Place<'a>,
}

/// What failed first.
enum Place<'a> {
    Unreadable,
    NoRules,
    Entry { rule: usize, clause: Clause, entry: usize, failed: &'a Entry },
    Field { rule: usize, clause: Clause, entry: usize, failed: &'a Field },
}

impl AuthorizationPolicy {
    fn misses(&self, view: &View<'_>) -> impl Iterator<Item = Miss<'_>> {
        let whole = |place| Some(Miss { distance: usize::MAX, place });
        let whole = match &self.rules {
            Rules::Unreadable => whole(Place::Unreadable),
            Rules::Readable(rules) if rules.is_empty() => whole(Place::NoRules),
            Rules::Readable(_) => None,
        };
        let rules = self.rules().iter().enumerate();
        whole.into_iter().chain(rules.filter_map(|(at, rule)| rule.miss(at, view)))
    }
}

impl Rule {
    fn miss(&self, rule: usize, view: &View<'_>) -> Option<Miss<'_>> {
        let mut distance = 0;
        let mut place = self.unseen(rule);
        if place.is_some() {
            distance += 1;
        }
        for clause in Clause::ALL {
            for (entry, failed) in self.failed(clause, view) {
                distance += failed.distance(view);
                place = place.or_else(|| failed.place(rule, clause, entry, view));
            }
        }
        place.map(|place| Miss { distance, place })
    }

    /// The entries that keep a clause from matching: of sources and operations the one that is nearest.
    fn failed(&self, clause: Clause, view: &View<'_>) -> Vec<(usize, &Entry)> {
        let entries = self.clause(clause).iter().enumerate();
        let failed = |(_, entry): &(usize, &Entry)| entry.evaluate(Action::Allow, view) != Truth::Yes;
        match clause {
            Clause::When => entries.filter(failed).collect(),
            Clause::From | Clause::To => {
                let nearest = entries.min_by_key(|(_, entry)| entry.distance(view));
                nearest.filter(failed).into_iter().collect()
            }
        }
    }

    fn unseen(&self, rule: usize) -> Option<Place<'_>> {
        if !self.is_blind() {
            return None;
        }
        Clause::ALL.into_iter().find_map(|clause| {
            self.clause(clause).iter().enumerate().find_map(|(entry, fields)| {
                let failed = fields.fields.iter().find(|field| field.test == Test::Unseen)?;
                Some(Place::Field { rule, clause, entry, failed })
            })
        })
    }
}

impl Entry {
    fn distance(&self, view: &View<'_>) -> usize {
        match self.fields.len() {
            0 => 1,
            _ => self.fields.iter().filter(|field| field.fails(view)).count(),
        }
    }

    fn place(&self, rule: usize, clause: Clause, entry: usize, view: &View<'_>) -> Option<Place<'_>> {
        if self.fields.is_empty() {
            return Some(Place::Entry { rule, clause, entry, failed: self });
        }
        let failed = self.fields.iter().find(|field| field.fails(view))?;
        Some(Place::Field { rule, clause, entry, failed })
    }
}

impl Field {
    fn fails(&self, view: &View<'_>) -> bool {
        self.evaluate(Action::Allow, view) != Truth::Yes
    }
}

impl Place<'_> {
    /// The path of the field, and why it failed.
    fn describe(&self, view: &View<'_>) -> (String, String) {
        match *self {
            Self::Unreadable => {
                ("spec".to_owned(), "could not be read, and so matches nothing: mend it".to_owned())
            }
            Self::NoRules => ("rules".to_owned(), "are none, and so match nothing".to_owned()),
            Self::Entry { rule, clause, entry, failed } => {
                (entry_path(rule, clause, entry), failed.why().unwrap_or_default().to_owned())
            }
            Self::Field { rule, clause, entry, failed } => {
                (failed.path(&entry_path(rule, clause, entry)), failed.why(Action::Allow, view))
            }
        }
    }
}
