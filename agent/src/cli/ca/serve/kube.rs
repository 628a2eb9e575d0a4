//! A server of a cluster: tokens, pods, authority and roots are the API server's.

use std::{fs, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::sync::watch;

use super::{ServeArgs, Shown, Sources, pods::Pods};
use crate::{
    apiserver::{self, Lease},
    ca_server::{AuthoritySecret, Callers, FollowedSecret, ReviewRules, Reviews, publish_roots},
    cli::authority::{Opened, default_trust_domain},
    identity::{CertificateAuthority as _, LocalCa},
    mesh::TrustDomain,
    shutdown::Shutdown,
};

/// A server's place in its cluster.
pub(super) struct Cluster {
    client: ::kube::Client,
    leading: watch::Receiver<bool>,
    pods: Pods,
    trust_domain: TrustDomain,
    /// None where another authority is named.
    secret: Option<FollowedSecret>,
}

impl Cluster {
    /// Takes part in the election of who writes, and begins to follow pods and Secret. Must be called within a Tokio
    /// runtime.
    pub(super) async fn join(
        args: &ServeArgs,
        shutdown: &Shutdown,
        registry: &mut Registry,
        shown: &mut Shown,
    ) -> anyhow::Result<Self> {
        let client = apiserver::client(args.kubeconfig.as_deref()).await?;
        let (sender, leading) = watch::channel(false);
        let lease = Lease::new(client.clone(), &args.namespace, LEASE, &holder());
        shutdown.tasks().spawn(lease.lead(sender, shutdown.drain().clone()));
        count_leading(leading.clone(), registry);

        let trust_domain = args.authority.trust_domain.clone().unwrap_or_else(default_trust_domain);
        let pods = Pods::watch(client.clone(), trust_domain.clone());
        let listed = pods.listed.clone();
        shown.checks.push((
            "pods",
            Box::new(move || match *listed.borrow() {
                true => Ok("which pods run where is known".to_owned()),
                false => Err("the API server has not listed the pods yet".to_owned()),
            }),
        ));
        let secret = (!args.authority.is_named()).then(|| {
            let secret = AuthoritySecret {
                client: client.clone(),
                namespace: args.namespace.clone(),
                name: args.secret.clone(),
                trust_domain: trust_domain.clone(),
            };
            let secret = secret.follow(leading.clone());
            show(&secret, shown);
            secret
        });
        Ok(Self { client, leading, pods, trust_domain, secret })
    }

    /// Waits for the authority, and keeps its roots where agents find them.
    pub(super) async fn sources(self, args: &ServeArgs) -> anyhow::Result<Sources> {
        let Self { client, leading, pods, trust_domain, secret } = self;
        let authority = match secret {
            None => args.authority.open_with_key(args.max_lifetime)?,
            Some(secret) => open(secret, &trust_domain, args.max_lifetime).await?,
        };
        ensure!(
            authority.1 == trust_domain,
            "the authority signs for {}, not for {trust_domain} (--trust-domain)",
            authority.1
        );
        let publishing = publish_roots(client.clone(), args.namespace.clone(), authority.0.trust(), leading);
        let publishing = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(publishing));
        let rules = ReviewRules { audience: args.audience.clone(), agents: args.agents.clone() };
        let callers = Callers::Reviewed(Reviews::new(client, rules));
        // Without them every request would be for an unknown pod.
        let mut listed = pods.listed.clone();
        listed.wait_for(|listed| *listed).await.context("the watch of the pods has ended")?;
        let mesh = pods.snapshots;
        Ok(Sources { authority, callers, mesh, late_pods: LATE_PODS, _kept: Box::new(publishing) })
    }
}

/// Waits for a Secret that can be used.
async fn open(secret: FollowedSecret, ours: &TrustDomain, lifetime: Duration) -> anyhow::Result<Opened> {
    let FollowedSecret { mut content, problem: _ } = secret;
    loop {
        content.wait_for(|content| !content.is_empty()).await.context("the watch of the Secret has ended")?;
        match LocalCa::open_given(&content) {
            Ok(ca) => {
                let (ca, trust_domain) = (Arc::new(ca.with_lifetime(lifetime)), ours.clone());
                ensure!(
                    *ca.trust_domain() == trust_domain,
                    "the authority in {} signs for {}, not for {ours} (--trust-domain)",
                    ca.source(),
                    ca.trust_domain()
                );
                return Ok((Arc::clone(&ca) as Arc<_>, trust_domain, Some(ca)));
            }
            Err(error) => tracing::error!(%error, "the Secret cannot be used: mend it, and it is read again"),
        }
        content.changed().await.context("the watch of the Secret has ended")?;
    }
}

fn show(secret: &FollowedSecret, shown: &mut Shown) {
    let FollowedSecret { content, problem } = secret.clone();
    let said = problem.clone();
    shown.checks.push((
        "authority",
        Box::new(move || match content.borrow().is_empty() {
            false => Ok(content.borrow().name.display().to_string()),
            true => Err(said.borrow().clone()),
        }),
    ));
    shown.notes.push(Box::new(move || {
        Some(problem.borrow().clone()).filter(|it| !it.is_empty()).into_iter().collect()
    }));
}

fn count_leading(mut leading: watch::Receiver<bool>, registry: &mut Registry) {
    let gauge = Gauge::<i64>::default();
    registry.register("culvert_ca_leader", "Whether this server is the one that writes", gauge.clone());
    tokio::spawn(async move {
        while leading.changed().await.is_ok() {
            gauge.set(i64::from(*leading.borrow_and_update()));
        }
    });
}

/// Another name for each process: the pod's, which is its host name, and a number.
fn holder() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), rand::random::<u64>())
}

/// The Lease of who writes.
const LEASE: &str = "culvert-ca";
/// How long the watch of pods may be behind: a pod is on its way for less than a second.
const LATE_PODS: Duration = Duration::from_secs(2);
