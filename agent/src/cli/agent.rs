//! `culvert agent`: run the agent of a node.

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::AuthorityArgs;
use crate::{identity::keep_memory_private, proxy::AccessLogFormat};

/// Run the agent of a node
///
/// It captures the TCP traffic of the node's enrolled pods with eBPF, carries it to the agents of their peers over
/// mutual TLS, and delivers what peers send. It needs root (or CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN and
/// CAP_SYS_PTRACE), cgroup v2 and Linux 5.15 or later.
///
/// SIGTERM drains: readiness fails, connections finish within the grace period. While no agent runs, enrolled pods
/// cannot open connections into the mesh, and everything else goes on; `culvert cleanup` removes every trace.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// The node's name, as in the pods' spec.nodeName.
    #[arg(long, env = "CULVERT_NODE", value_parser = node_name)]
    pub node: String,

    /// The directory of Kubernetes objects in YAML (Namespace, Pod, Service, EndpointSlice, PeerAuthentication,
    /// AuthorizationPolicy). It is watched: a change takes effect within a second, and a file that cannot be read is
    /// reported and changes nothing. Beside --kube it adds to what the API server has.
    #[arg(long, env = "CULVERT_MANIFESTS", value_name = "DIR", required_unless_present = "kube")]
    pub manifests: Option<PathBuf>,

    /// Take the objects of the mesh from the Kubernetes API server, and say in it which pods are enrolled. It is watched;
    /// while it cannot be reached, what it said last stays in force.
    #[arg(long, env = "CULVERT_KUBE")]
    pub kube: bool,

    /// How the API server is reached [default: by the service account of the pod that the agent runs in].
    #[arg(long, env = "CULVERT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// How long a workload's certificate is valid; it is renewed at half of that.
    #[arg(long, env = "CULVERT_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "24h",
          value_parser = humantime::parse_duration)]
    pub certificate_lifetime: Duration,

    /// A file of certificate revocation lists (PEM, several in a row; the issuers' certificates may stand beside them).
    /// It is read again when it changes. Whoever is listed is refused, also on connections that are open. May be given
    /// several times.
    #[arg(long, env = "CULVERT_CRL", value_name = "FILE", value_delimiter = ',')]
    pub crl: Vec<PathBuf>,

    /// Where health, readiness and metrics are served, to anybody who can reach it.
    #[arg(long, env = "CULVERT_ADMIN", value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    pub admin: SocketAddr,

    /// The unix socket, for root alone, that `culvert status` asks [default: /run/culvert/NODE.sock].
    #[arg(long, env = "CULVERT_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// The ranges that pods' addresses come from. An address inside them that nobody knows yet is held for a moment
    /// and then refused; without ranges it passes untouched.
    #[arg(long = "pod-range", env = "CULVERT_POD_RANGES", value_name = "CIDR", value_delimiter = ',')]
    pub pod_ranges: Vec<IpNet>,

    /// The namespace of Culvert itself: its own pods there are never enrolled.
    #[arg(long, env = "CULVERT_ROOT_NAMESPACE", value_name = "NAMESPACE", default_value = "culvert-system")]
    pub root_namespace: String,

    /// How long connections may finish after SIGTERM before they are reset.
    #[arg(long, env = "CULVERT_GRACE_PERIOD", value_name = "DURATION", default_value = "30s",
          value_parser = humantime::parse_duration)]
    pub grace_period: Duration,

    /// How long a pod that was taken out of the mesh still receives tunnels: as long as its peers' agents may take to
    /// hear of it. Its connections are not touched in either case.
    #[arg(long, env = "CULVERT_LEAVE_PERIOD", value_name = "DURATION", default_value = "60s",
          value_parser = humantime::parse_duration)]
    pub leave_period: Duration,

    /// How many connections the agent carries at once; one client may have as many of them as are free, half while it
    /// is alone, so that it cannot keep the others out [default: what the limit of open files allows].
    #[arg(long, env = "CULVERT_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,

    /// How many threads carry connections [default: one for each processor, 8 at most].
    #[arg(long, env = "CULVERT_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,

    /// For how many microseconds such a thread looks for more before it sleeps, while what it carries comes that closely; it
    /// yields its processor to others meanwhile. 0: not at all.
    #[arg(long, env = "CULVERT_BUSY_POLL", value_name = "MICROSECONDS", default_value = "200", value_parser = clap::value_parser!(u16).range(..=1000))]
    pub busy_poll: u16,

    /// Let connections between two pods of the node go past the agent, from the one's socket to the other's, once it has let one
    /// of their kind through: at the speed of plain TCP, unencrypted on the two pods' links to the node. Refused for pods whose
    /// links others share (a bridge). Needs Linux 5.19 or later.
    #[arg(long, env = "CULVERT_NATIVE")]
    pub native: bool,

    /// The access log, one line a connection, on the standard output.
    #[arg(long, env = "CULVERT_ACCESS_LOG", value_name = "FORMAT", default_value = "text")]
    pub access_log: AccessLogFormat,

    /// How the agent's own log on the standard error looks.
    #[arg(long, env = "CULVERT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// What the agent's own log holds: a level, or directives such as `info,culvert::hbone=debug`.
    #[arg(long, env = "CULVERT_LOG", value_name = "FILTER", default_value = "info,kube_runtime=error")]
    pub log: String,

    /// Take over from an agent of the same node that runs: it hands over its place in the kernel once this one knows the
    /// mesh, and then finishes what it carries. No connection is refused in between. Without this a second agent refuses to
    /// start.
    #[arg(long, env = "CULVERT_TAKE_OVER")]
    pub take_over: bool,

    /// Tells this process from another one of the node, for `culvert ready`: the uid of its pod.
    #[arg(long, env = "CULVERT_INSTANCE", value_name = "NAME", default_value = "")]
    pub instance: String,

    /// Where the BPF file system is; it is mounted there where it is not.
    #[arg(long, env = "CULVERT_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,

    /// The proc file system of the host's process namespace: in a container without hostPID, where the host's /proc is
    /// mounted. A pod's network namespace is found through it.
    #[arg(long, env = "CULVERT_HOST_PROC", value_name = "DIR", default_value = "/proc")]
    pub host_proc: PathBuf,

    /// The container runtime's directory of network configurations, usually /etc/cni/net.d: the agent adds its plugin at the
    /// end of the first one's chain and keeps it there, also when the agent ends; `culvert cleanup` takes it out. Without
    /// it a pod is noticed when it has started already.
    #[arg(long, env = "CULVERT_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// The container runtime's directory of plugins, usually /opt/cni/bin, into which the agent copies itself as
    /// `culvert-cni`. Without it the plugin must be there already.
    #[arg(long, env = "CULVERT_CNI_BIN_DIR", value_name = "DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,

    /// Who signs the workloads' certificates.
    #[command(flatten)]
    pub authority: AuthorityArgs,
}

/// How the agent's own log looks.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Runs the agent until a signal ends it.
pub(super) fn run(args: AgentArgs) -> anyhow::Result<()> {
    run_process(&args.log.clone(), args.log_format, crate::run(args))
}

/// Runs a process that holds keys: no core dumps, its log, and a runtime for `main`.
pub(super) fn run_process(
    filter: &str,
    format: LogFormat,
    main: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    // Before there is a key.
    keep_memory_private().context("forbidding core dumps")?;
    start_log(filter, format)?;
    tokio::runtime::Builder::new_multi_thread()
        // What carries connections has threads of its own (`proxy::Workers`).
        .worker_threads(MAIN_THREADS)
        .enable_all()
        .thread_name("culvert")
        .build()
        .context("starting the runtime")?
        .block_on(main)
}

/// Threads for everything but the connections: one computes while the other answers.
const MAIN_THREADS: usize = 2;

/// Has what the process says of itself written to the standard error.
fn start_log(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A node's name becomes a directory's name: a DNS subdomain, as Kubernetes has it.
fn node_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("a node's name has lower-case letters, digits, '-' and '.' only".to_owned())
    }
}
