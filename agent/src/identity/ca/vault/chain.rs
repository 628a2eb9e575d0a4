//! What to send with a certificate that Vault signed: Vault returns its issuers in no order that can be relied upon,
//! with the root, or without, or not at all.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{parse_x509_certificate, prelude::X509Certificate};

use crate::identity::certificate::is_root;

/// Reads certificates from PEM texts.
///
/// # Errors
/// Where one is no PEM; says why.
pub(super) fn certificates(
    texts: impl IntoIterator<Item = String>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut all = Vec::new();
    for text in texts {
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            all.push(certificate.map_err(|error| format!("not valid PEM: {error}"))?);
        }
    }
    Ok(all)
}

/// Returns the chain of `leaf`: it first, then those that vouch for it, each after one that it vouches for, and no root.
/// Of several that have the name that is asked for, all: a peer may trust the one root or the other.
pub(super) fn ordered(
    leaf: CertificateDer<'static>,
    mut others: Vec<CertificateDer<'static>>,
) -> Vec<CertificateDer<'static>> {
    others.retain(|other| !is_root(other));
    let mut chain = vec![leaf];
    let mut next = 0;
    while let Some(certificate) = chain.get(next) {
        next += 1;
        let Some(issuer) = name(certificate, |parsed| parsed.issuer().as_raw().to_owned()) else { break };
        let vouches = |other: &mut CertificateDer<'static>| {
            name(other, |parsed| parsed.subject().as_raw().to_owned())
                .is_some_and(|subject| subject == issuer)
        };
        for found in others.extract_if(.., vouches).collect::<Vec<_>>() {
            if !chain.contains(&found) {
                chain.push(found);
            }
        }
    }
    chain.truncate(MAX_CHAIN);
    chain
}

fn name<T>(certificate: &CertificateDer<'_>, read: impl FnOnce(&X509Certificate<'_>) -> T) -> Option<T> {
    parse_x509_certificate(certificate).ok().map(|(_, parsed)| read(&parsed))
}

/// Certificates of a chain: webpki follows six intermediates.
const MAX_CHAIN: usize = 7;

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// An authority with a name and a key of its own.
    struct Authority {
        params: CertificateParams,
        key: KeyPair,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.use_authority_key_identifier_extension = true;
            Self { params, key: KeyPair::generate().unwrap() }
        }

        fn root(&self) -> CertificateDer<'static> {
            self.params.self_signed(&self.key).unwrap().into()
        }

        fn vouches_for(&self, other: &Self) -> CertificateDer<'static> {
            let issuer = Issuer::from_params(&self.params, &self.key);
            other.params.signed_by(&other.key, &issuer).unwrap().into()
        }
    }

    #[test]
    fn chain_is_in_order_and_without_roots() {
        let [root, upper, lower, leaf, stranger] =
            ["root", "upper", "lower", "leaf", "stranger"].map(Authority::new);
        // The last: the same root by another root's word, for peers that trust only that one.
        let expected = [
            lower.vouches_for(&leaf),
            upper.vouches_for(&lower),
            root.vouches_for(&upper),
            stranger.vouches_for(&root),
        ];
        let others = vec![
            root.root(),
            stranger.vouches_for(&stranger),
            expected[2].clone(),
            expected[0].clone(),
            expected[3].clone(),
            expected[1].clone(),
            expected[1].clone(),
        ];
        assert_eq!(ordered(expected[0].clone(), others), expected);
        assert_eq!(ordered(expected[0].clone(), Vec::new()), expected[..1]);
    }

    #[test]
    fn new_root_key_that_the_old_one_vouches_for_is_part_of_the_chain() {
        let (old, new) = (Authority::new("root"), Authority::new("root"));
        let bridge = old.vouches_for(&new);
        let leaf = new.vouches_for(&Authority::new("leaf"));
        assert_eq!(ordered(leaf.clone(), vec![new.root(), bridge.clone()]), [leaf, bridge]);
    }

    #[test]
    fn endless_and_unreadable_chains_end() {
        let [a, b] = ["a", "b"].map(Authority::new);
        let leaf = a.vouches_for(&Authority::new("leaf"));
        let circle = vec![a.vouches_for(&b), b.vouches_for(&a), CertificateDer::from(vec![1, 2, 3])];
        assert_eq!(ordered(leaf, circle).len(), 3);
        assert_eq!(ordered(CertificateDer::from(vec![1, 2, 3]), vec![a.root()]).len(), 1);
    }
}
