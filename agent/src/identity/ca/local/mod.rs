//! The authority in a directory: an intermediate that this process signs with, under a root whose key may be elsewhere.
//!
//! | file | what | needed by the agent |
//! | --- | --- | --- |
//! | `root.pem` | the roots that the mesh trusts | yes |
//! | `root.key` | a root's key; signs intermediates only | no: keep it offline |
//! | `intermediate.pem` | what signs workloads; names the trust domain | yes |
//! | `intermediate.key` | its key | yes |
//! | `signed/` | until when each issuer's certificates are needed | written by it |
//! | `retired/` | intermediates that were replaced | no |
//! | `intermediate.key.next`, `intermediate.csr` | a replacement that is being made | no |
//!
//! The agent follows the first three. The roots take effect by themselves: who takes one away means it. Another
//! intermediate takes effect once its certificate and key fit together and a certificate that it signs chains to
//! `root.pem`; until then the one before it goes on signing.

mod directory;
mod expiry;
mod files;
mod init;
mod params;
mod place;
mod roots;
mod signed;
#[cfg(test)]
mod tests;
mod write;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{pki_types::ServerName, sign::CertifiedKey};
use tokio::{sync::watch, time::interval};
use tokio_util::task::AbortOnDropHandle;

pub use self::{
    directory::{CaDirectory, IntermediateError, sign_request},
    init::{InitError, Lifetimes, NewAuthority},
    place::{IssuerFiles, IssuerPem},
    roots::{Force, Need, NeedSource, RootInfo, RootsError},
    write::{WriteError, write_new},
};
use self::{files::Intermediate, place::Place, signed::Records};
use super::{CaError, CertificateAuthority, Csr, Signing};
use crate::{
    identity::{Followed, Trust, TrustBundle},
    mesh::{Identity, TrustDomain},
};

/// A certificate authority in a directory, whose files are followed.
pub struct LocalCa {
    place: Place,
    trust_domain: TrustDomain,
    lifetime: Duration,
    signer: watch::Receiver<Arc<Signer>>,
    trust: Trust,
    generation: watch::Receiver<u64>,
    records: Option<Records>,
    /// Kept, since they end with the last clone.
    roots: Followed<TrustBundle>,
    signers: Followed<Signer>,
    _publishing: AbortOnDropHandle<()>,
}

/// An intermediate, and the roots under which it was tried out.
struct Signer {
    intermediate: Intermediate,
    bundle: Arc<TrustBundle>,
}

impl LocalCa {
    /// How long a workload's certificate is valid: 24 hours, as in Istio and Linkerd. Renewed at half of it, a node
    /// lives through twelve hours without its authority.
    pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

    /// Makes a new authority in `dir`, which must be absent or empty: a root, and an intermediate that it signs.
    ///
    /// The directory appears complete or not at all. Blocking.
    ///
    /// # Errors
    /// Where `dir` has something in it, cannot be written, or a lifetime is not possible.
    pub fn init(dir: &Path, trust_domain: &TrustDomain, lifetimes: Lifetimes) -> Result<(), InitError> {
        init::init(dir, trust_domain, lifetimes, None)
    }

    /// As [`Self::init`], with the root's key in a file elsewhere, which must not be there yet.
    ///
    /// # Errors
    /// As [`Self::init`]'s, and where the key's file cannot be made.
    pub fn init_with_root_key(
        dir: &Path,
        trust_domain: &TrustDomain,
        lifetimes: Lifetimes,
        root_key: &Path,
    ) -> Result<(), InitError> {
        init::init(dir, trust_domain, lifetimes, Some(root_key))
    }

    /// Opens the authority in `dir`, signs a certificate for nobody to see that its files work, and follows them.
    /// Blocking; must be called within a Tokio runtime.
    ///
    /// # Errors
    /// Where a file is missing, unreadable or expired, or they do not belong together.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        Self::open_at(Place::Directory(dir.to_owned()))
    }

    /// As [`Self::open`], where somebody else keeps the files: nothing is written beside them.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_files(files: IssuerFiles) -> Result<Self, CaError> {
        Self::open_at(Place::Files(files))
    }

    /// As [`Self::open`], where the authority is in no file: `given` has its newest content.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_given(given: &watch::Receiver<Arc<IssuerPem>>) -> Result<Self, CaError> {
        let place = Place::Given(Arc::clone(&given.borrow()));
        let roots = Followed::derive("trust bundle", vec![place.roots()], given.clone(), |given| {
            Place::Given(Arc::clone(given)).read_roots()
        })?;
        let ours = Signer::read(&place, None)?.intermediate.trust_domain;
        let signers = Followed::derive("intermediate", place.all(), given.clone(), move |given| {
            Signer::read(&Place::Given(Arc::clone(given)), Some(&ours))
        })?;
        Ok(Self::follow(place, roots, signers))
    }

    fn open_at(place: Place) -> Result<Self, CaError> {
        let here = place.clone();
        let roots = Followed::start("trust bundle", vec![place.roots()], move || here.read_roots())?;
        let ours = Signer::read(&place, None)?.intermediate.trust_domain;
        let here = place.clone();
        let signers = Followed::start("intermediate", place.all(), move || Signer::read(&here, Some(&ours)))?;
        Ok(Self::follow(place, roots, signers))
    }

    fn follow(place: Place, roots: Followed<TrustBundle>, signers: Followed<Signer>) -> Self {
        let (trust_sender, trust) = watch::channel(roots.get());
        let (signer_sender, signer) = watch::channel(signers.get());
        let (generation_sender, generation) = watch::channel(0);
        let publisher = Publisher {
            roots: roots.watch(),
            signers: signers.watch(),
            trust: trust_sender,
            signer: signer_sender,
            generation: generation_sender,
        };
        Self {
            trust_domain: signers.get().intermediate.trust_domain.clone(),
            lifetime: Self::LIFETIME,
            signer,
            trust,
            generation,
            records: place.directory().map(Records::new),
            roots,
            signers,
            place,
            _publishing: AbortOnDropHandle::new(tokio::spawn(publisher.run())),
        }
    }

    /// Returns the authority with another lifetime of the certificates that it signs; whole seconds.
    #[must_use]
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Returns the trust domain that it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns when its own certificate expires. No certificate that it signs outlives it.
    pub fn not_after(&self) -> SystemTime {
        self.signer.borrow().intermediate.not_after
    }

    /// Makes a key and signs a certificate for a server of these names, for TLS as on the web: no member of the mesh
    /// takes it for one of its own, since no SPIFFE ID is in it.
    ///
    /// # Errors
    /// Where the authority's own certificate has expired, or the cryptographic library fails.
    pub fn certify_server(
        &self,
        names: &[ServerName<'_>],
        lifetime: Duration,
    ) -> Result<CertifiedKey, CaError> {
        let signer = Arc::clone(&self.signer.borrow());
        let until = SystemTime::now().checked_add(lifetime).unwrap_or(signer.intermediate.not_after);
        signer.intermediate.certify_server(names, until)
    }
}

