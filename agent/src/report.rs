//! Gathers what the components say of themselves into the admin pages: readiness, metrics, and the dump.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::watch};

use crate::{
    admin::{Admin, Check, Question},
    capture::Capture,
    cni::install,
    control::{Problem, kube::Health},
    enroll::Status,
    identity::{Inventory, SvidStore, followed},
    mesh::{Answer, PolicySet, Snapshot, TrustDomain},
    proxy,
    shutdown::Shutdown,
};

/// What `/certs` answers, for `culvert certs`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificates {
    pub(crate) node: String,
    pub(crate) trust_domain: String,
    #[serde(flatten)]
    pub(crate) inventory: Inventory,
}

/// Where the agent is in its life.
#[derive(Clone, Debug)]
pub(crate) struct State {
    node: String,
    trust_domain: TrustDomain,
    started: Arc<AtomicBool>,
    shutdown: Shutdown,
    instance: String,
}

impl State {
    pub(crate) fn new(node: &str, trust_domain: &TrustDomain, shutdown: Shutdown, instance: &str) -> Self {
        let (node, trust_domain, instance) = (node.to_owned(), trust_domain.clone(), instance.to_owned());
        Self { node, trust_domain, started: Arc::default(), shutdown, instance }
    }

    /// Notes that the pods of the first snapshot are enrolled.
    pub(crate) fn started(&self) {
        self.started.store(true, Relaxed);
    }

    fn check_started(&self) -> Result<String, String> {
        match self.started.load(Relaxed) {
            true => Ok(format!("node {}", self.node)),
            false => Err("waiting for the first complete list of objects".to_owned()),
        }
    }

    fn check_running(&self) -> Result<String, String> {
        match (self.shutdown.drain().is_cancelled(), self.shutdown.succeeded().is_cancelled()) {
            (false, false) => Ok("taking connections".to_owned()),
            (false, true) => Err("the node has been handed over to another agent".to_owned()),
            (true, _) => Err("draining".to_owned()),
        }
    }
}

/// The components that have something to say.
pub(crate) struct Sources {
    pub(crate) state: State,
    pub(crate) mesh: watch::Receiver<Arc<Snapshot>>,
    pub(crate) problems: watch::Receiver<Arc<Vec<Problem>>>,
    /// How the watches of the API server are, where it is a source.
    pub(crate) api_server: Option<Health>,
    pub(crate) pods: Status,
    pub(crate) capture: Arc<Capture>,
    pub(crate) svids: SvidStore,
    pub(crate) workers: proxy::Workers,
    pub(crate) proxy: Arc<proxy::Context>,
    /// What is wrong with the CNI plugin.
    pub(crate) cni: install::Problems,
}

impl Sources {
    pub(crate) fn into_admin(self, mut registry: Registry) -> Admin {
        registry.register_collector(Box::new(Gauges {
            mesh: self.mesh.clone(),
            problems: self.problems.clone(),
            pods: self.pods.clone(),
            capture: self.capture.clone(),
            workers: self.workers.clone(),
            proxy: self.proxy.clone(),
            runtime: Handle::current(),
        }));
        let (started, running) = (self.state.clone(), self.state.clone());
        let mut checks: Vec<(&'static str, Check)> = vec![
            ("started", Box::new(move || started.check_started())),
            ("running", Box::new(move || running.check_running())),
        ];
        if let Some(health) = self.api_server.clone() {
            checks.push(("listed", Box::new(move || health.check_listed())));
        }
        let api_server = self.api_server.clone();
        let (pods, problems, mesh) = (self.pods.clone(), self.problems.clone(), self.mesh.clone());
        let (svids, proxy) = (self.svids.clone(), self.proxy.clone());
        let cni = self.cni.clone();
        let notes = Box::new(move || {
            let pods = pods.pods().into_iter().filter(|pod| !matches!(&*pod.state, "enrolled" | "leaving"));
            let pods = pods.map(|pod| format!("pod {} is not enrolled: {}", pod.workload(), pod.state));
            let problems = problems.borrow().clone();
            let conflicts = mesh.borrow().conflicts();
            pods.chain(problems.iter().map(ToString::to_string))
                .chain(conflicts.iter().map(ToString::to_string))
                .chain(api_server.iter().flat_map(Health::notes))
                .chain(certificate_notes(&svids))
                .chain(proxy.unenforced().iter().map(ToString::to_string))
                .chain(cni.notes())
                .collect()
        });
        let (node, trust_domain) = (self.state.node.clone(), self.state.trust_domain.clone());
        let svids = self.svids.clone();
        let certificates = Box::new(move || {
            json!(Certificates {
                node: node.clone(),
                trust_domain: trust_domain.as_str().to_owned(),
                inventory: Inventory::of(&svids),
            })
        });
        let mesh = self.mesh.clone();
        let explain = Box::new(move |question: &Question| {
            let snapshot = mesh.borrow().clone();
            let answer = Answer::find(&question.from, &question.to, &snapshot);
            answer.map(|answer| json!(answer)).map_err(|error| error.to_string())
        });
        let instance = self.state.instance.clone();
        Admin {
            registry,
            checks,
            notes,
            dump: Box::new(move || self.dump()),
            certificates,
            explain,
            instance,
        }
    }

