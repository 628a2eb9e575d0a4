//! etcd, the API server, the controller manager, the scheduler and the DNS, in the control plane's namespace.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    credentials::Credentials,
    daemon::Daemon,
    network::{API_PORT, CONTROL, CONTROL_NETNS, PODS, SERVICES},
    place::Place,
    tools::Tools,
};
use crate::NetNs;

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
    /// Answers for services' and pods' names. No pod as elsewhere: it is the same program.
    Dns,
}

impl ControlPlane {
    fn name(self) -> &'static str {
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
    pub(crate) fn start(self, place: &Place, tools: &Tools) -> Result<()> {
        let netns = NetNs::open(&place.netns(CONTROL_NETNS))?;
        let program = match self {
            Self::Dns => {
                let corefile = corefile_of(place);
                fs::write(&corefile, self.corefile(place))
                    .with_context(|| format!("writing {}", corefile.display()))?;
                tools.coredns()
            }
            _ => tools.kubernetes(self.name()),
        };
        let mut command: Command = netns.command(&program.to_string_lossy());
        tools.equip(&mut command);
        command.current_dir(place.directory()).args(self.arguments(place));
        self.daemon(place).start(&mut command)
    }

    /// Waits until it serves.
    pub(crate) fn wait(self, place: &Place, tools: &Tools) -> Result<()> {
        let daemon = self.daemon(place);
        let netns = NetNs::open(&place.netns(CONTROL_NETNS))?;
        match self {
            Self::Etcd => daemon
                .until(DEADLINE, "to serve", || netns.connect((Ipv4Addr::LOCALHOST, ETCD).into()))
                .map(drop),
            Self::ApiServer => daemon.until(DEADLINE, "to be ready", || {
                super::kubectl::run(place, tools, "admin", &["get", "--raw", "/readyz"], "").map(drop)
            }),
            Self::ControllerManager => daemon
                .until(DEADLINE, "to serve", || netns.connect((Ipv4Addr::LOCALHOST, CONTROLLERS).into()))
                .map(drop),
            Self::Scheduler => daemon
                .until(DEADLINE, "to serve", || netns.connect((Ipv4Addr::LOCALHOST, SCHEDULER).into()))
                .map(drop),
            Self::Dns => {
                daemon.until(DEADLINE, "to serve", || netns.connect((CONTROL, DNS_PORT).into())).map(drop)
            }
        }
    }

    /// What the DNS answers for: the cluster's domain, and nothing of the world.
    fn corefile(self, place: &Place) -> String {
        let kubeconfig = Credentials::of(place).kubeconfig("admin");
        format!(
            "cluster.local in-addr.arpa ip6.arpa {{\n    bind {CONTROL}\n    errors\n    kubernetes {{\n        \
             kubeconfig {}\n        pods insecure\n        ttl 1\n    }}\n}}\n",
            kubeconfig.display()
        )
    }

    fn arguments(self, place: &Place) -> Vec<String> {
        let credentials = Credentials::of(place);
        let path = |file: &str| credentials.path(file).display().to_string();
        let kubeconfig = |user: &str| format!("--kubeconfig={}", credentials.kubeconfig(user).display());
        match self {
            Self::Etcd => vec![
                format!("--data-dir={}", place.directory().join("etcd").display()),
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
                format!("--advertise-address={CONTROL}"),
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
                // The default is in a folder of the machine's.
                format!("--flex-volume-plugin-dir={}", place.directory().join("volumes").display()),
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
            Self::Dns => vec!["-conf".to_owned(), corefile_of(place).display().to_string()],
        }
    }
}

fn corefile_of(place: &Place) -> PathBuf {
    place.directory().join("Corefile")
}

/// The port of the DNS.
const DNS_PORT: u16 = 53;

/// The port at which etcd takes clients.
const ETCD: u16 = 2379;

/// The ports of the controller manager and of the scheduler, by default.
const CONTROLLERS: u16 = 10257;
const SCHEDULER: u16 = 10259;

/// How long the API server may take; it takes three seconds on an idle machine.
const DEADLINE: Duration = Duration::from_secs(120);