impl CertificateAuthority for LocalCa {
    fn sign<'a>(&'a self, csr: &'a Csr, identity: &'a Identity) -> Signing<'a> {
        Box::pin(async move {
            let signer = Arc::clone(&self.signer.borrow());
            let Intermediate { chain, not_after, .. } = &signer.intermediate;
            let lifetime = csr.lifetime().map_or(self.lifetime, |wanted| wanted.min(self.lifetime));
            let until =
                SystemTime::now().checked_add(lifetime).map_or(*not_after, |until| until.min(*not_after));
            // Some 100 µs of arithmetic: not worth another thread.
            let issued = signer.intermediate.issue(csr, identity, until)?;
            if let Some(records) = &self.records {
                records.note(chain, until, self.lifetime).await;
            }
            Ok(issued)
        })
    }

    fn source(&self) -> String {
        format!("local {}", self.place)
    }

    fn trust(&self) -> Trust {
        self.trust.clone()
    }

    fn generation(&self) -> watch::Receiver<u64> {
        self.generation.clone()
    }
}

impl std::fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCa")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after())
            .field("lifetime", &self.lifetime)
            .field("roots", &self.roots)
            .field("signers", &self.signers)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads an intermediate, and sees that it works. The trust domain of a running agent does not change.
    fn read(place: &Place, ours: Option<&TrustDomain>) -> Result<Self, CaError> {
        let intermediate = place.read_intermediate()?;
        if let Some(ours) = ours
            && *ours != intermediate.trust_domain
        {
            let problem = format!(
                "it is of trust domain {}, and this process serves {ours}: restart it to change that",
                intermediate.trust_domain
            );
            return Err(files::content(&place.certificate(), &problem));
        }
        let bundle = Arc::new(place.read_roots()?);
        intermediate.try_out(&place.named(), &bundle)?;
        Ok(Self { intermediate, bundle })
    }
}

/// Takes new content of the files into use, in the one order that lets nobody sign what nobody trusts.
struct Publisher {
    roots: watch::Receiver<Arc<TrustBundle>>,
    signers: watch::Receiver<Arc<Signer>>,
    trust: watch::Sender<Arc<TrustBundle>>,
    signer: watch::Sender<Arc<Signer>>,
    generation: watch::Sender<u64>,
}

impl Publisher {
    async fn run(self) {
        let (mut roots, mut signers) = (self.roots.clone(), self.signers.clone());
        let mut day = interval(DAY);
        loop {
            tokio::select! {
                Ok(()) = roots.changed() => self.trust(&roots.borrow_and_update()),
                Ok(()) = signers.changed() => self.signer(&signers.borrow_and_update()),
                _ = day.tick() => expiry::warn(&self.signer.borrow().intermediate.chain, self.trust.borrow().certificates()),
            }
        }
    }

    fn trust(&self, bundle: &Arc<TrustBundle>) {
        self.trust.send_if_modified(|ours| {
            let other = ours.certificates() != bundle.certificates();
            if other {
                tracing::info!(roots = %expiry::listed(bundle.certificates()), "other roots are trusted from now on");
                *ours = Arc::clone(bundle);
            }
            other
        });
    }

    /// Trust first: what the new issuer signs must be trusted by ourselves.
    fn signer(&self, signer: &Arc<Signer>) {
        self.trust(&signer.bundle);
        let other = signer.intermediate.chain != self.signer.borrow().intermediate.chain;
        self.signer.send_replace(Arc::clone(signer));
        if other {
            let issuer = expiry::listed(&signer.intermediate.chain);
            tracing::info!(%issuer, "another intermediate signs from now on");
            self.generation.send_modify(|generation| *generation += 1);
        }
    }
}

/// How often what expires soon is named in the log.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
