//! How the report looks: headings, aligned columns, checks. Colour only where a person looks and wants it.

use std::io::IsTerminal as _;

/// The report, printed as it grows.
pub(crate) struct Report {
    colour: bool,
    failures: usize,
}

/// A style, as an ANSI code.
#[derive(Clone, Copy)]
enum Style {
    Bold,
    Dim,
    Green,
    Red,
}

impl Report {
    pub(crate) fn new() -> Self {
        // https://no-color.org: set and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stdout().is_terminal() && !refused, failures: 0 }
    }

    /// How many checks failed.
    pub(crate) fn failures(&self) -> usize {
        self.failures
    }

    pub(crate) fn title(&self, text: &str) {
        println!("\n{}", self.paint(Style::Bold, text));
    }

    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}", self.paint(Style::Bold, text));
    }

    /// A command that is run now, as a person would type it.
    pub(crate) fn command(&self, text: &str) {
        println!("  {}", self.paint(Style::Bold, &format!("$ {text}")));
    }

    /// A line that explains.
    pub(crate) fn line(&self, text: &str) {
        println!("{}", format!("  {text}").trim_end());
    }

    /// A line in the background.
    pub(crate) fn note(&self, text: &str) {
        println!("\n{}", self.paint(Style::Dim, text));
    }

    /// Says whether something that is claimed holds; the demo fails where it does not.
    pub(crate) fn check(&mut self, holds: bool, claim: &str) {
        let mark = if holds {
            self.paint(Style::Green, "ok    ")
        } else {
            self.failures += 1;
            self.paint(Style::Red, "FAILED")
        };
        println!("  {mark}  {claim}");
    }

    /// Rows in columns, as wide as they must be; the first row is the head.
    pub(crate) fn table<const N: usize>(&self, rows: &[[String; N]]) {
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for (number, row) in rows.iter().enumerate() {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("   ");
            let line = line.trim_end();
            println!("  {}", if number == 0 { self.paint(Style::Dim, line) } else { line.to_owned() });
        }
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => 1,
            Style::Dim => 2,
            Style::Green => 32,
            Style::Red => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A row of a table.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> [String; N] {
    cells.map(str::to_owned)
}

/// A number of things for people: `1 request`, `2 requests`.
pub(crate) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Bytes for people: `812 B`, `1.4 kB`, `3.2 MB`.
pub(crate) fn bytes(count: u64) -> String {
    // Exact below 2^53, far above what a demo sends.
    let count_f = count as f64;
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count_f / 1e3),
        _ => format!("{:.1} MB", count_f / 1e6),
    }
}
