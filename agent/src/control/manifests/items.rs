//! The elements of a document's `items:`, told apart by their indentation.
//!
//! The YAML library tells lines only by reading a document anew up to a field, which for each object of a long `List` would
//! take minutes. What `kubectl` writes has each element begin on a line of its own, and to read that one alone is enough.

use std::ops::Range;

/// Where each element is in the text of a document.
#[derive(Clone, Debug, Default)]
pub(super) struct Items(Vec<Item>);

#[derive(Clone, Debug)]
struct Item {
    text: Range<usize>,
    /// The lines before it.
    lines: usize,
}

/// The text of one element, as a document of its own.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Element {
    pub(super) text: String,
    /// The lines before it.
    pub(super) lines: usize,
}

impl Items {
    /// Finds the elements of a document in block style; none in any other.
    pub(super) fn of(text: &str) -> Self {
        let mut lines = Lines { text, at: 0, number: 0 };
        if !lines.any(|line| line.text.trim_end() == "items:") {
            return Self::default();
        }
        let mut items: Vec<Item> = Vec::new();
        let mut indent = None;
        for line in lines {
            let content = line.text.trim_start_matches(' ');
            if content.trim().is_empty() || content.starts_with('#') {
                continue;
            }
            let depth = line.text.len() - content.len();
            let begins = content.starts_with("- ") || content.trim_end() == "-";
            let list = *indent.get_or_insert(depth);
            if depth > list {
                continue;
            }
            if let Some(last) = items.last_mut() {
                last.text.end = line.start;
            }
            if depth < list || !begins {
                return Self(items);
            }
            items.push(Item { text: line.start..text.len(), lines: line.number });
        }
        Self(items)
    }

    /// Returns an element's text, with a space in the place of the dash that it begins with.
    pub(super) fn get(&self, text: &str, index: usize) -> Option<Element> {
        let Item { text: span, lines } = self.0.get(index)?;
        let text = text.get(span.clone())?.replacen('-', " ", 1);
        Some(Element { text, lines: *lines })
    }
}

/// The lines of a text, each with its number, counted from 0, and where it begins.
struct Lines<'a> {
    text: &'a str,
    at: usize,
    number: usize,
}

struct Line<'a> {
    text: &'a str,
    start: usize,
    number: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let text = self.text.get(self.at..)?.split_inclusive('\n').next()?;
        let line = Line { text, start: self.at, number: self.number };
        self.at += text.len();
        self.number += 1;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each element as the lines before it and its text.
    fn check(text: &str, expected: &[(usize, &str)]) {
        let items = Items::of(text);
        let found: Vec<_> = (0..).map_while(|index| items.get(text, index)).collect();
        let found: Vec<_> = found.iter().map(|element| (element.lines, element.text.as_str())).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn elements_begin_with_a_dash_at_the_indentation_of_the_first() {
        check(
            "kind: List\nitems:\n- a: 1\n  b:\n  - c\n- d: |\n    - e\n",
            &[(2, "  a: 1\n  b:\n  - c\n"), (5, "  d: |\n    - e\n")],
        );
        check(
            "items:\n  # first\n  - a: 1\n\n  # second\n  - b: 1\nmetadata:\n- c\n",
            &[(2, "    a: 1\n\n  # second\n"), (5, "    b: 1\n")],
        );
    }

    #[test]
    fn other_styles_have_no_elements() {
        check("items: [a, b]\n", &[]);
        check("kind: Pod\n", &[]);
        check("items:\n  a: 1\n", &[]);
        check("", &[]);
    }
}
