//! The agent of a node: [`run`] builds the components and hands each what it needs; nothing else knows them all.
//!
//! ```text
//! control ──watch<Arc<Snapshot>>──► enroll ──► capture (kernel)
//!                                      └─────► proxy ──► hbone ──► identity
//! ```
//!
//! Who may import whom is a rule (`cargo xtask tidy`); docs/architecture.md explains it.

pub mod admin;
pub mod apiserver;
pub mod ca_server;
pub mod capture;
pub mod cli;
pub mod cni;
pub mod control;
pub mod enroll;
pub mod hbone;
pub mod identity;
pub mod memory;
pub mod mesh;
pub mod proxy;
pub mod run_directory;
pub mod sandbox;
pub mod shutdown;

mod container_runtime;
mod file_stamp;
mod report;
mod succession;

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::AgentArgs,
    container_runtime::ContainerRuntime,
    control::{
        Control,
        kube::{PodReport, PodState},
    },
    enroll::Enroller,
    identity::{Revocation, SvidStore},
    run_directory::RunFile,
    shutdown::Shutdown,
};

/// Runs the agent until SIGTERM or SIGINT, or until a component fails.
///
/// # Errors
/// Where a component cannot start, or fails: the process is to end then, and what the kernel holds stays, so that
/// enrolled pods fail closed.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    let files = raise_file_limit()?;
    let mut registry = prometheus_client::registry::Registry::default();
    let shutdown = Shutdown::default();

    let (ca, trust_domain) = args.authority.open(args.certificate_lifetime)?;
    let revocation =
        Revocation::start(args.crl.clone(), ca.trust()).context("reading the revocation lists (--crl)")?;
    revocation.register(&mut registry);
    let svids = SvidStore::with_trust(ca, revocation.trust());
    svids.register(&mut registry);
    identity::CertificateMetrics::register(&mut registry, svids.clone());
    let threads = proxy::Threads {
        count: args.threads.map_or_else(threads, usize::from),
        busy_poll: Duration::from_micros(args.busy_poll.into()),
    };
    let workers = proxy::Workers::start(threads, &hbone::PoolConfig::default())
        .context("starting the threads that carry connections (--threads)")?;
    workers.handshakes().register(&mut registry);

    // clap's `requires` takes a flag that is not given for one that is.
    ensure!(args.kube || args.kubeconfig.is_none(), "--kubeconfig is for --kube, which was not given");
    let api_server = match args.kube {
        true => Some(apiserver::connect(args.kubeconfig.as_deref()).await.context("--kube")?),
        false => None,
    };
    let control = Control::start(control::Config {
        manifests: args.manifests.clone(),
        api_server: api_server.clone(),
        trust_domain: trust_domain.clone(),
        root_namespace: args.root_namespace.clone(),
    })
    .context("reading the objects of the mesh")?;
    control.register(&mut registry);
    let mesh = control.snapshots();

    if args.native {
        capture::check_native()?;
    }
    // Before anything else of the node is touched: where an agent of it runs already, nothing must be.
    let socket = args.socket.clone().unwrap_or_else(|| RunFile::Socket.of(&args.node));
    if args.take_over {
        // What is not known yet the agent that has the node serves better.
        control.complete().await;
        succession::fetch_certificates(&args.node, &mesh.borrow().clone(), &svids).await;
    }
    let capture = Arc::new(succession::take_node(&args, &socket).await?);
    tokio::spawn(capture.clone().follow_pod_cgroups());
    tokio::spawn(memory::keep_program_small());
    let admin_listener = succession::bind_admin(&args)
        .await
        .with_context(|| format!("binding the admin address {} (--admin)", args.admin))?;
    let socket_listener = admin::bind_private(&socket)
        .with_context(|| format!("binding the agent's socket {} (--socket)", socket.display()))?;

    let metrics = proxy::Metrics::register(&mut registry);
    let config = proxy::Config {
        access_log: args.access_log,
        max_connections: args.max_connections.unwrap_or(connections_within(files)),
        hold_unknown: !args.pod_ranges.is_empty(),
        native: args.native,
        // One that is taken over ends once its own grace period is over.
        native_heritage: if args.take_over { args.grace_period + HERITAGE_SLACK } else { Duration::ZERO },
    };
    let context = proxy::Context::new(
        &config,
        mesh.clone(),
        (svids.clone(), workers.clone()),
        metrics,
        shutdown.clone(),
    )?;
    let enrolling = enroll::Config { node: args.node.clone(), leave_period: args.leave_period };
    let runtime = ContainerRuntime::start(&args, &capture, api_server.as_ref())?;
    let pods = (svids.clone(), runtime.sandboxes());
    let enroller = Enroller::new(enrolling, capture.clone(), context.clone(), pods);

    let state = report::State::new(&args.node, &trust_domain, shutdown.clone(), &args.instance);
    let report = report::Sources {
        state: state.clone(),
        mesh: mesh.clone(),
        problems: control.problems(),
        api_server: control.health(),
        pods: enroller.status(),
        capture: capture.clone(),
        svids,
        workers: workers.clone(),
        proxy: context.clone(),
        cni: runtime.problems(),
    };
    let admin = Arc::new(report.into_admin(registry));
    let hand_over = succession::hand_over(enroller.handover(), &shutdown);
    tokio::spawn(succession::until_handed_over(shutdown.clone(), admin.clone().serve_public(admin_listener)));
    tokio::spawn(admin.serve_private(socket_listener, hand_over));
    if args.native {
        let standing = capture.clone().keep_permits();
        tokio::spawn(shutdown.drain().clone().run_until_cancelled_owned(standing));
    }
    if args.native || capture.has_predecessor() {
        tokio::spawn(proxy::follow_native_ends(context.clone(), capture.clone()));
    }
    tokio::spawn(proxy::follow_refusals(context.clone(), capture));
    tokio::spawn(runtime.serve(control.complete(), mesh.clone(), enroller.status(), shutdown.clone()));
    tracing::info!(node = args.node, %trust_domain, admin = %args.admin, socket = %socket.display(), "the agent has started");

    let (begun, reports) = tokio::sync::watch::channel(None);
    if let Some(connection) = api_server {
        let reporter = control::kube::Reporter::new(connection.client, &args.node, mesh.clone(), reports);
        tokio::spawn(succession::until_handed_over(shutdown.clone(), reporter.run()));
    }
    if let Some(status) = control.policy_status(&format!("{}_{}", args.node, args.instance)) {
        let run = status.run(shutdown.drain().clone());
        tokio::spawn(succession::until_handed_over(shutdown.clone(), run));
    }
    let enrolling = enroll(enroller, (control.complete(), mesh), state, begun);
    let outcome = until_signal(enrolling, &shutdown).await;
    if outcome.is_ok() {
        shutdown.run(args.grace_period).await;
        if tokio::time::timeout(POOL_LIMIT, workers.drain()).await.is_err() {
            workers.abort();
        }
        context.flush_log();
        tracing::info!("the agent has ended");
    }
    if !shutdown.succeeded().is_cancelled() {
        drop(std::fs::remove_file(&socket));
    }
    outcome
}

