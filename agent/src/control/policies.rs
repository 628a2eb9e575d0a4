//! The policies that are in force, and the set that they make: a new one only where something about them changed, so that
//! live connections are checked again only then.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::convert::{Key, Kind};
use crate::mesh::{
    AuthorizationPolicy, PeerAuthentication, PolicyKind, PolicyName, PolicySet, Service, Target,
};

/// The policies that are in force.
#[derive(Debug, Default)]
pub(super) struct Policies {
    root: String,
    authorization: BTreeMap<PolicyName, Arc<AuthorizationPolicy>>,
    authentication: BTreeMap<PolicyName, Arc<PeerAuthentication>>,
    /// None: something changed since.
    made: Option<Made>,
}

#[derive(Debug)]
struct Made {
    set: Arc<PolicySet>,
    /// The services that the policies name, as they were.
    services: Vec<Arc<Service>>,
}

impl Policies {
    pub(super) fn new(root: &str) -> Self {
        Self { root: root.to_owned(), ..Self::default() }
    }

    /// Puts an AuthorizationPolicy in force. Returns whether anything changed.
    pub(super) fn authorize(&mut self, policy: &Arc<AuthorizationPolicy>) -> bool {
        put(&mut self.authorization, &policy.name, policy) && self.unmake()
    }

    /// Puts a PeerAuthentication in force. Returns whether anything changed.
    pub(super) fn authenticate(&mut self, policy: &Arc<PeerAuthentication>) -> bool {
        put(&mut self.authentication, &policy.name, policy) && self.unmake()
    }

    /// Takes a policy away. Returns whether anything changed.
    pub(super) fn delete(&mut self, key: &Key) -> bool {
        let name = |kind| PolicyName {
            kind,
            namespace: key.namespace.as_str().into(),
            name: key.name.as_str().into(),
        };
        let known = match key.kind {
            Kind::PeerAuthentication => {
                self.authentication.remove(&name(PolicyKind::PeerAuthentication)).is_some()
            }
            Kind::AuthorizationPolicy => {
                self.authorization.remove(&name(PolicyKind::AuthorizationPolicy)).is_some()
            }
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::Service | Kind::EndpointSlice => false,
        };
        known && self.unmake()
    }

    /// Returns the set of all policies, given where to find a service by its namespace and name: the same one as before where
    /// nothing changed for them.
    pub(super) fn set<'a>(
        &mut self,
        find: impl Fn(&str, &str) -> Option<&'a Arc<Service>>,
    ) -> Arc<PolicySet> {
        let services = self.named(find);
        if let Some(made) = self.made.as_ref().filter(|made| are_same(&made.services, &services)) {
            return Arc::clone(&made.set);
        }
        let (authorization, authentication) = (self.authorization.values(), self.authentication.values());
        let (authorization, authentication) =
            (authorization.cloned().collect(), authentication.cloned().collect());
        let set = Arc::new(PolicySet::new(authorization, authentication, &self.root, &services));
        self.made = Some(Made { set: Arc::clone(&set), services });
        set
    }

    /// The services that a policy names, in the order of their names.
    fn named<'a>(&self, find: impl Fn(&str, &str) -> Option<&'a Arc<Service>>) -> Vec<Arc<Service>> {
        let mut named = BTreeSet::new();
        for policy in self.authorization.values() {
            let Target::Services(names) = &policy.target else { continue };
            named.extend(names.iter().map(|name| (&*policy.name.namespace, &**name)));
        }
        named.into_iter().filter_map(|(namespace, name)| find(namespace, name)).cloned().collect()
    }

    fn unmake(&mut self) -> bool {
        self.made = None;
        true
    }
}

/// Puts a policy in the place of the one that had its name. Returns whether it differs.
fn put<P: PartialEq>(
    policies: &mut BTreeMap<PolicyName, Arc<P>>,
    name: &PolicyName,
    policy: &Arc<P>,
) -> bool {
    let differs = policies.get(name).is_none_or(|known| known != policy);
    if differs {
        policies.insert(name.clone(), Arc::clone(policy));
    }
    differs
}

