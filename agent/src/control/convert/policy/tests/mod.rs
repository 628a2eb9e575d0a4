//! Policies as users write them, and what follows for connections: each test holds to a sentence of docs/policy.md.

mod actions;
mod arbitrary;
mod authentication;
mod dry_run;
mod fields;
mod naive;
mod nearest;
mod plaintext;
mod properties;
mod scope;
mod unparsable;

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::super::{Object, Record, Settings};
use crate::{
    control::{Index, PolicyNotice, Readiness, Severity},
    mesh::{Connection, Decision, Denial, Permit, Plaintext, PlaintextAction, Snapshot, Workload},
};

/// The pods `shop/web` (labels `app: web`, `tier: front`), `shop/db` (`app: db`), `bank/web` (`app: web`), and the policies.
struct World {
    snapshot: Snapshot,
    notices: Vec<PolicyNotice>,
}

impl World {
    fn new(policies: &[Value]) -> Self {
        Self::with(policies, &[])
    }

    fn with(policies: &[Value], others: &[Value]) -> Self {
        let mut index = Index::new(ROOT);
        let mut notices = Vec::new();
        let pods = [
            pod("shop", "web", "10.0.0.1", &json!({"app": "web", "tier": "front"})),
            pod("shop", "db", "10.0.0.2", &json!({"app": "db"})),
            pod("bank", "web", "10.0.0.3", &json!({"app": "web"})),
            pod(ROOT, "console", "10.0.0.4", &json!({"app": "web"})),
        ];
        for object in pods.iter().chain(others).chain(policies) {
            let record = record(object.clone());
            notices.extend_from_slice(record.notices());
            index.apply(&record);
        }
        Self { snapshot: index.snapshot(), notices }
    }

    fn workload(&self, pod: &str) -> &Workload {
        let mut pods = self.snapshot.workloads().iter();
        pods.find(|workload| workload.to_string() == pod).unwrap_or_else(|| panic!("{pod}"))
    }

    /// Decides on a connection from 10.0.0.9 to port 8080 of a pod.
    fn decide(&self, from: &str, to: &str) -> Decision {
        self.decide_at(from, "10.0.0.9", to, 8080)
    }

    /// `from` is `-` for plaintext, or an identity without `spiffe://cluster.local/ns/`, as `shop/sa/front`.
    fn decide_at(&self, from: &str, source: &str, to: &str, port: u16) -> Decision {
        let identity = (from != "-").then(|| format!("spiffe://cluster.local/ns/{from}").parse().unwrap());
        let workload = self.workload(to);
        let connection = Connection {
            source: source.parse().unwrap(),
            identity: identity.as_ref(),
            destination: SocketAddr::new(workload.addresses[0], port),
        };
        self.snapshot.policies().authorize(workload, &connection)
    }

    /// Each warning, without the policy's name.
    fn warnings(&self) -> Vec<String> {
        let warnings = self.notices.iter().filter(|notice| notice.severity == Severity::Warning);
        warnings.map(|notice| format!("{}: {}", notice.path, notice.message)).collect()
    }

    /// The verdict in short: see [`short`].
    fn verdict(&self, from: &str, to: &str) -> String {
        short(&self.decide(from, to).verdict)
    }
}

/// `allow POLICY`, `deny POLICY` or `deny none of POLICIES`; `-` where no policy decided.
fn short(verdict: &Result<Permit, Denial>) -> String {
    match verdict {
        Ok(permit) => {
            permit.policy().map_or_else(|| "allow -".to_owned(), |policy| format!("allow {policy}"))
        }
        Err(Denial::NotAllowed { tried, .. }) => {
            let tried: Vec<_> = tried.iter().map(ToString::to_string).collect();
            format!("deny none of {}", tried.join(" "))
        }
        Err(denial) => format!("deny {}", denial.policy().unwrap()),
    }
}

fn record(object: Value) -> Record {
    let settings = Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        root_namespace: ROOT.to_owned(),
        readiness: Readiness::Enrollment,
    };
    let object = match object["kind"].as_str().unwrap() {
        "Pod" => Object::Pod(serde_json::from_value(object).unwrap()),
        "Service" => Object::Service(serde_json::from_value(object).unwrap()),
        "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(object).unwrap()),
        "PeerAuthentication" => Object::PeerAuthentication(Box::new(object)),
        _ => Object::AuthorizationPolicy(Box::new(object)),
    };
    Record::new(&object, &settings).unwrap()
}

fn pod(namespace: &str, name: &str, address: &str, labels: &Value) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"serviceAccountName": name}, "status": {"podIP": address}})
}

/// `namespace/name`.
fn authorization(name: &str, spec: Value) -> Value {
    object("AuthorizationPolicy", name, spec)
}

/// `namespace/name`.
fn authentication(name: &str, spec: Value) -> Value {
    object("PeerAuthentication", name, spec)
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    let mut object = json!({"apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}});
    object["spec"] = spec;
    object
}

const ROOT: &str = "culvert-system";