    /// Everything the agent knows, without key material.
    fn dump(&self) -> Value {
        let mesh = self.mesh.borrow().clone();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.state.node,
            "trustDomain": self.state.trust_domain.as_str(),
            "pods": self.pods.pods().iter().map(|pod| json!(pod.show(mesh.policies()))).collect::<Vec<_>>(),
            "policies": policies(mesh.policies()),
            "certificates": Inventory::of(&self.svids).certificates,
            "workloads": mesh.workloads().iter().map(|w| json!({
                "namespace": &*w.namespace, "name": &*w.name, "uid": &*w.uid, "node": &*w.node,
                "addresses": w.addresses, "identity": w.identity.to_string(),
                "enrollment": format!("{:?}", w.enrollment), "receivesHbone": w.receives_hbone,
            })).collect::<Vec<_>>(),
            "services": mesh.services().iter().map(|s| json!({
                "namespace": &*s.namespace, "name": &*s.name, "addresses": s.addresses,
                "ports": s.ports.iter().map(|p| p.port).collect::<Vec<_>>(),
                "endpoints": s.endpoints.iter().map(|e| json!({
                    "address": e.address, "ready": e.ready, "node": e.node.as_deref(),
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "destinations": mesh.destinations(&self.state.node).into_iter()
                .map(|(address, what)| (address.to_string(), json!(format!("{what:?}").to_lowercase())))
                .collect::<serde_json::Map<_, _>>(),
            "conflicts": mesh.conflicts().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "problems": self.problems.borrow().iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    }
}

/// Every policy that counts, in the order of their names.
fn policies(policies: &PolicySet) -> Vec<Value> {
    let authorization = policies.authorization().iter().map(|policy| (&policy.name, policy.dry_run));
    let authentication = policies.authentication().iter().map(|policy| (&policy.name, false));
    let mut all: Vec<_> = authorization.chain(authentication).collect();
    all.sort();
    all.into_iter()
        .map(|(name, dry_run)| {
            json!({ "kind": name.kind.as_str(), "name": name.to_string(), "dryRun": dry_run })
        })
        .collect()
}

/// What is wrong with certificates and with the files around them; `culvert certs` says more.
fn certificate_notes(svids: &SvidStore) -> Vec<String> {
    let files = followed().into_iter().filter_map(|file| file.problem());
    let failing: Vec<_> = svids.snapshot().into_iter().filter_map(|status| status.error).collect();
    let more = failing.len().saturating_sub(FAILING_SHOWN);
    let shown = failing.iter().take(FAILING_SHOWN).map(ToString::to_string);
    let more = (more > 0).then(|| format!("{more} more identities get no certificate: culvert certs"));
    files.chain(shown).chain(more).collect()
}

/// Identities whose failure the readiness page names: where an authority is down, all of them fail alike.
const FAILING_SHOWN: usize = 5;

/// Metrics that are read when somebody asks.
#[derive(Debug)]
struct Gauges {
    mesh: watch::Receiver<Arc<Snapshot>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    pods: Status,
    capture: Arc<Capture>,
    workers: proxy::Workers,
    proxy: Arc<proxy::Context>,
    runtime: Handle,
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mesh = self.mesh.borrow().clone();
        let pods = self.pods.pods();
        let enrolled = pods.iter().filter(|pod| pod.state == "enrolled").count();
        let pool = self.workers.stats();
        let mut gauges = vec![
            ("culvert_workloads", "Workloads that the agent knows", mesh.workloads().len()),
            ("culvert_services", "Services that the agent knows", mesh.services().len()),
            ("culvert_pods_enrolled", "Pods of this node that are in the mesh", enrolled),
            (
                "culvert_pods_not_enrolled",
                "Pods of this node that ought to be and are not, or leave",
                pods.len() - enrolled,
            ),
            (
                "culvert_manifest_problems",
                "Objects and files that could not be read",
                self.problems.borrow().iter().filter(|problem| problem.is_fault()).count(),
            ),
            (
                "culvert_address_conflicts",
                "Addresses that two live pods claim: traffic to them is refused",
                mesh.conflicts().len(),
            ),
            ("culvert_hbone_connections", "Tunnels to peers' agents", pool.connections),
            ("culvert_hbone_streams", "Streams in tunnels to peers' agents", pool.streams),
            (
                "culvert_policy_unenforced_connections",
                "Connections past the agent that policy does not permit and that could not be ended",
                // Where they cannot be listed there may be some.
                self.proxy.unenforced().iter().map(|pod| pod.connections.max(1)).sum(),
            ),
            (
                "culvert_tasks",
                "Tasks of the agent's runtimes, the one that answers included",
                self.runtime.metrics().num_alive_tasks() + self.workers.tasks(),
            ),
        ];
        let mut counters = Vec::new();
        if let Ok(stats) = self.capture.stats() {
            gauges.push((
                "culvert_capture_handshakes",
                "Handshakes of captured connections that are under way",
                stats.handshakes,
            ));
            gauges.push((
                "culvert_capture_permits",
                "Permits for connections between two pods of the node that go past the agent (--native)",
                stats.permits,
            ));
            gauges.push((
                "culvert_capture_destinations",
                "Addresses in the kernel's map",
                stats.destinations,
            ));
            counters.extend(stats.counters());
        }
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
