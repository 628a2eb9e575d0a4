//! One request: who asks, for whom, with what; then the authority, the audit, and the answer.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{sync::watch, time::timeout};
use tonic::{Request, Response, Status};

use super::{
    audit::{Audit, Record, rfc3339},
    authorize::{Denied, authorize},
    caller::{Caller, Callers, Unauthenticated},
    csr::check_request,
    metrics::Metrics,
    rate::Rates,
    refusal::Refusal,
};
use crate::{
    identity::{
        CaError, CertificateAuthority, Csr, Issued,
        ca::{
            IssuedFacts, certificate_pem,
            istio::{CertificateRequest, CertificateResponse},
        },
    },
    mesh::{Identity, Snapshot, TrustDomain},
};

/// What a server is told.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The trust domain that it signs for.
    pub trust_domain: TrustDomain,
    /// The longest that a certificate is valid.
    pub max_lifetime: Duration,
    /// How many requests a node may make each second.
    pub requests_per_node: NonZeroU32,
    /// How long a request may wait for its pod to be heard of.
    pub late_pods: Duration,
}

/// Answers requests for certificates.
#[derive(Debug)]
pub struct CaService {
    config: ServiceConfig,
    ca: Arc<dyn CertificateAuthority>,
    mesh: watch::Receiver<Arc<Snapshot>>,
    callers: Callers,
    rates: Rates,
    audit: Audit,
    pub(super) metrics: Metrics,
}

/// What is known of a request so far, for the audit.
#[derive(Default)]
struct Known {
    caller: Option<Caller>,
    identity: Option<String>,
}

impl CaService {
    /// Makes a service that has `ca` sign for pods of `mesh`.
    pub fn new(
        config: ServiceConfig,
        ca: Arc<dyn CertificateAuthority>,
        mesh: watch::Receiver<Arc<Snapshot>>,
        (callers, audit, metrics): (Callers, Audit, Metrics),
    ) -> Self {
        let rates = Rates::new(config.requests_per_node);
        Self { config, ca, mesh, callers, rates, audit, metrics }
    }

    /// Answers one request that came from `remote`.
    pub(super) async fn create(
        &self,
        remote: SocketAddr,
        request: Request<CertificateRequest>,
    ) -> Result<Response<CertificateResponse>, Status> {
        let mut known = Known::default();
        let outcome = match self.sign(&request, &mut known).await {
            Ok((issued, facts)) => self.note_issued(remote, &known, &facts).await.map(|()| issued),
            Err(refusal) => Err(refusal),
        };
        match outcome {
            Ok(issued) => {
                self.metrics.issued();
                Ok(Response::new(self.answer(&issued)))
            }
            Err(refusal) => {
                self.metrics.refused(&refusal);
                self.note_refused(remote, &known, &refusal).await;
                Err(refusal.status())
            }
        }
    }

    async fn sign(
        &self,
        request: &Request<CertificateRequest>,
        known: &mut Known,
    ) -> Result<(Issued, IssuedFacts), Refusal> {
        let caller = known.caller.insert(self.callers.authenticate(bearer(request)?).await?);
        self.rates.take(&caller.node, Instant::now()).map_err(Refusal::TooOften)?;

        let message = request.get_ref();
        let identity = self.asked(message, caller)?;
        known.identity = Some(identity.to_string());
        let csr = check_request(&message.csr, &identity)?;
        let csr = csr.with_lifetime(self.lifetime(message.validity_duration)?);
        self.authorize(&caller.node, &identity).await?;
        self.have_signed(&csr, &identity).await
    }

    /// Who the certificate is for: whom the metadata name, or the caller itself. The same rule holds for both.
    fn asked(&self, message: &CertificateRequest, caller: &Caller) -> Result<Identity, Refusal> {
        let ours = &self.config.trust_domain;
        let identity = match message.impersonated() {
            Some(text) => text.parse()?,
            None => caller.identity(ours).ok_or(Unauthenticated::Claim("service account's name"))?,
        };
        if identity.trust_domain() != ours {
            let asked = identity.trust_domain().clone();
            return Err(Refusal::TrustDomain { ours: ours.clone(), asked });
        }
        Ok(identity)
    }

