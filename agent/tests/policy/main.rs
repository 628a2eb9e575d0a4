//! `culvert policy` as people run it: what it prints, and what it ends with.

mod conformance;
mod explain;
mod lint;
mod place;
mod test;
