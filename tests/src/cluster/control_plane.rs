//! etcd, the API server, the controller manager, the scheduler and the DNS, in the control plane's namespace.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::Result;

use super::{
    credentials::Credentials,
    daemon::Daemon,
    kubectl,
    network::{API_PORT, CONTROL, CONTROL_NETNS, PODS, SERVICES},
    place::Place,
    tools::Tools,
};
use crate::NetNs;

/// Where a control plane runs.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Its namespace.
    pub(crate) netns: NetNs,
    /// The address at which it is reached.
    pub(crate) address: IpAddr,
    /// What it stores, and its credentials.
    pub(crate) directory: PathBuf,
    pub(crate) tools: Tools,
}

impl Site {
    /// That of a cluster.
    pub(crate) fn of(place: &Place, tools: &Tools) -> Result<Self> {
        Ok(Self {
            netns: NetNs::open(&place.netns(CONTROL_NETNS))?,
            address: CONTROL.into(),
            directory: place.directory(),
            tools: tools.clone(),
        })
    }

    pub(crate) fn credentials(&self) -> Credentials {
        Credentials::of(self.directory.join("credentials"), self.address)
    }
}

/// A program of the control plane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ControlPlane {
    /// What the API server stores lies in it.
    Etcd,
    /// The API server.
    ApiServer,
    /// Deployments, endpoints, service accounts, …
    ControllerManager,
    /// Gives pods their nodes.
    Scheduler,
    /// Answers for the names of services and pods, and for no others. Elsewhere it is a pod.
    Dns,
}

impl ControlPlane {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Dns => "coredns",
        }
    }

    pub(crate) fn daemon(self, place: &Place) -> Daemon {
        Daemon::new(place, self.name())
    }

    /// Starts it, and does not wait for anything.
    pub(crate) fn start(self, place: &Place, site: &Site) -> Result<()> {
        self.daemon(place).start(&mut self.command(site))
    }

    /// Waits until it serves.
    pub(crate) fn wait(self, place: &Place, site: &Site) -> Result<()> {
        self.daemon(place).until(DEADLINE, "to serve", || self.check(site))
    }

    /// A command that runs it.
    pub(crate) fn command(self, site: &Site) -> Command {
        let program = match self {
            Self::Dns => site.tools.coredns(),
            _ => site.tools.kubernetes(self.name()),
        };
        let mut command = site.netns.command(&program.to_string_lossy());
        site.tools.equip(&mut command);
        command.current_dir(&site.directory).args(self.arguments(site));
        command
    }

    /// An error where it does not serve yet.
    pub(crate) fn check(self, site: &Site) -> Result<()> {
        let port = match self {
            Self::Etcd => ETCD,
            Self::ApiServer => API_PORT,
            Self::ControllerManager => CONTROLLERS,
            Self::Scheduler => SCHEDULER,
            Self::Dns => DNS,
        };
        site.netns.connect((Ipv4Addr::LOCALHOST, port).into())?;
        if self == Self::ApiServer {
            kubectl::run(site, &["get", "--raw", "/readyz"], "")?;
        }
        Ok(())
    }

    /// Returns the configuration of [`Self::Dns`].
    pub(crate) fn corefile(site: &Site) -> String {
        let kubeconfig = site.credentials().kubeconfig("admin");
        format!(
            "cluster.local in-addr.arpa ip6.arpa {{\n    bind {} 127.0.0.1\n    errors\n    kubernetes {{\n        \
             kubeconfig {}\n        pods insecure\n        ttl 1\n    }}\n}}\n",
            site.address,
            kubeconfig.display()
        )
    }

    fn arguments(self, site: &Site) -> Vec<String> {
        let credentials = site.credentials();
        let path = |file: &str| credentials.path(file).display().to_string();
        let kubeconfig = |user: &str| format!("--kubeconfig={}", credentials.kubeconfig(user).display());
        match self {
            Self::Etcd => vec![
                format!("--data-dir={}", site.directory.join("etcd").display()),
                // What it stores is not to outlive the machine.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
                format!("--listen-client-urls=http://127.0.0.1:{ETCD}"),
                format!("--advertise-client-urls=http://127.0.0.1:{ETCD}"),
                format!("--listen-peer-urls=http://127.0.0.1:{}", ETCD + 1),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{}", ETCD + 1),
                format!("--initial-cluster=default=http://127.0.0.1:{}", ETCD + 1),
            ],
            Self::ApiServer => vec![
                format!("--etcd-servers=http://127.0.0.1:{ETCD}"),
                format!("--advertise-address={}", site.address),
                format!("--secure-port={API_PORT}"),
                format!("--tls-cert-file={}", path("apiserver.crt")),
                format!("--tls-private-key-file={}", path("apiserver.key")),
                format!("--client-ca-file={}", path("ca.crt")),
                format!("--kubelet-client-certificate={}", path("kubelet-client.crt")),
                format!("--kubelet-client-key={}", path("kubelet-client.key")),
                // By their names it would look in DNS for them, when somebody wants logs.
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                format!("--token-auth-file={}", path("tokens.csv")),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                format!("--service-account-key-file={}", path("service-accounts.pub")),
                format!("--service-account-signing-key-file={}", path("service-accounts.key")),
                format!("--service-cluster-ip-range={}", SERVICES.join(",")),
                "--allow-privileged=true".to_owned(),
            ],
            Self::ControllerManager => vec![
                kubeconfig(self.name()),
                "--bind-address=127.0.0.1".to_owned(),
                "--leader-elect=false".to_owned(),
                "--use-service-account-credentials=true".to_owned(),
                // By default it starts its controllers at 20 questions a second, for seconds.
                "--kube-api-qps=500".to_owned(),
                "--kube-api-burst=1000".to_owned(),
                // A test takes the API server away, and then no node renews its lease. By default, after 50 s of that every pod is
                // unready for a while once the API server is back, and every service without endpoints.
                "--node-monitor-grace-period=5m".to_owned(),
                // The default is in a folder of the machine's.
                format!("--flex-volume-plugin-dir={}", site.directory.join("volumes").display()),
                format!("--service-account-private-key-file={}", path("service-accounts.key")),
                format!("--root-ca-file={}", path("ca.crt")),
                format!("--cluster-signing-cert-file={}", path("ca.crt")),
                format!("--cluster-signing-key-file={}", path("ca.key")),
                // The nodes' ranges are given by their routes and by their CNI's configuration.
                "--allocate-node-cidrs=false".to_owned(),
                format!("--cluster-cidr={}", PODS.join(",")),
            ],
            Self::Scheduler => vec![
                kubeconfig(self.name()),
                "--bind-address=127.0.0.1".to_owned(),
                "--leader-elect=false".to_owned(),
            ],
            Self::Dns => vec!["-conf".to_owned(), site.directory.join(COREFILE).display().to_string()],
        }
    }
}

/// The port at which etcd takes clients.
pub(crate) const ETCD: u16 = 2379;

/// The ports of the controller manager and of the scheduler, by default.
const CONTROLLERS: u16 = 10257;
const SCHEDULER: u16 = 10259;

/// The port of the DNS.
const DNS: u16 = 53;

/// The file of [`ControlPlane::corefile`], in the control plane's directory.
pub(crate) const COREFILE: &str = "Corefile";

/// How long the API server may take; it takes three seconds on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
