//! Services, and the endpoints that follow from the pods: what Kubernetes' endpoint controller does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;

use crate::{
    files::Manifests,
    manifest::{EndpointManifest, EndpointSlice, PodManifest, PortManifest, ServiceManifest, Target},
    mesh::{Objects, Shared},
};

/// A service that was applied.
pub struct Service {
    shared: Arc<Shared>,
    manifest: ServiceManifest,
}

/// A service to be applied: in the namespace `default`, with an address of each family.
#[must_use = "a service does nothing until it is applied"]
pub struct ServiceBuilder {
    shared: Arc<Shared>,
    manifest: ServiceManifest,
    headless: bool,
}

impl ServiceBuilder {
    pub(crate) fn new(shared: Arc<Shared>, name: &str) -> Self {
        let manifest =
            ServiceManifest { name: name.to_owned(), namespace: "default".to_owned(), ..Default::default() };
        Self { shared, manifest, headless: false }
    }

    /// The Kubernetes namespace.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.manifest.namespace);
        self
    }

    /// Selects the pods with this label.
    pub fn select(mut self, label: &str, value: &str) -> Self {
        self.manifest.selector.insert(label.to_owned(), value.to_owned());
        self
    }

    /// A port that leads to the number `target`; named after itself (`p80`), since several need names.
    pub fn port(self, port: u16, target: u16) -> Self {
        self.add_port(&format!("p{port}"), port, Target::Number(target))
    }

    /// A port with a name that leads to the container port called `target`.
    pub fn named_port(self, name: &str, port: u16, target: &str) -> Self {
        self.add_port(name, port, Target::Name(target.to_owned()))
    }

    /// The one port, without a name.
    pub fn only_port(self, port: u16, target: u16) -> Self {
        self.add_port("", port, Target::Number(target))
    }

    /// No cluster address: clients connect to the pods.
    pub fn headless(mut self) -> Self {
        self.headless = true;
        self
    }

    /// An external address as well.
    pub fn external_ip(mut self, address: IpAddr) -> Self {
        self.manifest.external.push(address);
        self
    }

    /// `sessionAffinity: ClientIP`.
    pub fn session_affinity(self) -> Self {
        self.spec("sessionAffinity", "ClientIP")
    }

    /// `publishNotReadyAddresses: true`.
    pub fn publish_not_ready(self) -> Self {
        self.spec("publishNotReadyAddresses", "true")
    }

    /// `trafficDistribution`, such as `PreferClose`.
    pub fn traffic_distribution(self, value: &str) -> Self {
        self.spec("trafficDistribution", value)
    }

    /// `internalTrafficPolicy: Local`.
    pub fn local_only(self) -> Self {
        self.spec("internalTrafficPolicy", "Local")
    }

    /// Any other line of `spec`; the value is YAML.
    pub fn spec(mut self, key: &str, value: &str) -> Self {
        self.manifest.spec.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Writes the service and its endpoints.
    pub fn apply(self) -> Result<Service> {
        let Self { shared, mut manifest, headless } = self;
        if !headless {
            let (v4, v6) = shared.service_addresses();
            manifest.addresses = vec![v4, v6];
            manifest.spec.insert("ipFamilies".to_owned(), "[IPv4, IPv6]".to_owned());
        }
        let mut objects = shared.objects();
        shared.manifests.write(&file(&manifest.namespace, &manifest.name), &manifest.to_string())?;
        objects.services.insert((manifest.namespace.clone(), manifest.name.clone()), manifest.clone());
        write_endpoints(&shared.manifests, &mut objects)?;
        drop(objects);
        Ok(Service { shared, manifest })
    }

    fn add_port(mut self, name: &str, port: u16, target: Target) -> Self {
        self.manifest.ports.push(PortManifest { name: name.to_owned(), port, target });
        self
    }
}

impl Service {
    /// Its IPv4 address and `port`.
    ///
    /// # Panics
    /// Where the service is headless.
    pub fn address(&self, port: u16) -> SocketAddr {
        self.with_port(IpAddr::is_ipv4, port)
    }

    /// Its IPv6 address and `port`.
    ///
    /// # Panics
    /// Where the service is headless.
    pub fn address_v6(&self, port: u16) -> SocketAddr {
        self.with_port(IpAddr::is_ipv6, port)
    }

    /// Removes it with its endpoints.
    pub fn delete(self) -> Result<()> {
        let Self { shared, manifest } = self;
        let mut objects = shared.objects();
        objects.services.remove(&(manifest.namespace.clone(), manifest.name.clone()));
        shared.manifests.remove(&file(&manifest.namespace, &manifest.name))?;
        write_endpoints(&shared.manifests, &mut objects)
    }

    fn with_port(&self, family: impl Fn(&IpAddr) -> bool, port: u16) -> SocketAddr {
        let address = self.manifest.addresses.iter().find(|address| family(address));
        let address = address.unwrap_or_else(|| panic!("the service {} is headless", self.manifest.name));
        SocketAddr::new(*address, port)
    }
}

fn file(namespace: &str, name: &str) -> String {
    format!("service-{namespace}-{name}.yaml")
}

/// Brings the EndpointSlices into line with pods and services.
pub(crate) fn write_endpoints(manifests: &Manifests, objects: &mut Objects) -> Result<()> {
    let mut names = Vec::new();
    for service in objects.services.values() {
        for slice in slices(service, objects.pods.values()) {
            let name = format!("endpointslice-{}-{}.yaml", slice.namespace, slice.name);
            manifests.write(&name, &slice.to_string())?;
            names.push(name);
        }
    }
    for old in std::mem::replace(&mut objects.slices, names) {
        if !objects.slices.contains(&old) {
            manifests.remove(&old)?;
        }
    }
    Ok(())
}

/// What the endpoints of one slice have in common: whether they are IPv6, and the ports' numbers.
type Group = (bool, Vec<(String, u16)>);

/// One slice for each family and each set of port numbers, since a named target port may differ from pod to pod.
fn slices<'a>(
    service: &ServiceManifest,
    pods: impl Iterator<Item = &'a PodManifest>,
) -> impl Iterator<Item = EndpointSlice> {
    let mut groups = BTreeMap::<Group, Vec<EndpointManifest>>::new();
    for pod in pods.filter(|pod| pod.is_alive() && service.selects(pod)) {
        let ports = resolve(&service.ports, pod);
        for address in &pod.addresses {
            groups.entry((address.is_ipv6(), ports.clone())).or_default().push(EndpointManifest {
                address: *address,
                ready: pod.ready,
                node: pod.node.clone(),
                pod: pod.name.clone(),
            });
        }
    }
    let (namespace, name) = (service.namespace.clone(), service.name.clone());
    groups.into_iter().zip(1..).map(move |(((_, ports), endpoints), number)| EndpointSlice {
        name: format!("{name}-{number}"),
        namespace: namespace.clone(),
        service: name.clone(),
        ports,
        endpoints,
    })
}

/// The numbers of a service's ports in this pod; a name that the pod does not have is left out.
fn resolve(ports: &[PortManifest], pod: &PodManifest) -> Vec<(String, u16)> {
    ports
        .iter()
        .filter_map(|port| {
            let number = match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(name) => {
                    pod.ports.iter().find(|(has, _)| has == name).map(|(_, number)| *number)
                }
            };
            number.map(|number| (port.name.clone(), number))
        })
        .collect()
}
