//! A connection that somebody asks about, in the words that people write: `culvert policy explain`, and policy tests.

mod ends;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::Connection;
use crate::mesh::{Enrollment, Identity, IdentityError, NotEnrolled, PodName, Snapshot, Workload};

pub use ends::{Client, Server};

/// A connection between the two, as it would be in a mesh.
#[derive(Clone, Debug)]
pub struct Query {
    /// The pod that is connected to. It is enrolled.
    pub workload: Arc<Workload>,
    /// The client's address.
    pub source: IpAddr,
    /// Who the client proves to be; none for plaintext.
    pub identity: Option<Identity>,
    /// The address and port that the client asks for.
    pub destination: SocketAddr,
    /// Whether the pod connects to itself.
    pub is_own: bool,
}

/// What decides before any policy is asked.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BeforePolicy {
    /// The pod's traffic to itself is let alone.
    OwnTraffic,
    /// The handshake refuses an identity of another trust domain.
    ForeignTrustDomain,
}

/// Why a question cannot be answered.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum QueryError {
    /// Not in a form that is understood.
    #[error(
        "{0:?} is no client: write namespace/pod, spiffe://…, an address, or one of the first two with @address"
    )]
    Client(String),
    /// Not in a form that is understood.
    #[error("{0:?} is not of the form namespace/pod:port")]
    Server(String),
    /// Not in a form that is understood.
    #[error("{0:?} is not of the form namespace/pod")]
    PodName(String),
    /// Not an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No object says that there is such a pod, or it has ended.
    #[error("there is no pod {0}")]
    UnknownPod(PodName),
    /// No policy is enforced at it.
    #[error("the pod {0} is not enrolled, so that no policy is enforced at it: {1}")]
    NotEnrolled(PodName, NotEnrolled),
    /// It sends plaintext, of which policy sees nothing but the address, and has none.
    #[error("the pod {0} sends plaintext and has no address of its own: say which (ip, or @address)")]
    NoAddress(PodName),
    /// The address is somebody else's.
    #[error("{1} is no address of the pod {0}")]
    NotItsAddress(PodName, IpAddr),
    /// One has IPv4 addresses alone, and the other IPv6.
    #[error("the client has no address of the family of any address of the pod {0}")]
    Family(PodName),
}

/// Where an end may be; empty where nobody has said, and an address that is nobody's stands for it.
struct Whereabouts(Vec<IpAddr>);

impl Query {
    /// Finds out what a connection between the two is like.
    ///
    /// # Errors
    /// Where a pod is unknown, or the destination not enrolled, or the two have no family of addresses in common.
    pub fn resolve(client: &Client, server: &Server, snapshot: &Snapshot) -> Result<Self, QueryError> {
        let workload = find(&server.pod, snapshot)?;
        if let Enrollment::Not(why) = workload.enrollment {
            return Err(QueryError::NotEnrolled(server.pod.clone(), why));
        }
        let targets = Whereabouts::of(workload, server.address)?;
        let (identity, whereabouts) = client.identify(workload, server.port, snapshot)?;
        let (source, destination) =
            whereabouts.meet(&targets).ok_or_else(|| QueryError::Family(server.pod.clone()))?;
        let as_itself = identity.as_ref().is_none_or(|identity| *identity == workload.identity);
        let same_pod = matches!(client, Client::Pod { name, .. } if *name == server.pod);
        Ok(Self {
            is_own: same_pod || (as_itself && workload.addresses.contains(&source)),
            workload: Arc::clone(workload),
            source,
            identity,
            destination: SocketAddr::new(destination, server.port),
        })
    }

    /// Returns the connection as policy sees it.
    pub fn connection(&self) -> Connection<'_> {
        Connection { source: self.source, identity: self.identity.as_ref(), destination: self.destination }
    }

    /// Returns what decides before any policy is asked, if anything does.
    pub fn before_policy(&self) -> Option<BeforePolicy> {
        if self.is_own {
            return Some(BeforePolicy::OwnTraffic);
        }
        // Workloads are of the mesh's one trust domain.
        let domain = self.workload.identity.trust_domain();
        let foreign = self.identity.as_ref().is_some_and(|identity| identity.trust_domain() != domain);
        foreign.then_some(BeforePolicy::ForeignTrustDomain)
    }
}

impl BeforePolicy {
    /// Returns whether the connection is permitted.
    pub fn permits(self) -> bool {
        self == Self::OwnTraffic
    }

    /// Returns the reason, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnTraffic => "a pod's traffic to itself is let alone",
            Self::ForeignTrustDomain => "an identity of another trust domain is refused in the handshake",
        }
    }
}

