//! Policies of `security.istio.io` to the model's. None is ever lost: what cannot be read becomes a policy that fails
//! closed, and a notice (docs/policy.md).

mod authentication;
mod authorization;
mod fields;
mod metadata;
mod node;
mod notice;
mod rules;
mod target;

pub(super) use authentication::convert as authentication;
pub(super) use authorization::convert as authorization;
pub use notice::{PolicyNotice, Severity, Topic};

#[cfg(test)]
mod tests;
