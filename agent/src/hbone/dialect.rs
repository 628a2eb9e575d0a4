//! What a connection speaks, as ALPN has settled it: HBONE as every peer does, or HBONE as Culverts do among themselves.

use crate::identity::{ALPN_EARLY, ALPN_H2};

/// A way to speak HBONE over HTTP/2.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Dialect {
    /// A client waits for the answer to its CONNECT before it sends anything else.
    Plain,
    /// It may send the first bytes with it. HTTP/2 lets any client do so (RFC 9113 §8.5); whether any server expects it is
    /// another matter, and so only one that says that it does is sent them.
    Early,
}

impl Dialect {
    /// Returns what the protocol that was chosen by ALPN stands for; `None` where it is none of the mesh's.
    pub(super) fn of(alpn: Option<&[u8]>) -> Option<Self> {
        match alpn? {
            ALPN_EARLY => Some(Self::Early),
            ALPN_H2 => Some(Self::Plain),
            _ => None,
        }
    }
}
