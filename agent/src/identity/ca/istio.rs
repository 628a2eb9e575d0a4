//! The messages of Istio's CSR protocol, `istio.v1.auth.IstioCertificateService` (istio/api,
//! `security/v1alpha1/ca.proto`), as its client and our server have them.

use prost_types::{Struct, Value, value::Kind};

use crate::mesh::Identity;

/// The path of the service's one method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// What is asked of the authority.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateRequest {
    /// The signing request (PKCS #10) in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// For how long the certificate is wanted, in seconds; 0 leaves it to the authority.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Whatever else the caller has to say: see [`IMPERSONATED_IDENTITY`].
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// What the authority answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CertificateResponse {
    /// The workload's certificate, then the intermediates, then the root, each in PEM. Several roots stand in the last
    /// element, one after the other.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

impl CertificateRequest {
    /// Names the identity that the certificate is for, where it is not the caller's own.
    #[must_use]
    pub fn impersonating(mut self, identity: &Identity) -> Self {
        let value = Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let metadata = self.metadata.get_or_insert_default();
        metadata.fields.insert(IMPERSONATED_IDENTITY.to_owned(), value);
        self
    }

    /// Returns the identity that the certificate is for, as it was written; none where it is the caller's own.
    pub fn impersonated(&self) -> Option<&str> {
        match self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?.kind.as_ref()? {
            Kind::StringValue(identity) => Some(identity),
            // Not a text: something that is no identity, and so refused, instead of the caller's own.
            _ => Some(""),
        }
    }
}

/// The key of the request's metadata under which a node's proxy names the workload that it asks for.
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";
