//! Rules about text: what must stand at the head of a file, and what must not be left in one.

use super::Violation;

/// Words that mark unfinished work, in pieces so that this file does not hold them.
const UNFINISHED: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("dbg", "!(")];

/// Checks the text of any file.
pub(super) fn check(file: &str, text: &str) -> Vec<Violation> {
    // The lock file is cargo's, the licences are their authors'.
    if file == "Cargo.lock" || file.contains("LICENSE") {
        return Vec::new();
    }
    // Prose may name what code must not hold.
    let unfinished = if file.ends_with(".md") { &[] } else { UNFINISHED };
    let lines = (1..).zip(text.lines());
    let found = lines.flat_map(|(line, content)| {
        let unfinished = unfinished.iter().filter(|word| holds_word(content, word));
        let messages = unfinished.map(|word| format!("`{word}` is left over: finish it, or open an issue"));
        messages.map(move |message| Violation { file: file.to_owned(), line, message }).collect::<Vec<_>>()
    });
    found.collect()
}

/// Checks that a source file says what it owns.
pub(super) fn check_header(file: &str, parsed: &syn::File) -> Option<Violation> {
    let has_header = parsed.attrs.iter().any(|attribute| attribute.path().is_ident("doc"));
    let message = "no `//!` header: say what this module owns, and what not".to_owned();
    (!has_header).then(|| Violation { file: file.to_owned(), line: 1, message })
}

/// Returns whether `word` stands in `line` by itself and not inside another word.
fn holds_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let ends = word.ends_with('(') || !line[at + word.len()..].starts_with(is_part);
        ends && !line[..at].ends_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(file: &str, text: &str, expected: &[usize]) {
        let lines: Vec<_> = check(file, text).iter().map(|violation| violation.line).collect();
        assert_eq!(lines, expected, "{file}: {text}");
    }

    #[test]
    fn finds_what_is_left_over() {
        let [todo, fixme, ..] = UNFINISHED else { panic!("two words") };
        check_lines("a.rs", &format!("fn f() {{}}\n// {todo}: more\n"), &[2]);
        check_lines("a.rs", &format!("// {fixme}\n// {todo}\n"), &[1, 2]);
        check_lines("a.rs", concat!("let x = ", "dbg", "!(y);"), &[1]);
        check_lines("a.rs", &format!("let {todo}S = 1;"), &[]);
        check_lines("a.md", &format!("There is no {todo} here."), &[]);
    }

    #[test]
    fn wants_a_header() {
        let header = |text| check_header("a.rs", &syn::parse_file(text).unwrap()).is_none();
        assert!(header("//! Owns a.\n\nfn f() {}"));
        assert!(header("#![no_std]\n//! Owns a.\n"));
        assert!(!header("/// Does f.\nfn f() {}"));
    }
}
