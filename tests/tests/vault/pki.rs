//! The PKI engine: issuers, roles, and what a role does to a request.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use serde_json::{Value, json};

use super::server::Answer;

/// A mount of the engine.
pub(crate) struct Pki {
    /// The first one signs: the default issuer.
    pub(crate) issuers: Vec<Issuer>,
    pub(crate) roles: BTreeMap<String, Role>,
}

/// A certificate that the mount knows, and where it signs, its key.
pub(crate) struct Issuer {
    pub(crate) id: String,
    pub(crate) pem: String,
    /// Its own certificate, then those that vouch for it, as far as the mount knows them.
    pub(crate) chain: Vec<String>,
    pub(crate) not_after: SystemTime,
    key: Option<CertifiedIssuer<'static, KeyPair>>,
}

/// A role, with the defaults of Vault's documentation.
pub(crate) struct Role {
    pub(crate) key_type: &'static str,
    pub(crate) require_cn: bool,
    pub(crate) use_csr_sans: bool,
    pub(crate) allowed_uri_sans: Vec<String>,
    pub(crate) max_ttl: Duration,
}

impl Default for Role {
    fn default() -> Self {
        // 768 hours: the system's maximum lease.
        let max_ttl = Duration::from_secs(768 * 3600);
        Self { key_type: "rsa", require_cn: true, use_csr_sans: true, allowed_uri_sans: Vec::new(), max_ttl }
    }
}

