//! Matching of strings: exact, by prefix, by suffix, or anything that is there.

use std::collections::HashSet;

/// A value of a string field, as policies write it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pattern<'a> {
    /// `abc`.
    Exact(&'a str),
    /// `abc*`.
    Prefix(&'a str),
    /// `*abc`.
    Suffix(&'a str),
    /// `*`: any text but the empty one.
    Present,
}

/// Why a text is no [`Pattern`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PatternError {
    /// It is empty.
    #[error("an empty string matches nothing: leave it out")]
    Empty,
    /// A star in the middle, or more than one.
    #[error("a star stands only at the beginning or at the end, and once")]
    Star,
}

/// The values of a string field. Whether a text is among 100,000 exact ones costs one look into a hash table, and as many
/// prefixes or suffixes cost a binary search.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Strings {
    exact: HashSet<Box<str>>,
    prefixes: Prefixes,
    /// From the last byte to the first.
    suffixes: Prefixes,
    present: bool,
}

/// Prefixes of which none begins with another, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Prefixes(Vec<Box<[u8]>>);

impl<'a> Pattern<'a> {
    /// Reads a value.
    ///
    /// # Errors
    /// Where it is empty, or has a star where it means nothing.
    pub fn parse(text: &'a str) -> Result<Self, PatternError> {
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text.is_empty() => return Err(PatternError::Empty),
            _ if text == "*" => Self::Present,
            (None, None) => Self::Exact(text),
            (None, Some(prefix)) => Self::Prefix(prefix),
            (Some(suffix), _) => Self::Suffix(suffix),
        };
        match pattern {
            Self::Exact(rest) | Self::Prefix(rest) | Self::Suffix(rest) if rest.contains('*') => {
                Err(PatternError::Star)
            }
            pattern => Ok(pattern),
        }
    }
}

impl Strings {
    /// Returns whether one of the values matches the text.
    pub fn holds(&self, text: &str) -> bool {
        let Self { exact, prefixes, suffixes, present } = self;
        (*present && !text.is_empty())
            || exact.contains(text)
            || prefixes.match_start_of(text.bytes())
            || suffixes.match_start_of(text.bytes().rev())
    }

    /// Returns whether `*` is among the values.
    pub fn holds_all(&self) -> bool {
        self.present
    }

    /// Returns whether no value has a star.
    pub(super) fn are_exact(&self) -> bool {
        self.prefixes.0.is_empty() && self.suffixes.0.is_empty() && !self.present
    }

    /// Returns whether each text that `other` matches is matched.
    pub(super) fn cover(&self, other: &Self) -> bool {
        let Self { exact, prefixes, suffixes, present } = other;
        if self.present {
            return true;
        }
        !present
            && exact.iter().all(|text| self.holds(text))
            && self.prefixes.match_all_of(prefixes)
            && self.suffixes.match_all_of(suffixes)
    }

    /// Returns the values without a star.
    pub fn exact(&self) -> impl Iterator<Item = &str> {
        self.exact.iter().map(|text| &**text)
    }

    /// Returns what stands before the star of the values that end in one, without those that another covers.
    pub fn prefixes(&self) -> impl Iterator<Item = &str> {
        // They were texts.
        self.prefixes.0.iter().filter_map(|prefix| std::str::from_utf8(prefix).ok())
    }

    /// Returns whether a value with a star is among them.
    pub fn has_wildcards(&self) -> bool {
        self.present || !self.prefixes.0.is_empty() || !self.suffixes.0.is_empty()
    }
}

impl<'a> FromIterator<Pattern<'a>> for Strings {
    fn from_iter<I: IntoIterator<Item = Pattern<'a>>>(patterns: I) -> Self {
        let mut strings = Self::default();
        for pattern in patterns {
            match pattern {
                Pattern::Exact(text) => drop(strings.exact.insert(text.into())),
                Pattern::Prefix(text) => strings.prefixes.0.push(text.bytes().collect()),
                Pattern::Suffix(text) => strings.suffixes.0.push(text.bytes().rev().collect()),
                Pattern::Present => strings.present = true,
            }
        }
        strings.prefixes.tidy();
        strings.suffixes.tidy();
        strings
    }
}

impl Prefixes {
    fn tidy(&mut self) {
        self.0.sort_unstable();
        self.0.dedup_by(|longer, shorter| longer.starts_with(shorter));
    }

    /// Whether each of `others` begins with one of these.
    fn match_all_of(&self, others: &Self) -> bool {
        others.0.iter().all(|prefix| self.match_start_of(prefix.iter().copied()))
    }

    fn match_start_of(&self, text: impl Iterator<Item = u8> + Clone) -> bool {
        // As none begins with another, only the last that is not after the text can be its beginning.
        let after = self.0.partition_point(|prefix| prefix.iter().copied().le(text.clone()));
        let last = after.checked_sub(1).map(|last| &self.0[last]);
        last.is_some_and(|prefix| {
            let mut text = text;
            prefix.iter().all(|byte| text.next() == Some(*byte))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patterns: &[&str], matching: &[&str], others: &[&str]) {
        let strings: Strings = patterns.iter().map(|pattern| Pattern::parse(pattern).unwrap()).collect();
        for text in matching {
            assert!(strings.holds(text), "{text:?} matches none of {patterns:?}");
        }
        for text in others {
            assert!(!strings.holds(text), "{text:?} matches one of {patterns:?}");
        }
    }

    #[test]
    fn patterns_are_exact_prefixes_suffixes_or_anything() {
        check(&["abc"], &["abc"], &["ab", "abcd", "xabc", ""]);
        check(&["abc*"], &["abc", "abcd"], &["ab", "xabc", ""]);
        check(&["*abc"], &["abc", "xabc"], &["bc", "abcx", ""]);
        check(&["*"], &["a", "abc"], &[""]);
        check(&[], &[], &["", "a"]);
    }

    #[test]
    fn any_of_many_prefixes_and_suffixes_matches() {
        check(
            &["b*", "ab*", "abc*", "a-*", "*z", "*yz", "*xyz", "*y"],
            &["b", "abd", "abcd", "a-1", "cz", "cy", "z"],
            &["a", "ac", "c", "za"],
        );
    }

    #[test]
    fn other_stars_and_nothing_at_all_are_refused() {
        for text in ["**", "*a*", "a*b", "a**", "**a"] {
            assert_eq!(Pattern::parse(text), Err(PatternError::Star), "{text}");
        }
        assert_eq!(Pattern::parse(""), Err(PatternError::Empty));
    }
}
