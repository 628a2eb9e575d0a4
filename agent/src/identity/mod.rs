//! Who a workload is, proved: keys, certificates, and the TLS that checks them.
//!
//! Owns the certificate authorities behind [`CertificateAuthority`], the certificates of the node's workloads
//! ([`Svid`], kept fresh by [`SvidStore`]), and the rustls configurations with the SPIFFE rules in them. Does not own
//! connections: `hbone` runs the handshakes. A workload's private key is made here and never leaves the process.
//!
//! ```text
//! SvidStore::svid(identity) ──► key + Csr ──► CertificateAuthority::sign ──► Issued
//!                                                                             │ checked as a peer would check it
//! hbone ◄── client_config(expected), server_config() ◄── Svid ◄───────────────┘
//!                     │ each handshake
//!                     └──► TrustBundle (chain, usage, validity, revocation), then exactly one SPIFFE ID, then whose it is
//!                                   ▲
//! Standing: each open connection ───┘ when the trust changes; and the clock, for what expires
//! MutualTrust: two workloads of this process, judged and watched by the same, without a handshake
//! ```
//!
//! What is wiped from memory, and what is not: a workload's key as PKCS#8 is wiped as soon as rustls has it, and
//! rustls' own copy when the last configuration that uses it goes (AWS-LC cleans what it frees); the intermediate's
//! PKCS#8 and the text of its file are wiped too, and so are Vault's tokens and the JWTs for them. Not wiped: copies that
//! the PEM library makes on the way in and out, what the HTTP library has in its buffers, the session secrets that
//! rustls does not wipe itself, and what the kernel may have swapped out. None of it gets into a core dump:
//! [`keep_memory_private`].

mod at;
pub mod ca;
mod certificate;
mod crl;
mod fingerprint;
mod follow;
mod inspect;
mod inventory;
mod keeper;
mod key;
mod metrics;
mod mutual;
mod observed;
mod privacy;
mod queue;
mod revocation;
mod spiffe;
mod standing;
mod store;
mod svid;
mod tls;
mod tls_error;
mod trust;
mod verify;

#[cfg(test)]
mod handshake_tests;
#[cfg(test)]
mod openssl_tests;
#[cfg(test)]
mod revocation_tests;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod testing;

pub use at::{At, span};
pub use ca::{CaError, CertificateAuthority, Csr, GrpcCa, GrpcConfig, Issued, IssuerFiles, LocalCa, VaultCa};
pub use certificate::CertificateFacts;
pub use crl::CrlError;
pub use fingerprint::Fingerprint;
pub use follow::{FileState, Followed, followed};
pub use inspect::{Section, Unreadable, inspect};
pub use inventory::{FollowedFile, Held, HeldState, Inventory, RevocationList, RootName};
pub use key::WeakKey;
pub use metrics::CertificateMetrics;
pub use mutual::{MutualTrust, NotTrusted, Pair, PairLapsed};
pub use observed::{Observed, TlsFailure};
pub use privacy::keep_memory_private;
pub use revocation::Revocation;
pub use spiffe::{IdentityRefusal, identity_of};
pub use standing::{Ground, Lapse, Lapsed, Standing, reached};
pub use store::{SvidError, SvidStatus, SvidStore};
pub use svid::{Rejected, Svid};
pub use tls::{ALPN_EARLY, ALPN_H2, peer_identity, provider as tls_provider};
pub use tls_error::TlsError;
pub use trust::{Trust, TrustBundle, TrustError, Usage};
