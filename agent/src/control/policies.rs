//! The policies that are in force, and the set that they make: a new one only where something about them changed, so that
//! live connections are checked again only then.

use std::{collections::BTreeMap, sync::Arc};

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
            Kind::Namespace | Kind::Pod | Kind::Service | Kind::EndpointSlice => false,
        };
        known && self.unmake()
    }

    /// Returns the set of all policies, given all services: the same one as before where nothing changed for them.
    pub(super) fn set(&mut self, services: &[Arc<Service>]) -> Arc<PolicySet> {
        let services = self.named(services);
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

    /// The services that a policy names.
    fn named(&self, services: &[Arc<Service>]) -> Vec<Arc<Service>> {
        let mut named = Vec::new();
        for policy in self.authorization.values() {
            let Target::Services(names) = &policy.target else { continue };
            named.extend(names.iter().map(|name| (&policy.name.namespace, name)));
        }
        named.sort_unstable();
        let is_named =
            |service: &&Arc<Service>| named.binary_search(&(&service.namespace, &service.name)).is_ok();
        services.iter().filter(is_named).cloned().collect()
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