/// Enrols the node's pods by the first snapshot, says that the agent is ready, and follows the next ones.
async fn enroll(
    mut enroller: Enroller,
    (complete, mut mesh): (impl Future<Output = ()>, tokio::sync::watch::Receiver<Arc<mesh::Snapshot>>),
    state: report::State,
    reports: tokio::sync::watch::Sender<Option<Vec<PodReport>>>,
) -> anyhow::Result<()> {
    complete.await;
    let first = mesh.borrow_and_update().clone();
    enroller.begin(&first)?;
    state.started();
    tokio::spawn(report_pods(enroller.status(), reports));
    enroller.follow(mesh).await.context("keeping the kernel in step failed")
}

/// Has the API server told how the pods are, as long as somebody does that.
async fn report_pods(status: enroll::Status, reports: tokio::sync::watch::Sender<Option<Vec<PodReport>>>) {
    let mut status = status.subscribe();
    loop {
        let pods: Vec<_> = status.borrow_and_update().iter().map(report_of).collect();
        reports.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&pods);
            *known = Some(pods);
            differs
        });
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = reports.closed() => return,
        }
    }
}

fn report_of(pod: &enroll::PodStatus) -> PodReport {
    let state = match pod.state.as_str() {
        "enrolled" => PodState::Enrolled,
        "leaving" => PodState::Leaving,
        why => PodState::Failed(why.to_owned()),
    };
    let workload = pod.workload();
    let (namespace, name) = (Arc::clone(&workload.namespace), Arc::clone(&workload.name));
    PodReport { namespace, name, uid: Arc::clone(&workload.uid), state }
}

/// Runs the components until a signal comes; then they go on while the agent drains.
async fn until_signal(
    components: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut components = tokio::spawn(components);
    let name = tokio::select! {
        ended = &mut components => {
            ended.context("a component panicked")??;
            anyhow::bail!("a component ended before its time");
        }
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal = name, connections = shutdown.tasks().len(), "draining");
    Ok(())
}

/// What an agent that is taken over may take longer than the grace period: it is told to end only when this one is ready.
const HERITAGE_SLACK: Duration = Duration::from_secs(60);

/// How long tunnels without streams may take to close.
const POOL_LIMIT: Duration = Duration::from_secs(2);

/// Returns how many connections fit into a limit of open files: each has one descriptor, a tunnel that few share one
/// more, and a quarter is for what is no connection (maps, links, listeners and namespaces of some hundred pods).
fn connections_within(files: usize) -> usize {
    if files < MODEST_FILES {
        tracing::warn!(
            files,
            "the limit of open files is low: raise it (LimitNOFILE, ulimit -Hn) to carry more connections"
        );
    }
    (files / 4 * 3 / 2).max(1)
}

/// Returns how many threads carry connections: one for each processor that the process may use. More than a few would only
/// add to the tunnels between the same two pods.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| processors.get().min(MAX_THREADS))
}

const MAX_THREADS: usize = 8;

/// Below this an agent soon refuses connections.
const MODEST_FILES: usize = 16_384;

/// Raises the limit of open files to what the process may have, and returns it.
fn raise_file_limit() -> anyhow::Result<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}
