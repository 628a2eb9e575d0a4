//! All policies at one moment, indexed by whom they apply to.

use std::{collections::HashSet, sync::Arc};

use super::{
    AuthorizationPolicy, Connection, Decision, Denial, Mode, PeerAuthentication, PodPolicies, Target,
    peer::{Level, Levels},
    selector::{Pods, Selected, Selection},
    view::View,
};
use crate::mesh::{Service, Workload};

/// All policies at one moment. Immutable; the same `Arc` as long as no policy, and nothing that one targets, changes.
#[derive(Debug, Default)]
pub struct PolicySet {
    /// In the order of their names.
    authorization: Vec<Arc<AuthorizationPolicy>>,
    authorized: Selected,
    /// From the oldest; of those without a selector the oldest of each namespace.
    authentication: Vec<Arc<PeerAuthentication>>,
    authenticated: Selected,
    root: Arc<str>,
}

impl PolicySet {
    /// Indexes policies. `root` is the namespace whose policies are for the whole mesh; `services` are all that a
    /// [`Target::Services`] may name, others do no harm.
    pub fn new(
        mut authorization: Vec<Arc<AuthorizationPolicy>>,
        authentication: Vec<Arc<PeerAuthentication>>,
        root: &str,
        services: &[Arc<Service>],
    ) -> Self {
        authorization.sort_by(|one, other| one.name.cmp(&other.name));
        let authentication = by_age(authentication);
        Self {
            authorized: Selected::new(&authorization_selections(&authorization, root, services)),
            authenticated: Selected::new(&authentication_selections(&authentication, root)),
            authorization,
            authentication,
            root: root.into(),
        }
    }

    /// Returns every AuthorizationPolicy, in the order of their names.
    pub fn authorization(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.authorization
    }

    /// Returns the AuthorizationPolicies that are for a pod, in the order of their names.
    pub fn applicable(&self, workload: &Workload) -> Vec<&AuthorizationPolicy> {
        self.authorized.of(workload).into_iter().map(|at| &*self.authorization[at as usize]).collect()
    }

    /// Returns the PeerAuthentications, without those of which an older one takes the place.
    pub fn authentication(&self) -> &[Arc<PeerAuthentication>] {
        &self.authentication
    }

    /// Returns the PeerAuthentications that a pod's modes come from: the port levels' and the workload's first, then the
    /// namespace's, then the mesh's.
    pub fn authenticating(&self, workload: &Workload) -> impl Iterator<Item = &PeerAuthentication> {
        let Levels { workload, namespace, mesh } = self.levels(workload);
        [workload, namespace, mesh].into_iter().flatten()
    }

    /// Returns the AuthorizationPolicies that are for a pod, to decide on many connections to it.
    pub fn of_pod(&self, workload: &Workload) -> PodPolicies {
        let own = self.authorized.of(workload).into_iter();
        PodPolicies::new(own.map(|at| Arc::clone(&self.authorization[at as usize])).collect())
    }

    /// Decides on a connection to an enrolled pod.
    pub fn authorize(&self, workload: &Workload, connection: &Connection<'_>) -> Decision {
        self.authorize_with(&self.of_pod(workload), workload, connection)
    }

    /// Decides on a connection to an enrolled pod, whose policies [`Self::of_pod`] returned.
    pub fn authorize_with(
        &self,
        own: &PodPolicies,
        workload: &Workload,
        connection: &Connection<'_>,
    ) -> Decision {
        let view = View::of(connection);
        own.decide(&view, &self.authenticate(workload, &view))
    }

    /// Returns whether peers are to send plaintext to the pod's port: its mode is DISABLE.
    pub fn sends_plaintext(&self, workload: &Workload, port: u16) -> bool {
        self.mode(workload, port) == Mode::Disable
    }

    /// Returns the mode of a pod's port: STRICT, PERMISSIVE or DISABLE.
    pub fn mode(&self, workload: &Workload, port: u16) -> Mode {
        self.levels(workload).mode(Some(port)).0
    }

    /// Whether the port takes the connection in the way that it comes.
    fn authenticate(&self, workload: &Workload, view: &View<'_>) -> Result<(), Denial> {
        if view.caller.is_some() {
            return Ok(());
        }
        match self.levels(workload).mode(view.port) {
            (Mode::Strict, Some(policy)) => {
                Err(Denial::Plaintext { policy: policy.name.clone(), readable: policy.is_readable })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn levels(&self, workload: &Workload) -> Levels<'_> {
        let mut levels = Levels::default();
        for at in self.authenticated.of(workload) {
            let policy = &*self.authentication[at as usize];
            let level = match level(policy, &self.root) {
                Level::Mesh => &mut levels.mesh,
                Level::Namespace => &mut levels.namespace,
                Level::Workload | Level::Port => &mut levels.workload,
            };
            // They come from the oldest on.
            level.get_or_insert(policy);
        }
        levels
    }
}

fn level(policy: &PeerAuthentication, root: &str) -> Level {
    match &policy.selector {
        Some(_) => Level::Workload,
        None if *policy.name.namespace == *root => Level::Mesh,
        None => Level::Namespace,
    }
}

/// From the oldest, and without those that never count: of a namespace's without a selector all but the oldest.
fn by_age(mut policies: Vec<Arc<PeerAuthentication>>) -> Vec<Arc<PeerAuthentication>> {
    policies.sort_by(|one, other| one.age().cmp(&other.age()));
    let mut namespaces = HashSet::new();
    policies
        .retain(|policy| policy.selector.is_some() || namespaces.insert(Arc::clone(&policy.name.namespace)));
    policies
}

fn authorization_selections(
    policies: &[Arc<AuthorizationPolicy>],
    root: &str,
    services: &[Arc<Service>],
) -> Vec<Selection> {
    let mut selections = Vec::with_capacity(policies.len());
    for (at, policy) in (0..).zip(policies) {
        let own = &policy.name.namespace;
        let namespace = (**own != *root).then(|| Arc::clone(own));
        let mut select = |namespace, pods| selections.push(Selection { policy: at, namespace, pods });
        match &policy.target {
            Target::All => select(namespace, Pods::All),
            Target::Labels(labels) => select(namespace, Pods::Labels(Arc::new(labels.clone()))),
            Target::Services(names) => {
                let named =
                    |service: &&Arc<Service>| service.namespace == *own && names.contains(&service.name);
                for pods in services.iter().filter(named).flat_map(|service| Pods::behind(service)) {
                    select(Some(Arc::clone(own)), pods);
                }
            }
        }
    }
    selections
}

fn authentication_selections(policies: &[Arc<PeerAuthentication>], root: &str) -> Vec<Selection> {
    let selections = (0..).zip(policies).map(|(at, policy)| {
        let namespace = match level(policy, root) {
            Level::Mesh => None,
            Level::Port | Level::Workload | Level::Namespace => Some(Arc::clone(&policy.name.namespace)),
        };
        let labels = policy.selector.as_ref().map(|labels| Arc::new(labels.clone()));
        Selection { policy: at, namespace, pods: labels.map_or(Pods::All, Pods::Labels) }
    });
    selections.collect()
}