impl Role {
    /// What docs/operations.md tells an operator to write.
    pub(crate) fn documented() -> Self {
        Self {
            key_type: "ec",
            require_cn: false,
            use_csr_sans: false,
            allowed_uri_sans: vec!["spiffe://cluster.local/*".to_owned()],
            max_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

impl Pki {
    /// A mount with an intermediate that signs, whose root it knows too, and the role `culvert`.
    pub(crate) fn new() -> Self {
        let root = authority("mesh root", None);
        let intermediate = authority("mesh intermediate", Some(&root));
        let issuers = vec![
            Issuer {
                chain: vec![intermediate.pem(), root.pem()],
                ..Issuer::new("intermediate", intermediate)
            },
            Issuer { key: None, ..Issuer::new("root", root) },
        ];
        Self { issuers, roles: BTreeMap::from([("culvert".to_owned(), Role::documented())]) }
    }

    /// Adds one more root.
    pub(crate) fn add_root(&mut self, name: &str) -> String {
        let root = Issuer::new(name, authority(name, None));
        let pem = root.pem.clone();
        self.issuers.push(root);
        pem
    }

    /// Forgets the root, as where only the intermediate was imported, and returns it.
    pub(crate) fn forget_root(&mut self) -> String {
        let root = self.issuers.pop().expect("a root");
        self.issuers[0].chain.pop();
        root.pem
    }

    pub(crate) fn role(&mut self) -> &mut Role {
        self.roles.get_mut("culvert").expect("the role")
    }

    pub(crate) fn list(&self) -> Answer {
        let keys: Vec<_> = self.issuers.iter().map(|issuer| &issuer.id).collect();
        let info: serde_json::Map<_, _> =
            self.issuers.iter().map(|issuer| (issuer.id.clone(), json!({ "issuer_name": "" }))).collect();
        Answer::data(&json!({ "keys": keys, "key_info": info }))
    }

    pub(crate) fn issuer(&self, id: &str) -> Answer {
        match self.issuers.iter().find(|issuer| issuer.id == id) {
            Some(Issuer { pem, chain, .. }) => {
                Answer::data(&json!({ "certificate": pem, "ca_chain": chain, "revocation_time": 0 }))
            }
            None => Answer::error(500, "there is no such issuer"),
        }
    }

    /// `POST /pki/sign/:name`.
    pub(crate) fn sign(&self, role: &str, request: &Value) -> Answer {
        let Some(found) = self.roles.get(role) else {
            return Answer::error(400, &format!("unknown role: {role}"));
        };
        match found.sign(&self.issuers[0], request) {
            Ok(answer) => answer,
            Err(refusal) => Answer::error(400, refusal),
        }
    }
}

impl Issuer {
    fn new(id: &str, key: CertifiedIssuer<'static, KeyPair>) -> Self {
        let (id, pem) = (id.replace(' ', "-"), key.pem());
        let not_after = SystemTime::now() + YEAR;
        Self { chain: vec![pem.clone()], pem, id, not_after, key: Some(key) }
    }
}

impl Role {
    fn sign(&self, issuer: &Issuer, request: &Value) -> Result<Answer, &'static str> {
        let text = |key: &str| request[key].as_str().unwrap_or_default();
        let csr =
            CertificateSigningRequestParams::from_pem(text("csr")).map_err(|_| "csr contains no data")?;
        let ec = csr.public_key.algorithm() == &PKCS_ECDSA_P256_SHA256;
        if !(self.key_type == "any" || self.key_type == "ec" && ec) {
            return Err("role requires keys of another type");
        }
        if self.require_cn && text("common_name").is_empty() {
            return Err("the common_name field is required unless require_cn is set to false");
        }
        let names: Vec<_> = if self.use_csr_sans {
            let uri = |name: &SanType| match name {
                SanType::URI(uri) => Ok(uri.to_string()),
                _ => Err("subject alternate name not allowed by this role"),
            };
            csr.params.subject_alt_names.iter().map(uri).collect::<Result<_, _>>()?
        } else {
            text("uri_sans").split(',').filter(|uri| !uri.is_empty()).map(str::to_owned).collect()
        };
        if names.iter().any(|name| !self.allowed_uri_sans.iter().any(|allowed| glob(allowed, name))) {
            return Err("URI Subject Alternative Names were provided which are not valid for this role");
        }
        let wanted: u64 = text("ttl").trim_end_matches('s').parse().map_err(|_| "the ttl is no duration")?;
        let ttl = Duration::from_secs(wanted).min(self.max_ttl);
        let warnings = (Duration::from_secs(wanted) > ttl).then(|| {
            format!("TTL {wanted}s is longer than permitted maxTTL {}s, so maxTTL is used", ttl.as_secs())
        });
        let now = SystemTime::now();
        if now + ttl > issuer.not_after {
            return Err("cannot satisfy request, as TTL would end after the issuer's certificate");
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            names.into_iter().map(|name| SanType::URI(name.try_into().expect("a URI is ASCII"))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - Duration::from_secs(30)).into();
        params.not_after = (now + ttl).into();
        let key = issuer.key.as_ref().expect("the default issuer has a key");
        let leaf =
            params.signed_by(&csr.public_key, key).map_err(|_| "certificate request could not be parsed")?;
        let mut answer = Answer::data(&json!({
            "certificate": leaf.pem(),
            "issuing_ca": issuer.pem,
            "ca_chain": issuer.chain,
            "serial_number": "17:d6",
            "expiration": (now + ttl).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs(),
        }));
        answer.body["warnings"] = json!(warnings.map(|warning| [warning]));
        Ok(answer)
    }
}

/// An authority under another one, or a root.
fn authority(
    name: &str,
    issuer: Option<&CertifiedIssuer<'static, KeyPair>>,
) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_after = (SystemTime::now() + YEAR).into();
    let key = KeyPair::generate().expect("a key");
    match issuer {
        Some(issuer) => CertifiedIssuer::signed_by(params, key, issuer),
        None => CertifiedIssuer::self_signed(params, key),
    }
    .expect("an authority's certificate")
}

/// Root, certificate and key in PEM of a server at `address`.
pub(crate) fn certified(address: IpAddr) -> (String, String, String) {
    let root = authority("root of a server's certificate", None);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![address.to_string()]).expect("an address");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &root).expect("a certificate");
    (root.pem(), certificate.pem(), key.serialize_pem())
}

/// `*` stands for anything.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(after, &rest[at..]))
        }),
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
