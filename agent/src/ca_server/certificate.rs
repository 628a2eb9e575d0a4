//! The server's own certificate: signed by the authority that it serves, or from files.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use crate::identity::{CaError, FileState, Followed, LocalCa, tls_provider};

/// The certificate that the server shows, now and later.
pub struct ServerCertificate {
    current: watch::Receiver<Arc<CertifiedKey>>,
    kept: Kept,
}

/// What keeps it fresh.
enum Kept {
    /// Whoever replaces the files.
    Files(Followed<CertifiedKey>),
    /// A task that has it signed anew.
    Task { _task: AbortOnDropHandle<()> },
}

/// Why the server has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {problem}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The authority did not sign it.
    #[error("the authority did not sign the server's own certificate: {0}")]
    Authority(#[from] CaError),
}

impl ServerCertificate {
    /// Reads certificate and key, and reads them again whenever they change. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where they cannot be used.
    pub fn from_files(certificate: PathBuf, key: PathBuf) -> Result<Self, CertificateError> {
        let paths = vec![certificate.clone(), key.clone()];
        let files = Followed::start("certificate of the server", paths, move || read(&certificate, &key))?;
        Ok(Self { current: files.watch(), kept: Kept::Files(files) })
    }

    /// Has a certificate for `names` signed, and has it signed anew every now and then. Must be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// Where the first cannot be signed.
    pub fn issued_by(ca: Arc<LocalCa>, names: Vec<ServerName<'static>>) -> Result<Self, CertificateError> {
        let (sender, current) = watch::channel(issue(&ca, &names)?);
        let task = tokio::spawn(async move {
            loop {
                sleep(REISSUE).await;
                match issue(&ca, &names) {
                    Ok(new) => drop(sender.send_replace(new)),
                    Err(error) => tracing::error!(%error, "the server keeps its old certificate"),
                }
            }
        });
        Ok(Self { current, kept: Kept::Task { _task: AbortOnDropHandle::new(task) } })
    }

    /// Returns how reading went, where it is read from files.
    pub fn file(&self) -> Option<watch::Receiver<FileState>> {
        match &self.kept {
            Kept::Files(files) => Some(files.state()),
            Kept::Task { .. } => None,
        }
    }

    /// Returns when it expires; none where that cannot be read from it.
    pub fn not_after(&self) -> Option<SystemTime> {
        let current = Arc::clone(&self.current.borrow());
        let (_, leaf) = x509_parser::parse_x509_certificate(current.cert.first()?).ok()?;
        let expiry = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(expiry))
    }

    /// Returns the configuration of the server's TLS, which always shows the newest certificate. Callers show none: they
    /// have tokens, and no certificate yet.
    pub fn server_config(self: &Arc<Self>) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(tls_provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites and groups for TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.borrow()))
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("not_after", &self.not_after()).finish_non_exhaustive()
    }
}

fn issue(ca: &LocalCa, names: &[ServerName<'static>]) -> Result<Arc<CertifiedKey>, CertificateError> {
    Ok(Arc::new(ca.certify_server(names, LIFETIME)?))
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let content = |path: &Path, problem: String| CertificateError::Content { path: path.to_owned(), problem };
    let load = |path: &Path| {
        let read = fs::read(path).map(Zeroizing::new);
        read.map_err(|source| CertificateError::Read { path: path.to_owned(), source })
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&load(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| content(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(content(certificate, "there is no certificate in it".to_owned()));
    }
    let der = PrivateKeyDer::from_pem_slice(&load(key)?).map_err(|error| content(key, error.to_string()))?;
    let signer = any_supported_type(&der).map_err(|error| content(key, error.to_string()))?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(_) => {
            let certificate = certificate.display();
            Err(content(key, format!("this is not the key of the certificate in {certificate}")))
        }
    }
}

/// How long the server's own certificate is valid: long enough for a night in which nothing signs.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How often it is signed anew, which costs less than a millisecond: so it follows the authority's own rotation.
const REISSUE: Duration = Duration::from_secs(60);