/// Whether the same pods stand behind the services, as far as a policy can tell.
fn are_same(before: &[Arc<Service>], now: &[Arc<Service>]) -> bool {
    let same = |(before, now): (&Arc<Service>, &Arc<Service>)| {
        let named =
            (&before.namespace, &before.name, &before.selector) == (&now.namespace, &now.name, &now.selector);
        named && (!now.selector.is_empty() || before.endpoints == now.endpoints)
    };
    before.len() == now.len() && before.iter().zip(now).all(same)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        control::{Index, Object, Readiness, Record, Settings},
        mesh::{Snapshot, Workload},
    };

    fn record(value: Value) -> Record {
        let settings = Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            root_namespace: "culvert-system".to_owned(),
            readiness: Readiness::Enrollment,
        };
        let object = match value["kind"].as_str().unwrap() {
            "Pod" => Object::Pod(serde_json::from_value(value).unwrap()),
            "Service" => Object::Service(serde_json::from_value(value).unwrap()),
            "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
            "PeerAuthentication" => Object::PeerAuthentication(Box::new(value)),
            _ => Object::AuthorizationPolicy(Box::new(value)),
        };
        Record::new(&object, &settings).unwrap()
    }

    fn object(kind: &str, name: &str, mut more: Value) -> Record {
        more["kind"] = kind.into();
        more["metadata"] = json!({"name": name, "namespace": "shop", "labels": more["labels"].take()});
        record(more)
    }

    fn pod(labels: Value, address: &str) -> Record {
        let mut more = json!({"status": {"podIP": address}});
        more["labels"] = labels;
        object("Pod", "web", more)
    }

    fn service(name: &str, selector: Value) -> Record {
        let mut more = json!({"spec": {"ports": [{"port": 80}]}});
        more["spec"]["selector"] = selector;
        object("Service", name, more)
    }

    fn slice(service: &str, address: &str) -> Record {
        let labels = json!({"kubernetes.io/service-name": service});
        let more = json!({"addressType": "IPv4", "endpoints": [{"addresses": [address]}], "labels": labels});
        object("EndpointSlice", &format!("{service}-1"), more)
    }

    /// A policy that denies everything for the pods behind a service.
    fn deny_behind(service: &str) -> Record {
        let spec =
            json!({"action": "DENY", "rules": [{}], "targetRefs": [{"kind": "Service", "name": service}]});
        object("AuthorizationPolicy", &format!("behind-{service}"), json!({"spec": spec}))
    }

    /// Applies a record. Returns whether there is another set of policies afterwards.
    fn changes(index: &mut Index, record: &Record) -> bool {
        let before = Arc::clone(index.snapshot().policies());
        index.apply(record);
        !Arc::ptr_eq(&before, index.snapshot().policies())
    }

    fn applicable(snapshot: &Snapshot) -> usize {
        let workload: &Workload = &snapshot.workloads()[0];
        snapshot.policies().applicable(workload).len()
    }

    #[test]
    fn set_stays_the_same_until_a_policy_changes() {
        let mut index = Index::new("culvert-system");
        let allow = |rules: Value| object("AuthorizationPolicy", "a", json!({"spec": {"rules": rules}}));
        assert!(changes(&mut index, &allow(json!([]))));
        assert!(!changes(&mut index, &allow(json!([]))), "written again");
        assert!(!changes(&mut index, &allow(Value::Null)), "to the same effect");
        assert!(!changes(&mut index, &pod(json!({"app": "web"}), "10.0.0.1")));
        assert!(!changes(&mut index, &pod(json!({"app": "db"}), "10.0.0.2")));
        assert!(!changes(&mut index, &service("web", json!({"app": "web"}))));
        assert!(changes(&mut index, &allow(json!([{}]))));
        let audit = json!({"spec": {"action": "AUDIT"}});
        assert!(changes(&mut index, &object("AuthorizationPolicy", "a", audit)), "it is none any more");
        assert!(!index.delete(allow(json!([])).key()));
        let strict = object("PeerAuthentication", "a", json!({"spec": {"mtls": {"mode": "STRICT"}}}));
        assert!(changes(&mut index, &strict));
        assert!(!changes(&mut index, &strict));
        assert!(index.delete(strict.key()));
    }

    #[test]
    fn set_follows_the_services_that_a_policy_names() {
        let mut index = Index::new("culvert-system");
        index.apply(&pod(json!({"app": "web"}), "10.0.0.1"));
        index.apply(&deny_behind("web"));
        index.apply(&deny_behind("bare"));
        assert_eq!(applicable(&index.snapshot()), 0);
        assert!(changes(&mut index, &service("web", json!({"app": "web"}))));
        assert_eq!(applicable(&index.snapshot()), 1);
        assert!(!changes(&mut index, &slice("web", "10.0.0.1")), "its selector says who stands behind it");
        assert!(changes(&mut index, &service("bare", json!({}))));
        assert!(changes(&mut index, &slice("bare", "10.0.0.1")));
        assert_eq!(applicable(&index.snapshot()), 2);
        assert!(changes(&mut index, &service("web", json!({"app": "other"}))));
        assert_eq!(applicable(&index.snapshot()), 1);
    }

    #[test]
    fn labels_of_pods_are_those_of_the_moment() {
        let mut index = Index::new("culvert-system");
        let spec = json!({"action": "DENY", "rules": [{}], "selector": {"matchLabels": {"app": "web"}}});
        index.apply(&object("AuthorizationPolicy", "a", json!({"spec": spec})));
        index.apply(&pod(json!({"app": "db"}), "10.0.0.1"));
        assert_eq!(applicable(&index.snapshot()), 0);
        index.apply(&pod(json!({"app": "web"}), "10.0.0.1"));
        assert_eq!(applicable(&index.snapshot()), 1);
    }
}
