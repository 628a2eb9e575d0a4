//! The mesh's roots: from a file, or from the mount that signs.

use std::{collections::HashSet, fs, path::PathBuf, sync::Arc, time::Duration};

use http::StatusCode;
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use serde::Deserialize;
use tokio::{sync::watch, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{
    VaultError, VaultPath,
    chain::certificates,
    client::{Call, VaultClient},
};
use crate::identity::{
    Followed,
    certificate::is_root,
    keeper::back_off,
    trust::{Trust, TrustBundle},
};

/// The roots that the mesh trusts.
#[derive(Debug)]
pub(super) enum Roots {
    /// In a file that somebody else replaces.
    File(Followed<TrustBundle>),
    /// The self-signed certificates among the mount's issuers, asked for again and again.
    Mount(Polled),
}

/// Roots that a task asks for, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Polled {
    trust: Trust,
    outcome: watch::Receiver<Outcome>,
    _task: AbortOnDropHandle<()>,
}

/// How asking went so far.
#[derive(Clone, Debug)]
enum Outcome {
    Nothing,
    Failed(VaultError),
    /// There are roots, maybe old ones.
    Found,
}

#[derive(Deserialize)]
struct Issuers {
    data: Keys,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<VaultPath>,
}

#[derive(Deserialize)]
struct Issuer {
    data: Certificates,
}

#[derive(Deserialize)]
struct Certificates {
    certificate: String,
    #[serde(default)]
    ca_chain: Option<Vec<String>>,
}

impl Roots {
    /// Follows the roots in a file. Blocking.
    pub(super) fn file(path: PathBuf) -> Result<Self, VaultError> {
        let paths = vec![path.clone()];
        let read = move || {
            let pem = fs::read(&path)
                .map_err(|source| VaultError::Read { path: path.clone(), source: Arc::new(source) })?;
            TrustBundle::from_pem(&pem).map_err(|source| VaultError::RootsFile { path: path.clone(), source })
        };
        Followed::start("mesh roots", paths, read).map(Self::File)
    }

    /// Asks the mount. Must be called within a Tokio runtime.
    pub(super) fn mount(client: Arc<VaultClient>, mount: VaultPath) -> Self {
        let (sender, trust) = watch::channel(Arc::new(nobody()));
        let (outcomes, outcome) = watch::channel(Outcome::Nothing);
        let task = AbortOnDropHandle::new(tokio::spawn(poll(client, mount, sender, outcomes)));
        Self::Mount(Polled { trust, outcome, _task: task })
    }

    /// Waits until there are roots.
    ///
    /// # Errors
    /// Where the mount did not tell them yet.
    pub(super) async fn known(&self) -> Result<(), VaultError> {
        let Self::Mount(polled) = self else { return Ok(()) };
        let mut outcome = polled.outcome.clone();
        let outcome = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Nothing)).await;
        match &*outcome.expect("the task lives as long as the roots") {
            Outcome::Failed(error) => Err(error.clone()),
            Outcome::Found | Outcome::Nothing => Ok(()),
        }
    }

    /// Returns the roots as they change. Before the first are [known](Self::known), nobody is trusted.
    pub(super) fn trust(&self) -> Trust {
        match self {
            Self::File(file) => file.watch(),
            Self::Mount(polled) => polled.trust.clone(),
        }
    }
}

async fn poll(
    client: Arc<VaultClient>,
    mount: VaultPath,
    trust: watch::Sender<Arc<TrustBundle>>,
    outcomes: watch::Sender<Outcome>,
) {
    let (mut in_force, mut failures) = (HashSet::new(), 0);
    loop {
        match ask(&client, &mount).await {
            Ok((bundle, found)) => {
                failures = 0;
                if found != in_force {
                    tracing::info!(vault = %client.address(), %mount, roots = found.len(), "roots of the mesh: the mount's are in force");
                    trust.send_replace(Arc::new(bundle));
                    in_force = found;
                }
                outcomes.send_replace(Outcome::Found);
                let pause = INTERVAL.mul_f64(rand::rng().random_range(0.9..1.1));
                sleep(pause).await;
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(vault = %client.address(), %mount, %error, failures, kept = in_force.len(), "no roots from the mount: those that it told before stay in force");
                if in_force.is_empty() {
                    outcomes.send_replace(Outcome::Failed(error));
                }
                let pause = back_off(failures, rand::rng().random_range(0.5..1.0));
                sleep(pause).await;
            }
        }
    }
}

/// Returns the roots among the mount's issuers and their chains. All issuers, not the default one alone: while one root
/// replaces another, both are there.
async fn ask(
    client: &VaultClient,
    mount: &VaultPath,
) -> Result<(TrustBundle, HashSet<CertificateDer<'static>>), VaultError> {
    let problem = |problem: String| VaultError::Roots { mount: mount.to_string(), problem };
    let listed = client.call(Call::list(&format!("/v1/{mount}/issuers"))).await;
    let Issuers { data: Keys { keys } } = listed.map_err(|error| error.remedied(remedy))?;
    if keys.len() > MAX_ISSUERS {
        return Err(problem(format!("it has {} issuers, which is more than {MAX_ISSUERS}", keys.len())));
    }
    let mut found = HashSet::new();
    for key in &keys {
        let Issuer { data } = client.call(Call::read(format!("/v1/{mount}/issuer/{key}/json"))).await?;
        let texts = [data.certificate].into_iter().chain(data.ca_chain.unwrap_or_default());
        let all = certificates(texts).map_err(|text| problem(format!("issuer {key}: {text}")))?;
        found.extend(all.into_iter().filter(is_root));
    }
    if found.is_empty() {
        return Err(problem(
            "none of its issuers is self-signed, as where the root is kept elsewhere".to_owned(),
        ));
    }
    let bundle =
        TrustBundle::new(found.iter().cloned().collect()).map_err(|error| problem(error.to_string()))?;
    Ok((bundle, found))
}

/// Vault answers 403 to whoever has no token also where nothing is mounted.
fn remedy(status: StatusCode) -> Option<String> {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND).then(|| {
        "no PKI engine is mounted there (--vault-mount, --vault-namespace), or one that lists no issuers, as before \
         Vault 1.11: name a file of roots (--ca-roots)"
            .to_owned()
    })
}

/// A bundle of one root whose key is gone as soon as it is made: no certificate chains to it.
fn nobody() -> TrustBundle {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "nobody is trusted: Vault told no roots yet");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let root = KeyPair::generate()
        .and_then(|key| params.self_signed(&key))
        .expect("a key and a certificate are made");
    TrustBundle::new(vec![root.into()]).expect("it is a root certificate")
}

/// How often the mount is asked. A new root has to be in the mount for longer than this before it signs.
const INTERVAL: Duration = Duration::from_secs(60);
/// Issuers of one mount: one or two, and those that are kept for their revocation lists.
const MAX_ISSUERS: usize = 64;
