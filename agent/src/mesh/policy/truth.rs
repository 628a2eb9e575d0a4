//! Logic in which a part may be unknown, for deciding before there is a connection.

use std::ops::Not;

/// Whether something holds. For a connection of which everything is known it is never [`Self::Maybe`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Truth {
    /// Not whatever the unknown is.
    No,
    /// It depends on what is unknown.
    Maybe,
    /// Whatever the unknown is.
    Yes,
}

impl Truth {
    /// Whether all hold; of none, yes. What follows a `No` is not looked at.
    pub(super) fn all(parts: impl IntoIterator<Item = Self>) -> Self {
        !Self::any(parts.into_iter().map(Self::not))
    }

    /// Whether one holds; of none, no. What follows a `Yes` is not looked at.
    pub(super) fn any(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut whole = Self::No;
        for part in parts {
            whole = whole.max(part);
            if whole == Self::Yes {
                break;
            }
        }
        whole
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Not for Truth {
    type Output = Self;

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }
}
