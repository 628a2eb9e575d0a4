//! Certificate authorities: who signs the certificates of this node's workloads.
//!
//! An authority sees a signing request and the identity that is asked for, never a private key. What it returns is
//! not believed: [`super::Svid::new`] checks it as a peer would.

use std::{fmt, future::Future, io, path::PathBuf, pin::Pin, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;

use super::{
    svid::Rejected,
    trust::{Trust, TrustError},
};
use crate::mesh::{Identity, TrustDomain};

mod encode;
mod grpc;
mod issued;
pub mod istio;
mod local;
pub mod vault;

pub use encode::certificate_pem;
pub use grpc::{CaAddress, GrpcCa, GrpcConfig, GrpcError};
pub use issued::IssuedFacts;
pub use local::{
    CaDirectory, Force, InitError, IntermediateError, IssuerFiles, IssuerPem, Lifetimes, LocalCa, Need,
    NeedSource, NewAuthority, RootInfo, RootsError, WriteError, sign_request, write_new,
};
pub use vault::VaultCa;

/// An authority that signs the certificates of workloads.
pub trait CertificateAuthority: fmt::Debug + Send + Sync + 'static {
    /// Signs a certificate for `identity` and the public key of `csr`.
    ///
    /// Dropping the future gives the request up; [`super::SvidStore`] does so after a deadline.
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a>;

    /// Returns which authority this is, for logs and `culvert certs`: its kind and where it is, such as
    /// `local /etc/culvert/ca` or `grpc https://istiod.istio-system.svc:15012`.
    fn source(&self) -> String;

    /// Returns the roots that vouch for what this authority signs, and so for all of the mesh, as they change.
    fn trust(&self) -> Trust;

    /// Returns a number that changes when another issuer signs from now on: certificates that were signed before are
    /// then renewed soon, and not only at half of their lives. One that never changes for an authority that does not
    /// know.
    fn generation(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

/// The pending answer of an authority. Boxed, so that the trait is object safe.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Issued, CaError>> + Send + 'a>>;

/// A certificate signing request (PKCS #10, RFC 2986), signed with the key that it is for.
#[derive(Clone, Debug)]
pub struct Csr {
    der: CertificateSigningRequestDer<'static>,
    lifetime: Option<Duration>,
}

impl Csr {
    /// Makes the request of `identity` for the public half of `key`. Its one subjectAltName is the SPIFFE ID.
    ///
    /// # Errors
    /// Where the cryptographic library fails.
    pub fn new(identity: &Identity, key: &KeyPair) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        Ok(Self::from_der(params.serialize_request(key)?.into()))
    }

    /// Takes somebody else's request as it is. Whether it asks for what it may ask for has been checked, or is no matter
    /// because only its key is taken.
    pub fn from_der(der: CertificateSigningRequestDer<'static>) -> Self {
        Self { der, lifetime: None }
    }

    /// Asks for a certificate that is valid for `lifetime`, where the authority would give a longer one.
    #[must_use]
    pub fn with_lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// Returns the request in DER.
    pub fn der(&self) -> &CertificateSigningRequestDer<'static> {
        &self.der
    }

    /// Returns for how long the certificate is to be valid at most; none leaves it to the authority.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }
}

/// What an authority returns.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The workload's certificate first, then the intermediates up to a root, without the root.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Why an authority cannot be used, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the authority cannot be read.
    #[error("{} cannot be read: {source}; `culvert ca init` makes a new authority", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the authority does not hold what it should.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The root certificates cannot be used.
    #[error("{}: {source}", .path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TrustError,
    },
    /// A trial certificate was refused: the authority's files do not belong together, or one of them is expired.
    #[error("{}: the intermediate, its key and the roots do not work together: {source}", .path.display())]
    Unsound {
        /// The directory.
        path: PathBuf,
        /// What is wrong with a certificate that this authority signs.
        source: Rejected,
    },
    /// The identity is of a trust domain that this authority does not sign for.
    #[error("the authority signs for trust domain {ours}, not for {asked}")]
    TrustDomain {
        /// The authority's.
        ours: TrustDomain,
        /// Who was to get a certificate.
        asked: Identity,
    },
    /// The certificate of the authority itself has expired.
    #[error("the intermediate certificate expired at {}: replace it", humantime::format_rfc3339_seconds(*.0))]
    Expired(std::time::SystemTime),
    /// The cryptographic library refused, such as for a request whose signature is wrong.
    #[error("signing failed: {0}")]
    Crypto(#[from] rcgen::Error),
    /// A file that is needed to ask an authority cannot be read.
    #[error("the {what} {} cannot be read: {source}", .path.display())]
    File {
        /// What it is to the agent.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The name of the cluster cannot be sent.
    #[error("the name of the cluster has characters in it that are not printable ASCII")]
    Cluster,
    /// The authority that is asked over gRPC did not sign.
    #[error(transparent)]
    Grpc(#[from] GrpcError),
    /// Vault cannot be used, or did not sign.
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    /// The authority did not answer in time.
    #[error("the authority did not answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
}
