//! Services by name, for peers that ask for `name.namespace.svc.cluster.local:port` instead of an address.

use std::net::SocketAddr;

use super::{Service, Snapshot, Workload};

impl Service {
    /// Returns the service's name in DNS.
    pub fn hostname(&self) -> String {
        hostname(&self.namespace, &self.name)
    }
}

/// Returns what the service `name` is called in DNS.
pub fn hostname(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}{SUFFIX}")
}

impl Snapshot {
    /// Returns where `authority`, a service's `hostname:port`, leads at `workload`; none where the workload is not
    /// behind that service and port.
    pub fn service_target(&self, authority: &str, workload: &Workload) -> Option<SocketAddr> {
        let (host, port) = authority.rsplit_once(':')?;
        self.named(host)?.at(port.parse().ok()?, workload)
    }
}

/// Kubernetes' default cluster domain.
const SUFFIX: &str = ".svc.cluster.local";

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{
        Snapshot,
        fixtures::{pod, service},
    };

    #[test]
    fn a_service_leads_to_the_pods_behind_it_only() {
        let (web, other) = (pod("web-0", &["10.0.0.5"]), pod("other", &["10.0.0.6"]));
        let pods = vec![Arc::new(web.clone()), Arc::new(other.clone())];
        let snapshot = Snapshot::new(pods, vec![Arc::new(service("10.96.0.1", &["10.0.0.5"]))]);
        let at = |authority, workload| snapshot.service_target(authority, workload);
        assert_eq!(at("web.shop.svc.cluster.local:80", &web), Some("10.0.0.5:8080".parse().unwrap()));
        assert_eq!(at("web.shop.svc.cluster.local:80", &other), None);
        assert_eq!(at("web.shop.svc.cluster.local:81", &web), None);
        assert_eq!(at("web.shop:80", &web), None);
        assert_eq!(at("web.shop.svc.cluster.local", &web), None);
    }
}
