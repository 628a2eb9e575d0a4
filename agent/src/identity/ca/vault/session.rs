//! Logins by Vault's Kubernetes auth method, repeated before the token's lease ends and when Vault refuses the token.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use http::StatusCode;
use rand::Rng as _;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::{
    VaultError, VaultPath,
    client::{Call, VaultClient},
    token::Token,
};
use crate::identity::keeper::back_off;

/// How to log in.
#[derive(Clone, Debug)]
pub struct KubernetesLogin {
    /// Where the auth method is mounted, `kubernetes` by default.
    pub path: VaultPath,
    /// The role to log in with: one of the auth method, not of the PKI engine.
    pub role: VaultPath,
    /// The service account's token; read at each login, since the kubelet replaces it.
    pub jwt: PathBuf,
}

/// A login that is kept alive by a task of its own, which ends when this is dropped.
pub(super) struct Session {
    state: watch::Receiver<State>,
    refusals: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Default)]
struct State {
    /// The newest token whose lease has not ended.
    token: Option<Arc<Token>>,
    /// Why the last login failed; none after a success.
    error: Option<VaultError>,
}

#[derive(Serialize)]
struct Credentials<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    auth: Granted,
}

#[derive(Deserialize)]
struct Granted {
    client_token: Zeroizing<String>,
    /// Seconds; zero for a token that does not end.
    lease_duration: u64,
}

impl Session {
    /// Begins to log in. Must be called within a Tokio runtime.
    pub(super) fn start(client: Arc<VaultClient>, login: KubernetesLogin) -> Self {
        let (sender, state) = watch::channel(State::default());
        // Tokens are numbered from 1.
        let (refusals, refused) = watch::channel(0);
        let task = tokio::spawn(keep(client, login, sender, refused));
        Self { state, refusals, _task: AbortOnDropHandle::new(task) }
    }

    /// Returns a token; waits while the first login is under way.
    pub(super) async fn token(&self) -> Result<Arc<Token>, VaultError> {
        self.token_after(0).await
    }

    /// Logs in once more, unless that was just done: then it is not the token that is wrong.
    pub(super) async fn instead_of(&self, refused: &Token) -> Option<Result<Arc<Token>, VaultError>> {
        if refused.since.elapsed() < MIN_AGE {
            return None;
        }
        self.refusals.send_if_modified(|number| {
            let newer = refused.number > *number;
            *number = refused.number.max(*number);
            newer
        });
        Some(self.token_after(refused.number).await)
    }

    /// Waits for a token with a greater number, or a failed login.
    async fn token_after(&self, number: u64) -> Result<Arc<Token>, VaultError> {
        let mut receiver = self.state.clone();
        let state =
            receiver.wait_for(|state| state.newer_than(number).is_some() || state.error.is_some()).await;
        let state = state.expect("the task lives as long as the session").clone();
        match (state.newer_than(number), &state.error) {
            (Some(token), _) => Ok(Arc::clone(token)),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => unreachable!("one of them was waited for"),
        }
    }
}

impl State {
    fn newer_than(&self, number: u64) -> Option<&Arc<Token>> {
        self.token.as_ref().filter(|token| token.number > number)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("token", &self.state.borrow().token).finish_non_exhaustive()
    }
}

async fn keep(
    client: Arc<VaultClient>,
    login: KubernetesLogin,
    sender: watch::Sender<State>,
    mut refused: watch::Receiver<u64>,
) {
    let (mut number, mut failures, mut ends) = (0, 0, None::<Instant>);
    loop {
        match log_in(&client, &login, number + 1).await {
            Ok((token, lease)) => {
                (number, failures) = (token.number, 0);
                ends = lease.map(|lease| token.since + lease);
                tracing::info!(vault = %client.address(), role = %login.role, lease = ?lease, "logged in to Vault");
                let rest = lease.unwrap_or(MAX_REST).min(MAX_REST) / 2;
                let rest = rest.mul_f64(1.0 - rand::rng().random_range(0.0..JITTER));
                let again = token.since + rest.max(MIN_REST);
                sender.send_replace(State { token: Some(Arc::new(token)), error: None });
                tokio::select! {
                    () = sleep_until(again) => {}
                    Ok(_) = refused.wait_for(|refused| *refused >= number) => {}
                }
            }
            Err(error) => {
                failures += 1;
                let pause = back_off(failures, rand::rng().random_range(0.5..1.0));
                tracing::warn!(vault = %client.address(), role = %login.role, %error, failures, "no login to Vault");
                let over = ends.is_some_and(|ends| ends <= Instant::now()) || *refused.borrow() >= number;
                sender.send_modify(|state| {
                    state.token.take_if(|_| over);
                    state.error = Some(error);
                });
                sleep_until(Instant::now() + pause).await;
            }
        }
    }
}

async fn log_in(
    client: &VaultClient,
    login: &KubernetesLogin,
    number: u64,
) -> Result<(Token, Option<Duration>), VaultError> {
    let KubernetesLogin { path, role, jwt: file } = login;
    let jwt = tokio::fs::read_to_string(file)
        .await
        .map(Zeroizing::new)
        .map_err(|source| VaultError::Read { path: file.clone(), source: Arc::new(source) })?;
    let credentials = Credentials { role: role.as_str(), jwt: jwt.trim() };
    let body = Zeroizing::new(serde_json::to_vec(&credentials).expect("two strings are JSON"));
    let call = Call::post(format!("/v1/auth/{path}/login"), body);
    let Answer { auth } =
        client.call(call).await.map_err(|error| error.remedied(|status| remedy(status, login)))?;
    let garbage = |problem: &str| VaultError::Garbage {
        request: format!("the login at auth/{path}"),
        problem: problem.to_owned(),
    };
    let token = Token::new(&auth.client_token, number).map_err(garbage)?;
    let lease = (auth.lease_duration > 0).then(|| Duration::from_secs(auth.lease_duration.min(MAX_LEASE)));
    Ok((token, lease))
}

/// Vault answers 403 also where nothing is mounted, so that nobody without a token learns what is.
fn remedy(status: StatusCode, login: &KubernetesLogin) -> Option<String> {
    let KubernetesLogin { path, role, jwt } = login;
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::INTERNAL_SERVER_ERROR).then(|| {
        format!(
            "the Kubernetes auth method must be mounted at auth/{path} and able to review tokens, and its role {role} \
             must name the service account, the namespace and the audience of the token in {}",
            jwt.display()
        )
    })
}

/// A token that was got this short ago is not the reason of a refusal. Bounds the rate of logins, too.
const MIN_AGE: Duration = Duration::from_secs(5);
/// Bounds the rate of logins where leases are about to end.
const MIN_REST: Duration = Duration::from_secs(1);
/// A token lives half a day at most, so that a role's new policies reach one without an end, too.
const MAX_REST: Duration = Duration::from_secs(24 * 60 * 60);
/// Seconds of the longest lease that is believed: ten years.
const MAX_LEASE: u64 = 10 * 365 * 24 * 60 * 60;
/// The part of the time to the next login that is left to chance: a thousand nodes do not log in at once.
const JITTER: f64 = 0.1;
