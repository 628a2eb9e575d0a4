//! The server of `culvert ca serve`: Istio's CSR protocol, over whichever authority stands behind it.
//!
//! Owns who may ask for what, and the record of it. Does not own the signing: that is a
//! [`crate::identity::CertificateAuthority`]'s, and what it returns is checked before it is passed on.
//!
//! ```text
//! TLS, HTTP/2 ──► token: whose, which node ──► rate ──► identity, CSR, lifetime ──► does it run on that node?
//!   listener        caller: signed or review    rate      service, csr                authorize (Snapshot)
//!                                                                                        │
//! answer ◄── audit line ◄── checked ◄── CertificateAuthority::sign ◄─────────────────────┘
//! ```

mod audit;
mod authorize;
mod caller;
mod certificate;
mod csr;
mod jwks;
mod listener;
mod metrics;
mod rate;
mod refusal;
mod review;
mod roots;
mod secret;
mod service;
mod signed;

#[cfg(test)]
mod tests;

pub use self::{
    audit::Audit,
    caller::{Callers, ServiceAccount},
    certificate::{CertificateError, ServerCertificate},
    csr::{CsrRefusal, check_request},
    jwks::{Jwks, JwksError},
    listener::serve,
    metrics::Metrics,
    review::{ReviewError, ReviewRules, Reviews},
    roots::publish as publish_roots,
    secret::{AuthoritySecret, Followed as FollowedSecret},
    service::{CaService, ServiceConfig},
    signed::{SignedTokens, TokenRules},
};