impl Client {
    /// Who the client proves to be to a port of `workload`, and where it may be.
    fn identify(
        &self,
        workload: &Workload,
        port: u16,
        snapshot: &Snapshot,
    ) -> Result<(Option<Identity>, Whereabouts), QueryError> {
        match self {
            Self::Address(address) => Ok((None, Whereabouts(vec![*address]))),
            Self::Pod { name, address } => {
                let pod = find(name, snapshot)?;
                let secured = pod.enrollment == Enrollment::Enrolled
                    && !snapshot.policies().sends_plaintext(workload, port);
                let whereabouts = Whereabouts::of(pod, *address)?;
                if !secured && whereabouts.0.is_empty() {
                    return Err(QueryError::NoAddress(name.clone()));
                }
                Ok((secured.then(|| pod.identity.clone()), whereabouts))
            }
            Self::Identity { identity, address } => {
                let whereabouts = address.map_or_else(
                    || Whereabouts::of_identity(identity, workload, snapshot),
                    |address| Whereabouts(vec![address]),
                );
                Ok((Some(identity.clone()), whereabouts))
            }
        }
    }
}

impl Whereabouts {
    /// The pod's addresses, or the one of them that is wanted.
    fn of(pod: &Workload, wanted: Option<IpAddr>) -> Result<Self, QueryError> {
        match wanted {
            None => Ok(Self(pod.addresses.clone())),
            Some(address) if pod.addresses.is_empty() || pod.addresses.contains(&address) => {
                Ok(Self(vec![address]))
            }
            Some(address) => {
                let name = PodName { namespace: Arc::clone(&pod.namespace), name: Arc::clone(&pod.name) };
                Err(QueryError::NotItsAddress(name, address))
            }
        }
    }

    /// Where the first enrolled pod of an identity is, but for the one that is connected to.
    fn of_identity(identity: &Identity, target: &Workload, snapshot: &Snapshot) -> Self {
        let mut pods = snapshot.workloads().iter();
        let pod = pods.find(|pod| {
            pod.identity == *identity && pod.enrollment == Enrollment::Enrolled && pod.uid != target.uid
        });
        Self(pod.map(|pod| pod.addresses.clone()).unwrap_or_default())
    }

    /// The first address of the server of whose family the client has one, after that one.
    fn meet(&self, server: &Self) -> Option<(IpAddr, IpAddr)> {
        let nowhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let or_nowhere = |addresses: &[IpAddr]| match addresses {
            [] => nowhere.to_vec(),
            known => known.to_vec(),
        };
        let (clients, servers) = (or_nowhere(&self.0), or_nowhere(&server.0));
        let of_family =
            |target: IpAddr| clients.iter().copied().find(|address| address.is_ipv4() == target.is_ipv4());
        servers.into_iter().find_map(|target| Some((of_family(target)?, target)))
    }
}

