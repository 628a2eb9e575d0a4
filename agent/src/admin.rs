//! What the agent shows of itself: health, readiness and metrics on a TCP address that anybody may ask, and what could
//! help an attacker (`config_dump`, `certs`, `policy/explain`) on a unix socket that only root can open.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
    serve::Listener,
};
use futures_util::future::BoxFuture;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{
    net::{TcpListener, UnixListener},
    task::AbortHandle,
};

/// One thing that readiness waits for: its name, and whether it is so; if not, why.
pub type Check = Box<dyn Fn() -> Result<String, String> + Send + Sync>;

/// What is shown.
pub struct Admin {
    /// The metrics.
    pub registry: Registry,
    /// What readiness waits for, in the order in which it is shown.
    pub checks: Vec<(&'static str, Check)>,
    /// What is worth knowing, and does not decide readiness.
    pub notes: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The configuration dump, without key material.
    pub dump: Page,
    /// The certificates, without key material.
    pub certificates: Page,
    /// What the policies say of a connection.
    pub explain: Explain,
    /// Which of several processes of one node this is; empty where nobody needs to tell them apart.
    pub instance: String,
}

/// Something that is shown as JSON.
pub type Page = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Answers what the policies say of a connection between the two ends that a question names, or what is wrong with the
/// question.
pub type Explain = Box<dyn Fn(&Question) -> Result<serde_json::Value, String> + Send + Sync>;

/// Hands the node over to a successor, or says why not.
pub type HandOver = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The ends of a connection, as people write them.
#[derive(Debug, serde::Deserialize)]
pub struct Question {
    /// Who connects.
    pub from: String,
    /// To whom, with the port.
    pub to: String,
}

/// Of whom readiness is asked.
#[derive(Debug, Default, serde::Deserialize)]
struct Asked {
    /// The instance that is meant: while two agents of a node run, one of them answers.
    instance: Option<String>,
}

/// Connections that may be open at once on each of the two listeners.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

impl Admin {
    /// Serves the public part, until the process ends.
    pub async fn serve_public(self: Arc<Self>, listener: TcpListener) {
        let app = self.public();
        serve(app, listener).await;
    }

    /// Serves everything, on a socket for root alone.
    pub async fn serve_private(self: Arc<Self>, listener: UnixListener, hand_over: HandOver) {
        let hand_over = Arc::new(hand_over);
        let private = Router::new()
            .route("/config_dump", get(dump))
            .route("/certs", get(certificates))
            .route("/policy/explain", get(explain))
            .with_state(self.clone())
            .route("/handover", post(move || succeed(Arc::clone(&hand_over))));
        serve(self.public().merge(private), listener).await;
    }

    fn public(self: Arc<Self>) -> Router {
        Router::new()
            .route("/healthz/live", get(async || "alive\n"))
            .route("/healthz/ready", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

/// Binds the unix socket, for root alone. One that a dead agent left is replaced: the caller holds the node's lock.
///
/// # Errors
/// Where the path cannot be made or bound.
pub fn bind_private(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Bound under another name and renamed, so that nobody can connect between `bind` and `chmod`.
    let hidden = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

async fn serve<L: Listener>(app: Router, mut listener: L)
where
    L::Addr: std::fmt::Debug,
{
    let mut connections = VecDeque::<AbortHandle>::with_capacity(MAX_CONNECTIONS);
    loop {
        // axum's listener backs off by itself where accepting fails.
        let (stream, _) = listener.accept().await;
        connections.retain(|connection| !connection.is_finished());
        // The oldest makes room: whoever holds connections open must not keep a health check waiting, and a request
        // that is one takes far less time than so many others need to arrive.
        if connections.len() == MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(app.clone());
        let task = tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that asks and does not read holds its place for this long at most.
            let _ = tokio::time::timeout(HEAD_LIMIT * 2, connection).await;
        });
        connections.push_back(task.abort_handle());
    }
}

async fn ready(State(admin): State<Arc<Admin>>, Query(asked): Query<Asked>) -> impl IntoResponse {
    let mut text = String::new();
    let mut status = StatusCode::OK;
    if asked.instance.is_some_and(|meant| meant != admin.instance) {
        status = StatusCode::SERVICE_UNAVAILABLE;
        text.push_str("WAIT instance: another agent of the node answers; this one has not taken over yet\n");
    }
    for (name, check) in &admin.checks {
        let (mark, detail) = match check() {
            Ok(detail) => ("ok  ", detail),
            Err(detail) => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                ("WAIT", detail)
            }
        };
        let _ = writeln!(text, "{mark} {name}: {detail}");
    }
    for note in (admin.notes)() {
        let _ = writeln!(text, "note {note}");
    }
    (status, text)
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &admin.registry) {
        Ok(()) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            text,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn dump(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    page(move || (admin.dump)()).await
}

async fn certificates(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    page(move || (admin.certificates)()).await
}

async fn explain(State(admin): State<Arc<Admin>>, Query(question): Query<Question>) -> impl IntoResponse {
    let answer = tokio::task::spawn_blocking(move || (admin.explain)(&question)).await;
    match answer {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(wrong)) => (StatusCode::BAD_REQUEST, wrong + "\n").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn succeed(hand_over: Arc<HandOver>) -> impl IntoResponse {
    hand_over().await.map_err(|why| (StatusCode::CONFLICT, why + "\n"))
}

/// Makes a page on a thread that may compute: the chains of thousands of certificates are verified for it.
async fn page(make: impl FnOnce() -> serde_json::Value + Send + 'static) -> impl IntoResponse {
    tokio::task::spawn_blocking(make).await.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
