//! Colours, where there is somebody to see them.

use std::{env, io::IsTerminal as _};

/// Whether what is written has colours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    colours: bool,
}

/// What a word means.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ink {
    /// It is well.
    Good,
    /// It is not.
    Bad,
    /// It may not be.
    Doubtful,
    /// It is beside the point.
    Faint,
}

impl Paint {
    /// No colours.
    pub(super) const PLAIN: Self = Self { colours: false };

    /// Colours on a terminal, unless `NO_COLOR` is set.
    pub(super) fn of_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: std::io::stdout().is_terminal() && !refused }
    }

    /// Returns the text in a colour.
    pub(super) fn ink(self, ink: Ink, text: &str) -> String {
        // ECMA-48, 8.3.117.
        let code = match ink {
            Ink::Good => 32,
            Ink::Bad => 31,
            Ink::Doubtful => 33,
            Ink::Faint => 2,
        };
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