    /// Waits for a pod that was made just now: this server may hear of it a moment after its node's agent.
    async fn authorize(&self, node: &str, identity: &Identity) -> Result<(), Denied> {
        let mut mesh = self.mesh.clone();
        let waiting = async {
            loop {
                let outcome = authorize(&mesh.borrow_and_update().clone(), node, identity);
                if outcome.is_ok() || mesh.changed().await.is_err() {
                    return outcome;
                }
            }
        };
        match timeout(self.config.late_pods, waiting).await {
            Ok(outcome) => outcome,
            Err(_) => authorize(&self.mesh.borrow().clone(), node, identity),
        }
    }

    fn lifetime(&self, asked: i64) -> Result<Duration, Refusal> {
        let least = MIN_LIFETIME.min(self.config.max_lifetime);
        match u64::try_from(asked).map(Duration::from_secs) {
            Ok(Duration::ZERO) => Ok(self.config.max_lifetime),
            Ok(lifetime) if lifetime >= least => Ok(lifetime.min(self.config.max_lifetime)),
            _ => Err(Refusal::Lifetime { asked, least: least.as_secs() }),
        }
    }

    /// Has the authority sign, and does not believe what it returns.
    async fn have_signed(&self, csr: &Csr, identity: &Identity) -> Result<(Issued, IssuedFacts), Refusal> {
        let signing = timeout(SIGN_LIMIT, self.ca.sign(csr, identity));
        let issued =
            signing.await.unwrap_or(Err(CaError::Timeout(SIGN_LIMIT))).map_err(Refusal::Authority)?;
        let facts = issued.check(csr, identity, &self.ca.trust())?;
        let latest = SystemTime::now().checked_add(csr.lifetime().unwrap_or_default() + CLOCKS_APART);
        if latest.is_some_and(|latest| facts.not_after > latest) {
            return Err(Refusal::Overlong(rfc3339(facts.not_after)));
        }
        Ok((issued, facts))
    }

    /// The leaf, the intermediates, and all roots of the mesh in the last element, as Istio's clients have it.
    fn answer(&self, issued: &Issued) -> CertificateResponse {
        let roots = Arc::clone(&self.ca.trust().borrow());
        let roots: String = roots.certificates().iter().map(|root| certificate_pem(root)).collect();
        let chain = issued.chain.iter().map(|certificate| certificate_pem(certificate));
        CertificateResponse { cert_chain: chain.chain([roots]).collect() }
    }

    async fn note_issued(
        &self,
        remote: SocketAddr,
        known: &Known,
        facts: &IssuedFacts,
    ) -> Result<(), Refusal> {
        let record = Record {
            outcome: "issued",
            serial: Some(facts.serial.clone()),
            not_after: Some(rfc3339(facts.not_after)),
            ..record(remote, known)
        };
        self.audit.write(&record).await.map_err(Refusal::Audit)
    }

    async fn note_refused(&self, remote: SocketAddr, known: &Known, refusal: &Refusal) {
        let record = Record {
            reason: Some(refusal.reason()),
            error: Some(refusal.to_string()),
            ..record(remote, known)
        };
        if let Err(error) = self.audit.write(&record).await {
            tracing::error!(%error, %refusal, "the audit cannot be written: no certificate is given out until it can");
        }
    }
}

fn record(remote: SocketAddr, known: &Known) -> Record {
    let caller = known.caller.as_ref();
    Record {
        time: rfc3339(SystemTime::now()),
        outcome: "refused",
        reason: None,
        error: None,
        remote,
        caller: caller.map(|caller| caller.account.subject()),
        pod: caller.and_then(|caller| caller.pod.clone()),
        node: caller.map(|caller| caller.node.to_string()),
        identity: known.identity.clone(),
        serial: None,
        not_after: None,
    }
}

/// The token in the request (RFC 6750 §2.1).
fn bearer(request: &Request<CertificateRequest>) -> Result<&str, Unauthenticated> {
    let mut values = request.metadata().get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(Unauthenticated::NoToken) };
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Unauthenticated::NoToken)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(Unauthenticated::NoToken) }
}

/// How long the authority behind this server may take: less than callers wait.
const SIGN_LIMIT: Duration = Duration::from_secs(7);
/// How far the clock of the authority behind this server may be ahead.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// The shortest certificate: renewed at half of its life, it makes a request each few seconds.
const MIN_LIFETIME: Duration = Duration::from_secs(10);