fn find<'a>(name: &PodName, snapshot: &'a Snapshot) -> Result<&'a Arc<Workload>, QueryError> {
    let mut pods = snapshot.workloads().iter();
    pods.find(|pod| pod.namespace == name.namespace && pod.name == name.name)
        .ok_or_else(|| QueryError::UnknownPod(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::fixtures::{ip, pod, snapshot};

    fn world() -> Snapshot {
        let outside = Workload {
            enrollment: Enrollment::Not(NotEnrolled::NoLabel),
            ..pod("legacy", &["10.0.0.8", "fd00::8"])
        };
        let on_host = Workload { enrollment: Enrollment::Not(NotEnrolled::HostNetwork), ..pod("host", &[]) };
        let pods = vec![
            pod("front", &["10.0.0.1", "fd00::1"]),
            pod("web", &["fd00::5", "10.0.0.5"]),
            pod("four", &["10.0.0.6"]),
            pod("nowhere", &[]),
            outside,
            on_host,
        ];
        snapshot(pods, vec![])
    }

    /// A question as `identity source destination`, and what decides before policy; or what is wrong with it.
    fn check(from: &str, to: &str, expected: &str) {
        let shown = match answer(from, to) {
            Ok(query) => {
                let identity = query.identity.as_ref().map_or("-", |identity| identity.service_account());
                let before = query.before_policy().map_or("-", BeforePolicy::as_str);
                format!("{identity} {} {} {before}", query.source, query.destination)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected, "{from} to {to}");
    }

    fn answer(from: &str, to: &str) -> Result<Query, QueryError> {
        Query::resolve(&from.parse()?, &to.parse()?, &world())
    }

    #[test]
    fn clients_are_understood() {
        check("shop/front", "shop/web:80", "front fd00::1 [fd00::5]:80 -");
        check("shop/front@10.0.0.1", "shop/web:80", "front 10.0.0.1 10.0.0.5:80 -");
        check("shop/legacy", "shop/four:80", "- 10.0.0.8 10.0.0.6:80 -");
        check("shop/host@192.0.2.1", "shop/four:80", "- 192.0.2.1 10.0.0.6:80 -");
        check("::ffff:192.0.2.1", "shop/web:80", "- 192.0.2.1 10.0.0.5:80 -");
        check("spiffe://cluster.local/ns/shop/sa/front", "shop/four:80", "front 10.0.0.1 10.0.0.6:80 -");
        check(
            "spiffe://cluster.local/ns/shop/sa/front@192.0.2.1",
            "shop/web:80",
            "front 192.0.2.1 10.0.0.5:80 -",
        );
        check("spiffe://cluster.local/ns/shop/sa/nobody", "shop/four:80", "nobody 0.0.0.0 10.0.0.6:80 -");
        check("spiffe://cluster.local/ns/shop/sa/nobody", "shop/web:80", "nobody :: [fd00::5]:80 -");
    }

    #[test]
    fn pods_without_addresses_are_nowhere() {
        check("shop/front", "shop/nowhere:80", "front 10.0.0.1 0.0.0.0:80 -");
        check("fd00::9", "shop/nowhere:80", "- fd00::9 [::]:80 -");
        check("shop/nowhere", "shop/four:80", "nowhere 0.0.0.0 10.0.0.6:80 -");
        check("shop/nowhere", "shop/web:80", "nowhere :: [fd00::5]:80 -");
        let own = "a pod's traffic to itself is let alone";
        check("shop/nowhere", "shop/nowhere:80", &format!("nowhere 0.0.0.0 0.0.0.0:80 {own}"));
    }

    #[test]
    fn an_identity_alone_is_not_the_pod_that_it_connects_to() {
        check("spiffe://cluster.local/ns/shop/sa/four", "shop/four:80", "four 0.0.0.0 10.0.0.6:80 -");
    }

    #[test]
    fn servers_are_understood() {
        check("shop/front", "shop/web@10.0.0.5:80", "front 10.0.0.1 10.0.0.5:80 -");
        check("shop/front", "shop/web@[fd00::5]:80", "front fd00::1 [fd00::5]:80 -");
        check("fd00::9", "shop/web:80", "- fd00::9 [fd00::5]:80 -");
    }

    #[test]
    fn what_decides_before_policy_is_said() {
        let own = "a pod's traffic to itself is let alone";
        check("shop/web", "shop/web:80", &format!("web fd00::5 [fd00::5]:80 {own}"));
        check("10.0.0.5", "shop/web:80", &format!("- 10.0.0.5 10.0.0.5:80 {own}"));
        check("spiffe://cluster.local/ns/shop/sa/web@10.0.0.9", "shop/web:80", "web 10.0.0.9 10.0.0.5:80 -");
        check(
            "spiffe://other.org/ns/shop/sa/web@10.0.0.9",
            "shop/web:80",
            "web 10.0.0.9 10.0.0.5:80 an identity of another trust domain is refused in the handshake",
        );
    }

    #[test]
    fn what_cannot_be_answered_is_explained() {
        check("shop/nobody", "shop/web:80", "there is no pod shop/nobody");
        check("shop/front", "shop/nobody:80", "there is no pod shop/nobody");
        check(
            "shop/front",
            "shop/legacy:80",
            "the pod shop/legacy is not enrolled, so that no policy is enforced at it: neither it nor its namespace has \
             the label culvert.dev/mesh: enabled",
        );
        check(
            "shop/host",
            "shop/web:80",
            "the pod shop/host sends plaintext and has no address of its own: say which (ip, or @address)",
        );
        check("shop/front@10.0.0.2", "shop/web:80", "10.0.0.2 is no address of the pod shop/front");
        check(
            "fd00::9",
            "shop/four:80",
            "the client has no address of the family of any address of the pod shop/four",
        );
        for from in ["", "front", "a/b/c", "shop/", "shop/front@", "shop/front@x"] {
            assert!(matches!(from.parse::<Client>(), Err(QueryError::Client(_))), "{from:?}");
        }
        assert!(matches!("spiffe://x".parse::<Client>(), Err(QueryError::Identity(_))));
        for to in ["", "shop/web", "shop/web:", "shop/web:0", "shop/web:65536", "web:80", "shop/web@x:80"] {
            assert!(matches!(to.parse::<Server>(), Err(QueryError::Server(_))), "{to:?}");
        }
        assert_eq!("10.0.0.1".parse::<Client>(), Ok(Client::Address(ip("10.0.0.1"))));
    }
}
