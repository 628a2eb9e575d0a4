//! `culvert ca serve`: give out certificates over gRPC.

use std::{
    io,
    net::SocketAddr,
    num::NonZeroU32,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use clap::{ArgGroup, Args};
use prometheus_client::registry::Registry;
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;

use crate::{
    admin::{Admin, Check},
    ca_server::{
        Audit, CaService, Callers, Metrics, ServerCertificate, ServiceAccount, ServiceConfig, TokenRules,
        serve,
    },
    cli::{
        AuthorityArgs,
        agent::{LogFormat, run_process},
        authority::server_name,
    },
    control::Manifests,
    identity::{LocalCa, followed},
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
    #[arg(long, env = "CULVERT_CA_JWKS", value_name = "FILE")]
    jwks: PathBuf,

    /// The audience that tokens must be made for. Istio's own, so that one projected volume serves for any of its
    /// authorities; never that of the API server.
    #[arg(long, env = "CULVERT_CA_AUDIENCE", value_name = "AUDIENCE", default_value = "istio-ca")]
    audience: String,

    /// The issuer that tokens must be of [default: whoever has one of the keys].
    #[arg(long, env = "CULVERT_CA_ISSUER", value_name = "URL")]
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
    #[arg(long, env = "CULVERT_MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,

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

async fn start(args: ServeArgs) -> anyhow::Result<()> {
    ensure!(
        !args.max_lifetime.is_zero(),
        "certificates that are valid for no time are none (--max-lifetime)"
    );
    let (ca, trust_domain, local) = args.authority.open_with_key(args.max_lifetime)?;
    let certificate = Arc::new(own_certificate(&args, local)?);
    let rules = TokenRules {
        jwks: args.jwks.clone(),
        audience: args.audience.clone(),
        issuer: args.issuer.clone(),
        agents: args.agents.clone(),
    };
    let callers = Callers::new(rules)?;
    let manifests = Manifests::start(args.manifests.clone(), trust_domain.clone(), String::new())
        .with_context(|| format!("reading the manifests in {}", args.manifests.display()))?;

    let bind = async |address, option| {
        TcpListener::bind(address).await.with_context(|| format!("binding {address} ({option})"))
    };
    let (listener, admin_listener) =
        (bind(args.listen, "--listen").await?, bind(args.admin, "--admin").await?);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let audit = Audit::start(io::stdout()).context("starting the thread that writes the audit")?;
    let shutdown = Shutdown::default();
    let admin = admin(registry, &manifests, Arc::clone(&certificate), shutdown.clone());
    tokio::spawn(Arc::new(admin).serve_public(admin_listener));

    let config = ServiceConfig {
        trust_domain: trust_domain.clone(),
        max_lifetime: args.max_lifetime,
        requests_per_node: args.requests_per_node,
    };
    tracing::info!(listen = %args.listen, admin = %args.admin, authority = ca.source(), %trust_domain, "the server has started");
    let service = CaService::new(config, ca, manifests.snapshots(), (callers, audit, metrics));
    let serving = serve(listener, certificate.server_config(), Arc::new(service), shutdown.clone());
    let serving = async move {
        serving.await;
        Ok(())
    };
    crate::until_signal(serving, &shutdown).await?;
    shutdown.run(args.grace_period).await;
    tracing::info!("the server has ended");
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

fn admin(
    registry: Registry,
    manifests: &Manifests,
    certificate: Arc<ServerCertificate>,
    shutdown: Shutdown,
) -> Admin {
    let checks: Vec<(&'static str, Check)> = vec![
        ("certificate", Box::new(move || valid(certificate.not_after()))),
        (
            "running",
            Box::new(move || match shutdown.drain().is_cancelled() {
                false => Ok("taking requests".to_owned()),
                true => Err("draining".to_owned()),
            }),
        ),
    ];
    let problems = manifests.problems();
    let notes = Box::new(move || {
        let files = followed().into_iter().filter_map(|file| file.problem());
        files.chain(problems.borrow().iter().map(ToString::to_string)).collect()
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
