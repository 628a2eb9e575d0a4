//! Manifests of policies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert::{
    control::{Kind, Objects, Readiness, Settings, Source},
    mesh::{Connection, Identity, PlaintextAction, PolicySet, Workload},
};

/// From a manifest's text to decisions on connections to some pods. Nothing panics; no policy is lost without a notice; what
/// the kernel does with plaintext agrees with the policies; and an explanation agrees with the decision.
pub fn policy(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let settings = Settings {
        trust_domain: "cluster.local".parse().expect("a trust domain"),
        root_namespace: "culvert-system".to_owned(),
        readiness: Readiness::Enrollment,
    };
    let mut objects = Objects::new(settings);
    for text in [PODS, text] {
        let source = Source::new("policy.yaml".into(), text.to_owned());
        if objects.read(&source).is_err() {
            return;
        }
    }
    let snapshot = objects.snapshot();
    let policies = snapshot.policies();
    check_that_none_is_lost(&objects, policies);
    for workload in snapshot.workloads() {
        check_plaintext(policies, workload);
        for identity in IDENTITIES {
            let identity: Identity = identity.parse().expect("an identity");
            for source in SOURCES {
                decide(policies, workload, (Some(&identity), source, 80));
            }
        }
    }
}

fn check_that_none_is_lost(objects: &Objects, policies: &PolicySet) {
    for key in objects.keys().filter(|key| key.kind == Kind::AuthorizationPolicy) {
        let in_force = policies.authorization().iter().any(|policy| {
            (&*policy.name.namespace, &*policy.name.name) == (key.namespace.as_str(), key.name.as_str())
        });
        assert!(in_force || objects.notices().any(|(notice, _)| notice.key == *key), "{key} is lost");
    }
}

fn check_plaintext(policies: &PolicySet, workload: &Workload) {
    let plaintext = policies.plaintext(workload);
    assert!(plaintext.ports.len() <= 64, "{plaintext:?}");
    let ports = plaintext.ports.keys().copied().chain([1, 80, 8080, u16::MAX]);
    for port in ports {
        for source in SOURCES {
            let is_permitted = decide(policies, workload, (None, source, port));
            match plaintext.at(port) {
                PlaintextAction::Pass => assert!(is_permitted, "{port} from {source}"),
                PlaintextAction::Refuse => assert!(!is_permitted, "{port} from {source}"),
                PlaintextAction::Inspect => {}
            }
        }
    }
}

/// Returns whether the policies permit a connection, from whom and where to which port.
fn decide(
    policies: &PolicySet,
    workload: &Workload,
    (identity, source, port): (Option<&Identity>, IpAddr, u16),
) -> bool {
    // A pod of the input's own may have no address yet.
    let address = workload.addresses.first().copied().unwrap_or(SOURCES[0]);
    let connection = Connection { source, identity, destination: (address, port).into() };
    let decision = policies.authorize(workload, &connection);
    let explanation = policies.explain(workload, &connection);
    assert_eq!(explanation.verdict.allowed, decision.verdict.is_ok());
    let dry_run = decision.dry_run.map(|dry_run| dry_run.verdict.is_ok());
    assert_eq!(explanation.dry_run.map(|verdict| verdict.allowed), dry_run);
    if let Err(denial) = &decision.verdict {
        assert!(!denial.to_string().contains('\n'), "one line: {denial}");
    }
    decision.verdict.is_ok()
}

const IDENTITIES: [&str; 2] =
    ["spiffe://cluster.local/ns/shop/sa/front", "spiffe://cluster.local/ns/bank/sa/teller"];

const SOURCES: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9)),
];

/// Whom policies can be for, whatever else the input says.
const PODS: &str = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.1}}
- {apiVersion: v1, kind: Pod, metadata: {name: db, namespace: bank, labels: {app: db}}, status: {podIP: 10.0.0.2}}
- {apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {app: web}}}
";
