//! Tokens that the API server checks (TokenReview, `authentication.k8s.io/v1`): it knows whether a token's pod is still
//! there, and by which keys it signs.
//!
//! What it said of a token is good for [`FRESH`], so that an agent's burst is one question. Answers are kept under the
//! token's hash, never the token.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo},
    core::v1::Pod,
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::{OnceCell, Semaphore},
    time::timeout,
};

use super::{
    caller::{Caller, ServiceAccount, Unauthenticated},
    refusal::Refusal,
};

/// What tokens must be like.
#[derive(Clone, Debug)]
pub struct ReviewRules {
    /// Whom tokens must be made for.
    pub audience: String,
    /// The service accounts that may ask for a node's pods.
    pub agents: Vec<ServiceAccount>,
}

/// Has the API server tell whose tokens they are. Cheap to clone.
#[derive(Clone)]
pub struct Reviews(Arc<Inner>);

struct Inner {
    client: Client,
    rules: ReviewRules,
    answers: Mutex<HashMap<Digest, Answer>>,
    asking: Semaphore,
}

/// What the API server said, or is being asked. One question for all who wait.
#[derive(Clone)]
struct Answer {
    since: Instant,
    outcome: Arc<OnceCell<Result<Caller, Unauthenticated>>>,
}

type Digest = [u8; 32];

/// Why nobody knows whose token it is.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The API server refused the question, or cannot be reached.
    #[error("the API server did not say whose token it is: {0}")]
    Api(#[from] kube::Error),
    /// It did not answer in time, or too many are asking.
    #[error("the API server did not say within {} whose token it is", humantime::format_duration(LIMIT))]
    Timeout(#[from] tokio::time::error::Elapsed),
}

impl Reviews {
    /// Makes it. Nothing is asked yet.
    pub fn new(client: Client, rules: ReviewRules) -> Self {
        let (answers, asking) = (Mutex::default(), Semaphore::new(MAX_ASKING));
        Self(Arc::new(Inner { client, rules, answers, asking }))
    }

    /// Returns whose token it is.
    pub(super) async fn authenticate(&self, token: &str) -> Result<Caller, Refusal> {
        if token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return Err(Unauthenticated::Malformed.into());
        }
        let outcome = self.0.answer(token);
        let asked = outcome.get_or_try_init(|| self.0.review(token));
        let answered = timeout(LIMIT, asked).await.map_err(ReviewError::from)??;
        Ok(answered.clone()?)
    }
}

impl Inner {
    /// Returns the place of a token's answer, which may be there already.
    fn answer(&self, token: &str) -> Arc<OnceCell<Result<Caller, Unauthenticated>>> {
        let hash = digest(&SHA256, token.as_bytes());
        let hash: Digest = hash.as_ref().try_into().expect("SHA-256 has 32 bytes");
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get(&hash).filter(|answer| answer.since.elapsed() < FRESH) {
            return Arc::clone(&answer.outcome);
        }
        if answers.len() >= MAX_ANSWERS {
            answers.retain(|_, answer| answer.since.elapsed() < FRESH);
        }
        let outcome = Arc::default();
        // Where strangers fill it with tokens that differ, agents are asked for each time.
        if answers.len() < MAX_ANSWERS {
            answers.insert(hash, Answer { since: Instant::now(), outcome: Arc::clone(&outcome) });
        }
        outcome
    }

    async fn review(&self, token: &str) -> Result<Result<Caller, Unauthenticated>, ReviewError> {
        let _turn = self.asking.acquire().await.expect("the semaphore is never closed");
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![self.rules.audience.clone()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let reviews = Api::<TokenReview>::all(self.client.clone());
        let status = reviews.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        match self.admit(status) {
            Ok(bound) => self.locate(bound).await,
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn admit(&self, status: TokenReviewStatus) -> Result<Bound, Unauthenticated> {
        let TokenReviewStatus { audiences, authenticated, error, user } = status;
        if authenticated != Some(true) {
            let why = error.unwrap_or_else(|| "it does not say why".to_owned());
            return Err(Unauthenticated::Refused(why.chars().take(MAX_REASON).collect()));
        }
        // An API server that takes no notice of audiences answers without them (TokenReviewStatus).
        if !audiences.unwrap_or_default().contains(&self.rules.audience) {
            return Err(Unauthenticated::Audience(self.rules.audience.clone()));
        }
        let UserInfo { username, extra, .. } = user.unwrap_or_default();
        let account = username.as_deref().and_then(ServiceAccount::of_subject);
        let account = account.ok_or(Unauthenticated::Claim("user name of a service account"))?;
        if !self.rules.agents.contains(&account) {
            return Err(Unauthenticated::NoAgent(account));
        }
        let mut extra = extra.unwrap_or_default();
        let mut one = |name: &str| match extra.remove(&format!("authentication.kubernetes.io/{name}")) {
            Some(values) if values.len() == 1 => values.into_iter().next(),
            _ => None,
        };
        let (pod, uid) = (one("pod-name"), one("pod-uid"));
        let (Some(pod), Some(uid)) = (pod, uid) else { return Err(Unauthenticated::NotBound) };
        Ok(Bound { account, pod, uid, node: one("node-name") })
    }

    /// Finds the node of the token's pod: an API server older than 1.30 does not name it.
    async fn locate(&self, bound: Bound) -> Result<Result<Caller, Unauthenticated>, ReviewError> {
        let Bound { account, pod, uid, node } = bound;
        let node = match node {
            Some(node) => node,
            None => {
                let pods = Api::<Pod>::namespaced(self.client.clone(), account.namespace());
                let found =
                    pods.get_opt(&pod).await?.filter(|found| found.metadata.uid.as_ref() == Some(&uid));
                let Some(found) = found else { return Ok(Err(Unauthenticated::PodGone(pod))) };
                found.spec.and_then(|spec| spec.node_name).unwrap_or_default()
            }
        };
        Ok(Caller::new(account, &node, Some(pod)))
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reviews").field("rules", &self.0.rules).finish_non_exhaustive()
    }
}

/// What a token is bound to.
struct Bound {
    account: ServiceAccount,
    pod: String,
    uid: String,
    node: Option<String>,
}

/// For how long an answer is good: so long a deleted pod's token is, too.
const FRESH: Duration = Duration::from_secs(10);
/// How many answers are kept: more than a cluster has nodes.
const MAX_ANSWERS: usize = 16 * 1024;
/// How many questions may be under way.
const MAX_ASKING: usize = 16;
/// How long an answer may take: less than callers wait, so that they hear why there is none.
const LIMIT: Duration = Duration::from_secs(5);
/// The longest token: those of Kubernetes have a kilobyte or two.
const MAX_TOKEN: usize = 16 * 1024;
/// How much of the API server's own words is passed on.
const MAX_REASON: usize = 300;
