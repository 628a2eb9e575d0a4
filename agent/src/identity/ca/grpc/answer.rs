//! The chain in an authority's answer.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use super::{CaAddress, GrpcError, Issued, TrustBundle, error::shorten, istio::CertificateResponse};
use crate::identity::certificate::is_root;

/// Returns the certificates of the answer without the roots, which nobody is sent. Whether they are any good is for
/// [`crate::identity::Svid::new`] to say.
pub(super) fn chain(
    address: &CaAddress,
    answer: &CertificateResponse,
    roots: &TrustBundle,
) -> Result<Issued, GrpcError> {
    let error = |problem: String| GrpcError::Answer { address: address.clone(), problem };
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    for (element, text) in (1..).zip(&answer.cert_chain) {
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate = certificate
                .map_err(|problem| error(format!("element {element}: {}", shorten(&problem.to_string()))))?;
            let is_root = is_root(&certificate) || roots.certificates().contains(&certificate);
            if chain.is_empty() || !is_root {
                chain.push(certificate);
            }
            if chain.len() > MAX_CHAIN {
                return Err(error(format!("it has more than {MAX_CHAIN} certificates that are no roots")));
            }
        }
    }
    if chain.is_empty() {
        return Err(error("there is no certificate in it".to_owned()));
    }
    Ok(Issued { chain })
}

/// A workload and its intermediates: webpki follows a path of at most six signatures.
const MAX_CHAIN: usize = 8;
