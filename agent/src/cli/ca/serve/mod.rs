//! `culvert ca serve`: give out certificates over gRPC.
//!
//! What it answers by comes from files (`files`), or from the API server (`kube`, `pods`).

mod files;
mod kube;
mod pods;

use std::{
    io,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};
use prometheus_client::registry::Registry;
use rustls::pki_types::ServerName;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::{Admin, Check},
    ca_server::{
        Audit, CaService, Callers, Metrics, ServerCertificate, ServiceAccount, ServiceConfig, serve,
    },
    cli::{
        AuthorityArgs,
        agent::{LogFormat, run_process},
        authority::{Opened, server_name},
    },
    identity::{LocalCa, followed},
    mesh::Snapshot,
    shutdown::Shutdown,
};

/// Give out certificates over gRPC, by Istio's CSR protocol
///
/// Each agent shows a Kubernetes service account token that is bound to its node, and gets certificates for the pods
/// that run on that node alone. Each certificate and each refusal is a line of JSON on the standard output.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("certificate").required(true).multiple(true).args(["dns_names", "tls_cert"]))]
pub(super) struct ServeArgs {
    /// Where agents connect to.
    #[arg(long, env = "CULVERT_CA_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:15012")]
    listen: SocketAddr,

    /// A name of this server, for a certificate that the authority signs for it; may be given more than once. It needs
    /// an authority whose key is here (--ca-dir).
    #[arg(long = "dns-name", env = "CULVERT_CA_DNS_NAMES", value_name = "NAME", value_delimiter = ',',
          value_parser = server_name, conflicts_with = "tls_cert")]
    dns_names: Vec<ServerName<'static>>,

    /// This server's certificate and what vouches for it, in PEM. Read again when the file changes.
    #[arg(long, env = "CULVERT_CA_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The key of --tls-cert, in PEM.
    #[arg(long, env = "CULVERT_CA_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// The keys that sign the agents' tokens, a JSON Web Key Set: what `kubectl get --raw /openid/v1/jwks` prints. Read
    /// again when the file changes.
    #[arg(
        long,
        env = "CULVERT_CA_JWKS",
        value_name = "FILE",
        required_unless_present = "kube",
        conflicts_with = "kube"
    )]
    jwks: Option<PathBuf>,

    /// The audience that tokens must be made for. Istio's own, so that one projected volume serves for any of its
    /// authorities; never that of the API server.
    #[arg(long, env = "CULVERT_CA_AUDIENCE", value_name = "AUDIENCE", default_value = "istio-ca")]
    audience: String,

    /// The issuer that tokens must be of [default: whoever has one of the keys].
    #[arg(long, env = "CULVERT_CA_ISSUER", value_name = "URL", conflicts_with = "kube")]
    issuer: Option<String>,

    /// A service account that may ask for a node's pods, NAMESPACE/NAME; may be given more than once.
    #[arg(
        long = "agent-service-account",
        env = "CULVERT_CA_AGENTS",
        value_name = "ACCOUNT",
        value_delimiter = ',',
        default_value = "culvert-system/culvert-agent"
    )]
    agents: Vec<ServiceAccount>,

    /// The directory of Kubernetes objects in YAML that says which pods run where. It is watched.
    #[arg(
        long,
        env = "CULVERT_MANIFESTS",
        value_name = "DIR",
        required_unless_present = "kube",
        conflicts_with = "kube"
    )]
    manifests: Option<PathBuf>,

    /// Serve a cluster: the API server says whose tokens they are and which pods run where, the roots are kept in the
    /// ConfigMap `culvert-ca-root`, and, where no other authority is named, the authority is in a Secret that is made
    /// where there is none.
    #[arg(long, env = "CULVERT_KUBE")]
    kube: bool,

    /// How the API server is reached [default: by the service account of the pod that this server runs in].
    #[arg(long, env = "CULVERT_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// The namespace of what this server keeps in the API server.
    #[arg(long, env = "CULVERT_NAMESPACE", value_name = "NAMESPACE", default_value = "culvert-system")]
    namespace: String,

    /// The Secret of the authority: `tls.crt`, `tls.key` and `ca.crt`, as cert-manager makes it, and `more-roots.pem` where
    /// further roots are to be trusted. The root's key of one that is made here is in the Secret NAME-root-key.
    #[arg(long, env = "CULVERT_CA_SECRET", value_name = "NAME", default_value = "culvert-ca")]
    secret: String,

    /// How long a certificate is valid at most.
    #[arg(long, env = "CULVERT_CA_MAX_LIFETIME", value_name = "DURATION", default_value = "24h",
          value_parser = humantime::parse_duration)]
    max_lifetime: Duration,

    /// How many certificates a node may ask for each second, and twenty times as many at once.
    #[arg(long, env = "CULVERT_CA_REQUESTS_PER_NODE", value_name = "N", default_value = "50")]
    requests_per_node: NonZeroU32,

    /// Where health, readiness and metrics are served, to anybody who can reach it.
    #[arg(long, env = "CULVERT_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15022")]
    admin: SocketAddr,

    /// How long requests may take after SIGTERM.
    #[arg(long, env = "CULVERT_GRACE_PERIOD", value_name = "DURATION", default_value = "10s",
          value_parser = humantime::parse_duration)]
    grace_period: Duration,

    /// How the log on the standard error looks.
    #[arg(long, env = "CULVERT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,

    /// What the log holds: a level, or directives such as `info,culvert::ca_server=debug`.
    #[arg(long, env = "CULVERT_LOG", value_name = "FILTER", default_value = "info")]
    log: String,

    /// Who signs.
    #[command(flatten)]
    authority: AuthorityArgs,
}

/// Serves until a signal ends it.
pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    run_process(&args.log.clone(), args.log_format, start(args))
}

