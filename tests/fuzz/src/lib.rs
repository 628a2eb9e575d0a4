//! What must hold for any bytes that a stranger can send or a user can write: one function for each kind, which panics where
//! it does not hold.
//!
//! The programs beside it give libFuzzer's inputs to them (`cargo xtask test --fuzz`). The corpus, which is committed,
//! is where libFuzzer begins, and what the tests here run.

mod policy;

use std::{sync::LazyLock, time::SystemTime};

use culvert::{
    ca_server::check_request,
    identity::{CertificateFacts, TrustBundle, identity_of, inspect},
    mesh::Identity,
};
use pem::Pem;
use rcgen::{CertificateSigningRequestParams, KeyPair, PublicKeyData as _, SanType, SigningKey as _};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

pub use policy::policy;

/// The identity that requests are checked for.
const ASKED: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A text that is taken for an identity is printed as it was, is made of parts that are valid by themselves, and has
/// nothing in it that a URI library would read in another way.
pub fn identity(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let Ok(identity) = text.parse::<Identity>() else { return };
    assert_eq!(identity.to_string(), text);
    let domain = identity.trust_domain().as_str().parse().expect("a trust domain");
    let again = Identity::new(domain, identity.namespace(), identity.service_account());
    assert_eq!(again.as_ref(), Ok(&identity));
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_/:".contains(&byte);
    assert!(text.bytes().all(plain), "{text:?}");
    assert!(text.len() <= "spiffe:///ns//sa/".len() + 255 + 63 + 253, "{text:?}");
}

/// A certificate that has an identity has it in it, byte for byte. Nothing that reads certificates panics, and
/// `culvert certs inspect` finds fault with whatever has none.
pub fn certificate(data: &[u8]) {
    let der = CertificateDer::from(data);
    let identity = identity_of(&der);
    if let Ok(identity) = &identity {
        let text = identity.to_string();
        assert!(data.windows(text.len()).any(|part| part == text.as_bytes()), "{text} is not in it");
        self::identity(text.as_bytes());
    }
    let facts = CertificateFacts::read(&der);
    assert!(facts.is_some() || identity.is_err());
    // Its own root, so that the check of a chain is reached too.
    let roots = TrustBundle::new(vec![der.clone().into_owned()]).ok();
    let text = pem::encode(&Pem::new("CERTIFICATE", data));
    let sections = inspect(text.as_bytes(), roots.as_ref(), SystemTime::now()).expect("it is PEM");
    let is_workload = sections[0].title.contains("workload");
    assert!(identity.is_ok() || !is_workload || !sections[0].problems.is_empty(), "{sections:?}");
}

/// Any bytes as a request: see [`check`].
pub fn request(data: &[u8]) {
    check(&pem::encode(&Pem::new("CERTIFICATE REQUEST", data)));
    if let Ok(text) = str::from_utf8(data) {
        check(text);
    }
}

/// Any bytes as the attributes of a request that is signed by its key: what [`request`] never reaches, since hardly
/// any change leaves a signature right.
pub fn attributes(data: &[u8]) {
    static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate().expect("a key"));
    let key = &*KEY;
    let info = [&[0x02, 1, 0, 0x30, 0][..], &key.subject_public_key_info(), &tagged(0xa0, data)].concat();
    let info = tagged(0x30, &info);
    // ecdsa-with-SHA256, RFC 5758 §3.2.
    let algorithm = [0x30, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let signature = [&[0][..], &key.sign(&info).expect("a signature")].concat();
    let request = tagged(0x30, &[&info[..], &algorithm, &tagged(0x03, &signature)].concat());
    check(&pem::encode(&Pem::new("CERTIFICATE REQUEST", request)));
}

/// A request that is accepted asks for the identity or for no name, and for nothing else, also as another library
/// reads it, which is the one that signs. Explaining it panics no more than checking it does.
fn check(text: &str) {
    let asked: Identity = ASKED.parse().expect("an identity");
    let accepted = check_request(text, &asked);
    // What is no PEM at all is an error that says so.
    let explained = inspect(text.as_bytes(), None, SystemTime::now());
    let Ok(csr) = accepted else { return };
    let der = CertificateSigningRequestDer::from(csr.der().to_vec());
    let params = CertificateSigningRequestParams::from_der(&der).expect("the authority can read it").params;
    for name in &params.subject_alt_names {
        let SanType::URI(uri) = name else { panic!("it asks for {name:?}") };
        assert_eq!(uri.as_str(), ASKED);
    }
    assert_eq!(params.distinguished_name.iter().count(), 0);
    assert!(!matches!(params.is_ca, rcgen::IsCa::Ca(_)));
    assert!(params.key_usages.is_empty() && params.custom_extensions.is_empty(), "{params:?}");
    assert!(explained.is_ok());
}

/// DER: the tag, the length, the content.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let bytes = length.to_be_bytes();
    let digits: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut all = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => all.push(short),
        _ => {
            all.push(0x80 | u8::try_from(digits.len()).expect("a length has at most eight bytes"));
            all.extend(digits);
        }
    }
    all.extend(content);
    all
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Runs what is committed, and says how much that is.
    fn corpus(name: &str, target: fn(&[u8])) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let inputs: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(!inputs.is_empty());
        for input in &inputs {
            target(input);
        }
        inputs
    }

    #[test]
    fn the_corpus_of_identities_holds() {
        let inputs = corpus("identity", identity);
        let good = inputs.iter().filter(|input| str::from_utf8(input).unwrap().parse::<Identity>().is_ok());
        assert!(good.count() > 1);
    }

    #[test]
    fn the_corpus_of_certificates_holds() {
        let inputs = corpus("certificate", certificate);
        assert!(inputs.iter().any(|input| identity_of(&CertificateDer::from(&input[..])).is_ok()));
    }

    #[test]
    fn the_corpus_of_requests_holds() {
        let asked: Identity = ASKED.parse().unwrap();
        let inputs = corpus("request", request);
        let pem = |der: &[u8]| pem::encode(&Pem::new("CERTIFICATE REQUEST", der));
        assert!(inputs.iter().any(|input| check_request(&pem(input), &asked).is_ok()));
    }

    #[test]
    fn the_corpus_of_attributes_holds() {
        corpus("attributes", attributes);
    }

    #[test]
    fn the_corpus_of_policies_holds() {
        corpus("policy", policy);
    }

    #[test]
    fn lengths_are_written_as_der_has_them() {
        assert_eq!(tagged(4, &[7; 3])[..2], [4, 3]);
        assert_eq!(tagged(4, &[7; 0x80])[..3], [4, 0x81, 0x80]);
        assert_eq!(tagged(4, &[7; 0x1234])[..4], [4, 0x82, 0x12, 0x34]);
    }
}
