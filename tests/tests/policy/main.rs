//! Who may speak to whom: real agents, real policies as users write them, and what becomes of connections.
//!
//! `docs/policy.md` is what this holds to; its every sentence is tested without a kernel in `tests/policy/`. Here it is
//! shown that what policy says happens: on mTLS and plaintext, to new connections and to old ones.

mod bypass;
mod live;
mod modes;
mod node;
mod objects;
mod observe;
mod rules;
mod storm;
mod world;