/// What a server answers by.
struct Sources {
    authority: Opened,
    callers: Callers,
    mesh: watch::Receiver<Arc<Snapshot>>,
    /// How long a request may wait for its pod to be heard of.
    late_pods: Duration,
    /// What goes on for as long as this lives.
    _kept: Box<dyn std::any::Any + Send>,
}

/// What a server's page shows beside what every server's does.
#[derive(Default)]
struct Shown {
    checks: Vec<(&'static str, Check)>,
    notes: Vec<Box<dyn Fn() -> Vec<String> + Send + Sync>>,
}

/// The server's own certificate; none before there is an authority.
type OwnCertificate = Arc<OnceLock<Arc<ServerCertificate>>>;

async fn start(args: ServeArgs) -> anyhow::Result<()> {
    ensure!(
        !args.max_lifetime.is_zero(),
        "certificates that are valid for no time are none (--max-lifetime)"
    );
    // Clap takes a flag that was not given for one that is there.
    ensure!(args.kube || args.kubeconfig.is_none(), "--kubeconfig is for --kube, which was not given");
    let bind = async |address, option| {
        TcpListener::bind(address).await.with_context(|| format!("binding {address} ({option})"))
    };
    let (listener, admin_listener) =
        (bind(args.listen, "--listen").await?, bind(args.admin, "--admin").await?);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let audit = Audit::start(io::stdout()).context("starting the thread that writes the audit")?;
    let (shutdown, mut shown) = (Shutdown::default(), Shown::default());
    let cluster = match args.kube {
        true => Some(kube::Cluster::join(&args, &shutdown, &mut registry, &mut shown).await?),
        false => None,
    };
    let files = match &cluster {
        Some(_) => None,
        None => Some(files::open(&args, &mut shown)?),
    };
    let certificate = OwnCertificate::default();
    let admin = admin(registry, shown, Arc::clone(&certificate), shutdown.clone());
    tokio::spawn(Arc::new(admin).serve_public(admin_listener));

    let (grace_period, ending) = (args.grace_period, shutdown.clone());
    let serving = async move {
        let sources = match (cluster, files) {
            // The authority may have to be made, or come later.
            (Some(cluster), _) => cluster.sources(&args).await?,
            (None, Some(files)) => files,
            (None, None) => anyhow::bail!("there is nothing to answer by"),
        };
        answer(&args, listener, (audit, metrics), sources, (certificate, shutdown)).await
    };
    crate::until_signal(serving, &ending).await?;
    ending.run(grace_period).await;
    tracing::info!("the server has ended");
    Ok(())
}

/// Answers requests until the shutdown drains.
async fn answer(
    args: &ServeArgs,
    listener: TcpListener,
    (audit, metrics): (Audit, Metrics),
    sources: Sources,
    (certificate, shutdown): (OwnCertificate, Shutdown),
) -> anyhow::Result<()> {
    let Sources { authority: (ca, trust_domain, local), callers, mesh, late_pods, _kept } = sources;
    let own = Arc::new(own_certificate(args, local)?);
    let own = certificate.get_or_init(|| own);
    let config = ServiceConfig {
        trust_domain: trust_domain.clone(),
        max_lifetime: args.max_lifetime,
        requests_per_node: args.requests_per_node,
        late_pods,
    };
    tracing::info!(listen = %args.listen, admin = %args.admin, authority = ca.source(), %trust_domain, "the server has started");
    let service = CaService::new(config, ca, mesh, (callers, audit, metrics));
    serve(listener, own.server_config(), Arc::new(service), shutdown).await;
    Ok(())
}

fn own_certificate(args: &ServeArgs, local: Option<Arc<LocalCa>>) -> anyhow::Result<ServerCertificate> {
    if let (Some(certificate), Some(key)) = (&args.tls_cert, &args.tls_key) {
        return Ok(ServerCertificate::from_files(certificate.clone(), key.clone())?);
    }
    let ca = local.context(
        "the authority's key is not here, so it cannot sign this server's own certificate: name one by --tls-cert and \
         --tls-key instead of --dns-name",
    )?;
    Ok(ServerCertificate::issued_by(ca, args.dns_names.clone())?)
}

fn admin(registry: Registry, shown: Shown, certificate: OwnCertificate, shutdown: Shutdown) -> Admin {
    let Shown { mut checks, notes } = shown;
    checks.push((
        "certificate",
        Box::new(move || match certificate.get() {
            Some(certificate) => valid(certificate.not_after()),
            None => Err("this server has none: there is no authority yet".to_owned()),
        }),
    ));
    checks.push((
        "running",
        Box::new(move || match shutdown.drain().is_cancelled() {
            false => Ok("taking requests".to_owned()),
            true => Err("draining".to_owned()),
        }),
    ));
    let notes = Box::new(move || {
        let files = followed().into_iter().filter_map(|file| file.problem());
        files.chain(notes.iter().flat_map(|notes| notes())).collect()
    });
    // The private pages are an agent's: this server has no unix socket.
    let nothing = || Box::new(|| serde_json::Value::Null);
    let explain = Box::new(|_: &_| Err("an authority has no policies".to_owned()));
    Admin {
        registry,
        checks,
        notes,
        dump: nothing(),
        certificates: nothing(),
        explain,
        instance: String::new(),
    }
}

fn valid(not_after: Option<SystemTime>) -> Result<String, String> {
    match not_after {
        Some(at) if at > SystemTime::now() => {
            Ok(format!("this server's own is valid until {}", humantime::format_rfc3339_seconds(at)))
        }
        Some(at) => Err(format!("this server's own expired at {}", humantime::format_rfc3339_seconds(at))),
        None => Err("this server's own cannot be read".to_owned()),
    }
}
