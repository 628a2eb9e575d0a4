//! Which pods a policy is for, and the policies of a pod without a look at the others.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use crate::mesh::{Endpoint, Labels, Service, Workload};

/// The pods that a policy is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// All of its namespace; in the root namespace, all of the mesh.
    All,
    /// Those of its namespace that have all of the labels, of which there is one at least; in the root namespace, those of
    /// the mesh.
    Labels(Labels),
    /// Those of its namespace that stand behind one of these services of its namespace.
    Services(Vec<Arc<str>>),
}

/// Policies by the pods that they are for. A policy is its place in a list.
#[derive(Debug, Default)]
pub(super) struct Selected {
    everywhere: Group,
    namespaces: HashMap<Arc<str>, Group>,
}

/// One policy and one way in which it selects pods.
#[derive(Debug)]
pub(super) struct Selection {
    pub(super) policy: u32,
    /// None: of every namespace.
    pub(super) namespace: Option<Arc<str>>,
    pub(super) pods: Pods,
}

/// What pods must have.
#[derive(Clone, Debug)]
pub(super) enum Pods {
    All,
    Labels(Arc<Labels>),
    Name(Arc<str>),
    Address(IpAddr),
}

#[derive(Debug, Default)]
struct Group {
    all: Vec<u32>,
    /// By one of their labels, the one that the fewest want: its key, then its value.
    labels: HashMap<String, HashMap<String, Vec<Selecting>>>,
    names: HashMap<Arc<str>, Vec<u32>>,
    addresses: HashMap<IpAddr, Vec<u32>>,
}

/// A policy, and all the labels that it wants.
type Selecting = (u32, Arc<Labels>);

impl Pods {
    /// The pods behind a service: those that its selector selects, and where it has none, those that its endpoints name.
    pub(super) fn behind(service: &Service) -> Vec<Self> {
        if !service.selector.is_empty() {
            return vec![Self::Labels(Arc::new(service.selector.clone()))];
        }
        service.endpoints.iter().filter_map(|endpoint| Self::at(endpoint, service)).collect()
    }

    fn at(endpoint: &Endpoint, service: &Service) -> Option<Self> {
        match &endpoint.pod {
            None => Some(Self::Address(endpoint.address)),
            Some(pod) => (pod.namespace == service.namespace).then(|| Self::Name(Arc::clone(&pod.name))),
        }
    }
}

impl Selected {
    pub(super) fn new(selections: &[Selection]) -> Self {
        let wanted = Wanted::count(selections);
        let mut selected = Self::default();
        for Selection { policy, namespace, pods } in selections {
            let group = match namespace {
                None => &mut selected.everywhere,
                Some(namespace) => selected.namespaces.entry(Arc::clone(namespace)).or_default(),
            };
            match pods {
                Pods::All => group.all.push(*policy),
                Pods::Name(name) => group.names.entry(Arc::clone(name)).or_default().push(*policy),
                Pods::Address(address) => group.addresses.entry(*address).or_default().push(*policy),
                Pods::Labels(labels) => match wanted.rarest(labels) {
                    Some((key, value)) => {
                        let values = group.labels.entry(key.to_owned()).or_default();
                        values.entry(value.to_owned()).or_default().push((*policy, Arc::clone(labels)));
                    }
                    // Whoever has all of no labels.
                    None => group.all.push(*policy),
                },
            }
        }
        selected
    }

    /// Returns the policies that are for the workload, in their order, without repetition.
    pub(super) fn of(&self, workload: &Workload) -> Vec<u32> {
        let mut policies = Vec::new();
        self.everywhere.add(workload, &mut policies);
        if let Some(group) = self.namespaces.get(&workload.namespace) {
            group.add(workload, &mut policies);
        }
        policies.sort_unstable();
        policies.dedup();
        policies
    }
}

impl Group {
    fn add(&self, workload: &Workload, policies: &mut Vec<u32>) {
        let Self { all, labels, names, addresses } = self;
        policies.extend(all);
        policies.extend(names.get(&workload.name).into_iter().flatten());
        if !addresses.is_empty() {
            let own = workload.addresses.iter().filter_map(|address| addresses.get(address));
            policies.extend(own.flatten());
        }
        if labels.is_empty() {
            return;
        }
        let candidates = workload.labels.iter().filter_map(|(key, value)| labels.get(key)?.get(value));
        let selecting = candidates.flatten().filter(|(_, wanted)| has_all(&workload.labels, wanted));
        policies.extend(selecting.map(|(policy, _)| *policy));
    }
}

/// How many selections want each label.
struct Wanted<'a>(HashMap<(&'a str, &'a str), u32>);

impl<'a> Wanted<'a> {
    fn count(selections: &'a [Selection]) -> Self {
        let mut counts = HashMap::new();
        for selection in selections {
            let Pods::Labels(labels) = &selection.pods else { continue };
            for (key, value) in &**labels {
                *counts.entry((key.as_str(), value.as_str())).or_default() += 1;
            }
        }
        Self(counts)
    }

    fn rarest<'b>(&self, labels: &'b Labels) -> Option<(&'b str, &'b str)> {
        let labels = labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        labels.min_by_key(|label| self.0.get(label))
    }
}

fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
