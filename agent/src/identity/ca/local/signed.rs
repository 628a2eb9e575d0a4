//! Until when each issuer's certificates are needed: one small file an issuer, for `culvert ca root remove`.
//!
//! `signed/<fingerprint of the issuer>.pem` holds the latest end of what was signed with that issuer, rounded up, and the
//! issuer's certificates, so that a copy of the file says everything. It is written before a certificate that it does
//! not cover yet is handed out. Several agents may share a directory: the latest end counts.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

use super::{
    files::{SIGNED, content, pem_files, read, read_chain},
    write::{PUBLIC, WriteError, ensure_dir, replace},
};
use crate::identity::{CaError, Fingerprint, ca::certificate_pem};

/// What one issuer signed, as far as its file says.
#[derive(Clone, Debug)]
pub(super) struct Signed {
    /// The issuer's certificates.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// No certificate that was signed is valid longer.
    pub(super) until: SystemTime,
}

impl Signed {
    /// Reads every record in `dir`, which may be absent.
    pub(super) fn read_all(dir: &Path) -> Result<Vec<Self>, CaError> {
        pem_files(dir)?.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Result<Self, CaError> {
        let text = read(path)?;
        let until = str::from_utf8(&text)
            .ok()
            .and_then(|text| text.lines().next()?.strip_prefix(UNTIL))
            .and_then(|time| humantime::parse_rfc3339(time.trim()).ok())
            .ok_or_else(|| {
                content(path, &format!("the first line is not `{UNTIL} TIME`: this is no record"))
            })?;
        let chain = read_chain(path)?;
        if chain.is_empty() {
            return Err(content(path, "there is no certificate in it"));
        }
        Ok(Self { chain, until })
    }

    /// Writes it into `dir`, unless what is there says more.
    pub(super) fn write(&self, dir: &Path) -> Result<(), WriteError> {
        ensure_dir(dir)?;
        let failed = |source| WriteError { path: dir.to_owned(), source };
        let lock = File::open(dir).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let path = dir.join(format!("{}.pem", Fingerprint::of(&self.chain[0])));
        // What cannot be read is no record, and is replaced.
        if Self::read(&path).is_ok_and(|there| there.until >= self.until) {
            return Ok(());
        }
        let mut text = format!("{UNTIL} {}\n", humantime::format_rfc3339_seconds(self.until));
        for certificate in &self.chain {
            text.push_str(&certificate_pem(certificate));
        }
        replace(&path, PUBLIC, text.as_bytes())
    }
}

/// Keeps the records of one signer.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
    /// What is on disk of the issuer that signs now.
    written: Mutex<Option<(Fingerprint, SystemTime)>>,
    failed: AtomicBool,
}

impl Records {
    /// Those of the authority in `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.join(SIGNED), written: Mutex::default(), failed: AtomicBool::new(false) }
    }

    /// Notes that a certificate is signed which is valid until `until` and `lifetime` long.
    ///
    /// Best effort: a directory that cannot be written is logged once, and the issuer's own end counts then.
    pub(super) async fn note(
        &self,
        chain: &[CertificateDer<'static>],
        until: SystemTime,
        lifetime: Duration,
    ) {
        let Some(issuer) = chain.first().map(|issuer| Fingerprint::of(issuer)) else { return };
        let mut written = self.written.lock().await;
        if written.is_some_and(|(of, covers)| of == issuer && covers >= until) {
            return;
        }
        // Rounded up, so that a node with thousands of identities writes some 16 times a lifetime.
        let until = until + (lifetime / STEPS).max(Duration::from_secs(1));
        let (signed, dir) = (Signed { chain: chain.to_vec(), until }, self.dir.clone());
        let writing = spawn_blocking(move || signed.write(&dir));
        let problem = match timeout(WRITE_TIMEOUT, writing).await {
            Ok(Ok(Ok(()))) => {
                *written = Some((issuer, until));
                self.failed.store(false, Ordering::Relaxed);
                return;
            }
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {}", humantime::format_duration(WRITE_TIMEOUT)),
        };
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dir = %self.dir.display(),
                error = problem,
                "what this authority signs is not recorded: `culvert ca root remove` cannot know how long its certificates live, and counts the intermediate's own end"
            );
        }
    }
}

const UNTIL: &str = "valid-until:";
/// In how many steps a lifetime is recorded.
const STEPS: u32 = 16;
/// A file system that hangs must not keep certificates from being signed: the keeper gives up after ten seconds.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
