//! An authority that is asked over gRPC, by Istio's CSR protocol: istiod, cert-manager's istio-csr, `culvert ca serve`.
//!
//! ```text
//! sign ──► Links::get ──► one HTTP/2 connection for all requests of a moment ──► CreateCertificate
//!             │ TLS 1.3, the server's name and roots                                │ token, CSR, identity
//!             └── opened anew after a rest, a failure, or new roots                 ▼
//!                                                    chain without its roots ──► checked by Svid::new
//! ```
//!
//! The roots of the mesh come from a file, not from the answer: whoever can answer must not say whom to trust.

mod address;
mod answer;
mod error;
mod link;
mod token;

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tonic::{
    Request,
    metadata::{AsciiMetadataValue, MetadataValue},
};

pub use self::{address::CaAddress, error::GrpcError};
use self::{
    link::Links,
    token::{TOKEN, Token},
};
use super::{CaError, CertificateAuthority, Csr, Issued, Signing, encode::request_pem, istio};
use crate::{
    identity::{Followed, Trust, TrustBundle},
    mesh::Identity,
};

/// What is needed to ask an authority over gRPC.
#[derive(Clone, Debug)]
pub struct GrpcConfig {
    /// Where it listens.
    pub address: CaAddress,
    /// The name that its certificate must have, where it is another than the address'.
    pub server_name: Option<ServerName<'static>>,
    /// The roots of the mesh, in PEM.
    pub roots: PathBuf,
    /// The roots that vouch for the server, in PEM; the mesh's where there are none.
    pub server_roots: Option<PathBuf>,
    /// The bearer token that says who asks.
    pub token: PathBuf,
    /// The name of this cluster, where one authority serves several.
    pub cluster: Option<String>,
    /// For how long certificates are asked for.
    pub lifetime: Duration,
}

/// An authority that is asked over gRPC.
#[derive(Debug)]
pub struct GrpcCa {
    address: CaAddress,
    token: Followed<Token>,
    token_path: PathBuf,
    roots: Followed<TrustBundle>,
    cluster: Option<AsciiMetadataValue>,
    lifetime: Duration,
    links: Links,
}

impl GrpcCa {
    /// Reads the files, and reads them again whenever they change. The authority is not asked yet.
    ///
    /// Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where a file cannot be used.
    pub fn new(config: GrpcConfig) -> Result<Self, CaError> {
        let GrpcConfig { address, server_name, roots, server_roots, token, cluster, lifetime } = config;
        let follow =
            |what, path: PathBuf| Followed::start(what, vec![path.clone()], move || read_roots(what, &path));
        let mesh_roots = follow("trust bundle", roots)?;
        let server_roots = match server_roots {
            Some(path) => follow("roots of the authority's server", path)?,
            None => mesh_roots.clone(),
        };
        let path = token.clone();
        let followed = Followed::start(TOKEN, vec![token.clone()], move || Token::read(&path))?;
        let cluster = cluster.map(MetadataValue::try_from).transpose().map_err(|_| CaError::Cluster)?;
        let links = Links::new(address.clone(), server_name, server_roots);
        Ok(Self { address, token: followed, token_path: token, roots: mesh_roots, cluster, lifetime, links })
    }

    async fn ask(&self, csr: &Csr, identity: &Identity) -> Result<Issued, GrpcError> {
        let asking = async {
            let link = self.links.get().await?;
            let answer = link.call(self.request(csr, identity)).await;
            let answer =
                answer.map_err(|status| GrpcError::from_status(&self.address, &self.token_path, &status));
            if answer.as_ref().is_err_and(GrpcError::spoils_the_connection) {
                self.links.forget(&link);
            }
            answer::chain(&self.address, &answer?.into_inner(), &self.roots.get())
        };
        match timeout(DEADLINE, asking).await {
            Ok(outcome) => outcome,
            Err(_) => {
                // Whether the connection is dead or the authority slow, nobody can tell: the next attempt gets a new one.
                self.links.forget_current();
                Err(GrpcError::Silent { address: self.address.clone(), limit: DEADLINE })
            }
        }
    }

    fn request(&self, csr: &Csr, identity: &Identity) -> Request<istio::CertificateRequest> {
        let lifetime = csr.lifetime().map_or(self.lifetime, |lifetime| lifetime.min(self.lifetime));
        let message = istio::CertificateRequest {
            csr: request_pem(csr.der()),
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: None,
        };
        let mut request = Request::new(message.impersonating(identity));
        request.set_timeout(DEADLINE);
        request.metadata_mut().insert("authorization", self.token.get().bearer());
        if let Some(cluster) = &self.cluster {
            request.metadata_mut().insert("clusterid", cluster.clone());
        }
        request
    }
}

impl CertificateAuthority for GrpcCa {
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
        Box::pin(async move { self.ask(csr, identity).await.map_err(CaError::from) })
    }

    fn source(&self) -> String {
        format!("grpc {}", self.address)
    }

    fn trust(&self) -> Trust {
        self.roots.watch()
    }
}

fn read_roots(what: &'static str, path: &Path) -> Result<TrustBundle, CaError> {
    let pem = fs::read(path).map_err(|source| CaError::File { what, path: path.to_owned(), source })?;
    TrustBundle::from_pem(&pem).map_err(|source| CaError::Roots { path: path.to_owned(), source })
}

/// How long a request may take with all that belongs to it. A little less than [`super::super::SvidStore`] gives an
/// authority, so that it is this error that is shown, with the address in it.
const DEADLINE: Duration = Duration::from_secs(9);
