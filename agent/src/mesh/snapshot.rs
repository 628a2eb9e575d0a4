//! An immutable view of the whole mesh, with the indexes that routing and enrolment need.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::{Service, Workload};

/// All workloads and services at one moment. Built by `control`, shared behind an `Arc`, never changed.
#[derive(Debug, Default)]
pub struct Snapshot {
    workloads: Vec<Arc<Workload>>,
    services: Vec<Arc<Service>>,
    by_address: HashMap<IpAddr, ()>,
}

/// What the kernel does with a connection of an enrolled pod to an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// Redirect it to the agent.
    Capture,
    /// Refuse it at once, with ECONNREFUSED: a service without any ready endpoint.
    Refuse,
    /// Known, and not in the mesh: leave it alone, also inside a configured pod range.
    Pass,
}

impl Snapshot {
    /// Indexes workloads and services.
    pub fn new(workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>) -> Self {
        Self { workloads, services, by_address: HashMap::new() }
    }

    /// Returns all workloads.
    pub fn workloads(&self) -> &[Arc<Workload>] {
        &self.workloads
    }

    /// Returns all services.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// Returns the one live workload that has the address; none where nobody or more than one has.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        todo!("{address} {:?}", self.by_address)
    }

    /// Returns the workloads of a node, enrolled or not.
    pub fn on_node<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.workloads.iter().filter(move |workload| &*workload.node == node)
    }

    /// Returns what the kernel is to do with each address that anybody has (see [`Destination`]).
    pub fn destinations(&self) -> HashMap<IpAddr, Destination> {
        todo!()
    }
}
